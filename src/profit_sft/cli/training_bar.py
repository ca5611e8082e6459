"""Progress of a training run: the trainer's callback that hands steps and figures to the display."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from profit_sft.cli.progress import ProgressDisplay
from profit_sft.runs.figures import metric
from profit_sft.terminal import console

# By importance: a narrow terminal leaves out the last.
_SHOWN = ("loss", "kept_share", "nll", "tokens_per_second", "probe_nll", "eval_loss")


class TrainingBar(TrainerCallback):
    """Steps as a bar with the last figures logged; where stderr is no terminal, a line a log."""

    def __init__(self) -> None:
        self._display = ProgressDisplay(console(stderr=True), line="step {done}/{total}")
        self._figures = ""

    def _show(self, state: TrainerState, *, line: bool) -> None:
        if state.is_world_process_zero:
            self._display.update("step", state.global_step, state.max_steps, figures=self._figures, line=line)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar."""
        self._show(state, line=False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        self._show(state, line=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the figures."""
        logs = logs or {}
        kinds = [metric(name) for name in _SHOWN if name in logs]
        figures = [f"{kind.short} {kind.text(logs[kind.name])}" for kind in kinds]
        if figures:
            self._figures = "  ".join(figures)
            self._show(state, line=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the bar down."""
        self._display.stop()
