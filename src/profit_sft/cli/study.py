"""`profit study`: a study file in, its cells run, a report out."""

import dataclasses
import json
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from profit_sft.cli.progress import quiet_libraries
from profit_sft.errors import ConfigurationError
from profit_sft.files import check_output_folder
from profit_sft.study.analysis import Analysis, headline
from profit_sft.study.dry_run import StudyDryRun, dry_run
from profit_sft.study.plan import StudyPlan, check_flags, load_plan
from profit_sft.study.report import write_report
from profit_sft.study.runner import run_study


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions:
    """The options of `profit study`; their help texts are in `profit_sft.cli.app`."""

    study_file: Path
    output_dir: Path | None
    cells: str | None
    jobs: int
    model_name_or_path: str | None
    dataset_name: str | None
    only_dry: bool
    report_only: bool
    as_json: bool


def study_command(options: StudyOptions) -> int:
    """Run `profit study` and return its exit status."""
    quiet_libraries()
    if options.jobs < 1:
        raise ConfigurationError(f"--jobs must be at least 1, got {options.jobs}.")
    plan = load_plan(
        options.study_file, model_name_or_path=options.model_name_or_path, dataset_name=options.dataset_name
    )
    folder = options.output_dir or Path("runs") / "studies" / options.study_file.stem
    if options.only_dry:
        check_flags(plan)
        check_output_folder(folder)
        print_dry_run(dry_run(plan, folder, cells=options.cells), as_json=options.as_json)
        return 0
    status = 0 if options.report_only else _run(plan, folder, options)
    if status == 130:
        return status
    if not any((folder / "cells").glob("*/cell.json")):
        raise ConfigurationError(f"output_dir: '{folder}' holds no finished cell, so there is nothing to report.")
    analysis = write_report(plan, folder, command=_command(options, folder))
    print_analysis(plan, analysis, folder, as_json=options.as_json)
    return status


def _run(plan: StudyPlan, folder: Path, options: StudyOptions) -> int:
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    check_flags(plan)
    result = run_study(
        plan, folder, cells=options.cells, jobs=options.jobs, report=lambda text: messages.print(text, markup=False)
    )
    if result.stopped_by is not None:
        name = signal.Signals(result.stopped_by).name
        messages.print(f"Stopped by {name}. The same command goes on.", markup=False)
        return 130
    if result.failed:
        messages.print(
            f"{len(result.failed)} cells failed: {', '.join(result.failed)}. Their logs are in {folder}/cells; the "
            "same command tries them again.",
            markup=False,
        )
    return 1 if result.failed else 0


def _command(options: StudyOptions, folder: Path) -> str:
    """Return the command that makes this study, without what only says how to go about it."""
    words = ["profit", "study", str(options.study_file), "--output_dir", str(folder)]
    for name in ("model_name_or_path", "dataset_name"):
        if getattr(options, name) is not None:
            words += [f"--{name}", getattr(options, name)]
    return shlex.join(words)


def print_analysis(plan: StudyPlan, analysis: Analysis, folder: Path, *, as_json: bool) -> None:
    """Print the scores and the verdict on stdout, and where the report is on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"Report: {folder}/report.html", markup=False)
    if as_json:
        sys.stdout.write(json.dumps(analysis.as_dict()) + "\n")
        return
    table = Table(title=plan.name)
    several = len(plan.models) > 1
    for heading in (*(["model"] if several else []), "variant", "seeds", *analysis.outcomes, "kept share", "NLL"):
        table.add_column(heading, justify="left" if heading in ("model", "variant") else "right")
    for row in analysis.rows:
        scores = [f"{100 * score.mean:.1f} ({100 * score.low:.0f} to {100 * score.high:.0f})" for score in row.scores]
        kept = "" if row.kept_share is None else f"{row.kept_share:.0%}"
        nll = "" if row.heldout_nll is None else f"{row.heldout_nll:.3f}"
        seeds = "" if row.seeds == (None,) else str(len(row.seeds))
        table.add_row(*([row.model] if several else []), row.variant, seeds, *scores, kept, nll)
    out = Console(highlight=False, soft_wrap=True)
    out.print(table)
    for sentence in headline(plan, analysis):
        out.print(sentence, markup=False)


def print_dry_run(found: StudyDryRun, *, as_json: bool) -> None:
    """Print the cells and their estimated cost on stdout, as a table or JSON."""
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found) | {"hours": found.hours}) + "\n")
        return
    out = Console(highlight=False, soft_wrap=True)
    for name, data in found.data.items():
        parameters = found.parameters[name]
        size = "" if parameters is None else f", {parameters / 1e9:.2f} B parameters"
        source = "" if data.measured else " (assumed: the data was not read)"
        out.print(f"{name}: {data.rows:,} rows, {data.tokens:,} tokens{source}{size}", markup=False)
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
        "estimate (assumptions: docs/how-to/study.md).",
        markup=False,
    )
