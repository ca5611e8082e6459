"""How far a command has come, on stderr; and other libraries kept off it."""

import logging
import os
import warnings
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from profit_sft.terminal import console, harmless

_LOGGERS = ("transformers", "datasets", "huggingface_hub")
_LINES = 10  # a task, where stderr is no terminal
_WIDE = 110  # columns from which a bar has its own length
_OTHERS = 40  # columns of a short bar, the count and the time left


class ProgressDisplay:
    """A bar a task on a terminal; elsewhere a line every tenth of the way. It is taken down at the end of `with`.

    Args:
        console: On stderr.
        line: What a line says, of `task`, `done` and `total`: `scored {done}/{total} rows`.
        transient: Whether the bars vanish when they are taken down.

    Attributes:
        done: By task, how much of it is done, as far as shown.
    """

    def __init__(self, console: Console, *, line: str, transient: bool = False) -> None:
        self.done: dict[str, int] = {}
        self._console = console
        self._line = line
        self._transient = transient
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def update(self, task: str, done: int, total: int, *, figures: str = "", line: bool | None = None) -> None:
        """Show that `done` of a task's `total` are done.

        Args:
            task: What the bar is called.
            done: As many as that.
            total: Of so many.
            figures: Shown behind it.
            line: Whether to print a line where there is no bar. None: where another tenth of the way is done.
        """
        before = self.done.get(task, 0)
        self.done[task] = done
        if self._console.is_terminal:
            bars = self._started()
            if task not in self._tasks:
                self._tasks[task] = bars.add_task(harmless(task), total=total, figures="")
            figures = _fitting(figures, self._console.width - len(task) - _OTHERS)
            bars.update(self._tasks[task], completed=done, figures=figures)
        elif line or (line is None and _LINES * before // total < _LINES * done // total):
            text = "  ".join(filter(None, (self._line.format(task=task, done=done, total=total), figures)))
            self._console.print(text, markup=False, soft_wrap=True)

    def _started(self) -> Progress:
        if self._bars is None:
            narrow = self._console.width < _WIDE
            bar = BarColumn(bar_width=None if narrow else 40)  # None: what the others leave
            columns = (_text("{task.description}"), bar, MofNCompleteColumn(), TimeRemainingColumn())
            more = (_text("left"), _text("{task.fields[figures]}"))
            self._bars = Progress(*columns, *more, console=self._console, transient=self._transient, expand=narrow)
            self._bars.start()
        return self._bars

    def stop(self) -> None:
        """Take the bars down."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks = {}


def _text(template: str) -> TextColumn:
    return TextColumn(template, markup=False)


class _Messages(logging.Handler):
    """Prints what is logged on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, with the traceback that came with it."""
        console(stderr=True).print(self.format(record))


def _fitting(figures: str, width: int) -> str:
    """Leave out the last figures, which two spaces set apart, as far as they have no room.

    Example:
        >>> _fitting("loss 1.2  kept 64%  nll 2.3", 20)
        'loss 1.2  kept 64%'
    """
    parts = figures.split("  ")
    while len(parts) > 1 and len("  ".join(parts)) > width:
        parts.pop()
    return "  ".join(parts)


def quiet_libraries() -> None:
    """Keep other libraries' bars and chatter off the terminal; their warnings and errors stay."""
    import datasets
    import huggingface_hub
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Messages()])
    for name in _LOGGERS:  # with handlers of their own, which print as they please
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    warnings.showwarning = _show_warning
    # TRL sets a default under the name that transformers deprecates.
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning)
    # DataLoader's advice about pinned memory, on machines that have no accelerator to pin it for.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Show a warning as a sentence; the line of our code that raised it helps nobody."""
    console(stderr=True).print(f"warning: {message}")
