"""Faults that are injected, what became of each, and the table that the campaign reports."""

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from profit_sft.cli.app import run_app

HANG_SECONDS = 10


@dataclass
class Tally:
    """What was injected, by kind of fault, and what a command did wrong about it."""

    injected: Counter[str] = field(default_factory=Counter)
    defects: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, name: str, defect: str | None) -> None:
        """Count a fault; `defect` says what went wrong, None that it was survived."""
        self.injected[kind] += 1
        if defect is not None:
            self.defects.setdefault(kind, []).append(f"{name}: {defect}")

    def lines(self) -> Iterator[str]:
        """Yield the table, and each defect."""
        yield f"{'fault':<34}{'injected':>10}{'survived':>10}{'defects':>10}"
        for kind, injected in sorted(self.injected.items()):
            defects = len(self.defects.get(kind, ()))
            yield f"{kind:<34}{injected:>10}{injected - defects:>10}{defects:>10}"
        for kind, defects in sorted(self.defects.items()):
            yield from (f"{kind}: {defect}" for defect in defects)


TALLY = Tally()  # of the session


class Hung(BaseException):
    """A command has not ended in time. No `Exception`, which a command would tell as its own."""


@contextmanager
def no_hang(seconds: int = HANG_SECONDS) -> Iterator[None]:
    """Raise `Hung` where the body takes longer."""

    def stop(number: int, frame: object) -> None:
        raise Hung

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file there with size and time; of links what they are."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


def refusal(arguments: Sequence[str], capsys, *, writes_to: Path, is_harmless: bool = False) -> str | None:
    """Run a command that is to refuse something before it writes; return what it does wrong, None if nothing.

    Args:
        arguments: After `profit`.
        capsys: Of pytest.
        writes_to: The folder that must be as it was.
        is_harmless: What was injected does no harm, and is not to be refused.
    """
    before = files_in(writes_to)
    status, defect = ended(arguments, capsys)
    if status == 0:
        return None if is_harmless else "accepted without a word"
    if defect is None and is_harmless:
        return "refused, and does no harm"
    written = files_in(writes_to)
    return defect if written == before else f"wrote {sorted(set(written) ^ set(before))[:3] or 'over a file'}"


def ended(arguments: Sequence[str], capsys) -> tuple[int | None, str | None]:
    """Run a command in this process; return its status, and what is wrong about how it ends, None if nothing.

    It must end within ten seconds, with status 0, or 1 or 2 and one line that begins with `error:`, the last on stderr.

    Args:
        arguments: After `profit`.
        capsys: Of pytest.
    """
    capsys.readouterr()
    try:
        with no_hang():
            status = run_app(list(arguments))
    except Hung:
        return None, f"hung for {HANG_SECONDS} s"
    except Exception as error:
        return None, f"traceback: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return status, ended_wrong(status, capsys.readouterr().err)


def ended_wrong(status: int, err: str) -> str | None:
    """Return what is wrong about a status and what stands on stderr, None if nothing."""
    if "Traceback" in err:
        return f"traceback on stderr: {err.strip().splitlines()[-1]}"
    if status == 0:
        return None
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if status not in (1, 2) or len(errors) != 1:
        return f"status {status} with {len(errors)} messages: {err[-300:]!r}"
    if err.splitlines()[-1] != errors[0]:
        return f"more than a line: {err[-300:]!r}"
    if len(errors[0]) > 4100:
        return f"a message of {len(errors[0])} characters"
    if not any(character.isalpha() for character in errors[0].removeprefix("error: ")):
        return f"says nothing: {errors[0]!r}"
    return None


def report(kind: str, found: dict[str, str | None]) -> None:
    """Count faults, and fail with all that are defects."""
    for name, defect in found.items():
        TALLY.note(kind, name, defect)
    defects = [f"{name}: {defect}" for name, defect in found.items() if defect is not None]
    assert not defects, f"{len(defects)} of {len(found)}:\n" + "\n".join(defects)
