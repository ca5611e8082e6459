"""Whether two formulas are equal, by math-verify in a process of its own with a deadline."""

import json
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
_DEADLINE_SECONDS = 20.0  # math-verify's own limits in the worker end far sooner, unless C code is stuck
_START_SECONDS = 120.0  # to import sympy on a busy machine with cold disks


class MathJudge:
    r"""Compares formulas; works from any thread. The process starts with the first comparison.

    Args:
        deadline_seconds: Longest time one comparison may take.

    Example:
        >>> with MathJudge() as judge:
        ...     judge.equal(r"$\frac{1}{2}$", ["$0.5$"]), judge.equal("$2$", ["$3$"])
        (True, False)
    """

    def __init__(self, *, deadline_seconds: float = _DEADLINE_SECONDS) -> None:
        self._deadline_seconds = deadline_seconds
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
            None if that could not be found out before the deadline or within the worker's memory.
        """
        with self._lock:
            fresh = self._process is None or self._process.poll() is not None
            process = self._start() if fresh else self._process
            assert process is not None
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"expected": expected, "answers": list(answers)}) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=self._deadline_seconds + (_START_SECONDS if fresh else 0.0))
            except (OSError, queue.Empty):
                line = ""
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
            [sys.executable, "-W", "ignore", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
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
