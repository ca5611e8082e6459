"""Trainer callbacks: metrics on disk, the collapse warning, a stop that can be resumed, warnings written down."""

import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from profit_sft.interrupts import FirstSignal, signals_handled
from profit_sft.runs.figures import WARNING
from profit_sft.runs.record import END, append_metrics, read_metrics, write_metrics

_NO_CONCERN = 0.05  # relative rise of plain NLL
_CHANCE = 4.0  # standard errors of the rise that are still put down to it
_WITH_ALERTS = ("trackio", "wandb")  # both have `alert` and `config` of the run under way


class MetricsFile(TrainerCallback):
    """Append every log as one JSON line to `metrics.jsonl` in the output folder.

    A resumed run first drops the lines after the checkpoint it starts from, so that each step is there once, and the
    end of an earlier session, which it goes on from.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the lines up to the step the run starts from."""
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        logs = read_metrics(folder, say=warnings.warn) if state.global_step else []
        write_metrics(folder, [log for log in logs if log["step"] <= state.global_step and END not in log])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs is not None:
            append_metrics(Path(str(args.output_dir)), {"step": state.global_step, **logs})


class CollapseWarning(TrainerCallback):
    """Warn, once, when the objective's loss falls while plain NLL of the full reference rises on the same rows.

    That is what an objective looks like that feeds on itself: tokens it gives little or no weight are never learned,
    grow less likely, and get even less. Compared are measurements of one probe of training rows (`CollapseProbe`), the
    first with each later one, so a model that does not change raises no alarm. The rise must exceed 5%, and four
    standard errors of its own, of rows taken to rise independently: Student's t at 1% over 20 measurements (one-sided,
    Bonferroni) of 16 rows.
    """

    def __init__(self) -> None:
        self._warned = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the history, which a resumed run has in full."""
        if self._warned or not state.is_world_process_zero or "probe_nll" not in (logs or ()):
            return
        message = self.first_verdict(state.log_history)
        if message is not None:
            self._warned = True
            warnings.warn(message, stacklevel=2)

    def first_verdict(self, log_history: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the text that a run with these logs was warned with, or None where it was not.

        Args:
            log_history: `TrainerState.log_history`, or the lines of metrics.jsonl. Without `probe_nll` in them there is
                nothing to compare, and no verdict.
        """
        found = self.first_collapse(log_history)
        if found is None:
            return None
        first, now = found
        return (
            f"collapse: plain NLL of the reference rose from {first['probe_nll']:.3f} to {now['probe_nll']:.3f} nats a "
            f"token by step {now['step']} (on the same training rows; standard error of the rise "
            f"{now['probe_rise_se']:.3f}) while the objective's loss fell from {first['probe_loss']:.3f} to "
            f"{now['probe_loss']:.3f}. What the objective gives little or no weight is not learned and grows less "
            "likely. Compare with plain SFT (objective nll) before you trust this run; a lower threshold or a mask "
            "from a frozen reference weakens the effect."
        )

    def first_collapse(
        self, log_history: Sequence[Mapping[str, Any]]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """Return the two logs that show the collapse, the first measurement and the one that gave the alarm."""
        first: Mapping[str, Any] | None = None
        for entry in log_history:
            if None in (entry.get("probe_nll"), entry.get("probe_loss"), entry.get("probe_rise_se", 0.0)):
                continue
            if "probe_rise_se" not in entry:
                first = entry
            elif first is not None and self._collapsed(first, entry):
                return first, entry
        return None

    def _collapsed(self, first: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        rise = now["probe_nll"] - first["probe_nll"]
        # Asked so that what is no number raises no alarm.
        falls, rises = now["probe_loss"] < first["probe_loss"], rise > _NO_CONCERN * first["probe_nll"]
        return bool(falls and rises and rise > _CHANCE * now["probe_rise_se"])


class SafeStop(TrainerCallback):
    """On SIGINT or SIGTERM, finish the step under way, save a checkpoint and stop. A second signal stops at once.

    The signals are given back when training ends, and at the end of `with` where it does not come to that.
    """

    def __init__(self) -> None:
        self._first = FirstSignal("this step, then saving a checkpoint")
        self._another_rank_stops = False
        self._signals = ExitStack()

    @property
    def signal_number(self) -> int | None:
        """The signal that asked for the stop, or None; SIGTERM where another rank has got it."""
        return self._first.signal_number or (signal.SIGTERM if self._another_rank_stops else None)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take over the signals."""
        self._signals.enter_context(signals_handled(self._first))

    def __enter__(self) -> "SafeStop":
        return self

    def __exit__(self, *exception: object) -> None:
        self._signals.close()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Give the signals back."""
        self._signals.close()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop, on every rank at the same step."""
        stop = self.signal_number is not None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Ranks may see the signal one step apart; they must agree, or the others wait forever.
            flag = torch.tensor(int(stop), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            # Not noted as a signal: this rank's own may still come, and would be the second.
            stop = self._another_rank_stops = bool(flag.item())
        if stop:
            control.should_save = control.should_training_stop = True
        return control


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
