"""Child processes of a study: output to a log file, stopped on request, and never outliving the study.

    python -m profit_sft.study.processes LOCK_FILE MODULE [ARGUMENTS]

is such a child.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from profit_sft.errors import explained
from profit_sft.interrupts import stop_with_parent

_LOCK = "child.lock"  # beside the log
_POLL_SECONDS = 0.2


class Interrupted(Exception):
    """The study was asked to stop; the child has stopped."""


class StopRequest:
    """Set by a signal; looked at by whoever waits for a child.

    Attributes:
        signal_number: The signal that asked, or None.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._times = 0
        self._event = threading.Event()

    def ask(self, number: int | None = None) -> None:
        """Ask every child to stop; the second time, kill them."""
        self.signal_number = self.signal_number or number
        self._times += 1
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most until somebody asks to stop; say whether somebody has."""
        return self._event.wait(seconds)

    @property
    def asked(self) -> bool:
        """True once somebody has asked."""
        return self._event.is_set()

    @property
    def urgent(self) -> bool:
        """True once somebody has asked twice."""
        return self._times > 1


def run_child(
    arguments: Sequence[str],
    log_file: Path,
    *,
    stop: StopRequest,
    started: Callable[[int], None] = lambda pid: None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run `python -m` with these arguments and return its exit status. One child runs at a time for a log's folder.

    Args:
        arguments: Module and arguments.
        log_file: Its output is appended here.
        stop: When asked, the child gets SIGTERM, at which a training run saves a checkpoint; when asked twice, SIGKILL.
        started: Called with the child's process id.
        environment: Variables set for the child.

    Raises:
        Interrupted: `stop` was asked.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __name__, str(log_file.with_name(_LOCK)), *arguments]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C on the terminal is for the study, which passes it on as SIGTERM
        )
        assert process.stdin is not None
        with process.stdin:
            started(process.pid)
            status = _wait(process, stop)
    if stop.asked:
        raise Interrupted
    return status


def _wait(process: "subprocess.Popen[bytes]", stop: StopRequest) -> int:
    sent: int | None = None
    while True:
        try:
            return process.wait(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            wanted = signal.SIGKILL if stop.urgent else signal.SIGTERM if stop.asked else None
            if wanted is not None and wanted != sent:
                process.send_signal(wanted)
                sent = wanted


def wait_for_earlier_child(folder: Path, *, stop: StopRequest) -> None:
    """Wait until the child of an earlier parent, which may still be saving a checkpoint, has ended.

    Args:
        folder: Where it keeps its log.
        stop: Ends the waiting, not that child.

    Raises:
        Interrupted: `stop` was asked.
    """
    lock = FileLock(folder / _LOCK)
    while True:
        try:
            lock.acquire(timeout=0)
            lock.release()
            return
        except Timeout:
            if stop.wait(_POLL_SECONDS):
                raise Interrupted from None


def log_tail(log_file: Path, lines: int = 8) -> str:
    """Return the last lines a child wrote, for an error message."""
    text = log_file.read_text(encoding="utf-8", errors="replace") if log_file.exists() else ""
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-lines:])


def planned_ranks(settings: Mapping[str, Any]) -> int:
    """Return how many processes a run with these settings trains in."""
    if settings.get("accelerate_config") is None:
        return 1
    from profit_sft.train.engine import planned_engine  # brings the trainer, which few studies need for it

    return planned_engine(settings["accelerate_config"], settings.get("num_processes")).ranks


def main() -> None:
    """Be a child: become a module as `python -m` would, and stop when the process that started this one dies.

    It stops as at SIGTERM, so that `profit train` saves a checkpoint and everything else ends. The next child waits for
    the lock, which this one holds as long as it lives.
    """
    stop_with_parent()
    lock_file, *sys.argv = sys.argv[1:]
    try:
        with FileLock(lock_file):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except Exception as error:
        told = explained(error)
        if told is None:
            raise
        sys.exit(f"error: {told}")


if __name__ == "__main__":
    main()
