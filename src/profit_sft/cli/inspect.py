"""`profit inspect`: which tokens a threshold masks, as a page, in the terminal, or as figures."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from profit_sft.cli.progress import quiet_libraries
from profit_sft.cli.score import scoring_bar
from profit_sft.data import DataSettings
from profit_sft.errors import ConfigurationError
from profit_sft.files import check_output_folder
from profit_sft.mask.page import MAX_EXAMPLES, write_mask_page
from profit_sft.mask.report import MaskReport, checked_view, make_report, summary
from profit_sft.mask.terminal import PLAIN_EXAMPLES, print_report
from profit_sft.models.pretrained import require_model
from profit_sft.scores.score import ScoreSettings, score_dataset
from profit_sft.scores.store import ScoreSet, load_scores

PAGE = "mask.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectOptions:
    """What to look at, and how to show it; the names are flags of `profit inspect`.

    Attributes:
        scores: Folders that `profit score` wrote: none, one, or two to compare.
        data: Fields of `DataSettings` that were given; without `scores` these rows are scored first.
        scoring: Fields of `ScoreSettings` that were given.
        compare_to: A second model to score with.
        scores_dir: Where those scores go. None: they are thrown away.
        output_file: The page. None: `mask.html` beside the scores; none is written with `plain` or `as_json`.
        threshold: A probability.
        threshold_direction: `higher` or `lower`.
        examples: How many to show token by token. None: 500 on a page, 3 in a terminal.
        plain: Print to the terminal.
        as_json: Print the figures as JSON.
    """

    scores: tuple[Path, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    scoring: Mapping[str, Any] = field(default_factory=dict)
    compare_to: str | None = None
    scores_dir: Path | None = None
    output_file: Path | None = None
    threshold: float = 0.1
    threshold_direction: str = "higher"
    examples: int | None = None
    plain: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        checked_view(self.threshold, self.threshold_direction)  # before minutes of scoring
        if self.examples is not None and self.examples < 1:
            raise ValueError(f"examples must be at least 1, got {self.examples}.")
        if self.plain and self.as_json:
            raise ValueError("--plain and --json both print to stdout. Choose one.")
        given = [*self.data, *self.scoring]
        given += [name for name in ("compare_to", "scores_dir") if getattr(self, name) is not None]
        if self.scores and given:
            flags = ", ".join(f"--{name}" for name in given)
            raise ValueError(f"'{self.scores[0]}' is scored already, so {flags} would change nothing. Leave it out.")
        if not self.scores and "dataset_name" not in self.data:
            raise ValueError(
                "name scores (profit inspect SCORES, or two folders to compare), or data to score first "
                "(profit inspect --dataset_name DATA --model_name_or_path MODEL)."
            )


def inspect_command(fields: Mapping[str, Any]) -> int:
    """Run `profit inspect` and return its exit status.

    Args:
        fields: Of `InspectOptions`.
    """
    quiet_libraries()
    try:
        options = InspectOptions(**fields)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if not options.scores:
        require_model(options.scoring)
    if options.output_file is not None:
        check_output_folder(options.output_file.parent, "output_file")  # before minutes of scoring
    with _score_sets(options) as score_sets:
        direction = checked_view(options.threshold, options.threshold_direction)
        report = make_report(score_sets, threshold=options.threshold, direction=direction)
        _show(report, options)
    return 0


def _show(report: MaskReport, options: InspectOptions) -> None:
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    if options.plain:
        print_report(report, Console(highlight=False), examples=options.examples or PLAIN_EXAMPLES)
    if options.as_json:
        sys.stdout.write(json.dumps(summary(report)) + "\n")
    page = options.output_file
    if page is None and not (options.plain or options.as_json):
        page = (options.scores_dir or Path(*options.scores[-1:])) / PAGE
    if page is None:
        return
    write_mask_page(report, page, examples=options.examples or MAX_EXAMPLES, today=date.today())
    if options.plain or options.as_json:
        messages.print(f"The page: {page}", markup=False)
    else:
        sys.stdout.write(f"{page}\n")
        messages.print("Open it in a browser; it is one file and needs no network.")


@contextmanager
def _score_sets(options: InspectOptions) -> Iterator[Sequence[ScoreSet]]:
    """Give the score sets: those named, or new ones, which last as long as they are looked at unless kept."""
    if options.scores:
        yield [load_scores(folder) for folder in options.scores]
        return
    if options.scores_dir is not None:
        yield _score(options, options.scores_dir)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _score(options, Path(folder))


def _score(options: InspectOptions, folder: Path) -> list[ScoreSet]:
    """Score the data under one model, into `folder`, or under two, into its subfolders `before` and `after`."""
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    first = options.scoring["model_name_or_path"]
    jobs = [(first, folder)]
    if options.compare_to is not None:
        jobs = [(first, folder / "before"), (options.compare_to, folder / "after")]
    try:
        data = DataSettings(**{"max_samples": MAX_EXAMPLES, **options.data})
        settings = [
            ScoreSettings(data=data, output_dir=place, **{**options.scoring, "model_name_or_path": model})
            for model, place in jobs
        ]
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    found = []
    for job in settings:
        with scoring_bar(messages) as bar:
            found.append(
                score_dataset(job, report=lambda text: messages.print(text, markup=False), on_batch=bar.update)
            )
    return found
