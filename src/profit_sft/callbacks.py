"""Trainer callbacks: metrics on disk, the collapse warning, a stop that can be resumed."""

import json
import logging
import signal
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from profit_sft.atomic_write import write_text

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """Append every log as one JSON line to `metrics.jsonl` in the output folder.

    A resumed run first drops the lines after the checkpoint it starts from, so that each step is there once.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the lines up to the step the run starts from."""
        if not state.is_world_process_zero:
            return
        path = Path(str(args.output_dir)) / METRICS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if state.global_step and json.loads(line)["step"] <= state.global_step]
        write_text(path, "".join(f"{line}\n" for line in kept))

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
            path = Path(str(args.output_dir)) / METRICS_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class CollapseWarning(TrainerCallback):
    """Warn, once, when the loss that is minimized falls while plain NLL of the full reference rises.

    That is what an objective looks like that feeds on itself: tokens it gives little or no weight are never learned,
    grow less likely, and get even less. Compared are the means of the first and the last `window` training logs; the
    rise must exceed `tolerance`. Of 22 runs (docs/results/one-to-many.md) it warns of 13, of which 12 answered 8 to 34
    points fewer problems right than plain SFT with the same seed and one as many; any tolerance from 0 to 5% would
    have chosen the same.

    Attributes:
        window: Logs in each mean.
        tolerance: Relative rise of plain NLL that is still put down to noise.
    """

    def __init__(self, window: int = 3, tolerance: float = 0.05) -> None:
        self.window = window
        self.tolerance = tolerance
        self._warned = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the history, which a resumed run has in full."""
        if self._warned or not state.is_world_process_zero:
            return
        message = self.verdict(state.log_history)
        if message is not None:
            self._warned = True
            warnings.warn(message, stacklevel=2)

    def verdict(self, log_history: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the warning's text as of the last log, or None where there is nothing to warn of."""
        logs = _with_losses(log_history)
        return self._compare(logs[: self.window], logs[-self.window :]) if len(logs) >= 2 * self.window else None

    def first_verdict(self, log_history: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the text that a whole run was warned with, or None where it was not."""
        logs = _with_losses(log_history)
        for end in range(2 * self.window, len(logs) + 1):
            message = self._compare(logs[: self.window], logs[end - self.window : end])
            if message is not None:
                return message
        return None

    def _compare(self, first: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]]) -> str | None:
        def mean(entries: Sequence[Mapping[str, Any]], name: str) -> float:
            return sum(float(entry[name]) for entry in entries) / len(entries)

        nll = mean(first, "nll"), mean(last, "nll")
        loss = mean(first, "loss"), mean(last, "loss")
        if loss[1] >= loss[0] or nll[1] <= nll[0] * (1 + self.tolerance):
            return None
        return (
            f"collapse: plain NLL of the reference rose from {nll[0]:.3f} to {nll[1]:.3f} while the training loss fell "
            f"from {loss[0]:.3f} to {loss[1]:.3f}. What the objective gives little or no weight is not learned and "
            "grows less likely. Compare with plain SFT (objective nll) before you trust this run; a lower threshold or "
            "a mask from a frozen reference weakens the effect."
        )


def _with_losses(log_history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in log_history if "nll" in entry and "loss" in entry]


class SafeStop(TrainerCallback):
    """On SIGINT or SIGTERM, finish the step under way, save a checkpoint and stop. A second signal stops at once.

    Attributes:
        signal_number: The signal that asked for the stop, or None.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        logger.warning("%s: finishing this step, then saving a checkpoint", signal.Signals(number).name)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signals back."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop, on every rank at the same step."""
        stop = self.signal_number is not None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Ranks may see the signal one step apart; they must agree, or the others wait forever.
            flag = torch.tensor(int(stop), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            if flag.item() and not stop:
                self.signal_number = signal.SIGTERM
            stop = bool(flag.item())
        if stop:
            control.should_save = control.should_training_stop = True
        return control
