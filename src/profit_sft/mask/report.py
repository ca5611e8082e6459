"""What `profit inspect` shows, whichever way it shows it: score sets, threshold, figures, and a summary in numbers."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from profit_sft.errors import ConfigurationError
from profit_sft.loss.chunked import topk_entropy
from profit_sft.mask.figures import Direction, Group, MaskFigures, count_figures
from profit_sft.mask.texts import TokenTexts
from profit_sft.mask.tokens import LabelTokens, checked_thresholds, label_tokens, threshold_grid
from profit_sft.objectives import ENTROPY_TOP_K, Objective, ProFit, TokenStats
from profit_sft.scores.store import ScoredExample, ScoreManifest, ScoreSet

SUMMARY_THRESHOLDS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
_LISTED = 20
_DIRECTIONS: tuple[Direction, ...] = ("higher", "lower", "middle")


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskReport:
    """One score set, or two of the same data, seen at a threshold.

    Attributes:
        score_sets: One or two.
        thresholds: The grid a page can be set to.
        index: Where it starts.
        direction: `higher` keeps `p >= threshold`, `lower` keeps `p <= threshold`, `middle` what lies from the
            threshold to the one at `upper`.
        upper: Where the upper one starts; with `middle`.
        tokens: Every label token.
        texts: Of the tokenizer.
        figures: What was counted.
        objective: What weighs the tokens where that is no threshold, else None.
        token_weights: `(M, N)`, its weights, else None.
    """

    score_sets: tuple[ScoreSet, ...]
    thresholds: tuple[float, ...]
    index: int
    direction: Direction
    upper: int | None
    tokens: LabelTokens
    texts: TokenTexts
    figures: MaskFigures
    objective: Objective | None
    token_weights: NDArray[np.float32] | None

    @property
    def threshold(self) -> float:
        """The threshold it starts with, a probability."""
        return self.thresholds[self.index]

    @property
    def rule(self) -> str:
        """What is kept, or the objective, in words."""
        if self.objective is not None:
            return _named(self.objective)
        if self.upper is not None:
            return f"{self.threshold:g} ≤ p ≤ {self.thresholds[self.upper]:g}"
        return f"p {'≥' if self.direction == 'higher' else '≤'} {self.threshold:g}"

    @property
    def top1_shares(self) -> tuple[float, ...]:
        """Share of the label tokens that are the likeliest under each model."""
        return tuple(float((scores.column("rank") == 1).mean()) for scores in self.score_sets)

    @property
    def manifests(self) -> tuple[ScoreManifest, ...]:
        """The manifests of the score sets."""
        return tuple(scores.manifest for scores in self.score_sets)

    def examples(self, most: int) -> Iterator[tuple[int, tuple[ScoredExample, ...]]]:
        """Yield some examples, evenly spread over the data and in its order: its place, and it under every model.

        Args:
            most: How many at most.
        """
        count = len(self.tokens.lengths)
        wanted = set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())
        for index, example in enumerate(zip(*self.score_sets, strict=True)):
            if index in wanted:
                yield index, example

    def weights_of(self, place: int, example: ScoredExample, model: int) -> NDArray[np.float32]:
        """Return `(T,)`, the weights of an example's label tokens under a model; a mask's are 0 or 1.

        Args:
            place: Of the example in the data.
            example: The example under that model.
            model: 0, or 1 for the second score set.
        """
        if self.token_weights is not None:
            weights: NDArray[np.float32] = self.token_weights[model, self.tokens.examples == place]
            return weights
        upper = None if self.upper is None else self.thresholds[self.upper]
        mask = ProFit(threshold=self.threshold, direction=self.direction, upper_threshold=upper)
        labels, log_probs = torch.tensor(example.positions), torch.tensor(example.log_probs)
        found: NDArray[np.float32] = mask.token_weights(TokenStats(labels=labels, log_probs=log_probs)).numpy()
        return found


def make_report(
    score_sets: Sequence[ScoreSet],
    *,
    threshold: float = 0.1,
    direction: str = "higher",
    upper_threshold: float | None = None,
    objective: Objective | None = None,
) -> MaskReport:
    """Read and count everything.

    Args:
        score_sets: One, or two of the same data: before and after.
        threshold: A probability, where the page starts.
        direction: As in `profit_sft.ProFit`, but for `random`.
        upper_threshold: Upper bound of `middle`.
        objective: Whose weights to show. A threshold on the model's own p takes the place of the arguments before.

    Raises:
        ValueError: A threshold is no probability, the direction no direction, or there are not one or two sets.
        DataError: The two are not of the same data.
        ConfigurationError: The scores do not hold what the objective looks at.
    """
    if isinstance(objective, ProFit) and objective.mask_source == "online" and objective.direction != "random":
        threshold, direction, upper_threshold = objective.threshold, objective.direction, objective.upper_threshold
        objective = None
    checked = checked_view(threshold, direction, upper_threshold)
    if len(score_sets) not in (1, 2):
        raise ValueError(f"one score set or two can be looked at, got {len(score_sets)}.")
    if checked == "middle" and len(score_sets) == 2:
        raise ValueError(
            "threshold_direction 'middle' shows one model: how a mask moved is counted for one threshold. Give one "
            "score set, or 'higher'."
        )
    bounds = [threshold] if upper_threshold is None else [threshold, upper_threshold]
    thresholds = threshold_grid(*bounds, *SUMMARY_THRESHOLDS)
    tokens = label_tokens(*score_sets)
    texts = TokenTexts(score_sets[0].tokenizer())
    token_weights = None if objective is None else objective_weights(objective, score_sets, tokens)
    return MaskReport(
        score_sets=tuple(score_sets),
        thresholds=thresholds,
        index=thresholds.index(threshold),
        direction=checked,
        upper=None if upper_threshold is None else thresholds.index(upper_threshold),
        tokens=tokens,
        texts=texts,
        figures=count_figures(tokens, texts, thresholds, token_weights),
        objective=objective,
        token_weights=token_weights,
    )


def checked_view(threshold: float = 0.1, direction: str = "higher", upper_threshold: float | None = None) -> Direction:
    """Return the direction, or raise ValueError where it is none or a threshold is no probability, or is missing."""
    checked_thresholds([threshold] if upper_threshold is None else [threshold, upper_threshold])
    for known in _DIRECTIONS:
        if direction == known:
            break
    else:
        raise ValueError(f"threshold_direction must be 'higher', 'lower' or 'middle' here, got {direction!r}.")
    # The objective says what goes with what.
    ProFit(threshold=threshold, direction=known, upper_threshold=upper_threshold)
    return known


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
        "upper_threshold": None if report.upper is None else report.thresholds[report.upper],
        "objective": None if report.objective is None else report.rule,
        "mean_nll": [manifest.mean_nll for manifest in report.manifests],
        "top1_share": list(report.top1_shares),
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


def _named(objective: Objective) -> str:
    """Return the objective's name with the fields that are not at their defaults."""
    if not dataclasses.is_dataclass(objective):
        return repr(objective)
    values = [(entry, getattr(objective, entry.name)) for entry in dataclasses.fields(objective) if entry.repr]
    changed = ", ".join(f"{entry.name}={value!r}" for entry, value in values if value != entry.default)
    return type(objective).__name__ + (f"({changed})" if changed else "")


def kept_share(report: MaskReport, group: Group, model: int, index: int | None = None) -> float:
    """Return the kept share of a group under a model, at the report's threshold or another of the grid."""
    at = report.index if index is None else index
    return group.kept(at, report.direction, model, upper=report.upper) / group.count


def masked_most(report: MaskReport, groups: Sequence[Group]) -> list[Group]:
    """Return the groups that have masked tokens under the last model, those with most first."""
    last = len(report.score_sets) - 1
    masked = [
        (group.count - group.kept(report.index, report.direction, last, upper=report.upper), group) for group in groups
    ]
    return [group for count, group in sorted(masked, key=lambda pair: (-pair[0], -pair[1].count)) if count > 0]


def _figures_of(report: MaskReport, group: Group) -> dict[str, Any]:
    found: dict[str, Any] = {"label": group.label}
    found |= {name: value for name, value in (("sort", group.sort), ("kind", group.kind)) if value}
    found |= {
        "tokens": group.count,
        "kept_share": [kept_share(report, group, model) for model in range(len(report.score_sets))],
        "mean_p": list(group.mean_p),
    }
    if group.mean_weight:
        found |= {"mean_weight": list(group.mean_weight), "weighted": list(group.weighted)}
    return found if group.both is None else found | group.moved(report.index, report.direction)


# Where the scores lack what an objective looks at.
_REMEDIES = {
    "entropy": "Score again with this version.",
    "topk_entropy": f"Score again with --likeliest {ENTROPY_TOP_K}.",
    "reference_log_probs": "Give two score sets, those of the reference first.",
}


def objective_weights(objective: Objective, score_sets: Sequence[ScoreSet], tokens: LabelTokens) -> NDArray[np.float32]:
    """Return `(M, N)`, the token weights under each model.

    The first of two score sets is the reference, for an objective that has one. An objective that ranks the tokens of a
    batch sees an example at a time, since what a batch would hold is not known.

    Args:
        objective: Any.
        score_sets: One or two.
        tokens: Their label tokens.

    Raises:
        ConfigurationError: The objective looks at something the scores do not hold; names it and the remedy.
    """
    starts = [0] if objective.elementwise else np.flatnonzero(np.diff(tokens.examples, prepend=-1)).tolist()
    parts = [slice(start, end) for start, end in zip(starts, [*starts[1:], tokens.token_ids.size], strict=True)]
    labels = torch.from_numpy(tokens.token_ids.astype(np.int64))
    found = []
    for scores, log_probs in zip(score_sets, tokens.log_probs, strict=True):
        stats = _stats(objective, score_sets, scores, log_probs, tokens)
        weights = [
            objective.token_weights(
                TokenStats(labels=labels[part], **{name: value[part] for name, value in stats.items()})
            )
            for part in parts
        ]
        found.append(torch.cat(weights).float().numpy())
        if not np.isfinite(found[-1]).all():
            raise ConfigurationError(f"objective {objective!r} gives a label token a weight that is not finite.")
    return np.stack(found)


def _stats(
    objective: Objective,
    score_sets: Sequence[ScoreSet],
    scores: ScoreSet,
    log_probs: NDArray[np.float64],
    tokens: LabelTokens,
) -> dict[str, torch.Tensor]:
    """Return what the objective looks at, `(N,)` fp32 each."""
    stats = {}
    for name in sorted(objective.needs):
        value: NDArray[np.floating] | None = None
        if name == "log_probs":
            value = log_probs
        elif name == "reference_log_probs" and len(score_sets) == 2:
            value = tokens.log_probs[0]
        elif name == "entropy":
            value = scores.column("entropy")
        elif name == "topk_entropy" and scores.manifest.likeliest >= ENTROPY_TOP_K:
            value = np.concatenate([_topk_entropy(example.likeliest_log_probs) for example in scores])
        if value is None or not np.isfinite(value).all():
            remedy = _REMEDIES.get(name, "What it weighs can be seen in a run: profit train --dry-run.")
            raise ConfigurationError(
                f"objective {objective!r} looks at {name}, which '{scores.folder}' does not hold. {remedy}"
            )
        stats[name] = torch.from_numpy(np.asarray(value, np.float32))
    return stats


def _topk_entropy(likeliest_log_probs: NDArray[np.float16] | None) -> NDArray[np.float32]:
    assert likeliest_log_probs is not None  # the manifest says that they are there
    found: NDArray[np.float32] = topk_entropy(torch.from_numpy(likeliest_log_probs.astype(np.float32))).numpy()
    return found
