"""Whether a difference would be there with other seeds and other problems: what makes it one of the methods.

The variance between seeds is pooled over the variants of a study, because that of three runs says next to nothing.
Where both variants ran the same seeds they are paired, which removes what a seed, an order of the rows, does to both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profit_sft.evaluation.statistics import CONFIDENCE
from profit_sft.study.statistics import Floats, problem_shares, strata_of

# Nearer to 0 or 1 a mean has no room to vary, and would make the others look steadier than they are.
_ROOM = 0.1

Runs = Mapping[int | None, Floats]  # by seed `(P,)`, the accuracies on its problems; the untrained model's seed is None


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedVariance:
    """How much the mean accuracies of a variant's runs vary, pooled over variants.

    Attributes:
        paired: Variance of a run that is left after what a seed does to all variants alike; None where unknown.
        paired_freedom: Its degrees of freedom.
        unpaired: Variance of a run; None where no variant has two.
        unpaired_freedom: Its degrees of freedom.
    """

    paired: float | None
    paired_freedom: int
    unpaired: float | None
    unpaired_freedom: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedComparison:
    """A difference of two variants, over seeds and problems.

    Attributes:
        first_seeds: Seeds of the first variant that are compared.
        second_seeds: Seeds of the second.
        paired: Whether both ran the same ones.
        freedom: Degrees of freedom of Student's t; None, as all that follows, where one of them has a single seed.
        low: Lower end of the 95% interval over seeds and problems.
        high: Upper end.
        p_value: Two-sided.
    """

    first_seeds: int
    second_seeds: int
    paired: bool
    freedom: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


def pooled_seed_variance(means: Sequence[Mapping[int | None, float]]) -> SeedVariance:
    """Estimate the variance between runs that differ by their seed alone.

    Paired, it is that of the residuals of `mean of a run = variant + seed`, by least squares; unpaired, of the runs
    about the mean of their variant. Variants below 10% or above 90% are left out where two or more others remain.

    Args:
        means: For each trained variant the mean accuracy of each of its seeds.
    """
    several = [runs for runs in means if len(runs) > 1]
    roomy = [runs for runs in several if _ROOM <= sum(runs.values()) / len(runs) <= 1 - _ROOM]
    used = roomy if len(roomy) > 1 else several
    if not used:
        return SeedVariance(paired=None, paired_freedom=0, unpaired=None, unpaired_freedom=0)
    seeds = sorted({seed for runs in used for seed in runs if seed is not None})
    rows = [(index, seeds.index(seed), mean) for index, runs in enumerate(used) for seed, mean in sorted(_seeded(runs))]
    values = np.array([mean for _, _, mean in rows])
    design = np.zeros((len(rows), len(used) + len(seeds)))
    for row, (variant, seed, _) in enumerate(rows):
        design[row, [variant, len(used) + seed]] = 1
    of_variants = design[:, : len(used)]
    within, within_freedom = _residual(of_variants, values)
    left, left_freedom = _residual(design, values)
    return SeedVariance(paired=left, paired_freedom=left_freedom, unpaired=within, unpaired_freedom=within_freedom)


def _seeded(runs: Mapping[int | None, float]) -> list[tuple[int, float]]:
    return [(seed, mean) for seed, mean in runs.items() if seed is not None]


def _residual(design: Floats, values: Floats) -> tuple[float | None, int]:
    """Return the residual variance of a least-squares fit and its degrees of freedom."""
    fitted, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(values) - int(rank)
    return (float(((values - design @ fitted) ** 2).sum()) / freedom if freedom else None), freedom


def seed_comparison(
    first: Runs, second: Runs, pooled: SeedVariance, *, strata: Sequence[str] | None = None
) -> SeedComparison:
    """Compare two variants over seeds and problems.

        SE^2 = seeds + problems - both,   at least `seeds` and at least `problems`

    where `seeds` is the variance of the difference because runs vary (pooled), `problems` that of the mean of as many
    differences as there are problems, and `both` what is counted in both of them, how differently the seeds do on the
    same problem. Then Student's t, with Satterthwaite's degrees of freedom. The seeds alone would take the problems for
    the only ones there are: where two variants are good at different problems, that finds differences too often.

    Args:
        first: The runs of the first variant. Compared are those whose seed the second has too, or else all.
        second: Those of the second. The untrained model is one run of seed None, the same every time.
        pooled: What `pooled_seed_variance` found, of the same accuracies.
        strata: Task of each problem. None: one task.

    Source: Brennan 2001, Generalizability Theory, chapter 6 (a difference over crossed random facets); Satterthwaite
    1946, Biometrics Bulletin 2.
    """
    common = sorted(_seeds(first) & _seeds(second))
    fixed = None in first or None in second
    one, other = (np.stack([runs[seed] for seed in common or runs]) for runs in (first, second))  # (S, P)
    counts = len(one), len(other)
    groups = strata_of(strata, one.shape[1])
    spread, freedom = (pooled.paired, pooled.paired_freedom) if common else (pooled.unpaired, pooled.unpaired_freedom)
    few = max(counts) < 2 or (min(counts) < 2 and not fixed) or min(len(group) for group in groups) < 2
    if spread is None or few:
        return SeedComparison(first_seeds=counts[0], second_seeds=counts[1], paired=bool(common))
    if common or fixed:
        blocks, runs = [one - other], 2 / len(common) if common else 1 / max(counts)
    else:
        blocks, runs = [one, other], 1 / counts[0] + 1 / counts[1]
    differences = one.mean(axis=0) - other.mean(axis=0)  # (P,)
    difference = float(differences @ problem_shares(groups))
    of_seeds = spread * runs
    of_problems = sum(float(differences[group].var(ddof=1)) / len(group) for group in groups) / len(groups) ** 2
    both = sum(_interaction(block, groups) for block in blocks)
    variance = max(of_seeds + of_problems - both, of_seeds, of_problems)
    return SeedComparison(
        first_seeds=counts[0],
        second_seeds=counts[1],
        paired=bool(common),
        **_student(difference, variance, [(of_seeds, freedom), (of_problems, len(differences) - len(groups))]),
    )


def _seeds(runs: Runs) -> set[int]:
    return {seed for seed in runs if seed is not None}


def _interaction(runs: Floats, groups: Sequence[NDArray[np.intp]]) -> float:
    """Return what the interaction of seeds and problems adds to the variance of the mean of `(S, P)` accuracies."""
    total = 0.0
    for group in groups:
        accuracies = runs[:, group]
        rest = accuracies - accuracies.mean(axis=0) - accuracies.mean(axis=1, keepdims=True) + accuracies.mean()
        seeds, problems = accuracies.shape
        total += float((rest**2).sum()) / ((seeds - 1) * (problems - 1)) / (seeds * problems)
    return total / len(groups) ** 2


def _student(difference: float, variance: float, parts: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Return degrees of freedom, interval and p-value of a difference whose variance is estimated from parts."""
    from scipy.stats import t

    if variance <= 0:  # the same difference in every run and on every problem
        freedom = float(sum(count for _, count in parts))
        return {"freedom": freedom, "low": difference, "high": difference, "p_value": float(difference == 0)}
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    error = float(np.sqrt(variance))
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p_value = 2 * float(t.sf(abs(difference) / error, freedom))
    return {"freedom": freedom, "low": difference - half, "high": difference + half, "p_value": p_value}
