"""From finished cells to figures: one row a variant, one row a comparison, and curves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from profit_sft.study.plan import StudyPlan
from profit_sft.study.results import CellResult
from profit_sft.study.seeds import SeedComparison, SeedVariance, pooled_seed_variance, seed_comparison
from profit_sft.study.statistics import (
    Floats,
    PairedComparison,
    Shown,
    holm,
    in_words,
    mean_interval,
    paired_comparison,
    what_is_shown,
)
from profit_sft.study.variants import UNTRAINED

AVERAGE = "average"
CURVES = ("nll", "kept_share", "loss", "mean_token_accuracy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """A variant's accuracy on one task, or on the average of all.

    Attributes:
        outcome: The task, or `average`.
        mean: Mean over problems, samples and seeds.
        low: Lower end of the 95% interval over problems.
        high: Upper end.
        by_seed: Mean of each seed, in the order of `VariantRow.seeds`.
    """

    outcome: str
    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantRow:
    """What the finished cells of one variant show.

    Attributes:
        model: Name of the model.
        variant: Name of the variant.
        seeds: Seeds that are finished; `(None,)` for the untrained model.
        planned: Number of seeds the plan has.
        scores: Accuracy on each task, and the average first where there are several tasks.
        heldout_nll: Plain NLL on held-out data, nats a token, mean over seeds; None where not measured.
        heldout_nll_core: That of core tokens alone, where data says which those are.
        heldout_nll_style: That of style tokens.
        kept_share: Share of tokens of non-zero weight, mean over training and seeds; None for the untrained model.
        collapsed: Seeds whose run was warned of as a collapse, at its end or before.
        curves: By name of `CURVES`, `[step, mean, lowest, highest]` over seeds.
    """

    model: str
    variant: str
    seeds: tuple[int | None, ...]
    planned: int
    scores: tuple[Accuracy, ...]
    heldout_nll: float | None
    heldout_nll_core: float | None
    heldout_nll_style: float | None
    kept_share: float | None
    collapsed: int
    curves: Mapping[str, list[list[float]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonRow:
    """One comparison of the study.

    Attributes:
        model: Name of the model.
        first: The variant that is judged.
        second: The variant it is compared with.
        outcome: The task, or `average`.
        comparison: Difference, interval and p-value over problems.
        adjusted_p: That p-value after Holm's correction over all rows: what is shown of these trained models.
        seeds: Difference, interval and p-value over seeds and problems.
        method_p: The larger of the two p-values; None where a side has one seed.
        adjusted_method_p: That after Holm's correction over all rows that have one: what is shown of the methods.
        shown: What it shows of the first variant.
        verdict: It all in words.
    """

    model: str
    first: str
    second: str
    outcome: str
    comparison: PairedComparison
    adjusted_p: float
    seeds: SeedComparison
    method_p: float | None
    adjusted_method_p: float | None
    shown: Shown
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """All figures of a study.

    Attributes:
        outcomes: What is compared: tasks, and the average first where there are several.
        num_problems: Problems by task.
        rows: One a model and variant that has a finished cell.
        comparisons: With the baseline first, then the pairs the plan asks for.
        missing: Names of the cells that are not finished.
    """

    outcomes: tuple[str, ...]
    num_problems: Mapping[str, int]
    rows: tuple[VariantRow, ...]
    comparisons: tuple[ComparisonRow, ...]
    missing: tuple[str, ...]

    @property
    def main_comparisons(self) -> tuple[ComparisonRow, ...]:
        """Those on the first outcome."""
        return tuple(row for row in self.comparisons if row.outcome == self.outcomes[0])

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, as results.json holds it."""
        return asdict(self)


def analyze(plan: StudyPlan, results: Sequence[CellResult]) -> Analysis:
    """Turn the finished cells into figures."""
    tasks = list(plan.evaluate.get("tasks", ()))
    outcomes = tuple([AVERAGE, *tasks] if len(tasks) > 1 else tasks)
    groups = grouped(plan, results)
    finished = {result.cell.slug for result in results}
    return Analysis(
        outcomes=outcomes,
        num_problems={task: len(results[0].accuracies[task]) for task in tasks} if results else {},
        rows=tuple(_row(plan, outcomes, group) for group in groups.values()),
        comparisons=_comparisons(plan, outcomes, groups),
        missing=tuple(cell.slug for cell in plan.cells if cell.slug not in finished),
    )


Groups = dict[tuple[str, str], list[CellResult]]


def grouped(plan: StudyPlan, results: Sequence[CellResult]) -> Groups:
    """Gather the seeds of each variant; the untrained model first, then the plan's order of variants."""
    groups: Groups = {}
    for model in plan.models:
        for name in (UNTRAINED, *(variant.name for variant in plan.variants)):
            found = [
                result for result in results if (result.cell.model.name, result.cell.variant.name) == (model.name, name)
            ]
            if found:
                groups[model.name, name] = found
    return groups


def problem_accuracies(results: Sequence[CellResult], outcome: str) -> tuple[list[float], list[str]]:
    """Return each problem's accuracy averaged over seeds, and the task it is of."""
    tasks = list(results[0].accuracies) if outcome == AVERAGE else [outcome]
    accuracies, strata = [], []
    for task in tasks:
        by_seed = [result.accuracies[task] for result in results]
        accuracies += [sum(values) / len(values) for values in zip(*by_seed, strict=True)]
        strata += [task] * len(by_seed[0])
    return accuracies, strata


def _seed_means(results: Sequence[CellResult], outcome: str) -> list[float]:
    means = []
    for result in results:
        tasks = list(result.accuracies) if outcome == AVERAGE else [outcome]
        means.append(sum(_mean(result.accuracies[task]) for task in tasks) / len(tasks))
    return means


def _row(plan: StudyPlan, outcomes: Sequence[str], results: Sequence[CellResult]) -> VariantRow:
    cell = results[0].cell
    trained = [result.summary["training"] for result in results if result.summary["training"] is not None]
    heldout = [result.summary["heldout"] for result in results if result.summary["heldout"] is not None]
    return VariantRow(
        model=cell.model.name,
        variant=cell.variant.name,
        seeds=tuple(result.cell.seed for result in results),
        planned=sum(other.model == cell.model and other.variant == cell.variant for other in plan.cells),
        scores=tuple(_accuracy(results, outcome) for outcome in outcomes),
        heldout_nll=_mean_of(heldout, "nll"),
        heldout_nll_core=_mean_of(heldout, "nll_core"),
        heldout_nll_style=_mean_of(heldout, "nll_style"),
        kept_share=_mean_of(trained, "kept_share"),
        collapsed=sum(result.collapse is not None for result in results),
        curves={name: mean_curve([result.metrics for result in results], name) for name in CURVES},
    )


def _accuracy(results: Sequence[CellResult], outcome: str) -> Accuracy:
    accuracies, strata = problem_accuracies(results, outcome)
    low, high = mean_interval(accuracies, strata=strata)
    by_seed = tuple(_seed_means(results, outcome))
    return Accuracy(outcome=outcome, mean=_mean(by_seed), low=low, high=high, by_seed=by_seed)


def mean_curve(logs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> list[list[float]]:
    """Return `[step, mean, lowest, highest]` of one metric over those runs that have the step."""
    values: dict[int, list[float]] = {}
    for entries in logs:
        for entry in entries:
            if entry.get(name) is not None:  # null is what a log says of a number that is not finite
                values.setdefault(entry["step"], []).append(entry[name])
    return [[step, _mean(values[step]), min(values[step]), max(values[step])] for step in sorted(values)]


def _comparisons(plan: StudyPlan, outcomes: Sequence[str], groups: Groups) -> tuple[ComparisonRow, ...]:
    """Compare every variant with the baseline, and the pairs the plan asks for, on every outcome.

    All are corrected together. A finding about the methods needs to hold over problems and over seeds, so its p-value
    is the larger of the two.
    """
    made, found = [], []
    for model in plan.models:
        for outcome in outcomes:
            pooled = _seed_variance(groups, model.name, outcome)
            for first, second in pairs(plan, model.name, groups):
                made.append((model.name, first, second, outcome))
                found.append(_compare(groups[model.name, first], groups[model.name, second], outcome, pooled))
    over_problems = holm([comparison.p_value for comparison, _ in found])
    of_methods = [
        None if seeds.p_value is None else max(comparison.p_value, seeds.p_value) for comparison, seeds in found
    ]
    corrected = iter(holm([value for value in of_methods if value is not None]))
    rows = []
    for (model_name, first, second, outcome), (comparison, seeds), adjusted_p, method_p in zip(
        made, found, over_problems, of_methods, strict=True
    ):
        adjusted_method_p = None if method_p is None else next(corrected)
        shown = what_is_shown(comparison, adjusted_p, adjusted_method_p)
        rows.append(
            ComparisonRow(
                model=model_name,
                first=first,
                second=second,
                outcome=outcome,
                comparison=comparison,
                adjusted_p=adjusted_p,
                seeds=seeds,
                method_p=method_p,
                adjusted_method_p=adjusted_method_p,
                shown=shown,
                verdict=in_words(shown, comparison, first=first, second=second, one_seed=method_p is None),
            )
        )
    return tuple(rows)


def pairs(plan: StudyPlan, model: str, groups: Groups) -> list[tuple[str, str]]:
    """Return which variants of a model are compared: each with the baseline, and those the plan asks for."""
    names = [name for group_model, name in groups if group_model == model]
    found = [(name, plan.baseline) for name in names if name != plan.baseline]
    found += [pair for pair in plan.comparisons if pair not in found]
    return [(first, second) for first, second in found if first in names and second in names]


def _seed_variance(groups: Groups, model: str, outcome: str) -> SeedVariance:
    trained = [results for (name, variant), results in groups.items() if name == model and variant != UNTRAINED]
    return pooled_seed_variance(
        [
            dict(zip((result.cell.seed for result in results), _seed_means(results, outcome), strict=True))
            for results in trained
        ]
    )


def _compare(
    first: Sequence[CellResult], second: Sequence[CellResult], outcome: str, pooled: SeedVariance
) -> tuple[PairedComparison, SeedComparison]:
    first, second = with_common_seeds(first, second)
    accuracies, strata = problem_accuracies(first, outcome)
    other, _ = problem_accuracies(second, outcome)
    seeds = seed_comparison(_runs(first, outcome), _runs(second, outcome), pooled, strata=strata)
    return paired_comparison(accuracies, other, strata=strata), seeds


def _runs(results: Sequence[CellResult], outcome: str) -> dict[int | None, Floats]:
    return {result.cell.seed: np.array(problem_accuracies([result], outcome)[0]) for result in results}


def with_common_seeds(
    first: Sequence[CellResult], second: Sequence[CellResult]
) -> tuple[Sequence[CellResult], Sequence[CellResult]]:
    """Leave the seeds that both have: a seed is an order of the rows, and some orders serve every objective better.

    Where they have none in common, and against the untrained model, all stay.
    """
    common = {result.cell.seed for result in first} & {result.cell.seed for result in second}
    if not common:
        return first, second
    return [r for r in first if r.cell.seed in common], [r for r in second if r.cell.seed in common]


def _mean_of(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return _mean(values) if values else None


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
