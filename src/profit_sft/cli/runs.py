"""`profit report` and `profit watch`: a run's figures and curves as a page, and in the terminal while it goes on."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from profit_sft.cli.options import flag
from profit_sft.errors import ConfigurationError
from profit_sft.runs.figures import CHARTS, Points, metric, points
from profit_sft.terminal import console

if TYPE_CHECKING:
    from profit_sft.runs.record import RunRecord

_BARS = "▁▂▃▄▅▆▇█"
_STALE_SECONDS = 600


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders `profit train` wrote, 1 to 6.")],
    output_file: Annotated[
        Path | None, flag("output_file", "The page (default: report.html or comparison.html in the first).")
    ] = None,
) -> int:
    """Draw a run's curves, warnings and rows as one page, or several runs side by side. It may still be going on."""
    from profit_sft.files import check_output_file
    from profit_sft.runs.page import write_run_page

    if output_file is not None:
        check_output_file(output_file)
    sys.stdout.write(f"{write_run_page(runs, output_file)}\n")
    return 0


def watch_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder `profit train` writes.", show_default=False)],
    interval: Annotated[float, flag("interval", "Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print it as it stands now, and end.")] = False,
) -> int:
    """Show a run in the terminal while it goes on: how far, how long, and every figure's course. Ends with the run."""
    from profit_sft.runs.record import read_run

    if not interval > 0:
        raise ConfigurationError(f"interval must be seconds above 0, got {interval}.")
    out = console(wrap=False)
    record = read_run(run)
    if once or not out.is_terminal:
        out.print(view(record, width=out.width))
        return 0
    with suppress(KeyboardInterrupt), Live(view(record, width=out.width), console=out, auto_refresh=False) as live:
        live.refresh()
        while not record.has_ended:
            time.sleep(interval)
            record = read_run(run)
            live.update(view(record, width=out.width), refresh=True)
    return 0


def view(record: "RunRecord", *, width: int, now: float | None = None) -> RenderableType:
    """Return what is shown of a run.

    Args:
        record: The run.
        width: Columns there are.
        now: Seconds since 1970, to say how long nothing has been logged; None: now.
    """
    silent = (time.time() if now is None else now) - record.updated
    standing = record.standing
    if not record.has_ended and silent > _STALE_SECONDS:
        standing += f". Nothing was logged for {silent / 60:,.0f} min: it may be over"
    parts: list[RenderableType] = [Text.assemble((record.name, "bold"), f"  {standing}")]
    if record.max_steps:
        bar = ProgressBar(total=record.max_steps, completed=min(record.step, record.max_steps), width=width)
        parts.append(Padding(bar, 0))  # which ends its line, as the bar alone does not
    parts += [Text(f"{name}: {record.facts[name]}") for name in ("model", "objective", "data") if name in record.facts]
    parts.append(_figures(record, width))
    for step, text in record.warnings:
        parts.append(Panel(Text(text), title=Text(f"warning, step {step:,}"), title_align="left", style="yellow"))
    return Group(*parts)


def _figures(record: "RunRecord", width: int) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for title, justify in (("", "left"), ("first", "right"), ("last", "right")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # one of rich's literals
    room = max(8, width - 42)
    table.add_column("course", ratio=1, no_wrap=True)
    for name in (name for _, names in CHARTS for name in names):
        course = points(record.logs, name)
        if course:
            kind = metric(name)
            line = sparkline(course, room, record.step)
            table.add_row(kind.short, kind.text(course[0][1]), kind.text(course[-1][1]), line)
    return table


def sparkline(course: Points, width: int, last_step: int) -> str:
    """Return a course as one line of bars, from its lowest to its highest value, by step from 0 to `last_step`.

    Between two logs the earlier one's bar stands; a value that is not finite is `!`.

    Example:
        >>> sparkline([(1, 1.0), (2, 2.0), (4, 8.0), (5, None)], 6, 5)
        ' ▁▂▂█!'
    """
    columns: dict[int, list[float | None]] = {}
    for step, value in course:
        columns.setdefault(step * (width - 1) // max(1, last_step), []).append(value)
    means = {at: None if None in found else fmean(v for v in found if v is not None) for at, found in columns.items()}
    finite = [mean for mean in means.values() if mean is not None]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    bars = {at: "!" if mean is None else _BARS[round((mean - low) * scale)] for at, mean in means.items()}
    line = ""
    for at in range(max(bars, default=-1) + 1):
        line += bars.get(at, line[-1:] or " ")
    return line
