"""What a mask hides, counted over every label token: the figures of `profit inspect`, without their drawing.

`ScoredTokens` is one data set under one model, or under two. Every figure is a `Group` of tokens whose counts by cell
of the threshold grid (`profit_sft.mask.thresholds`) give its kept share at any threshold of the grid, exactly.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from profit_sft.data import TOKEN_KINDS
from profit_sft.errors import DataError
from profit_sft.mask.texts import NUMBER, SORTS, WORD_START, TokenTexts
from profit_sft.mask.thresholds import bin_edges, cells, logit_bins
from profit_sft.scores.store import ScoreSet, data_differences

Direction = Literal["higher", "lower"]
KINDS = tuple(sorted(TOKEN_KINDS, key=TOKEN_KINDS.__getitem__))  # none, core, style
DENSITY_BINS = 20
# The tables list what is masked most at these thresholds; all groups of a large data set would not fit on a page.
_LISTED_AT = (0.01, 0.1, 0.5, 0.9)
_LISTED = 30  # of each sort and kind, at each of those thresholds


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredTokens:
    """The `N` label tokens of a data set under `M` models, one or two.

    Attributes:
        token_ids: `(N,)`, int32.
        previous_ids: `(N,)`, int32. The token before each.
        positions: `(N,)`, int32. Place in its answer, from 0; an answer is a run of label tokens.
        kinds: `(N,)`, int8, one of `TOKEN_KINDS`; None where they are not known.
        log_probs: `(M, N)`, fp32, nats.
        cells: `(M, N)`, uint16, see `profit_sft.mask.thresholds.cells`.
        lengths: `(E,)`, int64. All tokens of each example, prompt included.
    """

    token_ids: NDArray[np.int32]
    previous_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    kinds: NDArray[np.int8] | None
    log_probs: NDArray[np.float32]
    cells: NDArray[np.uint16]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class CellCounts:
    """Tokens by cell: `counts[k]` tokens have cell `values[k]`, ascending."""

    values: NDArray[np.uint16]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, cell: NDArray[np.uint16]) -> "CellCounts":
        """Count the tokens of each cell."""
        values, counts = np.unique(cell, return_counts=True)
        return cls(values=values, counts=counts)

    def likely(self, index: int) -> int:
        """Return how many tokens have `p >= thresholds[index]`."""
        return int(self.counts[self.values > index].sum())

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
        cells: Their cells under each model.
        both: The lower cell of the two, so that `both.likely` counts what is likely under both; None for one model.
    """

    label: str
    sort: str = ""
    kind: str = ""
    count: int
    mean_p: tuple[float, ...]
    cells: tuple[CellCounts, ...]
    both: CellCounts | None

    def kept(self, index: int, direction: Direction, model: int = 0) -> int:
        """Return how many tokens the mask at `thresholds[index]` keeps."""
        likely = self.cells[model].likely(index)
        return likely if direction == "higher" else self.count - likely

    def moved(self, index: int, direction: Direction) -> dict[str, int]:
        """Return how many tokens are kept by both models, by the first, by the second, or by none.

        Raises:
            ValueError: There is one model.
        """
        if self.both is None:
            raise ValueError("there is one model, so nothing has moved. Give two score sets.")
        first, second, both = (counts.likely(index) for counts in (*self.cells, self.both))
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
            "cells": [counts.as_json() for counts in self.cells],
            "both": None if self.both is None else self.both.as_json(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskFigures:
    """Everything counted.

    Attributes:
        total: All label tokens.
        by_kind: Core, style and other tokens; empty where kinds are not known.
        by_sort: Tokens by sort, and by kind where known.
        by_position: Tokens by place in the answer.
        tokens: The tokens masked most, see `_LISTED_AT`.
        words: The same of words and numbers.
        histogram_edges: Probabilities at the edges of the bins.
        histogram: `(M, kinds, bins)`; one kind where they are not known.
        density: `(bins, bins)`, tokens by bin under the first model and the second; None for one model.
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


def collect_tokens(score_sets: Sequence[ScoreSet], thresholds: Sequence[float]) -> ScoredTokens:
    """Read every label token of one score set, or of two of the same data.

    Args:
        score_sets: One or two.
        thresholds: The grid.

    Raises:
        DataError: The two are not of the same data, or a log-probability is not a number.
    """
    first = score_sets[0]
    for other in score_sets[1:]:
        check_same_data(first, other)
    log_probs = np.stack([scores.column("log_probs") for scores in score_sets])  # (M, N) fp32
    for scores, values in zip(score_sets, log_probs, strict=True):
        if np.isnan(values).any():
            raise DataError(f"'{scores.folder}': a log-probability is not a number. Score again in float32.")
    token_ids, previous_ids, positions, lengths = [], [], [], []
    for example in first:
        token_ids.append(example.input_ids[example.positions])
        previous_ids.append(example.input_ids[example.positions - 1])
        positions.append(places_in_answer(example.positions))
        lengths.append(len(example.input_ids))
    return ScoredTokens(
        token_ids=np.concatenate(token_ids),
        previous_ids=np.concatenate(previous_ids),
        positions=np.concatenate(positions),
        kinds=first.column("token_kinds") if first.has_kinds else None,
        log_probs=log_probs,
        cells=cells(log_probs, thresholds),
        lengths=np.array(lengths),
    )


def check_same_data(first: ScoreSet, second: ScoreSet) -> None:
    """Refuse to compare what is not the same data.

    Raises:
        DataError: Tokens, labels or tokenizers differ; says in what.
    """
    mine, theirs = first.manifest, second.manifest
    differences = data_differences(mine.data, mine.data_settings, theirs.data, theirs.data_settings)
    if differences:
        raise DataError(
            f"'{first.folder}' and '{second.folder}' are not scores of the same data: {'; '.join(differences)}. "
            "Score the same rows with the same settings under both models."
        )


def places_in_answer(positions: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return each label token's place in its run of label tokens, from 0.

    Example:
        >>> places_in_answer(np.array([3, 4, 5, 9, 10])).tolist()
        [0, 1, 2, 0, 1]
    """
    index = np.arange(len(positions), dtype=np.int32)
    begins = np.diff(positions, prepend=-1) != 1
    return index - np.maximum.accumulate(np.where(begins, index, 0), dtype=np.int32)


def count_figures(tokens: ScoredTokens, texts: TokenTexts, thresholds: Sequence[float]) -> MaskFigures:
    """Count everything.

    Args:
        tokens: The label tokens.
        texts: Of their tokenizer.
        thresholds: The grid their cells refer to.
    """
    sorts = texts.sorts(tokens.token_ids, tokens.previous_ids)
    words, word_texts = texts.words(tokens.token_ids, sorts, tokens.positions == 0)
    kinds = np.zeros(len(sorts), np.int8) if tokens.kinds is None else tokens.kinds
    listed_at = [thresholds.index(value) for value in _LISTED_AT]
    word_sorts = np.where(sorts == NUMBER, NUMBER, WORD_START)

    def listed(keys: NDArray[Any], sorts: NDArray[Any], label: Callable[[int], str]) -> tuple[Group, ...]:
        category = sorts.astype(np.int64) * len(KINDS) + kinds
        return tuple(_listed(tokens, keys, category, label, listed_at))

    return MaskFigures(
        total=_group(tokens, np.arange(len(sorts)), "all"),
        by_kind=()
        if tokens.kinds is None
        else tuple(_group(tokens, where, KINDS[kind], kind=KINDS[kind]) for kind, where in _members(kinds)),
        by_sort=tuple(_by_sort(tokens, sorts, kinds)),
        by_position=tuple(_by_position(tokens)),
        tokens=listed(tokens.token_ids, sorts, texts.text),
        words=tuple(
            dataclasses.replace(group, sort="number" if group.sort == SORTS[NUMBER] else "word")
            for group in listed(words, word_sorts, word_texts.__getitem__)
        ),
        histogram_edges=tuple(bin_edges()),
        histogram=_histogram(tokens, kinds),
        density=None if len(tokens.log_probs) == 1 else _density(tokens),
    )


def _group(tokens: ScoredTokens, where: NDArray[np.int64], label: str, *, sort: str = "", kind: str = "") -> Group:
    cell = tokens.cells[:, where]
    return Group(
        label=label,
        sort=sort,
        kind=kind,
        count=len(where),
        mean_p=tuple(np.exp(tokens.log_probs[:, where], dtype=np.float64).mean(axis=1).tolist()),
        cells=tuple(CellCounts.of(row) for row in cell),
        both=None if len(cell) == 1 else CellCounts.of(cell.min(axis=0)),
    )


def _kind_name(tokens: ScoredTokens, kind: int) -> str:
    return "" if tokens.kinds is None else KINDS[kind]


def _members(keys: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each key, ascending, with the indices that have it."""
    order = np.argsort(keys, kind="stable")
    unique, starts = np.unique(keys[order], return_index=True)
    yield from zip(unique.tolist(), np.split(order, starts[1:]), strict=True)


def _by_sort(tokens: ScoredTokens, sorts: NDArray[np.int8], kinds: NDArray[np.int8]) -> Iterator[Group]:
    for key, where in _members(sorts.astype(np.int64) * len(KINDS) + kinds):
        sort, kind = divmod(key, len(KINDS))
        yield _group(tokens, where, SORTS[sort], sort=SORTS[sort], kind=_kind_name(tokens, kind))


def _by_position(tokens: ScoredTokens) -> Iterator[Group]:
    """Group by place in the answer: first token, second, 3 to 4, 5 to 8, and so on, twice as many each time."""
    for power, where in _members(np.ceil(np.log2(tokens.positions + 1)).astype(np.int64)):
        first, last = 2**power // 2 + 1, 2**power
        yield _group(tokens, where, str(last) if power < 2 else f"{first}-{last}")


def _listed(
    tokens: ScoredTokens, keys: NDArray[Any], category: NDArray[np.int64], label: Callable[[int], str], at: list[int]
) -> Iterator[Group]:
    """Yield the groups of one key and category that have most masked, or most moved, tokens of their category."""
    categories = len(SORTS) * len(KINDS)
    there = np.flatnonzero(keys >= 0)
    unique, group = np.unique(keys[there].astype(np.int64) * categories + category[there], return_inverse=True)
    chosen = np.zeros(len(unique), dtype=bool)
    for chosen_by in _reasons(tokens.cells[:, there], at):
        found = np.bincount(group[chosen_by], minlength=len(unique))
        # Within each category the largest come first.
        order = np.lexsort((-found, unique % categories))
        begins = np.searchsorted(unique[order] % categories, np.arange(categories))
        place = np.arange(len(order)) - begins[unique[order] % categories]
        chosen[order[(place < _LISTED) & (found[order] > 0)]] = True
    wanted = np.flatnonzero(chosen[group])
    for index, where in _members(group[wanted]):
        key, rest = divmod(int(unique[index]), categories)
        sort, kind = divmod(rest, len(KINDS))
        yield _group(tokens, there[wanted[where]], label(key), sort=SORTS[sort], kind=_kind_name(tokens, kind))


def _reasons(cell: NDArray[np.uint16], at: list[int]) -> Iterator[NDArray[np.bool_]]:
    """Yield what the tables rank by: tokens masked at each of the thresholds, in either direction, and moved ones."""
    for index in at:
        likely = cell > index
        for row in likely:
            yield ~row
        if len(cell) == 2:
            yield likely[0] & ~likely[1]
            yield ~likely[0] & likely[1]
    yield from cell > at[len(at) // 2]


def _histogram(tokens: ScoredTokens, kinds: NDArray[np.int8]) -> NDArray[np.int64]:
    bins, groups = len(bin_edges()) - 1, 1 if tokens.kinds is None else len(KINDS)
    place = logit_bins(tokens.log_probs) + bins * kinds.astype(np.int64)  # (M, N)
    return np.stack([np.bincount(row, minlength=bins * groups).reshape(groups, bins) for row in place])


def _density(tokens: ScoredTokens) -> NDArray[np.int64]:
    first, second = logit_bins(tokens.log_probs, DENSITY_BINS)
    return np.bincount(first * DENSITY_BINS + second, minlength=DENSITY_BINS**2).reshape(DENSITY_BINS, DENSITY_BINS)
