"""What a run is warned of reaches its log, and with that its page and card, and its trackers."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from profit_sft.runs.figures import WARNING
from profit_sft.runs.record import append_metrics

_WITH_ALERTS = ("trackio", "wandb")  # both have `alert` and `config` of the run under way


class RunWarnings(TrainerCallback):
    """Record every warning that is shown while a training goes on, each text once, with its step.

    It becomes a line of metrics.jsonl and an entry of `TrainerState.log_history`, `{"step": 12, "warning": "..."}`, an
    alert where trackio or wandb is told of the run, and a text in TensorBoard. It is shown as before.

    Args:
        callbacks: Returns the trainer's callbacks, TensorBoard's among them.
    """

    def __init__(self, callbacks: Callable[[], Iterable[TrainerCallback]] = tuple) -> None:
        self._callbacks = callbacks
        self._show: Callable[..., Any] | None = None  # what showed warnings before; None: not listening
        self._args: TrainingArguments
        self._state: TrainerState

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to listen."""
        if state.is_world_process_zero:
            self._args, self._state = args, state
            if self._show is None:
                self._show = warnings.showwarning
                warnings.showwarning = self._heard

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Listen no more."""
        if self._show is not None and warnings.showwarning == self._heard:
            warnings.showwarning, self._show = self._show, None

    def _heard(self, message: Warning | str, *where: Any, **more: Any) -> None:
        assert self._show is not None
        self._record(str(message))
        self._show(message, *where, **more)

    def _record(self, text: str) -> None:
        history: list[Any] = self._state.log_history
        if any(entry.get(WARNING) == text for entry in history):
            return
        entry = {"step": self._state.global_step, WARNING: text}
        history.append(entry)
        append_metrics(Path(str(self._args.output_dir)), entry)
        alert_trackers(self._args, text, step=self._state.global_step, callbacks=self._callbacks())


def _trackers(args: TrainingArguments) -> list[Any]:
    """Return those of the run's trackers that know of alerts, as loaded by transformers."""
    named = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    return [sys.modules[name] for name in _WITH_ALERTS if name in named and name in sys.modules]


def _writers(callbacks: Iterable[TrainerCallback]) -> list[Any]:
    """Return TensorBoard's writers."""
    return [writer for callback in callbacks if (writer := getattr(callback, "tb_writer", None)) is not None]


def alert_trackers(args: TrainingArguments, text: str, *, step: int, callbacks: Iterable[TrainerCallback]) -> None:
    """Raise an alert in the run's trackers; in TensorBoard, which has none, write a text."""
    for tracker in _trackers(args):
        tracker.alert(title=f"ProFit, step {step}", text=text, level=tracker.AlertLevel.WARN)
    for writer in _writers(callbacks):
        writer.add_text("warnings", text, step)


def tell_trackers(args: TrainingArguments, facts: Mapping[str, str], *, callbacks: Iterable[TrainerCallback]) -> None:
    """Give the run's facts, such as its data, to trackers, which have the trainer's and the model's settings only."""
    told = {f"profit/{name}": value for name, value in facts.items()}
    for tracker in _trackers(args):
        tracker.config.update(told, allow_val_change=True)
    for writer in _writers(callbacks):
        writer.add_text("run", "\n\n".join(f"{name}: {value}" for name, value in facts.items()))
