"""The label tokens of a score set as flat arrays, and which of them a threshold keeps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profit_sft.errors import DataError
from profit_sft.scores.store import ScoreSet, data_differences

# The paper studies 0.1 to 0.9; below that lie the tokens a strong model finds nearly impossible.
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_DECADES = (-4, -3, -2)  # two significant digits from 0.00010 to 0.099


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelTokens:
    """The `N` label tokens of `E` examples in data order, under `M` models, one or two.

    Attributes:
        log_probs: `(M, N)`, float64 that hold fp32 values. Natural log of the probability the model gives the token.
        token_ids: `(N,)`, int32.
        previous_ids: `(N,)`, int32. The token before each.
        positions: `(N,)`, int32. Index of each among all tokens of its example, at least 1.
        examples: `(N,)`, int64. Which example the token belongs to, counted from 0 in data order.
        token_kinds: `(N,)`, int8, values of `data.tokenize.TOKEN_KINDS`; None where no row has `answer_spans`.
        lengths: `(E,)`, int64. All tokens of each example, prompt included.

    Raises:
        DataError: There is no label token, or one has no finite log p.
    """

    log_probs: NDArray[np.float64]
    token_ids: NDArray[np.int32]
    previous_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    examples: NDArray[np.int64]
    token_kinds: NDArray[np.int8] | None = None
    lengths: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.log_probs.size == 0:
            raise DataError("there is no label token to look at. Score a data set that has at least one row.")
        bad = ~np.isfinite(self.log_probs).all(axis=0)
        if bad.any():
            raise DataError(
                f"{bad.sum()} of {bad.size} label tokens have no finite log p: the model's logits overflow. Score "
                "again with --dtype float32, or with another model."
            )

    @property
    def num_examples(self) -> int:
        """Examples that have label tokens."""
        return int(np.unique(self.examples).size)

    @property
    def answer_places(self) -> NDArray[np.int64]:
        """`(N,)`: place in the answer, from 1. An example has one answer, all its label tokens, a chat's turns too."""
        starts = np.flatnonzero(np.r_[True, self.examples[1:] != self.examples[:-1]])
        lengths = np.diff(np.r_[starts, self.examples.size])
        return np.arange(1, self.examples.size + 1) - np.repeat(starts, lengths)

    def by_answer_place(self) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Yield first place, last place and the indices of the tokens there: 1, 2, 3 to 4, 5 to 8, ..."""
        powers = np.ceil(np.log2(self.answer_places)).astype(np.int64)
        for power in np.unique(powers).tolist():
            yield 2**power // 2 + 1, 2**power, np.flatnonzero(powers == power)

    @property
    def follows_none(self) -> NDArray[np.bool_]:
        """`(N,)`: True where the token before is no label token, so that no word reaches across."""
        begins: NDArray[np.bool_] = (np.diff(self.positions, prepend=-1) != 1) | (self.answer_places == 1)
        return begins


def label_tokens(*score_sets: ScoreSet) -> LabelTokens:
    """Read every label token of one score set, or of two of the same data, into memory.

    Args:
        score_sets: What `load_scores` returns, one or two.

    Raises:
        DataError: The two are not of the same data, there is no label token, or one has no finite log p.
    """
    first = score_sets[0]
    for other in score_sets[1:]:
        _check_same_data(first, other)
    token_ids, previous_ids, positions, lengths = [], [], [], []
    for example in first:
        token_ids.append(example.input_ids[example.positions])
        previous_ids.append(example.input_ids[example.positions - 1])
        positions.append(example.positions)
        lengths.append(len(example.input_ids))
    return LabelTokens(
        log_probs=np.stack([scores.column("log_probs").astype(np.float64) for scores in score_sets]),
        token_ids=np.concatenate(token_ids),
        previous_ids=np.concatenate(previous_ids),
        positions=np.concatenate(positions),
        examples=np.repeat(np.arange(len(positions)), [len(places) for places in positions]),
        token_kinds=first.column("token_kinds") if first.has_kinds else None,
        lengths=np.array(lengths),
    )


def _check_same_data(first: ScoreSet, second: ScoreSet) -> None:
    mine, theirs = first.manifest, second.manifest
    differences = data_differences(mine.data, mine.data_settings, theirs.data, theirs.data_settings)
    if differences:
        raise DataError(
            f"'{first.folder}' and '{second.folder}' are not scores of the same data: {'; '.join(differences)}. "
            "Score the same rows with the same settings under both models."
        )


def indices_of(keys: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each of the keys, ascending, with the indices that have it."""
    if keys.size == 0:  # data without one word or number
        return
    order = np.argsort(keys, kind="stable")
    unique, starts = np.unique(keys[order], return_index=True)
    yield from zip(unique.tolist(), np.split(order, starts[1:]), strict=True)


def kept_mask(log_probs: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Return True where ProFit keeps the token: `p >= threshold`.

    The comparison is that of `profit_sft.objectives.ProFit`: of fp32 log-probabilities, in log space.

    Args:
        log_probs: fp32 values, nats.
        threshold: A probability in [0, 1].
    """
    kept: NDArray[np.bool_] = log_probs >= _floor(threshold)
    return kept


def levels(log_probs: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.uint16]:
    """Return each token's *level*: `p >= thresholds[i]` where over `2 i`, `p > thresholds[i]` where over `2 i + 1`.

    It is the number of thresholds at or below p plus that of those below p. Counts of levels add up to every kept share
    on a grid of thresholds exactly, of any number of tokens, whichever side is kept.

    Args:
        log_probs: fp32 values, nats.
        thresholds: Ascending, the first of them 0.
    """
    at = floors(thresholds)
    below, at_or_below = np.searchsorted(at, log_probs, side="left"), np.searchsorted(at, log_probs, side="right")
    return (below + at_or_below).astype(np.uint16)


def floors(thresholds: Sequence[float]) -> list[float]:
    """Return the fp32 log-probability that each threshold is compared as."""
    return [_floor(threshold) for threshold in thresholds]


def _floor(threshold: float) -> float:
    return float(np.float32(math.log(threshold))) if threshold > 0 else -math.inf


def threshold_grid(*extra: float) -> tuple[float, ...]:
    """Return the thresholds a page can be set to: 0, 1, and between them every probability of two digits.

    The digits are counted from the nearer end: 0.0001, 0.00011, ... 0.099, 0.10, 0.11, ... 0.90, 0.901, ... 0.9999: 623
    of them.

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


def checked_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Return the thresholds in ascending order, each once, or raise ValueError for one that is no probability."""
    for threshold in thresholds:
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be a probability in [0, 1], got {threshold}. Write 10% as 0.1.")
    return tuple(sorted(set(thresholds)))
