"""What `profit inspect` shows, whichever way it shows it: score sets, threshold, figures, and a summary in numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from profit_sft.mask.figures import Direction, Group, MaskFigures, count_figures
from profit_sft.mask.texts import TokenTexts
from profit_sft.mask.tokens import LabelTokens, checked_thresholds, label_tokens, threshold_grid
from profit_sft.scores.store import ScoredExample, ScoreManifest, ScoreSet

SUMMARY_THRESHOLDS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
_LISTED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskReport:
    """One score set, or two of the same data, seen at a threshold.

    Attributes:
        score_sets: One or two.
        thresholds: The grid a page can be set to.
        index: Where it starts.
        direction: `higher` keeps `p >= threshold`, `lower` keeps `p < threshold`.
        tokens: Every label token.
        texts: Of the tokenizer.
        figures: What was counted.
    """

    score_sets: tuple[ScoreSet, ...]
    thresholds: tuple[float, ...]
    index: int
    direction: Direction
    tokens: LabelTokens
    texts: TokenTexts
    figures: MaskFigures

    @property
    def threshold(self) -> float:
        """The threshold it starts with, a probability."""
        return self.thresholds[self.index]

    @property
    def manifests(self) -> tuple[ScoreManifest, ...]:
        """The manifests of the score sets."""
        return tuple(scores.manifest for scores in self.score_sets)

    def examples(self, most: int, *, most_tokens: int | None = None) -> Iterator[tuple[ScoredExample, ...]]:
        """Yield some examples, each under every model, evenly spread over the data and in its order.

        Args:
            most: How many at most.
            most_tokens: Fewer, if they would have more tokens than about this.
        """
        count = len(self.tokens.lengths)
        if most_tokens is not None:
            most = min(most, max(1, int(most_tokens / self.tokens.lengths.mean())))
        wanted = set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())
        for index, example in enumerate(zip(*self.score_sets, strict=True)):
            if index in wanted:
                yield example


def make_report(
    score_sets: Sequence[ScoreSet], *, threshold: float = 0.1, direction: Direction = "higher"
) -> MaskReport:
    """Read and count everything.

    Args:
        score_sets: One, or two of the same data: before and after.
        threshold: A probability, where the page starts.
        direction: As in `profit_sft.ProFit`.

    Raises:
        ValueError: The threshold is no probability, the direction no direction, or there are not one or two sets.
        DataError: The two are not of the same data.
    """
    direction = checked_view(threshold, direction)
    if len(score_sets) not in (1, 2):
        raise ValueError(f"one score set or two can be looked at, got {len(score_sets)}.")
    thresholds = threshold_grid(threshold, *SUMMARY_THRESHOLDS)
    tokens = label_tokens(*score_sets)
    texts = TokenTexts(score_sets[0].tokenizer())
    return MaskReport(
        score_sets=tuple(score_sets),
        thresholds=thresholds,
        index=thresholds.index(threshold),
        direction=direction,
        tokens=tokens,
        texts=texts,
        figures=count_figures(tokens, texts, thresholds),
    )


def checked_view(threshold: float, direction: str) -> Direction:
    """Return the direction, or raise ValueError where it is none or the threshold is no probability."""
    checked_thresholds([threshold])
    if direction not in ("higher", "lower"):
        raise ValueError(f"threshold_direction must be 'higher' or 'lower' here, got {direction!r}.")
    return "higher" if direction == "higher" else "lower"


def summary(report: MaskReport) -> dict[str, Any]:
    """Return the figures as plain values for JSON. Shares are in [0, 1]; lists have one entry a model."""
    figures, models = report.figures, range(len(report.score_sets))
    most_masked = {
        name: [_figures_of(report, group) for group in masked_most(report, groups)[:_LISTED]]
        for name, groups in (("tokens", figures.tokens), ("words", figures.words))
    }
    return {
        "models": [manifest.model_name_or_path for manifest in report.manifests],
        "dataset_name": report.manifests[0].data["dataset_name"],
        "examples": report.manifests[0].num_examples,
        "threshold": report.threshold,
        "direction": report.direction,
        "mean_nll": [manifest.mean_nll for manifest in report.manifests],
        "all": _figures_of(report, figures.total),
        "by_kind": [_figures_of(report, group) for group in figures.by_kind],
        "by_sort": [_figures_of(report, group) for group in figures.by_sort],
        "by_position": [_figures_of(report, group) for group in figures.by_position],
        "kept_shares": [
            {"threshold": value, "kept_share": [kept_share(report, figures.total, model, at) for model in models]}
            for value in SUMMARY_THRESHOLDS
            for at in [report.thresholds.index(value)]
        ],
        "histogram": {
            "edges": list(figures.histogram_edges),
            "counts": [kinds.sum(axis=0).tolist() for kinds in figures.histogram],
        },
        "most_masked_tokens": most_masked["tokens"],
        "most_masked_words": most_masked["words"],
    }


def kept_share(report: MaskReport, group: Group, model: int, index: int | None = None) -> float:
    """Return the kept share of a group under a model, at the report's threshold or another of the grid."""
    return group.kept(report.index if index is None else index, report.direction, model) / group.count


def masked_most(report: MaskReport, groups: Sequence[Group]) -> list[Group]:
    """Return the groups that have masked tokens under the last model, those with most first."""
    last = len(report.score_sets) - 1
    masked = [(group.count - group.kept(report.index, report.direction, last), group) for group in groups]
    return [group for count, group in sorted(masked, key=lambda pair: (-pair[0], -pair[1].count)) if count > 0]


def _figures_of(report: MaskReport, group: Group) -> dict[str, Any]:
    found: dict[str, Any] = {"label": group.label}
    found |= {name: value for name, value in (("sort", group.sort), ("kind", group.kind)) if value}
    found |= {
        "tokens": group.count,
        "kept_share": [kept_share(report, group, model) for model in range(len(report.score_sets))],
        "mean_p": list(group.mean_p),
    }
    return found if group.both is None else found | group.moved(report.index, report.direction)
