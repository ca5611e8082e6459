"""Whether two formulas are equal, by math-verify in a process of its own with a limit of processor time."""

import importlib.util
from collections.abc import Sequence
from types import TracebackType

from profit_sft.evaluation.limited import CPU_SECONDS, LimitedProcess


class MathJudge:
    r"""Compares formulas; works from any thread. The process starts with the first comparison.

    Args:
        cpu_seconds: Processor time one comparison may take; the slowest with a reference answer of MATH-500 takes a
            tenth of a second.

    Attributes:
        worker: The process.

    Example:
        >>> with MathJudge() as judge:
        ...     judge.equal(r"$\frac{1}{2}$", ["$0.5$"]), judge.equal("$2$", ["$3$"])
        (True, False)
    """

    def __init__(self, *, cpu_seconds: int = CPU_SECONDS) -> None:
        self.worker = LimitedProcess("math_worker.py", cpu_seconds=cpu_seconds)

    def __enter__(self) -> "MathJudge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def equal(self, expected: str, answers: Sequence[str]) -> bool | None:
        r"""Say whether any of the answers equals the expected one.

        Args:
            expected: Text with one formula, in LaTeX between dollars or in `\boxed{}`, or plain.
            answers: Texts likewise; ways to read one answer.

        Returns:
            None if that could not be found out within the worker's processor time and memory, or math-verify is not
            installed.
        """
        if importlib.util.find_spec("math_verify") is None:
            return None
        found = self.worker.ask({"expected": expected, "answers": list(answers)})
        return None if found is None else bool(found)

    def close(self) -> None:
        """End the process."""
        self.worker.close()
