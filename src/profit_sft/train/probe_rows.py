"""What the probe sees of its first rows, token by token, for the page of a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from profit_sft.loss import SelectiveLoss

SHOWN_ROWS = 6
MOST_TOKENS = 600  # of a row


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRow:
    """A row under one model; lists of `T` tokens, the first of the row.

    Attributes:
        row: 1-based, in the training data.
        input_ids: Its tokens.
        probs: Of each label token, given everything before it; None where there is no label.
        token_weights: The objective's, 0 where there is no label.
        nll: Plain NLL of the whole row, nats a label token; None: not finite.
    """

    row: int
    input_ids: Sequence[int]
    probs: Sequence[float | None]
    token_weights: Sequence[float]
    nll: float | None

    def as_json(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        return {
            "p": [None if p is None else float(f"{p:.3g}") for p in self.probs],
            "w": [float(f"{value:.3g}") for value in self.token_weights],
            "nll": self.nll,
        }


def probe_rows(rows: Sequence[int], input_ids: Tensor, found: SelectiveLoss) -> list[ProbeRow]:
    """Return the rows of one measured batch.

    Args:
        rows: Number of each.
        input_ids: `(B, S)`.
        found: `(B, S)` values, entry t of token t + 1.
    """
    log_probs, weights = found.log_probs.cpu().double(), found.token_weights.cpu().double()
    labels = found.label_mask.cpu()
    seen = []
    for index, row in enumerate(rows):
        has_label, log_p = labels[index].tolist(), log_probs[index].tolist()
        last = max((at + 1 for at, labeled in enumerate(has_label) if labeled), default=0)  # what follows is padding
        size = min(last + 1, MOST_TOKENS)
        mean = -sum(value for value, labeled in zip(log_p, has_label, strict=True) if labeled) / max(1, sum(has_label))
        seen.append(
            ProbeRow(
                row=row,
                input_ids=input_ids[index, :size].tolist(),
                probs=[None, *(_prob(log_p[at]) if has_label[at] else None for at in range(size - 1))],
                token_weights=[0.0, *(weights[index, at].item() if has_label[at] else 0.0 for at in range(size - 1))],
                nll=mean if math.isfinite(mean) else None,
            )
        )
    return seen


def _prob(log_p: float) -> float:
    return 0.0 if math.isnan(log_p) else math.exp(log_p)
