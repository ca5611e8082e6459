"""The thresholds a page can be set to, and where a token stands among them.

A page never compares probabilities: each token carries its *cell*, the number of thresholds of the grid that keep it.
Counts of cells add up to every kept share on the grid exactly, of any number of tokens.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DECADES = (-4, -3, -2)  # two significant digits from 0.00010 to 0.099
HISTOGRAM_BINS = 40
_LOGIT_END = 10.0


def threshold_grid(*extra: float) -> tuple[float, ...]:
    """Return the thresholds: 0, 1, and between them every probability of two digits, counted from the nearer end.

    0.0001, 0.00011, ... 0.099, 0.10, 0.11, ... 0.90, 0.901, ... 0.9999: 623 of them.

    Args:
        extra: Thresholds that must be among them.

    Example:
        >>> grid = threshold_grid(0.1234)
        >>> [value for value in grid if 0.12 <= value <= 0.13]
        [0.12, 0.1234, 0.13]
    """
    low = [round(digits * 10.0 ** (decade - 1), 6) for decade in _DECADES for digits in range(10, 100)]
    low += [digits / 100 for digits in range(10, 51)]
    return tuple(sorted({0.0, 1.0, *low, *(round(1 - value, 6) for value in low), *extra}))


def cells(log_probs: NDArray[np.float32], thresholds: Sequence[float]) -> NDArray[np.uint16]:
    """Return how many of the thresholds keep each token: `p >= thresholds[i]` where `i < cell`.

    The comparison is that of `profit_sft.objectives.ProFit`: fp32, in log space.

    Args:
        log_probs: `(N,)`, fp32, nats.
        thresholds: Ascending, the first of them 0.
    """
    floors = np.array([math.log(value) if value > 0 else -math.inf for value in thresholds], dtype=np.float32)
    return np.searchsorted(floors, log_probs, side="right").astype(np.uint16)


def logits(log_probs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `log(p / (1 - p))`, which spreads both ends of the probabilities; infinite at 0 and 1."""
    exact = log_probs.astype(np.float64)
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = exact - np.log(-np.expm1(exact))
    return result


def logit_bins(log_probs: NDArray[np.float32], bins: int = HISTOGRAM_BINS) -> NDArray[np.int64]:
    """Return each token's bin of a histogram that is even in the logit, -10 to 10; what lies beyond joins the ends.

    Args:
        log_probs: `(N,)`, fp32, nats.
        bins: How many.
    """
    scaled = (logits(log_probs) + _LOGIT_END) * (bins / (2 * _LOGIT_END))
    return np.clip(np.floor(scaled), 0, bins - 1).astype(np.int64)


def bin_edges(bins: int = HISTOGRAM_BINS) -> list[float]:
    """Return the probabilities at the edges of `logit_bins`, 0 and 1 at the ends."""
    inner = [1 / (1 + math.exp(-(2 * _LOGIT_END * index / bins - _LOGIT_END))) for index in range(1, bins)]
    return [0.0, *inner, 1.0]
