"""What a mask hides, counted over every label token: the figures of `profit inspect`, without their drawing.

Every figure is a `Group` of tokens whose counts by level of the threshold grid (`mask.tokens.levels`) give its kept
share at any threshold of the grid, exactly.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from profit_sft.data.tokenize import TOKEN_KINDS
from profit_sft.mask.texts import NUMBER, SORTS, WORD_START, TokenTexts
from profit_sft.mask.tokens import LabelTokens, indices_of, levels

Direction = Literal["higher", "lower", "middle"]
KINDS = tuple(sorted(TOKEN_KINDS, key=TOKEN_KINDS.__getitem__))  # none, core, style
HISTOGRAM_BINS = 40
DENSITY_BINS = 20
WEIGHT_BINS = 40
_LOGIT_END = 10.0
# The tables list what is masked most at these thresholds; all groups of a large data set would not fit on a page.
_LISTED_AT = (0.01, 0.1, 0.5, 0.9)
_LISTED = 30  # of each sort and kind, at each of those thresholds


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelCounts:
    """Tokens by level: `counts[k]` tokens have level `values[k]`, ascending."""

    values: NDArray[np.uint16]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, level: NDArray[np.uint16]) -> "LevelCounts":
        """Count the tokens of each level."""
        values, counts = np.unique(level, return_counts=True)
        return cls(values=values, counts=counts)

    def at_least(self, index: int) -> int:
        """Return how many tokens have `p >= thresholds[index]`."""
        return int(self.counts[self.values > 2 * index].sum())

    def above(self, index: int) -> int:
        """Return how many tokens have `p > thresholds[index]`."""
        return int(self.counts[self.values > 2 * index + 1].sum())

    def as_json(self) -> list[int]:
        """Return value, count, value, count, ..."""
        return [int(number) for pair in zip(self.values, self.counts, strict=True) for number in pair]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Some label tokens that belong together.

    Attributes:
        label: What they are, in words; a token's or a word's text.
        sort: One of `SORTS`, or "" where sorts are mixed.
        kind: One of `KINDS`, or "" where kinds are mixed or not known.
        count: How many.
        mean_p: Their mean probability under each model.
        levels: Their levels under each model.
        both: The lower level of the two, so that `both.at_least` counts what is likely under both; None for one model.
        mean_weight: Their mean weight under each model; empty where the objective is a threshold.
        weighted: How many have a weight that is not 0, under each model.
    """

    label: str
    sort: str = ""
    kind: str = ""
    count: int
    mean_p: tuple[float, ...]
    levels: tuple[LevelCounts, ...]
    both: LevelCounts | None
    mean_weight: tuple[float, ...] = ()
    weighted: tuple[int, ...] = ()

    def kept(self, index: int, direction: Direction, model: int = 0, *, upper: int | None = None) -> int:
        """Return how many tokens the mask at `thresholds[index]` keeps; `middle` those up to `thresholds[upper]`."""
        levels = self.levels[model]
        if direction == "middle":
            assert upper is not None
            return max(0, levels.at_least(index) - levels.above(upper))
        return levels.at_least(index) if direction == "higher" else self.count - levels.above(index)

    def moved(self, index: int, direction: Direction) -> dict[str, int]:
        """Return how many tokens are kept by both models, by the first, by the second, or by none.

        Raises:
            ValueError: There is one model.
        """
        if self.both is None:
            raise ValueError("there is one model, so nothing has moved. Give two score sets.")
        first, second, both = (
            counts.at_least(index) if direction == "higher" else counts.above(index)
            for counts in (*self.levels, self.both)
        )
        kept_by = {"kept_kept": both, "kept_masked": first - both, "masked_kept": second - both}
        kept_by["masked_masked"] = self.count - first - second + both
        if direction == "lower":
            order = ("masked_masked", "masked_kept", "kept_masked", "kept_kept")
            return {name: kept_by[other] for name, other in zip(kept_by, order, strict=True)}
        return kept_by

    def as_json(self) -> dict[str, Any]:
        """Return it as the page's script reads it."""
        return {
            "label": self.label,
            "sort": self.sort,
            "kind": self.kind,
            "count": self.count,
            "p": list(self.mean_p),
            "levels": [counts.as_json() for counts in self.levels],
            "both": None if self.both is None else self.both.as_json(),
            "weight": list(self.mean_weight),
            "weighted": list(self.weighted),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskFigures:
    """Everything counted.

    Attributes:
        total: All label tokens.
        by_kind: Core, style and other tokens; empty where kinds are not known.
        by_sort: Tokens by sort, and by kind where known.
        by_position: Tokens by place in the answer, see `LabelTokens.by_answer_place`.
        tokens: The tokens masked most, see `_LISTED_AT`.
        words: The same of words and numbers.
        histogram_edges: Probabilities at the edges of the bins.
        histogram: `(M, kinds, bins)`; one kind where they are not known.
        density: `(bins, bins)`, tokens by bin under the first model and the second; None for one model.
        weight_edges: Weights at the edges of the bins; empty where the objective is a threshold.
        weight_histogram: `(M, bins)`, tokens by weight, or None.
    """

    total: Group
    by_kind: tuple[Group, ...]
    by_sort: tuple[Group, ...]
    by_position: tuple[Group, ...]
    tokens: tuple[Group, ...]
    words: tuple[Group, ...]
    histogram_edges: tuple[float, ...]
    histogram: NDArray[np.int64]
    density: NDArray[np.int64] | None
    weight_edges: tuple[float, ...] = ()
    weight_histogram: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class _Counted:
    """The label tokens, and their levels and weights under each model, `(M, N)`."""

    tokens: LabelTokens
    levels: NDArray[np.uint16]
    weights: NDArray[np.float32] | None


def count_figures(
    tokens: LabelTokens,
    texts: TokenTexts,
    thresholds: Sequence[float],
    token_weights: NDArray[np.float32] | None = None,
) -> MaskFigures:
    """Count everything.

    Args:
        tokens: The label tokens.
        texts: Of their tokenizer.
        thresholds: The grid their levels refer to.
        token_weights: `(M, N)`, of an objective that is no threshold.
    """
    counted = _Counted(tokens, levels(tokens.log_probs, thresholds), token_weights)
    sorts = texts.sorts(tokens.token_ids, tokens.previous_ids)
    words, word_texts = texts.words(tokens.token_ids, sorts, tokens.follows_none)
    kinds = np.zeros(len(sorts), np.int8) if tokens.token_kinds is None else tokens.token_kinds
    listed_at = [thresholds.index(value) for value in _LISTED_AT]
    word_sorts = np.where(sorts == NUMBER, NUMBER, WORD_START)

    def listed(keys: NDArray[Any], sorts: NDArray[Any], label: Callable[[int], str]) -> tuple[Group, ...]:
        category = sorts.astype(np.int64) * len(KINDS) + kinds
        return tuple(_listed(counted, keys, category, label, listed_at))

    return MaskFigures(
        total=_group(counted, np.arange(len(sorts)), "all"),
        by_kind=()
        if tokens.token_kinds is None
        else tuple(_group(counted, where, KINDS[kind], kind=KINDS[kind]) for kind, where in indices_of(kinds)),
        by_sort=tuple(_by_sort(counted, sorts, kinds)),
        by_position=tuple(
            _group(counted, where, str(last) if first == last else f"{first}-{last}")
            for first, last, where in tokens.by_answer_place()
        ),
        tokens=listed(tokens.token_ids, sorts, texts.text),
        words=tuple(
            dataclasses.replace(group, sort="number" if group.sort == SORTS[NUMBER] else "word")
            for group in listed(words, word_sorts, word_texts.__getitem__)
        ),
        histogram_edges=tuple(bin_edges()),
        histogram=_histogram(tokens, kinds),
        density=None if len(tokens.log_probs) == 1 else _density(tokens),
        **({} if token_weights is None else _weight_histogram(token_weights)),
    )


def _group(counted: _Counted, where: NDArray[np.int64], label: str, *, sort: str = "", kind: str = "") -> Group:
    level = counted.levels[:, where]
    weights = np.zeros((0, 0), np.float32) if counted.weights is None else counted.weights[:, where]
    return Group(
        label=label,
        sort=sort,
        kind=kind,
        count=len(where),
        mean_p=tuple(np.exp(counted.tokens.log_probs[:, where]).mean(axis=1).tolist()),
        levels=tuple(LevelCounts.of(row) for row in level),
        both=None if len(level) == 1 else LevelCounts.of(level.min(axis=0)),
        mean_weight=tuple(row.mean(dtype=np.float64).item() for row in weights),
        weighted=tuple(int(np.count_nonzero(row)) for row in weights),
    )


def _kind_name(counted: _Counted, kind: int) -> str:
    return "" if counted.tokens.token_kinds is None else KINDS[kind]


def _by_sort(counted: _Counted, sorts: NDArray[np.int8], kinds: NDArray[np.int8]) -> Iterator[Group]:
    for key, where in indices_of(sorts.astype(np.int64) * len(KINDS) + kinds):
        sort, kind = divmod(key, len(KINDS))
        yield _group(counted, where, SORTS[sort], sort=SORTS[sort], kind=_kind_name(counted, kind))


def _listed(
    counted: _Counted, keys: NDArray[Any], category: NDArray[np.int64], label: Callable[[int], str], at: list[int]
) -> Iterator[Group]:
    """Yield the groups of one key and category that have most masked, or most moved, tokens of their category."""
    categories = len(SORTS) * len(KINDS)
    there = np.flatnonzero(keys >= 0)
    unique, group = np.unique(keys[there].astype(np.int64) * categories + category[there], return_inverse=True)
    chosen = np.zeros(len(unique), dtype=bool)
    for chosen_by in _reasons(counted.levels[:, there], at):
        found = np.bincount(group[chosen_by], minlength=len(unique))
        # Within each category the largest come first.
        order = np.lexsort((-found, unique % categories))
        begins = np.searchsorted(unique[order] % categories, np.arange(categories))
        place = np.arange(len(order)) - begins[unique[order] % categories]
        chosen[order[(place < _LISTED) & (found[order] > 0)]] = True
    wanted = np.flatnonzero(chosen[group])
    for index, where in indices_of(group[wanted]):
        key, rest = divmod(int(unique[index]), categories)
        sort, kind = divmod(rest, len(KINDS))
        yield _group(counted, there[wanted[where]], label(key), sort=SORTS[sort], kind=_kind_name(counted, kind))


def _reasons(level: NDArray[np.uint16], at: list[int]) -> Iterator[NDArray[np.bool_]]:
    """Yield what the tables rank by: tokens masked at each of the thresholds, in either direction, and moved ones."""
    for index in at:
        likely = level > 2 * index
        for row in likely:
            yield ~row
        if len(level) == 2:
            yield likely[0] & ~likely[1]
            yield ~likely[0] & likely[1]
    yield from level > 2 * at[len(at) // 2]


def _histogram(tokens: LabelTokens, kinds: NDArray[np.int8]) -> NDArray[np.int64]:
    bins, groups = len(bin_edges()) - 1, 1 if tokens.token_kinds is None else len(KINDS)
    place = logit_bins(tokens.log_probs) + bins * kinds.astype(np.int64)  # (M, N)
    return np.stack([np.bincount(row, minlength=bins * groups).reshape(groups, bins) for row in place])


def _weight_histogram(token_weights: NDArray[np.float32]) -> dict[str, Any]:
    """Count over bins from the smallest weight, or 0, to the largest, or 1."""
    edges = np.linspace(min(0.0, token_weights.min()), max(1.0, token_weights.max()), WEIGHT_BINS + 1)
    counts = np.stack([np.histogram(row, edges)[0] for row in token_weights.astype(np.float64)])
    return {"weight_edges": tuple(edges.tolist()), "weight_histogram": counts}


def _density(tokens: LabelTokens) -> NDArray[np.int64]:
    first, second = logit_bins(tokens.log_probs, DENSITY_BINS)
    return np.bincount(first * DENSITY_BINS + second, minlength=DENSITY_BINS**2).reshape(DENSITY_BINS, DENSITY_BINS)


def logit_bins(log_probs: NDArray[np.float64], bins: int = HISTOGRAM_BINS) -> NDArray[np.int64]:
    """Return each token's bin of a histogram that is even in `log(p / (1 - p))`, which spreads both ends.

    From -10 to 10; what lies beyond joins the ends.

    Args:
        log_probs: Nats.
        bins: How many.
    """
    log_probs = np.minimum(log_probs, 0.0)  # rounding may put log p a hair above 0
    with np.errstate(divide="ignore"):  # infinite at 0 and 1
        logits = log_probs - np.log(-np.expm1(log_probs))
    scaled = (logits + _LOGIT_END) * (bins / (2 * _LOGIT_END))
    return np.clip(np.floor(scaled), 0, bins - 1).astype(np.int64)


def bin_edges(bins: int = HISTOGRAM_BINS) -> list[float]:
    """Return the probabilities at the edges of `logit_bins`, 0 and 1 at the ends."""
    inner = [1 / (1 + math.exp(-(2 * _LOGIT_END * index / bins - _LOGIT_END))) for index in range(1, bins)]
    return [0.0, *inner, 1.0]
