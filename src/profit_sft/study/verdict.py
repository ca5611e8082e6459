"""What the figures of a study show, in words and numbers, and no more than that."""

from collections.abc import Iterator, Mapping, Sequence

from profit_sft.study.analysis import Accuracy, Analysis, ComparisonRow, VariantRow
from profit_sft.study.plan import StudyPlan
from profit_sft.study.statistics import SIGNIFICANCE
from profit_sft.study.variants import UNTRAINED

_EDGE = 0.01  # an accuracy whose interval reaches this near to 0 or 1 is at the floor or the ceiling
_NLL_RISE = 0.05  # as the collapse warning has it


def headline(plan: StudyPlan, analysis: Analysis) -> list[str]:
    """Return the study's outcome: `summary`, then `standings`."""
    return summary(plan, analysis) + standings(plan, analysis)


def summary(plan: StudyPlan, analysis: Analysis) -> list[str]:
    """Return the outcome in a few sentences, the first of which stands for all."""
    rows = analysis.main_comparisons
    against = [row for row in rows if row.second == plan.baseline and row.first != UNTRAINED]
    sentences = list(_edges(plan, analysis))
    nothing_to_see = len(sentences) == len(analysis.num_problems) * len(plan.models)
    if not against:
        sentences.append(
            "There is nothing to compare yet: the baseline and another variant must be finished and evaluated."
        )
    elif not nothing_to_see or any(row.shown != "no difference" for row in against):
        sentences += _sentences_on_baseline(plan, analysis, against)
    for row in rows:
        where = plan.of_model(row.model)
        if row.first == UNTRAINED and row.second == plan.baseline and not row.shown.startswith("worse"):
            sentences.append(f"{plan.baseline} is not shown to be better than the untrained model{where}.")
        elif row.second != plan.baseline:
            sentences.append(f"{row.verdict[0].upper()}{row.verdict[1:]}{where}.")
    return sentences + list(_nll_and_collapses(plan, analysis))


def _sentences_on_baseline(plan: StudyPlan, analysis: Analysis, rows: Sequence[ComparisonRow]) -> list[str]:
    """Say of each variant, best first, how it compares with the baseline, in numbers."""
    accuracies = {(row.model, row.variant): row.scores[0] for row in analysis.rows if row.scores}
    bases = [
        (f"{model.name} " if len(plan.models) > 1 else "")
        + f"{100 * base.mean:.1f}% ({100 * base.low:.1f} to {100 * base.high:.1f})"
        for model in plan.models
        if (base := accuracies.get((model.name, plan.baseline))) is not None
    ]
    baseline = f"{plan.baseline}, {', '.join(bases)}"
    if all(row.shown == "no difference" for row in rows):
        best = max(rows, key=lambda row: accuracies[row.model, row.first].mean)
        return [
            f"No difference shown between {baseline}, and any of {len(rows)} other variants; the best of these, "
            f"{_in_numbers(plan, best, accuracies)}."
        ]
    sentences = []
    for shown, words in (
        ("better", f"Better than {baseline}, over seeds and problems"),
        ("worse", f"Worse than {baseline}, over seeds and problems"),
        ("better here", f"Better than {baseline}, as trained here, which is not shown of the methods"),
        ("worse here", f"Worse than {baseline}, as trained here, which is not shown of the methods"),
        ("no difference", f"No difference from {plan.baseline} shown"),
    ):
        found = sorted((row for row in rows if row.shown == shown), key=lambda row: -row.comparison.difference)
        if found:
            told = "; ".join(_in_numbers(plan, row, accuracies) for row in found)
            sentences.append(f"{words}: {told}.")
    if not any(row.shown.startswith("better") for row in rows):
        sentences.insert(0, f"No variant is shown to be better than {baseline}.")
    # The baseline's own figures once are enough.
    return [sentences[0], *(sentence.replace(baseline, plan.baseline, 1) for sentence in sentences[1:])]


def _in_numbers(plan: StudyPlan, row: ComparisonRow, accuracies: Mapping[tuple[str, str], Accuracy]) -> str:
    """Return as in "dft 46.0%, 8.8 points less (5.3 to 12.4)"; where nothing is shown, the difference with its sign."""
    found = row.comparison
    name = f"{row.first}{plan.of_model(row.model)} {100 * accuracies[row.model, row.first].mean:.1f}%"
    if row.shown == "no difference" or found.low < 0 < found.high:
        return f"{name}, {100 * found.difference:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    ends = sorted((abs(100 * found.low), abs(100 * found.high)))
    more = "more" if found.difference > 0 else "less"
    return f"{name}, {abs(100 * found.difference):.1f} points {more} ({ends[0]:.1f} to {ends[1]:.1f})"


def _edges(plan: StudyPlan, analysis: Analysis) -> Iterator[str]:
    """Say on which tasks nothing could have been seen, because all variants are at the floor or at the ceiling."""
    for model in plan.models:
        rows = [row for row in analysis.rows if row.model == model.name and row.variant != UNTRAINED]
        where = plan.of_model(model.name)
        for outcome in analysis.num_problems:
            accuracies = [accuracy for row in rows for accuracy in row.scores if accuracy.outcome == outcome]
            if accuracies and all(accuracy.low <= _EDGE for accuracy in accuracies):
                edge, rest, way = "floor", f"{_EDGE:.0%} or less", "an easier task or a stronger model"
            elif accuracies and all(accuracy.high >= 1 - _EDGE for accuracy in accuracies):
                edge, rest, way = "ceiling", f"{1 - _EDGE:.0%} or more", "a harder task"
            else:
                continue
            yield (
                f"Every variant is at the {edge} of {outcome}{where}: all intervals include {rest}, so the task cannot "
                f"tell them apart. Take {way}, or more problems."
            )


def _nll_and_collapses(plan: StudyPlan, analysis: Analysis) -> Iterator[str]:
    baselines = {row.model: row.heldout_nll for row in analysis.rows if row.variant == plan.baseline}
    higher, collapsed = [], []
    for row in analysis.rows:
        name = f"{row.variant}{plan.of_model(row.model)}"
        base = baselines.get(row.model)
        if row.variant != UNTRAINED and base and row.heldout_nll and row.heldout_nll > (1 + _NLL_RISE) * base:
            higher.append(f"{name} {row.heldout_nll:.3f}")
        if row.collapsed:
            collapsed.append(f"{name}, {row.collapsed} of {len(row.seeds)} runs")
    if higher:
        bases = ", ".join(f"{value:.3f}{plan.of_model(model)}" for model, value in baselines.items() if value)
        yield (
            f"Plain NLL on held-out data is more than {_NLL_RISE:.0%} above that of {plan.baseline}, {bases}: "
            f"{', '.join(higher)} (not tested)."
        )
    if collapsed:
        yield f"Collapsed: {'; '.join(collapsed)}."


def standings(plan: StudyPlan, analysis: Analysis) -> list[str]:
    """Return a line a variant with its figures on the first outcome, best first; without outcomes by held-out NLL."""
    baselines = {row.model: row for row in analysis.rows if row.variant == plan.baseline}
    lines = []
    for row, against in best_first(plan, analysis):
        where = plan.of_model(row.model)
        lines.append(f"{row.variant}{where} {_standing(row, against, baselines.get(row.model))}")
    return [line for line in lines if not line.endswith(" ")]


def best_first(plan: StudyPlan, analysis: Analysis) -> list[tuple[VariantRow, ComparisonRow | None]]:
    """Return the variants of each model, best first, each with its comparison with the baseline on the first outcome.

    Best is by the accuracy on the first outcome, and by plain NLL on held-out data where that is alike.
    """
    against = {(row.model, row.first): row for row in analysis.main_comparisons if row.second == plan.baseline}
    return [
        (row, against.get((row.model, row.variant)))
        for model in plan.models
        for row in sorted((row for row in analysis.rows if row.model == model.name), key=_merit)
    ]


def _merit(row: VariantRow) -> tuple[float, float]:
    nll = float("inf") if row.heldout_nll is None else row.heldout_nll
    return (-row.scores[0].mean if row.scores else 0.0, nll)


def _standing(row: VariantRow, against: "ComparisonRow | None", baseline: "VariantRow | None") -> str:
    parts = []
    if row.scores:
        accuracy = row.scores[0]
        parts.append(f"{100 * accuracy.mean:.1f}% [{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}]")
    if row.heldout_nll is not None:
        parts.append(f"NLL {row.heldout_nll:.3f}")
    if against is not None and baseline is not None:
        found = against.comparison
        parts.append(_on_the_same_seeds(baseline, row))
        parts.append(
            f"difference {100 * found.difference:+.1f} points [{100 * found.low:+.1f} to {100 * found.high:+.1f}]"
        )
        method_p = against.adjusted_method_p
        over_seeds = "one seed" if method_p is None else f"{p_text(method_p)} over seeds and problems"
        parts.append(f"corrected {p_text(against.adjusted_p)} over problems, {over_seeds}")
    return ", ".join(parts)


def _on_the_same_seeds(baseline: VariantRow, row: VariantRow) -> str:
    means = dict(zip(baseline.seeds, baseline.scores[0].by_seed, strict=True))
    compared = [means[seed] for seed in baseline.seeds if seed in row.seeds] or list(means.values())
    which = " on the same seeds" if len(compared) < len(means) else ""
    return f"{baseline.variant} {100 * sum(compared) / len(compared):.1f}%{which}"


def p_text(value: float) -> str:
    """Return `p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


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
        methods = sum(row.adjusted_method_p is not None for row in analysis.comparisons)
        said.append(
            f"P-values are corrected (Holm): of the methods for the {methods} comparisons with two seeds or more, of "
            f"these trained models for all {len(analysis.comparisons)}; below {SIGNIFICANCE} counts as shown. Of each "
            "of the two kinds of finding the chance of any false one is 5% at most. Printed intervals are not widened "
            "for it."
        )
    most = max((len(row.seeds) for row in analysis.rows), default=0)
    said.append(
        "A seed sets the order of the rows and the draws of a random mask; data and starting weights are the same in "
        "all runs, so seeds vary less here than another sample of training rows would."
    )
    if most > 1:
        said.append(
            f"That {most} seeds say anything of a method rests on one assumption: the runs of all variants between 10% "
            "and 90% vary alike, and their variance is estimated from all of them. A variant that varies more than the "
            "others is found to differ too easily; look at the accuracy by seed. Variants with one seed speak of one "
            "run each."
        )
    elif most == 1:
        said.append("Every variant has one seed, so nothing is shown about what another run would give.")
    if analysis.missing:
        said.append(f"{len(analysis.missing)} of {len(plan.cells)} cells are not finished: {_few(analysis.missing)}.")
    return said


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
