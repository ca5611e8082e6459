"""Paired comparisons of models on the same problems: intervals, p-values, their correction, and a verdict in words.

A figure of a variant is the mean over problems of what its models scored there, samples and seeds averaged first. Two
variants are compared problem by problem, `d_i = a_i - b_i`, which removes what makes a problem hard for both. Problems
are what is drawn at random: the interval and the p-value say what to expect on other problems of this kind from *these
trained models*. What another seed would give is a second question, which only several seeds can answer, see
`SeedSpread`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
SIGNIFICANCE = 0.05  # 1 - CONFIDENCE would be a little more, in floating point
_BLOCK_NUMBERS = 4_000_000  # resampled values held at a time, 32 MB
# Sums of the same numbers in another order may differ in the last digits; such a tie counts as one.
_TIE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedComparison:
    """First variant against second, on the same problems.

    Attributes:
        difference: Mean of first minus second, in units of the score.
        low: Lower end of the 95% bootstrap interval over problems.
        high: Upper end.
        p_value: Of a two-sided sign-flip test that the two are exchangeable on every problem.
        better: Problems on which the first scored higher.
        worse: Problems on which it scored lower.
        num_problems: Problems compared.
    """

    difference: float
    low: float
    high: float
    p_value: float
    better: int
    worse: int
    num_problems: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSpread:
    """What the seeds say about a difference of two variants.

    Attributes:
        first_seeds: Seeds of the first variant.
        second_seeds: Seeds of the second.
        low: Lower end of Welch's 95% interval over seeds; None where either has a single seed.
        high: Upper end.
    """

    first_seeds: int
    second_seeds: int
    low: float | None
    high: float | None


def paired_comparison(
    first: Sequence[float], second: Sequence[float], *, strata: Sequence[str] | None = None, seed: int = 0
) -> PairedComparison:
    """Compare two variants problem by problem.

    The difference is the mean over strata of the mean over their problems; with one stratum the plain mean. Resampling
    draws problems with replacement within each stratum; the percentile interval is of `RESAMPLES` draws. The test flips
    the sign of each difference at random, as often, or exactly where all flips are no more than that; its p-value
    counts the observed sign pattern too, so it is never 0.

    Args:
        first: `(P,)`. Scores of the first variant, samples and seeds averaged.
        second: `(P,)`. Scores of the second on the same problems in the same order.
        strata: `(P,)`. Task of each problem. None: one task.
        seed: Of the resampling. The same numbers give the same result.

    Raises:
        ValueError: Lengths differ, there is no problem, or a score is NaN.

    Source: Efron and Tibshirani 1993, chapters 13 (percentile interval) and 15 (permutation tests); Phipson and Smyth
    2010 for counting the observed pattern.

    Example:
        >>> found = paired_comparison([1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0])
        >>> round(found.difference, 3), found.better, found.worse, found.p_value
        (0.667, 4, 0, 0.125)
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if differences.ndim != 1 or len(differences) == 0 or len(first) != len(second) or np.isnan(differences).any():
        raise ValueError(
            f"two score lists over the same problems are needed, got lengths {len(first)} and {len(second)}"
            f"{' with NaN' if np.isnan(differences).any() else ''}."
        )
    names = np.zeros(len(differences)) if strata is None else np.asarray(strata)
    groups = [np.flatnonzero(names == name) for name in np.unique(names)]
    generator = np.random.default_rng(seed)
    means = sum(_resampled_means(differences[group], generator) for group in groups) / len(groups)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    shares = np.zeros(len(differences))  # what a problem's difference adds to the whole
    for group in groups:
        shares[group] = differences[group] / len(group) / len(groups)
    return PairedComparison(
        difference=float(shares.sum()),
        low=float(low),
        high=float(high),
        p_value=sign_flip_p_value(shares, generator),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        num_problems=len(differences),
    )


def bootstrap_interval(
    scores: Sequence[float], *, strata: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the 95% interval of one variant's mean score over problems, as `paired_comparison` forms its own."""
    found = paired_comparison(scores, [0.0] * len(scores), strata=strata, seed=seed)
    return found.low, found.high


def _resampled_means(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return `RESAMPLES` means of as many values drawn with replacement."""
    rows = max(1, _BLOCK_NUMBERS // len(values))
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        means[start : start + count] = values[generator.integers(len(values), size=(count, len(values)))].mean(axis=1)
    return means


def sign_flip_p_value(differences: NDArray[np.float64], generator: np.random.Generator) -> float:
    """Return the two-sided p-value of the sign-flip test for a sum of differences.

    Exact where the non-zero differences have at most `RESAMPLES` sign patterns, else from as many random ones.
    """
    values = differences[differences != 0]
    if len(values) == 0:
        return 1.0
    observed = abs(values.sum()) * (1 - _TIE) - _TIE
    if 2 ** len(values) <= RESAMPLES:
        patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float((np.abs((1 - 2 * patterns) @ values) >= observed).mean())
    rows = max(1, _BLOCK_NUMBERS // len(values))
    as_large = 0
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        signs = 1 - 2 * generator.integers(2, size=(count, len(values)), dtype=np.int8)
        as_large += int((np.abs(signs @ values) >= observed).sum())
    return (as_large + 1) / (RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, so that the chance of any false finding among them stays below the level.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def seed_spread(first: Sequence[float] | float, second: Sequence[float] | float) -> SeedSpread:
    """Return Welch's interval for the difference of two variants' means over seeds.

    Args:
        first: Mean score of each seed of the first variant; a plain number for a model that has no seed, such as the
            untrained one, which is the same every time.
        second: Those of the second.

    Source: Welch 1947, Biometrika 34.
    """
    sides = [_seed_mean(side) for side in (first, second)]
    counts = [1 if isinstance(side, float) else len(side) for side in (first, second)]
    if any(squared_error is None for _, squared_error, _ in sides):
        return SeedSpread(first_seeds=counts[0], second_seeds=counts[1], low=None, high=None)
    difference = sides[0][0] - sides[1][0]
    total = sum(squared_error or 0.0 for _, squared_error, _ in sides)
    half = 0.0
    if total > 0:
        freedom = total**2 / sum((squared_error or 0.0) ** 2 / freedom for _, squared_error, freedom in sides)
        half = student_t_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(total)
    return SeedSpread(first_seeds=counts[0], second_seeds=counts[1], low=difference - half, high=difference + half)


def _seed_mean(scores: Sequence[float] | float) -> tuple[float, float | None, int]:
    """Return mean, squared standard error and degrees of freedom; the error of a single seed is not known."""
    if isinstance(scores, float):
        return scores, 0.0, 1
    freedom = len(scores) - 1
    return float(np.mean(scores)), float(np.var(scores, ddof=1)) / len(scores) if freedom else None, freedom


def student_t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Return the quantile of Student's t distribution; the degrees of freedom need not be whole.

    By bisection on the distribution function, which is integrated on a fine grid: good to six digits for probabilities
    up to 0.999 from one degree of freedom on. Here so that a report needs no further package.
    """

    def distance(angle: float) -> float:
        # With t = sqrt(v) tan(u) the density becomes cos(u)^(v - 1), and its integral a finite one.
        grid = np.linspace(0.0, angle, 4001)
        return float(np.trapezoid(np.cos(grid) ** (degrees_of_freedom - 1), grid))

    whole = distance(math.pi / 2)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) < (2 * probability - 1) * whole else (low, middle)
    return math.sqrt(degrees_of_freedom) * math.tan(low)


def verdict(comparison: PairedComparison, adjusted_p: float, seeds: SeedSpread, *, first: str, second: str) -> str:
    """Say in words what a comparison shows, and no more.

    Args:
        comparison: First variant against second.
        adjusted_p: Its p-value after `holm`.
        seeds: What the seeds say.
        first: Name of the first variant.
        second: Name of the second.
    """
    if comparison.better == comparison.worse == 0:
        return (
            f"no difference shown: {first} and {second} scored the same on each of {comparison.num_problems} problems"
        )
    if adjusted_p >= SIGNIFICANCE:
        return f"no difference shown between {first} and {second}"
    word = "better" if comparison.difference > 0 else "worse"
    if seeds.low is None or seeds.high is None:
        return (
            f"these models of {first} are {word} than those of {second}; with one seed of either it is not shown that "
            "another run would be"
        )
    if seeds.low <= 0 <= seeds.high:
        return (
            f"these models of {first} are {word} than those of {second}, but seeds differ too much to say it of others"
        )
    return f"{first} is {word} than {second}"
