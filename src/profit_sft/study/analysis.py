"""From finished cells to figures: one row a variant, one row a comparison, curves, and the verdict in words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from profit_sft.study.plan import StudyPlan
from profit_sft.study.results import CellResult
from profit_sft.study.statistics import (
    SIGNIFICANCE,
    PairedComparison,
    SeedSpread,
    bootstrap_interval,
    holm,
    paired_comparison,
    seed_spread,
    verdict,
)
from profit_sft.study.variants import UNTRAINED

AVERAGE = "average"
CURVES = ("nll", "kept_share", "loss", "mean_token_accuracy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A variant's score on one task, or on the average of all.

    Attributes:
        outcome: The task, or `average`.
        mean: Mean over problems, samples and seeds.
        low: Lower end of the 95% bootstrap interval over problems.
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
        scores: One a task, and the average first where there are several tasks.
        heldout_nll: Plain NLL on held-out data, nats a token, mean over seeds; None where not measured.
        heldout_nll_core: That of core tokens alone, where data says which those are.
        heldout_nll_style: That of style tokens.
        kept_share: Share of tokens of non-zero weight, mean over training and seeds; None for the untrained model.
        collapsed: Seeds whose run was warned of as a collapse, at its end or before.
        curves: By name of `CURVES`, `[step, value]` pairs, mean over seeds.
    """

    model: str
    variant: str
    seeds: tuple[int | None, ...]
    planned: int
    scores: tuple[Score, ...]
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
        adjusted_p: The p-value after Holm's correction over all rows.
        seeds: What the seeds say.
        verdict: It all in words.
    """

    model: str
    first: str
    second: str
    outcome: str
    comparison: PairedComparison
    adjusted_p: float
    seeds: SeedSpread
    verdict: str

    @property
    def shown(self) -> str:
        """`better` or `worse`, followed by ` here` where it is shown of these models only; or `no difference`."""
        if self.verdict.startswith("no difference"):
            return "no difference"
        word = "better" if self.comparison.difference > 0 else "worse"
        return f"{word} here" if self.verdict.startswith("these models") else word


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
    groups = _grouped(plan, results)
    finished = {result.cell.slug for result in results}
    return Analysis(
        outcomes=outcomes,
        num_problems={task: len(results[0].scores[task]) for task in tasks} if results else {},
        rows=tuple(_row(plan, outcomes, group) for group in groups.values()),
        comparisons=_comparisons(plan, outcomes, groups),
        missing=tuple(cell.slug for cell in plan.cells if cell.slug not in finished),
    )


Groups = dict[tuple[str, str], list[CellResult]]


def _grouped(plan: StudyPlan, results: Sequence[CellResult]) -> Groups:
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


def problem_scores(results: Sequence[CellResult], outcome: str) -> tuple[list[float], list[str]]:
    """Return each problem's score averaged over seeds, and the task it is of."""
    tasks = list(results[0].scores) if outcome == AVERAGE else [outcome]
    scores, strata = [], []
    for task in tasks:
        by_seed = [result.scores[task] for result in results]
        scores += [sum(values) / len(values) for values in zip(*by_seed, strict=True)]
        strata += [task] * len(by_seed[0])
    return scores, strata


def _seed_means(results: Sequence[CellResult], outcome: str) -> list[float]:
    means = []
    for result in results:
        tasks = list(result.scores) if outcome == AVERAGE else [outcome]
        means.append(sum(_mean(result.scores[task]) for task in tasks) / len(tasks))
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
        scores=tuple(_score(results, outcome) for outcome in outcomes),
        heldout_nll=_mean_of(heldout, "nll"),
        heldout_nll_core=_mean_of(heldout, "nll_core"),
        heldout_nll_style=_mean_of(heldout, "nll_style"),
        kept_share=_mean_of(trained, "kept_share"),
        collapsed=sum(result.collapse is not None for result in results),
        curves={name: mean_curve([result.metrics for result in results], name) for name in CURVES},
    )


def _score(results: Sequence[CellResult], outcome: str) -> Score:
    scores, strata = problem_scores(results, outcome)
    low, high = bootstrap_interval(scores, strata=strata)
    by_seed = tuple(_seed_means(results, outcome))
    return Score(outcome=outcome, mean=_mean(by_seed), low=low, high=high, by_seed=by_seed)


def mean_curve(logs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> list[list[float]]:
    """Return `[step, value]` pairs of one metric, averaged over those runs that have the step."""
    values: dict[int, list[float]] = {}
    for entries in logs:
        for entry in entries:
            if name in entry:
                values.setdefault(entry["step"], []).append(entry[name])
    return [[step, _mean(values[step])] for step in sorted(values)]


def _comparisons(plan: StudyPlan, outcomes: Sequence[str], groups: Groups) -> tuple[ComparisonRow, ...]:
    """Compare every variant with the baseline, and the pairs the plan asks for, on every outcome."""
    made = []
    for model in plan.models:
        names = [name for group_model, name in groups if group_model == model.name]
        pairs = [(name, plan.baseline) for name in names if name != plan.baseline]
        pairs += [pair for pair in plan.comparisons if pair not in pairs]
        for outcome in outcomes:
            for first, second in pairs:
                if first in names and second in names:
                    made.append((model.name, first, second, outcome))
    found = [_compare(groups[model, first], groups[model, second], outcome) for model, first, second, outcome in made]
    adjusted = holm([comparison.p_value for comparison, _ in found])
    return tuple(
        ComparisonRow(
            model=model,
            first=first,
            second=second,
            outcome=outcome,
            comparison=comparison,
            adjusted_p=p_value,
            seeds=seeds,
            verdict=verdict(comparison, p_value, seeds, first=first, second=second),
        )
        for (model, first, second, outcome), (comparison, seeds), p_value in zip(made, found, adjusted, strict=True)
    )


def _compare(
    first: Sequence[CellResult], second: Sequence[CellResult], outcome: str
) -> tuple[PairedComparison, SeedSpread]:
    first, second = _with_common_seeds(first, second)
    scores, strata = problem_scores(first, outcome)
    other, _ = problem_scores(second, outcome)
    seeds = seed_spread(*(_means_or_fixed(results, outcome) for results in (first, second)))
    return paired_comparison(scores, other, strata=strata), seeds


def _with_common_seeds(
    first: Sequence[CellResult], second: Sequence[CellResult]
) -> tuple[Sequence[CellResult], Sequence[CellResult]]:
    """Leave the seeds that both have: a seed is an order of the rows, and some orders serve every objective better.

    Where they have none in common, and against the untrained model, all stay.
    """
    common = {result.cell.seed for result in first} & {result.cell.seed for result in second}
    if not common:
        return first, second
    return [r for r in first if r.cell.seed in common], [r for r in second if r.cell.seed in common]


def _means_or_fixed(results: Sequence[CellResult], outcome: str) -> list[float] | float:
    means = _seed_means(results, outcome)
    return means[0] if results[0].cell.seed is None else means


def headline(plan: StudyPlan, analysis: Analysis) -> list[str]:
    """Return the study's outcome in a few sentences, the first of which stands for all."""
    rows = analysis.main_comparisons
    against = [row for row in rows if row.second == plan.baseline and row.first != UNTRAINED]
    if not against:
        return ["There is nothing to compare yet: the baseline and another variant must be finished and evaluated."]
    several = len(plan.models) > 1
    sentences = _sentences_on_baseline(plan.baseline, against, several=several)
    for row in rows:
        where = f" ({row.model})" if several else ""
        if row.first == UNTRAINED and row.second == plan.baseline and not row.shown.startswith("worse"):
            sentences.append(f"{plan.baseline} is not shown to be better than the untrained model{where}.")
        elif row.second != plan.baseline:
            sentences.append(f"{row.verdict[0].upper()}{row.verdict[1:]}{where}.")
    return sentences


def _sentences_on_baseline(baseline: str, rows: Sequence[ComparisonRow], *, several: bool) -> list[str]:
    if all(row.shown == "no difference" for row in rows):
        return [f"No difference shown between {baseline} and any of {len(rows)} other variants."]
    sentences = []
    for shown, words in (
        ("better", f"Better than {baseline}"),
        ("worse", f"Worse than {baseline}"),
        ("better here", f"Better than {baseline} as trained here, not shown for other seeds"),
        ("worse here", f"Worse than {baseline} as trained here, not shown for other seeds"),
        ("no difference", f"No difference from {baseline} shown"),
    ):
        names = [row.first + (f" ({row.model})" if several else "") for row in rows if row.shown == shown]
        if names:
            sentences.append(f"{words}: {', '.join(names)}.")
    return sentences


def limits(plan: StudyPlan, analysis: Analysis) -> list[str]:
    """Return what the figures cannot show, in plain words."""
    said = []
    rows = analysis.main_comparisons
    if rows:
        reach = sorted((row.comparison.high - row.comparison.low) / 2 for row in rows)[len(rows) // 2]
        problems = sum(analysis.num_problems.values())
        said.append(
            f"On {problems} problems a 95% interval reaches about {100 * reach:.0f} points to either side: smaller "
            "differences than that go unnoticed, so 'no difference shown' does not mean that there is none."
        )
        said.append(
            f"P-values are corrected for {len(analysis.comparisons)} comparisons (Holm); below {SIGNIFICANCE} counts "
            "as shown. The printed intervals are not widened for it."
        )
    most = max((len(row.seeds) for row in analysis.rows), default=0)
    said.append(
        "A seed sets the order of the rows and the draws of a random mask; data and starting weights are the same in "
        "all runs, so seeds vary less here than another sample of training rows would."
    )
    if most > 1:
        said.append(
            f"With {most} seeds an interval over seeds is several times as wide as their spread (Welch's t, "
            f"{most - 1} to {2 * most - 2} degrees of freedom for two variants of {most}): it can confirm a large "
            "difference, and can neither measure a small one nor rule it out. Variants with one seed speak of one run "
            "each."
        )
    elif most == 1:
        said.append("Every variant has one seed, so nothing is shown about what another run would give.")
    if analysis.missing:
        said.append(f"{len(analysis.missing)} of {len(plan.cells)} cells are not finished: {_few(analysis.missing)}.")
    return said


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _mean_of(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return _mean(values) if values else None


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
