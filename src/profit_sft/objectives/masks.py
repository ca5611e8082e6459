"""Objectives whose weight is 0 or 1: which tokens are trained at all."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from profit_sft.objectives.base import (
    TokenStats,
    check_choice,
    check_probability,
    check_share,
    log_of,
    top_share,
)

Direction = Literal["higher", "lower", "middle", "random"]
MaskSource = Literal["online", "reference"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ProFit:
    """Keep the reference tokens the model already finds likely: `w = 1[p >= threshold]`.

    Attributes:
        threshold: The paper's tau, a probability. Default 0.1, the paper's.
        direction: `"higher"` keeps `p >= threshold` (the paper). Its ablations: `"lower"` keeps `p <= threshold`,
            `"middle"` keeps `threshold <= p <= upper_threshold`, `"random"` keeps each token with probability `rate`.
            All bounds are in, as in the official code.
        upper_threshold: Upper bound of `"middle"`, a probability above `threshold`. Needed there, refused elsewhere.
        rate: Share of tokens `"random"` keeps, in [0, 1]. Needed there, refused elsewhere.
        mask_source: `"online"` takes p from the model being trained (the paper), `"reference"` from the reference
            log-probabilities given to the loss, so that the mask stays what it was at the start.
        generator: Draws for `"random"`. None: torch's global generator, which trainers seed and checkpoint.

    Raises:
        ValueError: A value is out of range, or set where `direction` does not use it.

    Source: Liu et al. 2026, arXiv:2601.09195.

    Example:
        >>> log_probs = torch.tensor([0.05, 0.1, 0.9]).log()
        >>> ProFit(threshold=0.1).token_weights(TokenStats(labels=torch.zeros(3), log_probs=log_probs))
        tensor([0., 1., 1.])
    """

    threshold: float = 0.1
    direction: Direction = "higher"
    upper_threshold: float | None = None
    rate: float | None = None
    mask_source: MaskSource = "online"
    generator: torch.Generator | None = field(default=None, repr=False, compare=False)
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)
        check_choice("direction", self.direction, ("higher", "lower", "middle", "random"))
        check_choice("mask_source", self.mask_source, ("online", "reference"))
        for name, needed_by in (("upper_threshold", "middle"), ("rate", "random")):
            value = getattr(self, name)
            if (self.direction == needed_by) != (value is not None):
                verb = "needs" if self.direction == needed_by else "does not use"
                raise ValueError(f"direction '{self.direction}' {verb} {name}, got {name}={value!r}.")
            if value is not None:
                check_probability(name, value)
        if self.upper_threshold is not None and self.upper_threshold <= self.threshold:
            raise ValueError(f"upper_threshold must exceed threshold, got {self.upper_threshold} <= {self.threshold}.")
        if self.direction == "random" and self.mask_source == "reference":
            raise ValueError("direction 'random' reads no probability; leave mask_source at 'online'.")

    def __repr__(self) -> str:
        shown = [
            f"{entry.name}={getattr(self, entry.name)!r}"
            for entry in dataclasses.fields(self)
            if entry.repr and (getattr(self, entry.name) != entry.default or entry.name == "threshold")
        ]
        return f"ProFit({', '.join(shown)})"

    @property
    def needs(self) -> frozenset[str]:
        """The statistic the mask is made of."""
        if self.direction == "random":
            return frozenset()
        return frozenset({"log_probs" if self.mask_source == "online" else "reference_log_probs"})

    @property
    def probability_floor(self) -> float:
        """`threshold`, where the mask is the model's own and keeps what lies above it."""
        return self.threshold if self.mask_source == "online" and self.direction in ("higher", "middle") else 0.0

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the mask, `(N,)` fp32 of zeros and ones; 1 where the token counts."""
        if self.direction == "random":
            assert self.rate is not None
            device = stats.labels.device if self.generator is None else self.generator.device
            draws = torch.rand(stats.labels.shape, generator=self.generator, device=device)
            return (draws < self.rate).float().to(stats.labels.device)
        log_probs = stats.require("log_probs" if self.mask_source == "online" else "reference_log_probs")
        if self.direction == "lower":
            return (log_probs <= log_of(self.threshold)).float()
        kept = log_probs >= log_of(self.threshold)
        if self.upper_threshold is not None:
            kept = kept & (log_probs <= log_of(self.upper_threshold))
        return kept.float()


@dataclass(frozen=True, kw_only=True, slots=True)
class STM:
    """Selective token masking: `w = 1[r >= threshold]`, `r` the label's probability under the starting model.

    ProFit's mask taken from a reference, published a year before it. The paper keeps a perplexity `1 / r` of at most
    2.5 and divides by the kept tokens, so a trainer does, too, unless it is told otherwise.

    Attributes:
        threshold: A probability. Default 0.4, the paper's 1 / 2.5.

    Source: Wu et al. 2025, arXiv:2501.14315.
    """

    threshold: float = 0.4
    needs: ClassVar[frozenset[str]] = frozenset({"reference_log_probs"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0
    normalize: ClassVar[str] = "kept"

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the mask, `(N,)` fp32 of zeros and ones; 1 where the token counts."""
        return (stats.require("reference_log_probs") >= log_of(self.threshold)).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class HighEntropy:
    """Train only where the model is unsure: `w = 1` for the `keep_share` of tokens of highest entropy, else 0.

    The baseline that the ProFit paper calls "Entropy"; EAFT is another. Tokens are ranked within one call of the loss,
    that is within one micro-batch on one rank, not over the optimizer step: the entropies of the micro-batches to come
    are not known. A larger per-device batch comes closer to it. Ties are all kept.

    Attributes:
        keep_share: Share of label tokens kept, in (0, 1]. Default 0.2, the source's; the ProFit paper does not say.

    Source: Wang et al. 2025, arXiv:2506.01939, made there for reinforcement learning.
    """

    keep_share: float = 0.2
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    elementwise: ClassVar[bool] = False
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_share("keep_share", self.keep_share)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the mask, `(N,)` fp32 of zeros and ones; 1 where the token counts."""
        return top_share(stats.require("entropy"), self.keep_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rho:
    """Selective language modeling: keep the `keep_share` of tokens with the largest excess loss over a reference.

    The excess is `log r - log p`, `r` the reference's probability: large where the reference finds a token easy and
    the model does not yet. Tokens are ranked within one call of the loss, that is within one micro-batch on one rank;
    ties are all kept.

    Attributes:
        keep_share: Share of label tokens kept, in (0, 1]. Default 0.6, the paper's for general text.

    Source: Lin et al. 2024, arXiv:2404.07965.
    """

    keep_share: float = 0.6
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs", "reference_log_probs"})
    elementwise: ClassVar[bool] = False
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_share("keep_share", self.keep_share)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the mask, `(N,)` fp32 of zeros and ones; 1 where the token counts."""
        excess = stats.require("reference_log_probs") - stats.require("log_probs")
        return top_share(excess, self.keep_share)
