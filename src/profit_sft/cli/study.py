"""`profit study`: a study file in, its cells run, a report out."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from profit_sft.errors import ConfigurationError
from profit_sft.study.plan import check_flags, load_plan
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
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    if options.jobs < 1:
        raise ConfigurationError(f"--jobs must be at least 1, got {options.jobs}.")
    plan = load_plan(
        options.study_file, model_name_or_path=options.model_name_or_path, dataset_name=options.dataset_name
    )
    check_flags(plan)
    folder = options.output_dir or Path("runs") / "studies" / options.study_file.stem
    result = run_study(
        plan,
        folder,
        cells=options.cells,
        jobs=options.jobs,
        report=lambda text: messages.print(text, markup=False),
    )
    if result.stopped_by is not None:
        return 130
    return 1 if result.failed else 0
