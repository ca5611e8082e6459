"""Means over problems that were sampled several times, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over problems. Everything is in the unit of the scores.

    Attributes:
        mean: The estimate.
        standard_error: Its standard error; None with fewer than two problems.
        between_problems: Standard deviation of the problems' own means; None with fewer than two problems.
        within_problem: Root of the mean variance of the samples of one problem; None with one sample a problem.
    """

    mean: float
    standard_error: float | None
    between_problems: float | None
    within_problem: float | None


def estimate_mean(scores: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> Estimate:
    """Estimate the mean score of a problem drawn like these, from several samples of each.

        m_i  = mean of the samples of problem i
        mean = sum_i w_i m_i / sum_i w_i
        SE   = sqrt(n / (n - 1) * sum_i (w_i (m_i - mean))^2) / sum_i w_i

    Problems are the independent units: samples of one problem share its difficulty, so more of them make `m_i` surer
    but add no problem. With equal weights SE is the usual `sd(m_i) / sqrt(n)`; otherwise it is the linearized standard
    error of a ratio. avg@k is `mean` with k samples a problem.

    Args:
        scores: For each problem the scores of its samples, at least one of each.
        weights: For each problem a positive weight, such as the instructions it holds. None: all alike.

    Raises:
        ValueError: There is no problem, or one without samples.

    Source: Cochran 1977, Sampling Techniques, 3rd edition, sections 6.4 and 9.2; Miller 2024, arXiv:2411.00640.

    Example:
        >>> estimate_mean([[1, 0], [1, 1], [0, 0]]).mean
        0.5
    """
    if not scores or not all(scores):
        raise ValueError("a mean needs at least one problem, and of each problem at least one sample.")
    weights = [1.0] * len(scores) if weights is None else list(weights)
    n, total = len(scores), sum(weights)
    means = [sum(samples) / len(samples) for samples in scores]
    mean = sum(weight * value for weight, value in zip(weights, means, strict=True)) / total
    error = between = None
    if n > 1:
        squares = sum((weight * (value - mean)) ** 2 for weight, value in zip(weights, means, strict=True))
        error = math.sqrt(n / (n - 1) * squares) / total
        center = sum(means) / n
        between = math.sqrt(sum((value - center) ** 2 for value in means) / (n - 1))
    return Estimate(mean=mean, standard_error=error, between_problems=between, within_problem=_within(scores, means))


def _within(scores: Sequence[Sequence[float]], means: Sequence[float]) -> float | None:
    variances = [
        sum((score - mean) ** 2 for score in samples) / (len(samples) - 1)
        for samples, mean in zip(scores, means, strict=True)
        if len(samples) > 1
    ]
    return math.sqrt(sum(variances) / len(variances)) if variances else None
