"""Means over problems that were sampled several times, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over problems. Everything is in the unit of the grades.

    Attributes:
        mean: The estimate.
        low: Lower end of its 95% interval over problems, see `share_interval`.
        high: Upper end.
        standard_error: Its standard error, which is 0 where all grades are alike; None with fewer than two problems.
    """

    mean: float
    low: float
    high: float
    standard_error: float | None


def estimate_mean(grades: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> Estimate:
    """Estimate the mean grade of a problem drawn like these, from several samples of each.

        m_i  = mean of the samples of problem i
        mean = sum_i w_i m_i / sum_i w_i
        SE   = sqrt(n / (n - 1) * sum_i (w_i (m_i - mean))^2) / sum_i w_i

    Problems are the independent units: samples of one problem share its difficulty, so more of them make `m_i` surer
    but add no problem. With equal weights SE is the usual `sd(m_i) / sqrt(n)`; otherwise it is the linearized standard
    error of a ratio. avg@k is `mean` with k samples a problem.

    Args:
        grades: For each problem those of its samples, shares in [0, 1], at least one of each.
        weights: For each problem a positive weight, such as the instructions it holds. None: all alike.

    Raises:
        ValueError: There is no problem, or one without samples.

    Source: Cochran 1977, Sampling Techniques, 3rd edition, sections 6.4 and 9.2; Miller 2024, arXiv:2411.00640.

    Example:
        >>> found = estimate_mean([[1, 0], [1, 1], [0, 0]])
        >>> found.mean, round(found.low, 3), round(found.high, 3)
        (0.5, 0.064, 0.936)
    """
    if not grades or not all(grades):
        raise ValueError("a mean needs at least one problem, and of each problem at least one sample.")
    weights = [1.0] * len(grades) if weights is None else list(weights)
    n, total = len(grades), sum(weights)
    means = [sum(samples) / len(samples) for samples in grades]
    mean = sum(weight * value for weight, value in zip(weights, means, strict=True)) / total
    error = None
    if n > 1:
        squares = sum((weight * (value - mean)) ** 2 for weight, value in zip(weights, means, strict=True))
        error = math.sqrt(n / (n - 1) * squares) / total
    low, high = share_interval(means, weights)
    return Estimate(mean=mean, low=low, high=high, standard_error=error)


def share_interval(means: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float]:
    """Return the 95% interval of a mean of shares over problems, which also holds near 0 and 1.

        n_0   = (sum_i w_i)^2 / sum_i w_i^2                              # problems, as good as
        r     = sum_i w_i^2 (m_i - mean)^2 / (sum_i w_i^2 mean (1 - mean))
        n_eff = n_0 (h + 1) / (h r + 1)

    and then Clopper and Pearson's exact interval of `mean * n_eff` right out of `n_eff`. `r` compares how much the
    problems differ with the most they could, which is that each is always right or always wrong: with one sample a
    problem it is 1, so the interval is the exact one. With more samples it is an estimate, only as good as
    the number `h` of problems that have any of the rarer kind of answer, right or wrong. So it is drawn to 1, as if one
    further problem were always right or wrong: without that, coverage fell to 86%. Where every answer is right, or none
    is, `n_eff` is `n_0`.

    Args:
        means: `(P,)`. For each problem the mean of its samples, in [0, 1].
        weights: `(P,)`. As `estimate_mean` takes them.

    Source: Korn and Graubard 1998, Survey Methodology 24, for the exact interval at an effective size; the pull of
    `r` towards 1 is ours, with the coverage measured in tests/evaluation/test_statistics.py.

    Example:
        >>> low, high = share_interval([0.0] * 20)
        >>> low, round(high, 3)
        (0.0, 0.168)
    """
    from scipy.stats import beta

    values = np.asarray(means, dtype=np.float64)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    size = 1 / float(shares @ shares)
    some_right, some_wrong = np.count_nonzero(values > 0), np.count_nonzero(values < 1)
    mean = float(shares @ values)
    if some_right and some_wrong:
        spread = float(shares**2 @ (values - mean) ** 2) * size / (mean * (1 - mean))
        informative = min(some_right, some_wrong)
        size *= (informative + 1) / (informative * spread + 1)
    right = mean * size
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, right, size - right + 1)) if some_right else 0.0
    high = float(beta.ppf(1 - tail, right + 1, size - right)) if some_wrong else 1.0
    return low, high


def average_interval(means: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the 95% interval of the plain average of independent figures that have 95% intervals of their own.

    Source: Zou and Donner 2008, Statistics in Medicine 27 (the method of variance estimates recovery).
    """
    mean = sum(means) / len(means)
    below = math.hypot(*(value - low for value, (low, _) in zip(means, intervals, strict=True)))
    above = math.hypot(*(high - value for value, (_, high) in zip(means, intervals, strict=True)))
    return mean - below / len(means), mean + above / len(means)
