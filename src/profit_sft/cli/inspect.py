"""`profit inspect`: which tokens a threshold masks, as a page, in the terminal, or as figures."""

import json
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profit_sft.cli.options import (
    DAY_OF_TRAINING,
    GivenData,
    flag,
    given,
    takes_data_options,
    takes_settings,
    wrong_values_are_usage_errors,
)
from profit_sft.cli.progress import quiet_libraries
from profit_sft.cli.score import ScoresToMake, score_sets
from profit_sft.errors import ConfigurationError
from profit_sft.terminal import console

if TYPE_CHECKING:
    from profit_sft.objectives import Objective

PAGE = "mask.html"
_MAX_SAMPLES = 500  # as many as a page shows


@takes_data_options(max_samples=_MAX_SAMPLES, template_date=DAY_OF_TRAINING)
@takes_settings(ScoresToMake, "to_make")
def inspect_command(
    scores: Annotated[
        Path | None, typer.Argument(metavar="SCORES", help="A folder `profit score` wrote.", show_default=False)
    ] = None,
    second_scores: Annotated[
        Path | None,
        typer.Argument(metavar="SCORES2", help="Another, of the same data, to compare with.", show_default=False),
    ] = None,
    *,
    to_make: dict[str, Any],
    compare_to: Annotated[str | None, flag("compare_to", "A second model or checkpoint: how the mask moved.")] = None,
    data: GivenData,
    threshold: Annotated[
        float | None, flag("threshold", "Where the page starts, a probability (default: 0.1).")
    ] = None,
    threshold_direction: Annotated[
        str | None, flag("threshold_direction", "Keep p higher (default), lower, or middle: up to --upper_threshold.")
    ] = None,
    upper_threshold: Annotated[float | None, flag("upper_threshold", "Upper bound of middle, a probability.")] = None,
    objective: Annotated[str | None, flag("objective", "Show the weights of dft, power, ... (default: profit)")] = None,
    objective_kwargs: Annotated[str | None, flag("objective_kwargs", "Its fields as JSON: '{\"k\": 0.5}'.")] = None,
    examples: Annotated[int | None, flag("examples", "Examples token by token (default: 500; 3 with --plain).")] = None,
    output_file: Annotated[
        Path | None, flag("output_file", "The page (default: mask.html by the scores).", "--output")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Print to the terminal in place of a page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON in place of a page.")] = False,
) -> int:
    """Show which tokens a threshold masks: a page with every token shaded, or how the mask moved between two models."""
    from profit_sft.files import check_output_file
    from profit_sft.mask.page import MAX_EXAMPLES, MaskPage
    from profit_sft.mask.report import checked_view, make_report, summary
    from profit_sft.mask.terminal import PLAIN_EXAMPLES, print_report
    from profit_sft.objectives import ENTROPY_TOP_K

    quiet_libraries()
    with wrong_values_are_usage_errors():
        view = given({"threshold": threshold, "direction": threshold_direction, "upper_threshold": upper_threshold})
        weighed_by = _objective(objective, objective_kwargs, view)
        checked_view(**(view if weighed_by is None else {}))  # before minutes of scoring
    if examples is not None and examples < 1:
        raise ConfigurationError(f"examples must be at least 1, got {examples}.")
    if plain and as_json:
        raise ConfigurationError("--plain and --json both print to stdout. Choose one.")
    folders = [folder for folder in (scores, second_scores) if folder is not None]
    if output_file is not None:
        check_output_file(output_file)  # before minutes of scoring
    elif not (plain or as_json):
        output_file = (to_make.get("scores_dir") or Path(*folders[-1:])) / PAGE
    likeliest = ENTROPY_TOP_K if weighed_by is not None and "topk_entropy" in weighed_by.needs else None
    with score_sets(
        "inspect", folders, to_make, data, max_samples=_MAX_SAMPLES, compare_to=compare_to, likeliest=likeliest
    ) as found:
        with wrong_values_are_usage_errors():
            report = make_report(found, objective=weighed_by, **(view if weighed_by is None else {}))
        if plain:
            print_report(report, console(wrap=False), examples=examples or PLAIN_EXAMPLES)
        if as_json:
            sys.stdout.write(json.dumps(summary(report)) + "\n")
        if output_file is not None:
            page = MaskPage(report, examples or MAX_EXAMPLES)
            page.write(output_file, date.today())
            _say_where(output_file, page.shortage, alone=not (plain or as_json))
    return 0


def _objective(name: str | None, kwargs: str | None, view: Mapping[str, Any]) -> "Objective | None":
    """Return the objective named, with its fields from `kwargs` and `view`, or None for the threshold.

    Raises:
        ValueError: There is none of that name, or its fields are no JSON object.
        TypeError: It has no such field.
    """
    from profit_sft.objectives import make_objective

    if name is None:
        if kwargs is not None:
            raise ValueError(f"objective_kwargs {kwargs} belong to an objective. Name it with --objective.")
        return None
    try:
        fields = json.loads(kwargs or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"objective_kwargs is not JSON: {kwargs!r} ({error}).") from None
    if not isinstance(fields, dict):
        raise ValueError(f"objective_kwargs must be a JSON object such as '{{\"k\": 0.5}}', got {kwargs!r}.")
    return make_objective(name, **{**fields, **view})


def _say_where(page: Path, shortage: str | None, *, alone: bool) -> None:
    """Print the page's path: on stdout where it is all that the command gives, else on stderr."""
    messages = console(stderr=True)
    if shortage is not None:
        messages.print(shortage)
    if alone:
        sys.stdout.write(f"{page}\n")
        messages.print("Open it in a browser; it is one file and needs no network.")
    else:
        messages.print(f"The page: {page}")
