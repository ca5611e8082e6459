"""The scoring engine `hf`, a transformers model under the selective loss; and what any engine takes and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from profit_sft.data import IGNORE_INDEX
from profit_sft.head import apply_profit, label_statistics
from profit_sft.models.pretrained import load_model
from profit_sft.objectives import NLL


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelPositions:
    """An example as an engine gets it.

    Attributes:
        input_ids: `(S,)`, int32.
        positions: `(T,)`, int32. Indices of the label tokens, each at least 1.
    """

    input_ids: NDArray[np.int32]
    positions: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelScores:
    """What an engine found about the `T` label tokens of an example; see `ScoredExample`."""

    log_probs: NDArray[np.float32]
    entropy: NDArray[np.float32]
    top1: NDArray[np.int32]
    rank: NDArray[np.int32]


Values = NDArray[Any]
Engine = Callable[[Sequence[LabelPositions]], list[LabelScores]]


def hf_engine(
    name: str,
    *,
    device: torch.device,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Engine:
    """Load a transformers model, and return an engine that reads the selective loss's statistics off its head.

    Args:
        name: Model, as for `profit_sft.models.pretrained.load_model`, which explains the options too.
        device: Where it runs.
        dtype: Of the model. The logits are fp32 whatever it is.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run code that comes with the model.
    """
    model: Any = load_model(name, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    apply_profit(model.to(device), NLL())  # checks the head once; in evaluation mode it changes nothing

    def score(batch: Sequence[LabelPositions]) -> list[LabelScores]:
        input_ids, labels, attention_mask = _padded(batch)
        found = label_statistics(
            model,
            input_ids=input_ids.to(device),
            labels=labels.to(device),
            attention_mask=attention_mask.to(device),
            statistics="ranks",
        )
        assert found.entropy is not None
        assert found.top1 is not None
        assert found.rank is not None
        values = [value.cpu().numpy() for value in (found.log_probs, found.entropy, found.top1, found.rank)]
        return [_picked(index, example.positions, *values) for index, example in enumerate(batch)]

    return score


def _picked(
    index: int, positions: NDArray[np.int32], log_probs: Values, entropy: Values, top1: Values, rank: Values
) -> LabelScores:
    """Pick one example's label tokens out of `(B, S)` values, whose entry t is of token t + 1."""
    where = index, positions - 1
    return LabelScores(
        log_probs=log_probs[where].astype(np.float32),
        entropy=entropy[where].astype(np.float32),
        top1=top1[where].astype(np.int32),
        rank=rank[where].astype(np.int32),
    )


def _padded(batch: Sequence[LabelPositions]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return input_ids, labels and attention_mask, each `(B, S)` int64; S is the longest example."""
    shape = len(batch), max(len(example.input_ids) for example in batch)
    input_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORE_INDEX, np.int64)
    for index, example in enumerate(batch):
        input_ids[index, : len(example.input_ids)] = example.input_ids
        attention_mask[index, : len(example.input_ids)] = 1
        labels[index, example.positions] = example.input_ids[example.positions]
    return torch.from_numpy(input_ids), torch.from_numpy(labels), torch.from_numpy(attention_mask)
