"""The figures of a training's logs: what each is called, how it is written, its course, and how it began and ended."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Logs = Sequence[Mapping[str, Any]]  # `TrainerState.log_history`, or the lines of metrics.jsonl
Points = list[tuple[int, float | None]]  # step and value; None where it was not finite

WARNING = "warning"  # the key of a log that holds a warning's text
MOST_POINTS = 400  # of a curve on a page; more are averaged


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a log.

    Attributes:
        name: Its key in the logs.
        title: What people call it, with its unit.
        short: The same where there is little room.
        form: `share`, `count`, `tiny` or `number`.
    """

    name: str
    title: str
    short: str
    form: str = "number"

    def text(self, value: float | None) -> str:
        """Return a value as text.

        Example:
            >>> Metric("kept_share", "Kept share", "kept", "share").text(0.6431)
            '64.3%'
        """
        if value is None or not math.isfinite(value):
            return "not finite"
        if self.form == "share":
            return f"{100 * value:.1f}%"
        if self.form == "count":
            return f"{value:,.0f}"
        return f"{value:.2e}" if self.form == "tiny" else f"{value:.4g}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", "Loss that is minimized, nats a token", "loss"),
        Metric("probe_nll", "Plain NLL of the same rows again and again, nats a token", "NLL, same rows"),
        Metric("nll", "Plain NLL of the training batches, nats a token", "NLL, batches"),
        Metric("eval_loss", "Plain NLL of the evaluation data, nats a token", "NLL, evaluation"),
        Metric("kept_share", "Kept share of label tokens", "kept", "share"),
        Metric("mean_p_kept", "Mean p of kept tokens", "p kept", "share"),
        Metric("mean_p_masked", "Mean p of masked tokens", "p masked", "share"),
        Metric("mean_token_accuracy", "Label tokens that are the likeliest", "token accuracy", "share"),
        Metric("grad_norm", "Gradient norm, before clipping", "gradient norm"),
        Metric("learning_rate", "Learning rate", "learning rate", "tiny"),
        Metric("tokens_per_second", "Tokens a second", "tokens/s", "count"),
        Metric("memory_gib", "Memory of the first rank, GiB", "memory, GiB"),
        Metric("probe_loss", "The objective's loss of the same rows, nats a token", "loss, same rows"),
        Metric("entropy", "Entropy of the predictions, nats", "entropy"),
    )
}
# The charts of a single run: what is of one unit and belongs together shares one.
CHARTS = (
    ("Loss that is minimized, nats a token", ("loss",)),
    ("Plain NLL, nats a token", ("probe_nll", "nll", "eval_loss")),
    ("Kept share of label tokens", ("kept_share",)),
    ("Mean p of kept and of masked tokens", ("mean_p_kept", "mean_p_masked")),
    ("Token accuracy", ("mean_token_accuracy",)),
    ("Gradient norm, before clipping", ("grad_norm",)),
    ("Learning rate", ("learning_rate",)),
    ("Tokens a second", ("tokens_per_second",)),
    ("Memory of the first rank, GiB", ("memory_gib",)),
)
_BEFORE_AFTER = ("probe_nll", "eval_loss", "nll", "mean_token_accuracy", "kept_share", "loss")
_NO_CURVE = {"step", "epoch", "num_tokens", "total_flos", "probe_rise_se", "eval_num_tokens", WARNING}
_NO_CURVE_ENDS = ("_runtime", "_per_second", "_steps")


def metric(name: str) -> Metric:
    """Return what is known of a figure; of one that others log, its name."""
    return METRICS.get(name) or Metric(name, name.replace("_", " "), name.replace("_", " "))


def other_names(logs: Logs) -> list[str]:
    """Return the names of further figures that have a course, beside those of `CHARTS`."""
    charted = {name for _, names in CHARTS for name in names}
    found = {name: None for log in logs for name, value in log.items() if _is_number(value)}
    return [
        name
        for name in found
        if name not in charted
        and name not in _NO_CURVE
        and (name in METRICS or not (name.startswith("train_") or name.endswith(_NO_CURVE_ENDS)))
    ]


def points(logs: Logs, name: str) -> Points:
    """Return a figure's course; of a step that was logged twice, the last value. metrics.jsonl has null for NaN."""
    found = {
        int(log["step"]): log[name] for log in logs if name in log and (log[name] is None or _is_number(log[name]))
    }
    return [(step, float(value) if is_finite(value) else None) for step, value in sorted(found.items())]


def thinned(course: Points, most: int = MOST_POINTS) -> tuple[Points, int]:
    """Return a course of at most so many points, each the mean of as many neighbors, and of how many.

    A stretch with a value that is not finite has none, so that a page shows the gap.

    Example:
        >>> thinned([(1, 1.0), (2, 3.0), (3, 5.0)], most=2)
        ([(2, 2.0), (3, 5.0)], 2)
    """
    size = max(1, math.ceil(len(course) / most))
    groups = [course[first : first + size] for first in range(0, len(course), size)]
    return [(group[-1][0], _mean([value for _, value in group])) for group in groups], size


def _mean(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(values) if len(finite) == len(values) else None


def warnings_in(logs: Logs) -> list[tuple[int, str]]:
    """Return step and text of every warning of a run, each text once."""
    found: dict[str, int] = {}
    for log in logs:
        if isinstance(log.get(WARNING), str):
            found.setdefault(log[WARNING], int(log["step"]))
    return [(step, text) for text, step in found.items()]


def before_after(logs: Logs, names: Iterable[str] = _BEFORE_AFTER) -> list[tuple[Metric, float | None, float | None]]:
    """Return the figures a run is judged by, each with its first and its last value, those there are."""
    found = []
    for name in names:
        course = points(logs, name)
        if course:
            found.append((metric(name), course[0][1], course[-1][1]))
    return found


def is_finite(value: object) -> bool:
    """Say whether a value of a log is a number that a figure can have."""
    return _is_number(value) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]  # also of long integers


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
