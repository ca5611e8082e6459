"""What training logs besides the loss: sums and counts of one rank, from which means over all ranks are formed."""

import time

import psutil
import torch
from torch import Tensor

from profit_sft.loss import SelectiveLoss

_NAMES = (
    "labels",
    "kept",
    "calls",
    "tokens",
    "dropped",
    "aux_loss",
    "measured",
    "measured_kept",
    "p_kept",
    "p_masked",
    "nll",
    "entropy",
    "correct",
)


class StepMetrics:
    """Sums and counts since the last log. Nothing here waits for the device before `as_tensor` is read.

    Not every device has float64, and a count passes fp32's 2^24 within hours. So each sum is a pair of fp32 numbers,
    the second of which carries what the first has rounded away (Kahan), and the pairs are added up in Python.
    """

    def __init__(self) -> None:
        self.has_aux_loss = False
        self._start = time.perf_counter()
        self._sums: Tensor | None = None  # (2, 13) fp32: sums, and how much too large they are

    def add(self, result: SelectiveLoss, *, tokens: Tensor | int, aux_loss: Tensor | None, measure: bool) -> None:
        """Add one micro-batch.

        Args:
            result: What the head returned; with `measure`, all its statistics.
            tokens: Those that were computed with, without padding.
            aux_loss: 0-d, a mixture of experts' load-balancing loss, or None.
            measure: Add the figures that cost something, too.
        """
        self.has_aux_loss |= aux_loss is not None
        zero, one = (torch.full((), value, device=result.loss.device) for value in (0.0, 1.0))
        counted = tokens if isinstance(tokens, Tensor) else tokens * one
        aux_loss = zero if aux_loss is None else aux_loss
        values = [result.num_labels, result.num_kept, one, counted, result.dropped_share, aux_loss]
        values += self._measured(result) if measure else [zero] * (len(_NAMES) - len(values))
        new = torch.stack([value.detach().to(zero) for value in values])
        if self._sums is None:
            self._sums = torch.stack([new, torch.zeros_like(new)])
            return
        total, excess = self._sums
        new = new - excess
        rounded = total + new
        self._sums = torch.stack([rounded, (rounded - total) - new])

    @staticmethod
    def _measured(result: SelectiveLoss) -> list[Tensor]:
        assert result.entropy is not None
        assert result.is_top1 is not None
        kept = result.token_weights != 0
        probs = result.log_probs.exp()
        return [
            result.num_labels,
            result.num_kept,
            (probs * kept).sum(),
            (probs * (result.label_mask & ~kept)).sum(),
            -result.log_probs.sum(),
            result.entropy.sum(),
            result.is_top1.sum(),
        ]

    def as_tensor(self, device: torch.device) -> Tensor:
        """Return the sums of this rank, `(1, 2, 13)` fp32, to be gathered along the first dimension."""
        sums = torch.zeros(2, len(_NAMES)) if self._sums is None else self._sums
        return sums.to(device)[None]

    def means(self, gathered: Tensor, *, copies: int = 1) -> tuple[dict[str, float], int]:
        """Turn what all ranks have summed into named metrics; leave out what nothing was measured for.

        Args:
            gathered: `(ranks, 2, 13)` fp32, every rank's `as_tensor`.
            copies: Ranks that are given the same batch, as in tensor parallelism.

        Returns:
            The metrics, and the number of tokens.
        """
        total = dict.fromkeys(_NAMES, 0.0)
        for sums, excess in gathered.tolist():
            for name, value, too_much in zip(_NAMES, sums, excess, strict=True):
                total[name] += value - too_much
        found: dict[str, float] = {}

        def ratio(name: str, numerator: float, denominator: float) -> None:
            if denominator > 0:
                found[name] = numerator / denominator

        tokens = total["tokens"] / copies
        ratio("kept_share", total["kept"], total["labels"])
        ratio("mean_p_kept", total["p_kept"], total["measured_kept"])
        ratio("mean_p_masked", total["p_masked"], total["measured"] - total["measured_kept"])
        ratio("nll", total["nll"], total["measured"])
        ratio("entropy", total["entropy"], total["measured"])
        ratio("mean_token_accuracy", total["correct"], total["measured"])
        if total["dropped"] > 0:
            ratio("dropped_share", total["dropped"], total["calls"])
        if self.has_aux_loss:
            ratio("aux_loss", total["aux_loss"], total["calls"])
        ratio("tokens_per_second", tokens, time.perf_counter() - self._start)
        return found, round(tokens)


def memory_in_use_gib(device: torch.device) -> float:
    """Return the most memory a CUDA device had allocated so far, elsewhere what this process holds now, in GiB."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
