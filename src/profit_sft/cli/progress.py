"""Progress of a training run on the terminal, on stderr."""

import logging
import os
import warnings
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

_SHOWN = (("loss", ".4f"), ("nll", ".3f"), ("kept_share", ".0%"), ("tokens_per_second", ".0f"))


def quiet_libraries() -> None:
    """Keep other libraries' bars and chatter off the terminal; their warnings and errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    import datasets
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.showwarning = _show_warning
    # TRL sets a default under the name that transformers deprecates.
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning)
    # DataLoader's advice about pinned memory, on machines that have no accelerator to pin it for.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Show a warning as a sentence; the line of our code that raised it helps nobody."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {message}", markup=False)


class ProgressBar(TrainerCallback):
    """A rich progress bar with the last figures logged; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar."""
        if not (state.is_world_process_zero and self._console.is_terminal):
            return
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
        )
        self._progress.start()
        self._task = self._progress.add_task("train", total=state.max_steps, completed=state.global_step, figures="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the figures."""
        if not state.is_world_process_zero or not logs:
            return
        names = [(name, form) for name, form in _SHOWN if name in logs]
        if "eval_loss" in logs:
            names.append(("eval_loss", ".4f"))
        figures = "  ".join(f"{name.replace('_', ' ')} {format(logs[name], form)}" for name, form in names)
        if self._progress is not None:
            self._progress.update(self._task, figures=figures)
        elif figures:
            self._console.print(f"step {state.global_step}/{state.max_steps}  {figures}", soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
