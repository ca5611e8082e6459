"""The hypothesis behind the threshold: core tokens of an answer are likely, style tokens unlikely.

Core is what an answer must say, style is how it says it; which token is which comes from the data's `answer_spans`. The
comparison is by rank (Mann-Whitney U), so it does not matter whether p or log p is compared.

Tokens of one example are not independent: the p-value of U takes them for so and is too small. Read the interval, which
resamples whole examples, and the signed-rank test, which counts one value an example.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profit_sft.data.tokenize import TOKEN_KINDS
from profit_sft.errors import DataError
from profit_sft.mask.tokens import THRESHOLDS, LabelTokens, checked_thresholds, indices_of, kept_mask, label_tokens
from profit_sft.scores.store import ScoreSet

Floats = npt.NDArray[np.float64]

HISTOGRAM_BINS = 20  # of equal width on p
CONFIDENCE = 0.95
_WIDE_OVERLAP = 0.7  # below this AUC no threshold parts the kinds: it masks a good share of both, or of neither
_FEWEST_EXAMPLES = 10  # with fewer, resampling them says nothing about others


@dataclass(frozen=True, kw_only=True, slots=True)
class KindSummary:
    """The label tokens of one kind.

    Attributes:
        tokens: How many.
        mean_log_prob: Mean of log p, nats.
        mean_p: Mean probability.
        median_p: Median probability.
        histogram: Tokens by p, in `HISTOGRAM_BINS` bins of equal width on [0, 1]; the last one includes 1.
    """

    tokens: int
    mean_log_prob: float
    mean_p: float
    median_p: float
    histogram: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptByKind:
    """Share of the tokens of each kind that a threshold keeps, in [0, 1]."""

    threshold: float
    core_kept_share: float
    style_kept_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WithinExamples:
    """The comparison inside each example that has both kinds, where no example is easier than another.

    Attributes:
        examples: How many.
        mean_auc: Mean over examples of the AUC within the example.
        above_half_share: Share of examples whose AUC is above 0.5.
        p_value: Wilcoxon signed-rank test of the examples' AUC against 0.5, two-sided. 1 where all are 0.5.
    """

    examples: int
    mean_auc: float
    above_half_share: float
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class KindComparison:
    """Log p of core tokens against that of style tokens.

    Attributes:
        core: Core tokens.
        style: Style tokens.
        u: Mann-Whitney U: pairs of a core and a style token of which core is the likelier; ties count one half.
        p_value: Of U, two-sided; takes tokens for independent. Exact for a few tokens without ties, otherwise a normal
            approximation corrected for ties; 0 where it is below the smallest float.
        auc: `u / (n_core * n_style)`: how often a random core token is likelier than a random style token. 0.5: no
            difference.
        auc_interval: 95% interval of `auc` from resampling examples, or None with fewer than ten.
        resamples: Draws of examples behind the interval.
        rank_biserial: `2 auc - 1`, in [-1, 1]; equals Cliff's delta.
        cohens_d: Difference of mean log p over the pooled standard deviation; None where that is 0.
        within_examples: The comparison inside examples; None where no example has both kinds.
        kept: Kept shares by threshold.
    """

    core: KindSummary
    style: KindSummary
    u: float
    p_value: float
    auc: float
    auc_interval: tuple[float, float] | None
    resamples: int
    rank_biserial: float
    cohens_d: float | None
    within_examples: WithinExamples | None
    kept: tuple[KeptByKind, ...]


def compare_scores(
    scores: ScoreSet, *, thresholds: Sequence[float] = THRESHOLDS, resamples: int = 1000, seed: int = 0
) -> KindComparison:
    """Compare the kinds of a score set's label tokens.

    Args: as `compare_kinds`.

    Raises:
        DataError: The rows have no `answer_spans`, or label tokens of one kind only.
    """
    return compare_kinds(label_tokens(scores), thresholds=thresholds, resamples=resamples, seed=seed)


def compare_kinds(
    tokens: LabelTokens, *, thresholds: Sequence[float] = THRESHOLDS, resamples: int = 1000, seed: int = 0
) -> KindComparison:
    """Compare log p of core and style tokens. Tokens of kind `none`, such as the end of the turn, are left out.

    Args:
        tokens: Label tokens with their kinds.
        thresholds: Probabilities at which the kept shares are counted.
        resamples: Draws of examples for the interval of the AUC.
        seed: Of those draws.

    Raises:
        DataError: The rows have no `answer_spans`, or label tokens of one kind only.

    Source: Mann and Whitney 1947; AUC = U / (n1 n2), Hanley and McNeil 1982; rank-biserial correlation, Wendt 1972;
    resampling whole clusters, Davison and Hinkley 1997, section 3.8.
    """
    from scipy import stats

    core, style = (_of_kind(tokens, kind) for kind in ("core", "style"))
    u, p_value = stats.mannwhitneyu(core.log_probs, style.log_probs, alternative="two-sided")
    auc = float(u) / (core.log_probs.size * style.log_probs.size)
    interval, used = _auc_interval(core, style, resamples=resamples, seed=seed)
    return KindComparison(
        core=_summary(core.log_probs),
        style=_summary(style.log_probs),
        u=float(u),
        p_value=float(p_value),
        auc=auc,
        auc_interval=interval,
        resamples=used,
        rank_biserial=2.0 * auc - 1.0,
        cohens_d=_cohens_d(core.log_probs, style.log_probs),
        within_examples=_within_examples(core, style),
        kept=tuple(
            KeptByKind(
                threshold=threshold,
                core_kept_share=float(kept_mask(core.log_probs, threshold).mean()),
                style_kept_share=float(kept_mask(style.log_probs, threshold).mean()),
            )
            for threshold in checked_thresholds(thresholds)
        ),
    )


def describe(comparison: KindComparison) -> str:
    """Say in plain words what the comparison found."""
    found = f"A core token is likelier than a style token in {comparison.auc:.0%} of all pairs"
    if comparison.auc_interval is None:
        return f"{found}; 50% would be no difference. With so few examples there is no interval."
    low, high = comparison.auc_interval
    found += f" (95% interval, resampling examples: {low:.0%} to {high:.0%}); 50% would be no difference."
    if low > 0.5:
        overlap = ", though the two kinds overlap widely" if comparison.auc < _WIDE_OVERLAP else ""
        return f"{found} Core tokens are the likelier ones here, as the paper supposes{overlap}."
    if high < 0.5:
        return f"{found} Core tokens are the less likely ones here, the opposite of what the paper supposes."
    return f"{found} The interval includes that, so neither kind is shown to be likelier."


@dataclass(frozen=True, slots=True)
class _Kind:
    """Log p of one kind's tokens, and the example of each."""

    log_probs: Floats
    examples: npt.NDArray[np.int64]


def _of_kind(tokens: LabelTokens, kind: str) -> _Kind:
    if tokens.token_kinds is None:
        raise DataError(
            "no row says which part of its answer is core and which style. Add a column 'answer_spans' and score "
            "again; docs/how-to/advise.md shows its format."
        )
    chosen = tokens.token_kinds == TOKEN_KINDS[kind]
    if not chosen.any():
        raise DataError(
            f"no label token is of kind '{kind}', so there is nothing to compare. Mark both kinds in 'answer_spans'."
        )
    return _Kind(tokens.log_probs[0, chosen], tokens.examples[chosen])


def _summary(log_probs: Floats) -> KindSummary:
    p = np.exp(log_probs)
    # Rounding may put p a hair above 1.
    counts, _ = np.histogram(np.minimum(p, 1.0), bins=HISTOGRAM_BINS, range=(0.0, 1.0))
    return KindSummary(
        tokens=log_probs.size,
        mean_log_prob=float(log_probs.mean()),
        mean_p=float(p.mean()),
        median_p=float(np.median(p)),
        histogram=tuple(int(count) for count in counts),
    )


def _cohens_d(first: Floats, second: Floats) -> float | None:
    freedom = first.size + second.size - 2
    if freedom < 1:
        return None
    squares = ((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum()
    deviation = math.sqrt(squares / freedom)
    return float(first.mean() - second.mean()) / deviation if deviation > 0 else None


def _auc_interval(core: _Kind, style: _Kind, *, resamples: int, seed: int) -> tuple[tuple[float, float] | None, int]:
    """Resample examples with replacement; return the percentile interval of the AUC and the draws it rests on."""
    names, places = np.unique(np.concatenate([core.examples, style.examples]), return_inverse=True)
    if names.size < _FEWEST_EXAMPLES:
        return None, 0
    log_probs = np.concatenate([core.log_probs, style.log_probs])
    order = np.argsort(log_probs)
    places = places[order]
    is_core = order < core.log_probs.size
    starts = np.flatnonzero(np.r_[True, np.diff(log_probs[order]) != 0])  # where the next larger value begins
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        times_drawn = np.bincount(random.integers(names.size, size=names.size), minlength=names.size)[places]
        core_at = np.add.reduceat(np.where(is_core, times_drawn, 0), starts).astype(np.float64)
        style_at = np.add.reduceat(np.where(is_core, 0, times_drawn), starts).astype(np.float64)
        pairs = core_at.sum() * style_at.sum()
        if pairs > 0:  # all of a draw's examples may be of one kind
            below = np.cumsum(style_at) - style_at
            found.append(float((core_at * (below + 0.5 * style_at)).sum() / pairs))
    if not found:
        return None, 0
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return (float(low), float(high)), len(found)


def _within_examples(core: _Kind, style: _Kind) -> WithinExamples | None:
    from scipy import stats

    both = np.intersect1d(core.examples, style.examples)
    if both.size == 0:
        return None
    core_of, style_of = (
        {example: kind.log_probs[where] for example, where in indices_of(kind.examples)} for kind in (core, style)
    )
    aucs = np.array([_auc(core_of[example], style_of[example]) for example in both.tolist()])
    # scipy divides by zero where nothing differs.
    p_value = float(stats.wilcoxon(aucs - 0.5).pvalue) if (aucs != 0.5).any() else 1.0
    return WithinExamples(
        examples=int(both.size),
        mean_auc=float(aucs.mean()),
        above_half_share=float((aucs > 0.5).mean()),
        p_value=p_value,
    )


def _auc(core: Floats, style: Floats) -> float:
    ordered = np.sort(style)
    twice = np.searchsorted(ordered, core, "left") + np.searchsorted(ordered, core, "right")
    return float(twice.sum()) / (2 * core.size * style.size)
