"""A run as its folder tells of it, while it goes on or when it is over."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, ValidationError, model_validator

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.files import check_regular_file, read_json, write_text
from profit_sft.runs.figures import Logs, is_finite, warnings_in

METRICS_FILE = "metrics.jsonl"
ABOUT_FILE = "run.json"
ROWS_FILE = "rows.json"
PAGE = "report.html"
END = "train_runtime"  # the key of the log with which a training ends, or stops
PACKAGES = ("profit-sft", "torch", "transformers", "trl", "datasets", "peft")  # whose versions a run tells


class _FromFile(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class About(_FromFile):
    """`run.json`: what a run is, and how its last session started; `started` in seconds since 1970."""

    facts: dict[str, str] = {}
    command: list[str] = []
    versions: dict[str, str] = {}
    started: NonNegativeFloat | None = None
    start_step: NonNegativeInt = 0
    max_steps: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class RowSide(_FromFile):
    """What a model thought of a row: of each token its probability, None where it is no label, and its weight."""

    p: list[float | None]
    w: list[float | None]
    nll: float | None


class ShownRow(_FromFile):
    """A training row, token by token."""

    row: int
    tokens: list[str]
    start: RowSide
    now: RowSide

    @model_validator(mode="after")
    def _a_value_each(self) -> "ShownRow":
        if {len(values) for side in (self.start, self.now) for values in (side.p, side.w)} - {len(self.tokens)}:
            raise ValueError(f"p and w do not have one value for each of the {len(self.tokens)} tokens")
        return self


class ShownRows(_FromFile):
    """`rows.json`: a few training rows at the start of a run and as they were measured last."""

    step: NonNegativeInt
    rows: list[ShownRow]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What the files of a run say.

    Attributes:
        folder: Where they lie.
        about: `run.json`; for a run of an earlier version one that says nothing.
        logs: The lines of metrics.jsonl.
        rows: `rows.json`. None: none were looked at.
        checkpoints: Steps of the checkpoints that are there.
        updated: When the last line was logged, seconds since 1970.
    """

    folder: Path
    about: About
    logs: Logs
    rows: ShownRows | None
    checkpoints: tuple[int, ...]
    updated: float

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def facts(self) -> Mapping[str, str]:
        """Model, objective, data and so on, in words."""
        return self.about.facts

    @property
    def step(self) -> int:
        """Optimizer steps done at the last log."""
        return max((int(log["step"]) for log in self.logs), default=0)

    @property
    def max_steps(self) -> int | None:
        """Optimizer steps of the whole run; None: not known."""
        return self.about.max_steps

    @property
    def has_ended(self) -> bool:
        """Whether the trainer has come to its end, that of a stop included."""
        return self._end is not None

    @property
    def _end(self) -> Mapping[str, Any] | None:
        """The log of the end. That of a stop is none once a resumed run has logged later steps."""
        return next((log for log in reversed(self.logs) if END in log and log["step"] == self.step), None)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the pace of this session; None: nothing to go by, or nothing left."""
        done = self.step - self.about.start_step
        if self.has_ended or self.max_steps is None or self.about.started is None:
            return None
        seconds = self.updated - self.about.started
        if done <= 0 or seconds < 0:  # a clock that was set back tells no pace
            return None
        return seconds / done * max(0, self.max_steps - self.step)

    @property
    def warnings(self) -> list[tuple[int, str]]:
        """Step and text of each warning."""
        return warnings_in(self.logs)

    @property
    def standing(self) -> str:
        """How far it has come, in words."""
        of = f" of {self.max_steps:,}" if self.max_steps else ""
        if self._end is None:
            left = f", {duration(self.seconds_left)} left" if self.seconds_left is not None else ""
            return f"Step {self.step:,}{of}{left}"
        seconds = float(self._end[END])
        word = "Stopped at" if self.max_steps and self.step < self.max_steps else "Done:"
        return f"{word} step {self.step:,}{of}, {duration(seconds)}"


def duration(seconds: float) -> str:
    """Return a time in the words of a display.

    Example:
        >>> duration(42), duration(3 * 60 + 5), duration(2 * 3600 + 60)
        ('42 s', '3 min 5 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def read_run(folder: str | Path) -> RunRecord:
    """Read a run's folder. A line that is torn, or still being written, is left out.

    Raises:
        ConfigurationError: There is no run.
        DataError: A file is damaged.
    """
    folder = Path(folder)
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ConfigurationError(
            f"'{folder}' is no run: it has no {METRICS_FILE}. Name the --output_dir of a `profit train` that has begun."
        )
    return RunRecord(
        folder=folder,
        about=_read(folder / ABOUT_FILE, About) or About(),
        logs=read_metrics(folder),
        rows=read_rows(folder),
        checkpoints=tuple(sorted(map(step_number, checkpoints(folder)))),
        updated=path.stat().st_mtime,
    )


def checkpoints(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, whole or not, that of the latest step first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and is_checkpoint(path)]
    return sorted(found, key=step_number, reverse=True)


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is called as checkpoints are."""
    before, _, number = folder.name.partition("-")
    return before == "checkpoint" and number.isdecimal()


def step_number(checkpoint: Path) -> int:
    """Return the step a checkpoint was written after, from its name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def as_json(value: Any) -> Any:
    """Return a log, or a part of one, as JSON takes it: without NaN and infinity, which become None."""
    if isinstance(value, Mapping):
        return {name: as_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(log: Mapping[str, Any]) -> str:
    return json.dumps(as_json(log), allow_nan=False) + "\n"


def write_metrics(folder: Path, logs: Iterable[Mapping[str, Any]]) -> None:
    """Write a run folder's `metrics.jsonl` anew, a line a log."""
    write_text(folder / METRICS_FILE, "".join(map(_line, logs)))


def append_metrics(folder: Path, log: Mapping[str, Any]) -> None:
    """Append a log as a line; the folder need not be there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS_FILE).open("a", encoding="utf-8") as lines:
        lines.write(_line(log))


def read_metrics(folder: Path, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Return the logs in a run folder's `metrics.jsonl`, none where there is no file.

    Args:
        folder: The run folder.
        say: Called with a text for a line that is left out, as a run leaves it torn that is killed while it writes it.
    """
    path = folder / METRICS_FILE
    check_regular_file(path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not is_finite(entry.get("step")) or not is_finite(entry.get(END, 0)):
            say(f"'{path}', line {number} is torn or no log, and is left out.")
            continue
        found.append(entry)
    return found


def read_rows(folder: Path) -> ShownRows | None:
    """Return a run folder's `rows.json`; None where there is none.

    Raises:
        DataError: It is damaged.
    """
    return _read(folder / ROWS_FILE, ShownRows)


_Content = TypeVar("_Content", bound=_FromFile)


def _read(path: Path, kind: type[_Content]) -> _Content | None:
    """Return what a file of the run says; None where there is none."""
    if not path.exists():
        return None
    fix = "Delete it; the page does without."
    try:
        return kind.model_validate(as_json(read_json(path, fix)))
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"]))
        raise DataError(f"'{path}': {place or 'its content'}: {wrong['msg']}. {fix}") from None
