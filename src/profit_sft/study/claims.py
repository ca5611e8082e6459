"""Claims on a folder: of several processes, on one machine or on several that share a disk, one works there.

    FOLDER/claims/0001.json       made with O_EXCL, so by exactly one process; its mtime is the heartbeat
    FOLDER/claims/0001.released   the holder is done with it
    FOLDER/claims/0002.json       the next one; only made when 0001 is released or has gone stale

A number is never used twice, so two processes that both find a claim stale cannot both take it over: one of them makes
the next file. The files stay as a record of who worked on the folder, and how often.
"""

import json
import os
import signal
import socket
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from profit_sft.files import write_text

HEARTBEAT_SECONDS = 10.0
# A holder on another machine is given up after this long without a heartbeat; one on this machine when it is dead.
STALE_SECONDS = 300.0


class ClaimLost(Exception):
    """Another process has taken the claim over: this one's heartbeat had stopped for too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds a claim.

    Attributes:
        number: The claim's number; the first is 1.
        host: Machine it runs on.
        pid: Its process.
        child_pid: The process that does the work for it, which may outlive it by a moment.
    """

    number: int
    host: str
    pid: int
    child_pid: int | None


class Claim:
    """A claim that is held. Use as a context manager: it beats while inside, and is released at the end."""

    def __init__(self, folder: Path, number: int, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.number = number
        self._path = _claim_file(folder, number)
        self._next = _claim_file(folder, number + 1)
        self._released = self._path.with_suffix(".released")
        self._seconds = heartbeat_seconds
        self._done = threading.Event()
        self._child_pid: int | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Claim":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._released.touch()

    def working(self, child_pid: int) -> None:
        """Record the process that does the work. It is killed should another process take the claim over."""
        self._child_pid = child_pid
        if not self.lost:
            write_text(self._path, _content(child_pid))

    @property
    def lost(self) -> bool:
        """True once another process has taken the claim over, taking this one for dead."""
        return self._next.exists()

    def _beat(self) -> None:
        while not self._done.wait(self._seconds):
            if not self.lost:
                os.utime(self._path)
            elif self._child_pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self._child_pid, signal.SIGKILL)
                return


def try_claim(
    folder: Path, *, stale_seconds: float = STALE_SECONDS, heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> Claim | None:
    """Claim `folder`, or return None because a living process holds it.

    Args:
        folder: The folder; made if absent.
        stale_seconds: Age of the last heartbeat at which its holder is given up.
        heartbeat_seconds: How often to beat, a fraction of `stale_seconds`.
    """
    (folder / "claims").mkdir(parents=True, exist_ok=True)
    last = _last_number(folder)
    if _living_holder(folder, last, stale_seconds) is not None:
        return None
    # The next after the one looked at, not after whatever is the last by now: that one may be alive.
    number = last + 1
    try:
        _create(_claim_file(folder, number))
    except FileExistsError:
        return None
    return Claim(folder, number, heartbeat_seconds=heartbeat_seconds)


def current_holder(folder: Path, *, stale_seconds: float = STALE_SECONDS) -> Holder | None:
    """Return who holds `folder` and is alive, or None."""
    return _living_holder(folder, _last_number(folder), stale_seconds)


def _living_holder(folder: Path, number: int, stale_seconds: float) -> Holder | None:
    path = _claim_file(folder, number)
    if number == 0 or path.with_suffix(".released").exists():
        return None
    holder = _read(path, number)
    if _filesystem_now(path.parent) - path.stat().st_mtime > stale_seconds:
        return None
    if holder.host == socket.gethostname() and not (_alive(holder.pid) or _alive(holder.child_pid)):
        return None
    return holder


def attempts(folder: Path) -> int:
    """Return how many claims there have been on `folder`."""
    return _last_number(folder)


def _claim_file(folder: Path, number: int) -> Path:
    return folder / "claims" / f"{number:04d}.json"


def _last_number(folder: Path) -> int:
    return max((int(path.stem) for path in (folder / "claims").glob("[0-9]*.json")), default=0)


def _content(child_pid: int | None) -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "child_pid": child_pid})


def _create(path: Path) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "w", encoding="utf-8") as text:
        text.write(_content(None))


def _read(path: Path, number: int) -> Holder:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # made this instant and not yet written; only its age can tell
        return Holder(number=number, host="", pid=0, child_pid=None)
    return Holder(number=number, host=found["host"], pid=found["pid"], child_pid=found["child_pid"])


def _filesystem_now(folder: Path) -> float:
    """Return the time by the clock that stamps files, which on a network disk need not be this machine's."""
    handle, probe = tempfile.mkstemp(prefix=".now.", dir=folder)
    os.close(handle)
    now = os.stat(probe).st_mtime
    os.unlink(probe)
    return now


def _alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
