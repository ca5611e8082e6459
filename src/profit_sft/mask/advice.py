"""What a threshold would do to a data set under a model, in numbers and in plain words, before anything is trained.

Everything is counted from scores, so it speaks of the model that was scored. An online mask moves once training begins,
and no number here predicts accuracy.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from profit_sft.data.tokenize import TOKEN_KINDS
from profit_sft.mask.kinds import KindComparison, compare_kinds
from profit_sft.mask.reach import THRESHOLD as MAP_THRESHOLD
from profit_sft.mask.reach import on_the_map
from profit_sft.mask.tokens import THRESHOLDS, LabelTokens, checked_thresholds, kept_mask, label_tokens
from profit_sft.scores.store import ScoreSet

# When to warn. Set by judgment, not fitted to any result.
MASKED_SHARE_LIMIT = 0.5  # more of the tokens masked: most of the data is not trained on
MASKED_GRADIENT_LIMIT = 0.8  # more of the gradient mass masked: a fifth is left to learn from
EMPTY_EXAMPLES_LIMIT = 0.05  # more of the examples without a kept token: whole rows are paid for and teach nothing
FINAL_ANSWER_LIMIT = 0.25  # more of the final answers masked in part: what most answers are judged by
NOTHING_MASKED_LIMIT = 0.05  # less of the gradient mass masked: the objective is plain SFT in all but name
_HIDES_TOO_MUCH = "Use a lower threshold, plain SFT first, or a stronger model."

# Of the cost model: a prefix of this share of the vocabulary proves this share of the tokens that will be masked to be
# so. Measured on instruction data with a vocabulary of 152k; docs/explanation/selective-head.md describes the method.
PRESCREEN_VOCABULARY_SHARE = 0.125
PRESCREEN_PROVEN_SHARE = 0.9
PLAIN_SFT_COST = 3.0  # dense forward 1, dense backward 2

CAVEAT = (
    "No number here predicts accuracy. What was measured on small models: SmolLM2-135M-Instruct on 240 generated "
    "problems with hundreds of wordings, three seeds, right answers to 400 others: untrained 7.5%, plain SFT 54.8%, "
    "threshold 0.1 38.9%, with a reference mask 44.6%, as many tokens kept at random 50.7% (intervals of 4 points to "
    "either side); and a 4-bit 0.5B model on 2,000 GSM8K solutions, one seed, GSM8K with a standard error of 1.2 "
    "points: untrained 27.1%, plain SFT 24.5%, threshold 0.1 19.4%, threshold 0.5 12.8%. The paper reports gains for "
    "strong base models. Train both ways and measure: profit study."
)

_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdRow:
    """What one threshold does. Shares are in [0, 1].

    Attributes:
        threshold: A probability; tokens with `p >= threshold` are kept.
        kept_share: Share of label tokens kept.
        kept_gradient_share: The kept tokens' share of plain SFT's gradient mass. A token's gradient with respect to its
            logits is `softmax - onehot`, whose L1 norm is `(1 - p) + sum of the others' p = 2 (1 - p)`, so this is
            `sum_kept 2 (1 - p) / sum 2 (1 - p)`. 1 where the model is sure of every token.
        kept_nll_share: The kept tokens' share of the summed NLL, the signal in nats. 1 where that sum is 0.
        empty_examples_share: Share of examples with no kept token.
        masked_answers_share: Of the examples with a final answer, the share of which at least one token of it is
            masked; None where no example has one. The final answer is the last run of core tokens where the data has
            `answer_spans`, else the last number.
        online_cost: See `loss_cost`.
        reference_cost: See `loss_cost`.
    """

    threshold: float
    kept_share: float
    kept_gradient_share: float
    kept_nll_share: float
    empty_examples_share: float
    masked_answers_share: float | None
    online_cost: float
    reference_cost: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionRow:
    """Label tokens by their place in the answer, see `LabelTokens.by_answer_place`.

    Attributes:
        first: First place of the bin, from 1.
        last: Last place.
        tokens: Label tokens there.
        mean_p: Their mean probability.
        kept_share: Share of them kept at the threshold that is looked at.
    """

    first: int
    last: int
    tokens: int
    mean_p: float
    kept_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The threshold profile of a data set under a model.

    Attributes:
        model_name_or_path: The model that was scored.
        dataset_name: The data.
        examples: Examples.
        label_tokens: Label tokens.
        mean_p: Mean probability of a label token.
        median_p: Median probability.
        nll: Plain NLL, nats a token.
        top1_share: Share of label tokens that are the model's likeliest.
        final_answers: Examples with a final answer, see `ThresholdRow`.
        threshold: The one that warnings and reading speak of.
        profile: One row a threshold, ascending.
        positions: By place in the answer, at `threshold`.
        warnings: What to think about first; may be empty.
        reading: The numbers in plain words.
        caveat: What the numbers do not say.
        kinds: Core against style tokens; None where the data does not tell them apart.
        unsolved_share: As given.
        on_the_map: Whether a mask helped where a model could do as much, see `reach.py`; empty where
            `unsolved_share` is not known.
    """

    model_name_or_path: str
    dataset_name: str
    examples: int
    label_tokens: int
    mean_p: float
    median_p: float
    nll: float
    top1_share: float
    final_answers: int
    threshold: float
    profile: tuple[ThresholdRow, ...]
    positions: tuple[PositionRow, ...]
    warnings: tuple[str, ...]
    reading: tuple[str, ...]
    caveat: str
    kinds: KindComparison | None
    unsolved_share: float | None
    on_the_map: tuple[str, ...]


def advise(
    scores: ScoreSet,
    *,
    threshold: float = 0.1,
    thresholds: Sequence[float] = THRESHOLDS,
    unsolved_share: float | None = None,
) -> Advice:
    """Profile a scored data set.

    Args:
        scores: What `load_scores` or `score_dataset` returns.
        threshold: The one to warn about and to read out; added to `thresholds`.
        thresholds: Those of the profile.
        unsolved_share: Share of held-out problems like the data's of which the model has none of 8 samples right, in
            [0, 1]; None: not known.

    Raises:
        ValueError: A threshold is no probability, or `unsolved_share` no share.
        DataError: There is no label token, or one has no finite log p.
    """
    wanted = checked_thresholds([*thresholds, threshold])
    tokens = label_tokens(scores)
    answers = final_answer_mask(tokens, scores.tokenizer())
    profile = tuple(threshold_row(tokens, value, answers) for value in wanted)
    row = next(row for row in profile if row.threshold == threshold)
    log_probs = tokens.log_probs[0]
    p = np.exp(log_probs)
    return Advice(
        model_name_or_path=scores.manifest.model_name_or_path,
        dataset_name=str(scores.manifest.data["dataset_name"]),
        examples=tokens.num_examples,
        label_tokens=log_probs.size,
        mean_p=float(p.mean()),
        median_p=float(np.median(p)),
        nll=float(-log_probs.mean()),
        top1_share=float((scores.column("rank") == 1).mean()),
        final_answers=int(np.unique(tokens.examples[answers]).size),
        threshold=threshold,
        profile=profile,
        positions=tuple(_positions(tokens, threshold)),
        warnings=tuple(warnings_about(row)),
        reading=reading_of(row),
        caveat=CAVEAT,
        kinds=_compare_if_marked(tokens, wanted),
        unsolved_share=unsolved_share,
        on_the_map=()
        if unsolved_share is None
        else on_the_map(unsolved_share, 1.0 - float(kept_mask(log_probs, MAP_THRESHOLD).mean())),
    )


def threshold_row(tokens: LabelTokens, threshold: float, final_answers: Bools) -> ThresholdRow:
    """Count what a threshold keeps.

    Args:
        tokens: Label tokens.
        threshold: A probability.
        final_answers: `(N,)`, True for tokens of an example's final answer.
    """
    log_probs = tokens.log_probs[0]
    kept = kept_mask(log_probs, threshold)
    kept_share = float(kept.mean())
    answered = np.unique(tokens.examples[final_answers]).size
    masked = np.unique(tokens.examples[final_answers & ~kept]).size
    online_cost, reference_cost = loss_cost(kept_share)
    return ThresholdRow(
        threshold=threshold,
        kept_share=kept_share,
        kept_gradient_share=_share(-np.expm1(log_probs), kept),
        kept_nll_share=_share(-log_probs, kept),
        empty_examples_share=1.0 - np.unique(tokens.examples[kept]).size / tokens.num_examples,
        masked_answers_share=masked / answered if answered else None,
        online_cost=online_cost,
        reference_cost=reference_cost,
    )


def final_answer_mask(tokens: LabelTokens, tokenizer: PreTrainedTokenizerBase) -> Bools:
    """Return `(N,)`, True for tokens of an example's final answer, as far as the data shows it.

    The final answer is the last run of core tokens where the example has any, else the last number of its answer.

    Args:
        tokens: Label tokens.
        tokenizer: Says which tokens are parts of a number.
    """
    token_ids, places = np.unique(tokens.token_ids, return_inverse=True)
    texts = tokenizer.batch_decode([[token] for token in token_ids.tolist()], skip_special_tokens=True)
    kinds = np.zeros(places.size, np.int8) if tokens.token_kinds is None else tokens.token_kinds
    found = []
    for where in np.split(np.arange(places.size), 1 + np.flatnonzero(np.diff(tokens.examples))):
        core = kinds[where] == TOKEN_KINDS["core"]
        found.append(_last_run(core) if core.any() else _last_number([texts[place] for place in places[where]]))
    return np.concatenate(found)


def _last_run(chosen: Bools) -> Bools:
    end = int(np.flatnonzero(chosen)[-1]) + 1
    others = np.flatnonzero(~chosen[:end])
    places = np.arange(chosen.size)
    return (places < end) & (places > (others[-1] if others.size else -1))


def _last_number(pieces: list[str]) -> Bools:
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    numbers = list(_NUMBER.finditer("".join(pieces)))
    if not numbers:
        return np.zeros(len(pieces), dtype=bool)
    overlapping: Bools = (starts < numbers[-1].end()) & (numbers[-1].start() < ends)
    return overlapping


def loss_cost(kept_share: float) -> tuple[float, float]:
    """Return what the loss costs with an online and with a reference mask, in dense forward products of the head.

    A model of arithmetic, not a measurement: forward 1, backward 2 a kept token, nothing else counted. Online, every
    token pays the prescreen and its survivors (what is kept, and what is masked but was not proven so) the rest of the
    vocabulary; where that would save less than 5%, nothing is screened. With a reference mask a masked token never
    reaches the head, but the scores have cost one forward pass of the whole model.

    Args:
        kept_share: Share of label tokens kept, in [0, 1].
    """
    survivors = kept_share + (1.0 - PRESCREEN_PROVEN_SHARE) * (1.0 - kept_share)
    forward = PRESCREEN_VOCABULARY_SHARE + (1.0 - PRESCREEN_VOCABULARY_SHARE) * survivors
    return (forward if forward < 0.95 else 1.0) + 2.0 * kept_share, 3.0 * kept_share


def warnings_about(row: ThresholdRow) -> Iterator[str]:
    """Yield what a person should think about before training with this threshold.

    No two of them ask for opposite things: where one asks for a lower threshold, none asks for a higher one.
    """
    if row.kept_share in (0.0, 1.0):
        yield _all_or_nothing(row)
        return
    harms = tuple(_harms(row))
    yield from harms
    masked_gradient = 1.0 - row.kept_gradient_share
    if not harms and masked_gradient < NOTHING_MASKED_LIMIT:
        yield (
            f"The mask hides next to nothing: {_percent(1.0 - row.kept_share, digits=1)} of the label tokens and "
            f"{_percent(masked_gradient, digits=1)} of the gradient mass. This is plain SFT in all but name; use it, "
            "or a higher threshold."
        )


def _all_or_nothing(row: ThresholdRow) -> str:
    if row.kept_share == 1.0:
        return (
            f"The mask hides nothing: every label token has p of at least {row.threshold:g}. This is plain SFT; use "
            "it, or a higher threshold."
        )
    return (
        f"The mask hides everything: no label token has p of at least {row.threshold:g}, so a run would learn nothing. "
        f"{_HIDES_TOO_MUCH}"
    )


def _harms(row: ThresholdRow) -> Iterator[str]:
    """Yield how the mask hides too much."""
    masked, masked_gradient = 1.0 - row.kept_share, 1.0 - row.kept_gradient_share
    if masked > MASKED_SHARE_LIMIT:
        yield (
            f"The mask hides most of the data: {_percent(masked)} of the label tokens and {_percent(masked_gradient)} "
            f"of the gradient mass. To most tokens the model gives a probability below {row.threshold:g}, and what it "
            f"does not know is what it would not be taught. {_HIDES_TOO_MUCH}"
        )
    elif masked_gradient > MASKED_GRADIENT_LIMIT:
        yield (
            f"The mask hides most of the signal: {_percent(masked_gradient)} of the gradient mass lies in the "
            f"{_percent(masked)} of the label tokens that are masked. If those are wording, that is the purpose; if "
            "they are what the model should learn, it will not. Look at them before you train: profit inspect."
        )
    if row.empty_examples_share > EMPTY_EXAMPLES_LIMIT:
        yield (
            f"{_percent(row.empty_examples_share)} of the examples have no kept token: they are paid for and teach "
            "nothing. Look at them, or use a lower threshold."
        )
    if row.masked_answers_share is not None and row.masked_answers_share > FINAL_ANSWER_LIMIT:
        yield (
            f"In {_percent(row.masked_answers_share)} of the examples part of the final answer is masked: the very "
            "thing an answer is judged by would not be learned from them. Use a lower threshold."
        )


def reading_of(row: ThresholdRow) -> tuple[str, ...]:
    """Say in plain words what a threshold does."""
    at = f"At threshold {row.threshold:g} the loss sees"
    if row.kept_share == 0.0:
        return (f"{at} no label token. Nothing would be learned, so an online mask would not move either.",)
    cost = (
        f"The loss costs about {row.online_cost:.1f} dense forward products of the head, with a reference mask (profit "
        f"train --reference_scores FOLDER) {row.reference_cost:.1f}, plain SFT {PLAIN_SFT_COST:.1f}. That is a model "
        "of arithmetic, not a measurement, and the rest of the training step is not in it."
    )
    if row.kept_share == 1.0:
        moves = (
            "All this is the mask before training. An online mask moves: a token that becomes unlikely is masked then."
        )
        return f"{at} every label token, as plain SFT does.", cost, moves
    kept = (
        f"{at} {_percent(row.kept_share)} of the label tokens. They carry {_percent(row.kept_gradient_share)} of the "
        f"gradient mass and {_percent(row.kept_nll_share)} of the NLL that plain SFT would learn from: what is masked "
        "is by construction what the model finds hardest."
    )
    moves = (
        "All this is the mask before training. An online mask moves: what it hides is not learned and stays unlikely. "
        "A reference mask does not."
    )
    return kept, cost, moves


def _percent(share: float, *, digits: int = 0) -> str:
    """Write a share in percent, so that only none reads as 0% and only all as 100%."""
    text, least = f"{share:.{digits}%}", 10.0**-digits / 100
    if share > 0.0 and text == f"{0.0:.{digits}%}":
        return f"under {least:.{digits}%}"
    return f"over {1.0 - least:.{digits}%}" if share < 1.0 and text == f"{1.0:.{digits}%}" else text


def _share(values: npt.NDArray[np.float64], chosen: Bools) -> float:
    values = np.maximum(values, 0.0)  # rounding may put log p a hair above 0
    total = values.sum()
    return float(values[chosen].sum() / total) if total > 0 else 1.0


def _positions(tokens: LabelTokens, threshold: float) -> Iterator[PositionRow]:
    p, kept = np.exp(tokens.log_probs[0]), kept_mask(tokens.log_probs[0], threshold)
    for first, last, here in tokens.by_answer_place():
        yield PositionRow(
            first=first,
            last=last,
            tokens=here.size,
            mean_p=float(p[here].mean()),
            kept_share=float(kept[here].mean()),
        )


def _compare_if_marked(tokens: LabelTokens, thresholds: Sequence[float]) -> KindComparison | None:
    """Compare the kinds where both occur; a data set of one kind has nothing to compare."""
    kinds = tokens.token_kinds
    if kinds is None or not all((kinds == TOKEN_KINDS[kind]).any() for kind in ("core", "style")):
        return None
    return compare_kinds(tokens, thresholds=thresholds)
