"""`profit advise`: what a threshold would do to a data set under a model."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from profit_sft.cli.options import (
    DAY_OF_TRAINING,
    GivenData,
    flag,
    takes_data_options,
    takes_settings,
    wrong_values_are_usage_errors,
)
from profit_sft.cli.progress import quiet_libraries
from profit_sft.cli.score import ScoresToMake, score_sets
from profit_sft.terminal import console

if TYPE_CHECKING:
    from profit_sft.mask.advice import Advice, PositionRow, ThresholdRow
    from profit_sft.mask.kinds import KindComparison

_MAX_SAMPLES = 200
_BAR_WIDTH = 30  # characters of a bar that holds every token


@takes_data_options(max_samples=_MAX_SAMPLES, template_date=DAY_OF_TRAINING)
@takes_settings(ScoresToMake, "to_make")
def advise_command(
    scores: Annotated[Path | None, typer.Argument(metavar="SCORES", help="A folder `profit score` wrote.")] = None,
    *,
    to_make: dict[str, Any],
    data: GivenData,
    threshold: Annotated[float, flag("threshold", "The threshold to judge, a probability.")] = 0.1,
    eval_results: Annotated[
        Path | None,
        flag("eval_results", "What profit eval wrote of the model on problems like these: did a mask help there?"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> int:
    """Say what a threshold would keep of a data set under a model, what it would cost, and what to beware of."""
    from profit_sft.evaluation.records import unsolved_share
    from profit_sft.mask.advice import advise
    from profit_sft.mask.reach import TRIES
    from profit_sft.mask.tokens import checked_thresholds

    quiet_libraries()
    with wrong_values_are_usage_errors():
        checked_thresholds([threshold])  # before minutes of scoring
    unsolved = None if eval_results is None else unsolved_share(eval_results, tries=TRIES)
    folders = [] if scores is None else [scores]
    with score_sets("advise", folders, to_make, data, max_samples=_MAX_SAMPLES, eval_results=eval_results) as (
        score_set,
    ):
        advice = advise(score_set, threshold=threshold, unsolved_share=unsolved)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(advice)) + "\n")
    else:
        print_advice(advice)
    return 0


def print_advice(advice: "Advice") -> None:
    """Print the profile as tables on stdout, then warnings and reading in plain words."""
    from profit_sft.mask.kinds import describe

    out = console(wrap=False)
    out.print(
        f"{advice.examples:,} examples, {advice.label_tokens:,} label tokens of {advice.dataset_name} under "
        f"{advice.model_name_or_path}: mean p {advice.mean_p:.3f}, median p {advice.median_p:.3f}, plain NLL "
        f"{advice.nll:.3f} nats, likeliest token right {advice.top1_share:.0%}",
        soft_wrap=True,
    )
    out.print(_profile_table(advice))
    out.print(_position_table(advice.positions, advice.threshold))
    if advice.kinds is not None:
        out.print(_kind_table(advice.kinds))
        out.print(_histogram(advice.kinds))
        for sentence in (describe(advice.kinds), *_statistics(advice.kinds)):
            out.print(sentence)
    for warning in advice.warnings:
        out.print("warning:", style="bold yellow", end=" ")
        out.print(warning)
    for sentence in (*advice.reading, *advice.on_the_map, advice.caveat):
        out.print(sentence)


def _profile_table(advice: "Advice") -> Table:
    table = Table(title="What a threshold keeps, and what the loss costs (dense forward products of the head)")
    for name in (
        "threshold",
        "tokens kept",
        "gradient kept",
        "NLL kept",
        "examples left empty",
        "final answers hit",
        "cost",
        "cost, reference mask",
    ):
        table.add_column(name, justify="right")
    for row in advice.profile:
        table.add_row(*_profile_cells(row), style="bold" if row.threshold == advice.threshold else "")
    return table


def _profile_cells(row: "ThresholdRow") -> tuple[str, ...]:
    return (
        f"{row.threshold:g}",
        f"{row.kept_share:.1%}",
        f"{row.kept_gradient_share:.1%}",
        f"{row.kept_nll_share:.1%}",
        f"{row.empty_examples_share:.1%}",
        "-" if row.masked_answers_share is None else f"{row.masked_answers_share:.1%}",
        f"{row.online_cost:.2f}",
        f"{row.reference_cost:.2f}",
    )


def _position_table(positions: "tuple[PositionRow, ...]", threshold: float) -> Table:
    table = Table(title=f"By place in the answer, threshold {threshold:g}")
    for name in ("label tokens", "how many", "mean p", "kept"):
        table.add_column(name, justify="right")
    for row in positions:
        places = str(row.first) if row.first == row.last else f"{row.first} to {row.last}"
        table.add_row(places, f"{row.tokens:,}", f"{row.mean_p:.3f}", f"{row.kept_share:.1%}")
    return table


def _kind_table(kinds: "KindComparison") -> Table:
    table = Table(title="Core and style tokens")
    for name in ("", "core", "style"):
        table.add_column(name, justify="right" if name else "left")
    for label, form, name in (
        ("tokens", ",", "tokens"),
        ("mean p", ".3f", "mean_p"),
        ("median p", ".3f", "median_p"),
        ("mean log p, nats", ".3f", "mean_log_prob"),
    ):
        table.add_row(label, format(getattr(kinds.core, name), form), format(getattr(kinds.style, name), form))
    for row in kinds.kept:
        table.add_row(f"kept at {row.threshold:g}", f"{row.core_kept_share:.1%}", f"{row.style_kept_share:.1%}")
    return table


def _statistics(kinds: "KindComparison") -> Iterator[str]:
    effect = f"AUC {kinds.auc:.3f}, rank-biserial {kinds.rank_biserial:+.3f}"
    if kinds.cohens_d is not None:
        effect += f", Cohen's d of log p {kinds.cohens_d:+.2f}"
    yield (
        f"{effect}. Mann-Whitney U {kinds.u:.0f}, {_shown_p_value(kinds.p_value)} if tokens were independent, which "
        "they are not."
    )
    within = kinds.within_examples
    if within is not None:
        yield (
            f"Within the {within.examples:,} examples that have both kinds: mean AUC {within.mean_auc:.3f}, above 0.5 "
            f"in {within.above_half_share:.0%} of them, signed-rank {_shown_p_value(within.p_value)}."
        )


def _shown_p_value(p_value: float) -> str:
    return f"p {p_value:.2g}" if p_value > 1e-300 else "p < 1e-300"


def _histogram(kinds: "KindComparison") -> Table:
    """Show the histogram of p by kind, two bins a line."""
    from profit_sft.mask.kinds import HISTOGRAM_BINS

    table = Table(title="Share of each kind by p")
    for name in ("p", "core", "style"):
        table.add_column(name)
    for first in range(0, HISTOGRAM_BINS, 2):
        bars = []
        for kind in (kinds.core, kinds.style):
            share = sum(kind.histogram[first : first + 2]) / kind.tokens
            bars.append(f"{share:6.1%} {'█' * round(share * _BAR_WIDTH)}")
        table.add_row(f"{first / HISTOGRAM_BINS:.1f} to {(first + 2) / HISTOGRAM_BINS:.1f}", *bars)
    return table
