"""`profit report`: the page of a run, or of several side by side."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from profit_sft.cli.options import flag


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
