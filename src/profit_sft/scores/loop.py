"""The one loop over label tokens: what a model thinks of each of them, in batches, without training it.

Scoring a data set writes what comes out into shards; a dry run, the quickstart and a study's held-out NLL use it as it
is. Numbers come from the selective loss, so they are fp32 whatever the model's dtype and no `(N, V)` logits are held.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from profit_sft.data.tokenize import IGNORE_INDEX, TOKEN_KINDS
from profit_sft.head import apply_profit, causal_lm, label_statistics, remove_profit, selective_head
from profit_sft.objectives import FROM_THE_BATCH, NLL, Objective

# The head's logits are held in chunks whatever the batch, so a batch costs its hidden states. On two cores a batch of
# 2,048 tokens of a 135M model takes three seconds, which is how long a stop waits.
_CPU_BATCH_TOKENS = 2048
_BATCH_TOKENS = 16384


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelExample:
    """An example as the loop gets it.

    Attributes:
        input_ids: `(S,)`, int32. All tokens.
        positions: `(T,)`, int32. Indices of the label tokens, each at least 1.
        token_kinds: `(T,)`, int8, one of `data.tokenize.TOKEN_KINDS`, or None where they are not known.
        reference_log_probs: `(T,)`, float32, nats, for objectives that need them, or None.
        token_weights: `(T,)`, float32, weights of the data for objectives that need them, or None.
    """

    input_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    token_kinds: NDArray[np.int8] | None = None
    reference_log_probs: NDArray[np.float32] | None = None
    token_weights: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelScores:
    """What was found about the `T` label tokens of an example.

    Attributes:
        log_probs: `(T,)`, float32. `log p` of the label, given everything before it, in nats.
        entropy: `(T,)`, float32. Entropy of that prediction over the whole vocabulary in nats.
        top1: `(T,)`, int32. Id of the likeliest token.
        rank: `(T,)`, int32. Rank of the label, 1 is the likeliest.
        token_weights: `(T,)`, float32. The objective's; 1 where none was given. None: scores that were stored.
        likeliest: `(T, K)`, int32. The likeliest tokens, likeliest first, as many as were asked for; None: none were.
        likeliest_log_probs: `(T, K)`, float32, or float16 where stored. Their `log p`, nats; None as above.
    """

    log_probs: NDArray[np.float32]
    entropy: NDArray[np.float32]
    top1: NDArray[np.int32]
    rank: NDArray[np.int32]
    token_weights: NDArray[np.float32] | None = None
    likeliest: NDArray[np.int32] | None = None
    likeliest_log_probs: NDArray[np.floating] | None = None


def label_examples(rows: Mapping[str, Sequence[Any]]) -> list[LabelExample]:
    """Return the examples of some rows of a prepared data set.

    Args:
        rows: Columns as `dataset[start:end]` gives them: `input_ids` and `labels`, and where there are any
            `token_kinds`, `reference_log_probs` and `token_weights`, which have an entry for every token.

    Example:
        >>> label_examples({"input_ids": [[5, 6, 7]], "labels": [[5, -100, 7]]})[0].positions.tolist()
        [2]
    """
    examples = []
    for index, (input_ids, labels) in enumerate(zip(rows["input_ids"], rows["labels"], strict=True)):
        # The first token is never predicted, so a label there does not count.
        positions = 1 + np.flatnonzero(np.array(labels[1:]) != IGNORE_INDEX)
        of_labels: dict[str, NDArray[Any]] = {
            name: np.array(rows[name][index], dtype)[positions]
            for name, dtype in (("token_kinds", np.int8), *((name, np.float32) for name in FROM_THE_BATCH))
            if name in rows
        }
        examples.append(
            LabelExample(input_ids=np.array(input_ids, np.int32), positions=positions.astype(np.int32), **of_labels)
        )
    return examples


def score_labels(
    model: nn.Module,
    examples: Sequence[LabelExample],
    *,
    objective: Objective | None = None,
    likeliest: int = 0,
    max_batch_tokens: int | None = None,
) -> list[LabelScores]:
    """Return what the model thinks of every label token, example by example; arguments as `score_in_batches`."""
    found: dict[int, LabelScores] = {}
    for batch in score_in_batches(
        model, examples, objective=objective, likeliest=likeliest, max_batch_tokens=max_batch_tokens
    ):
        found |= batch
    return [found[index] for index in range(len(examples))]


def mean_figures(examples: Sequence[LabelExample], scores: Sequence[LabelScores]) -> dict[str, float]:
    """Return means over the label tokens: `nll` (plain, nats a token), `mean_p`, and `kept_share` of non-zero weight.

    Where the examples have token kinds there are also those of one kind alone, `nll_core`, `kept_share_style` and so
    on; of a kind without tokens there are none.

    Args:
        examples: What was scored.
        scores: What was found, example by example.
    """
    log_probs = np.concatenate([found.log_probs for found in scores]).astype(np.float64)
    kept = np.concatenate([found.token_weights for found in scores if found.token_weights is not None]) != 0
    groups = {"": np.ones(log_probs.size, bool)}
    kinds = [example.token_kinds for example in examples if example.token_kinds is not None]
    if kinds:
        groups |= {f"_{kind}": np.concatenate(kinds) == TOKEN_KINDS[kind] for kind in ("core", "style")}
    means: dict[str, float] = {}
    for end, chosen in groups.items():
        if chosen.any():
            of_group = log_probs[chosen]
            means |= {f"nll{end}": -float(of_group.mean()), f"mean_p{end}": float(np.exp(of_group).mean())}
            means[f"kept_share{end}"] = float(kept[chosen].mean())
    return means


def score_in_batches(
    model: nn.Module,
    examples: Sequence[LabelExample],
    *,
    objective: Objective | None = None,
    likeliest: int = 0,
    max_batch_tokens: int | None = None,
) -> Iterator[dict[int, LabelScores]]:
    """Yield the scores of each batch by index of the example, batches of the longest examples first.

    Nothing is trained, and dropout is off. The model's training mode and its selective head, if it has one, are the
    same afterwards.

    Args:
        model: A causal language model on the device where it is to run, with or without a selective head.
        examples: What to score.
        objective: Whose token weights to find. One that ranks the tokens of a batch sees an example at a time, so that
            no weight depends on what else is scored.
        likeliest: How many of the likeliest tokens to find in each place.
        max_batch_tokens: Tokens of a batch, padding included; a longer example is a batch of its own. None: 2,048 on a
            CPU, 16,384 elsewhere.

    Raises:
        UnsupportedModelError: As `profit_sft.apply_profit`.
        ValueError: The objective needs `reference_log_probs` or `token_weights`, and the examples have none.
    """
    device: torch.device = causal_lm(model).device
    if objective is not None and not objective.elementwise:
        max_batch_tokens = 1
    elif max_batch_tokens is None:
        max_batch_tokens = _CPU_BATCH_TOKENS if device.type == "cpu" else _BATCH_TOKENS
    with _head_on(model):
        for indices in batches_by_length([len(example.input_ids) for example in examples], max_batch_tokens):
            scores = _scored(model, [examples[index] for index in indices], objective, likeliest, device)
            yield dict(zip(indices, scores, strict=True))


def batches_by_length(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of like length, longest first, so that too large a batch fails at once.

    Args:
        lengths: Tokens of each example.
        max_batch_tokens: Tokens of a batch, padding included. A longer example is a batch of its own.

    Example:
        >>> list(batches_by_length([3, 9, 4, 1], max_batch_tokens=8))
        [[1], [2, 0], [3]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _head_on(model: nn.Module) -> Iterator[None]:
    """Have a selective head on the model, its own or one for the time being, so that it is checked once."""
    try:
        selective_head(model)
    except ValueError:
        apply_profit(model, NLL())
        try:
            yield
        finally:
            remove_profit(model)
    else:
        yield


def _scored(
    model: nn.Module, batch: Sequence[LabelExample], objective: Objective | None, likeliest: int, device: torch.device
) -> list[LabelScores]:
    inputs = {name: value.to(device) for name, value in _padded(batch).items()}
    found = label_statistics(model, objective=objective, statistics="ranks", likeliest=likeliest, **inputs)
    values: dict[str, NDArray[Any]] = {}
    for name, dtype in _FOUND.items():
        value: Tensor | None = getattr(found, name)
        assert value is not None or (name.startswith("likeliest") and not likeliest), name
        if value is None:
            continue
        values[name] = value.cpu().numpy().astype(dtype)
    # Entry t of the values is of token t + 1.
    places = [(index, example.positions - 1) for index, example in enumerate(batch)]
    return [LabelScores(**{name: array[place] for name, array in values.items()}) for place in places]


_FOUND = {
    "log_probs": np.float32,
    "entropy": np.float32,
    "top1": np.int32,
    "rank": np.int32,
    "token_weights": np.float32,
    "likeliest": np.int32,
    "likeliest_log_probs": np.float32,
}


def _padded(batch: Sequence[LabelExample]) -> dict[str, Tensor]:
    """Return the model's inputs, each `(B, S)` where S is the longest example."""
    shape = len(batch), max(len(example.input_ids) for example in batch)
    input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORE_INDEX, np.int64)
    beside = {name: np.zeros(shape, np.float32) for name in FROM_THE_BATCH}
    for index, example in enumerate(batch):
        input_ids[index, : len(example.input_ids)] = example.input_ids
        attention_mask[index, : len(example.input_ids)] = 1
        labels[index, example.positions] = example.input_ids[example.positions]
        for name, values in beside.items():
            if getattr(example, name) is not None:
                values[index, example.positions] = getattr(example, name)
    arrays: dict[str, NDArray[Any]] = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
    arrays |= {name: beside[name] for name in beside if all(getattr(example, name) is not None for example in batch)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
