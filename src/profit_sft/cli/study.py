"""`profit study`: a study file in, its cells run, a report out."""

import dataclasses
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from profit_sft.cli.options import flag, given
from profit_sft.cli.progress import quiet_libraries
from profit_sft.errors import ConfigurationError
from profit_sft.terminal import console

if TYPE_CHECKING:
    from profit_sft.study.analysis import Analysis
    from profit_sft.study.estimate import StudyDryRun
    from profit_sft.study.plan import StudyPlan


def study_command(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.YAML", help="The study; see docs/how-to/study.md.")],
    output_dir: Annotated[Path | None, flag("output_dir", "The study's folder (default: runs/studies/NAME).")] = None,
    cells: Annotated[str | None, flag("cells", "Run only cells matching this pattern: 'nll-*'.")] = None,
    executor: Annotated[str, flag("executor", "local: on this machine; ray: on a Ray cluster.")] = "local",
    jobs: Annotated[int | None, flag("jobs", "Cells at a time (default: 1; on Ray what it has room for).")] = None,
    model_name_or_path: Annotated[str | None, flag("model_name_or_path", "In place of the study's models.")] = None,
    dataset_name: Annotated[str | None, flag("dataset_name", "In place of the study's training data.")] = None,
    only_dry: Annotated[
        bool, typer.Option("--dry-run", help="List cells, tokens and estimated cost; run nothing.")
    ] = False,
    report_only: Annotated[bool, flag("report_only", "Write the report of what is finished; run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Train and measure the cells of a study, and compare them. Interrupted, it goes on where it was."""
    from profit_sft.files import check_output_folder
    from profit_sft.study.estimate import dry_run
    from profit_sft.study.flags import check_flags
    from profit_sft.study.plan import load_plan
    from profit_sft.study.report import write_report

    quiet_libraries()
    if executor not in ("local", "ray"):
        raise ConfigurationError(f"--executor must be local or ray, got {executor!r}.")
    if jobs is not None and jobs < 1:
        raise ConfigurationError(f"--jobs must be at least 1, got {jobs}.")
    in_place = given({"model_name_or_path": model_name_or_path, "dataset_name": dataset_name})
    plan = load_plan(study_file, **in_place)
    folder = output_dir or Path("runs") / "studies" / study_file.stem
    check_output_folder(folder)
    if only_dry:
        check_flags(plan)
        print_dry_run(dry_run(plan, folder, cells=cells), as_json=as_json)
        return 0
    status = 0 if report_only else _run(plan, folder, cells=cells, on_ray=executor == "ray", jobs=jobs)
    if status == 130:
        return status
    if not any((folder / "cells").glob("*/cell.json")):
        raise ConfigurationError(f"output_dir: '{folder}' holds no finished cell, so there is nothing to report.")
    # Without what only says how to go about it.
    words = ["profit", "study", str(study_file), "--output_dir", str(folder)]
    words += [word for name, value in in_place.items() for word in (f"--{name}", value)]
    analysis = write_report(plan, folder, command=shlex.join(words))
    print_analysis(plan, analysis, folder, as_json=as_json)
    return status


def _run(plan: "StudyPlan", folder: Path, *, cells: str | None, on_ray: bool, jobs: int | None) -> int:
    from profit_sft.study.flags import check_flags
    from profit_sft.study.runner import run_study

    messages = console(stderr=True)
    check_flags(plan)
    result = run_study(plan, folder, cells=cells, on_ray=on_ray, jobs=jobs, say=messages.print)
    if result.stopped_by is not None:
        name = signal.Signals(result.stopped_by).name
        messages.print(f"Stopped by {name}. The same command goes on.")
        return 130
    if result.failed:
        messages.print(
            f"{len(result.failed)} cells failed: {', '.join(result.failed)}. Their logs are in {folder}/cells; the "
            "same command tries them again."
        )
    return 1 if result.failed else 0


def print_analysis(plan: "StudyPlan", analysis: "Analysis", folder: Path, *, as_json: bool) -> None:
    """Print the accuracies and the verdict on stdout, and where the report is on stderr."""
    from profit_sft.study.verdict import headline

    console(stderr=True).print(f"Report: {folder}/report.html")
    if as_json:
        sys.stdout.write(json.dumps(analysis.as_dict()) + "\n")
        return
    table = Table(title=plan.name)
    several = len(plan.models) > 1
    for heading in (*(["model"] if several else []), "variant", "seeds", *analysis.outcomes, "kept share", "NLL"):
        table.add_column(heading, justify="left" if heading in ("model", "variant") else "right")
    for row in analysis.rows:
        shares = [f"{100 * found.mean:.1f} ({100 * found.low:.0f} to {100 * found.high:.0f})" for found in row.scores]
        kept = "" if row.kept_share is None else f"{row.kept_share:.0%}"
        nll = "" if row.heldout_nll is None else f"{row.heldout_nll:.3f}"
        seeds = "" if row.seeds == (None,) else str(len(row.seeds))
        table.add_row(*([row.model] if several else []), row.variant, seeds, *shares, kept, nll)
    out = console()
    out.print(table)
    for sentence in headline(plan, analysis):
        out.print(sentence)


def print_dry_run(found: "StudyDryRun", *, as_json: bool) -> None:
    """Print the cells and their estimated cost on stdout, as a table or JSON."""
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found) | {"hours": found.hours}) + "\n")
        return
    out = console()
    for name, data in found.data.items():
        parameters = found.parameters[name]
        size = "" if parameters is None else f", {parameters / 1e9:.2f} B parameters"
        source = "" if data.measured else " (assumed: the data was not read)"
        out.print(f"{name}: {data.rows:,} rows, {data.tokens:,} tokens{source}{size}")
    table = Table(box=None)
    for heading in ("cell", "steps", "tokens", "train h", "new tokens", "measure h"):
        table.add_column(heading, justify="left" if heading == "cell" else "right", overflow="fold")
    for cell in found.cells:
        figures = [f"{cell.steps:,}", f"{cell.train_tokens:,}", f"{cell.train_hours:.2f}"]
        figures += [f"{cell.new_tokens:,}", f"{cell.evaluate_hours:.2f}"]
        table.add_row(cell.slug + (" (finished)" if cell.slug in found.finished else ""), *figures)
    out.print(table)
    out.print(
        f"{len(found.cells) - len(found.finished)} cells to run: about {found.hours:.1f} hours of {found.device}, an "
        "estimate (assumptions: docs/how-to/study.md)."
    )
