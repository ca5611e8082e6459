"""`profit eval`: answer benchmarks with a model and say how sure the figures are."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from profit_sft.cli.progress import quiet_libraries
from profit_sft.errors import ConfigurationError
from profit_sft.evaluation import EvalReport, EvalSettings, Metric, evaluate

_FURTHER = {"prompt_loose": "loose", "instruction_strict": "instruction", "instruction_loose": "same, loose"}
_LINES = 10  # progress lines a task where stderr is no terminal


def eval_command(settings: dict[str, Any], *, as_json: bool) -> int:
    """Run `profit eval` and return its exit status.

    Args:
        settings: Fields of `EvalSettings` that were given.
        as_json: Print JSON in place of the table.
    """
    quiet_libraries()
    try:
        checked = EvalSettings(**settings)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from None
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    with _ProgressDisplay(messages) as display:
        try:
            found = evaluate(checked, report=lambda text: messages.print(text, markup=False), progress=display.update)
        except KeyboardInterrupt:
            display.stop()
            messages.print(
                f"Interrupted; {display.done} finished answers are kept in {checked.output_dir}. "
                "The same command goes on."
            )
            return 130
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict()) + "\n")
    else:
        _print_table(found)
    return 0


class _ProgressDisplay:
    """A bar a task, or a line now and then where stderr is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done: dict[str, int] = {}
        self._bar: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "_ProgressDisplay":
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(TextColumn("{task.description}"), *columns, console=self._console)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def done(self) -> int:
        """Answers that are finished, as far as shown."""
        return sum(self._done.values())

    def update(self, task: str, done: int, total: int) -> None:
        """Show that `done` of a task's answers are there."""
        before = self._done.get(task, 0)
        self._done[task] = done
        if self._bar is not None:
            if task not in self._tasks:
                self._tasks[task] = self._bar.add_task(task, total=total)
            self._bar.update(self._tasks[task], completed=done)
        elif done == total or before * _LINES // total < done * _LINES // total:
            self._console.print(f"{task}: {done} of {total} answers", markup=False)

    def stop(self) -> None:
        """Take the bars down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _print_table(found: EvalReport) -> None:
    table = Table(title=f"{found.model_name_or_path}, {_decoding(found.settings)}")
    table.add_column("task", no_wrap=True)
    # 80 characters wide with the longest name and all cells full.
    for column in ("avg@k", "95%\ninterval", "problems\nx k", "cut\noff", "no\nanswer", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in found.tasks:
        table.add_row(
            result.task,
            *_shares(result.accuracy),
            f"{result.num_problems} x {result.samples_per_problem}",
            f"{result.truncated_share:.1%}",
            f"{result.no_answer_share:.1%}",
            f"{result.mean_new_tokens:.0f}",
        )
        for metric in result.metrics:
            if metric.name in _FURTHER:
                table.add_row(f"  {_FURTHER[metric.name]}", *_shares(metric), *[""] * 4)
    out = Console(highlight=False)
    out.print(table)
    out.print(
        "avg@k: share of right samples, k a problem. 95% interval: in %, over problems, the independent units.\n"
        "cut off: at the limit of new tokens. no answer: none found, counted as wrong. tokens: mean length.\n"
        f"Every sample: {found.output_dir}/samples   figures: {found.output_dir}/results.json   {found.seconds:.0f} s",
        markup=False,
        soft_wrap=True,
    )


def _shares(metric: Metric) -> tuple[str, str]:
    return f"{metric.mean:.1%}", f"{100 * metric.low:.1f} to {100 * metric.high:.1f}"


def _decoding(settings: Any) -> str:
    if settings["greedy"]:
        return "greedy"
    return f"temperature {settings['temperature']}, top-p {settings['top_p']}, top-k {settings['top_k']}"
