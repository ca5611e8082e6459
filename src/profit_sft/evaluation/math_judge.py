"""Whether two formulas are equal, by math-verify in a process of its own with a limit of processor time."""

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

_WORKER = Path(__file__).with_name("math_worker.py")
_CPU_SECONDS = 10  # the slowest comparison with a reference answer of MATH-500 takes a tenth
# Where there are no limits of processor time. Nothing is called wrong for it, so it may be short.
_WALL_SECONDS = None if os.name == "posix" else 60.0


class MathJudge:
    r"""Compares formulas; works from any thread. The process starts with the first comparison.

    Args:
        cpu_seconds: Processor time one comparison may take. Wall-clock time is not limited, so that a verdict does not
            depend on what else the machine does.

    Example:
        >>> with MathJudge() as judge:
        ...     judge.equal(r"$\frac{1}{2}$", ["$0.5$"]), judge.equal("$2$", ["$3$"])
        (True, False)
    """

    def __init__(self, *, cpu_seconds: int = _CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

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
        with self._lock:
            fresh = self._process is None or self._process.poll() is not None
            process = self._start() if fresh else self._process
            assert process is not None
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"expected": expected, "answers": list(answers)}) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=_WALL_SECONDS)
            except (OSError, queue.Empty):
                line = ""
            except BaseException:  # Ctrl-C: the answer to this question would be taken for that to the next
                self._stop()
                raise
            if not line:
                self._stop()
                return None
            return bool(json.loads(line))

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _start(self) -> "subprocess.Popen[str]":
        self._stop()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(_WORKER), str(self._cpu_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",
            },  # sympy goes through sets, whose order decides what it tries first
            text=True,
            encoding="utf-8",
        )
        self._process, self._lines = process, queue.SimpleQueue()
        assert process.stdout is not None
        # A thread, since a pipe cannot be read with a deadline on every system. An empty line says that it ended.
        threading.Thread(target=_forward, args=(process.stdout, self._lines), daemon=True).start()
        return process

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was still to be written has no reader any more
                pipe.close()
        self._process = None


def _forward(pipe: IO[str], lines: "queue.SimpleQueue[str]") -> None:
    with suppress(ValueError):  # closed by _stop
        for line in pipe:
            lines.put(line)
    lines.put("")
