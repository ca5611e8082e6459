"""Objectives that weigh the tokens, by the model's own prediction, by a reference model's, or as the data says."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from profit_sft.objectives.base import ENTROPY_TOP_K, TokenStats, check_positive, check_probability, log_of

_ASFT_LEAST_REST = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class NLL:
    """Plain supervised fine-tuning: `w = 1`.

    Source: maximum likelihood; what transformers and TRL call `nll`.

    Example:
        >>> NLL().token_weights(TokenStats(labels=torch.tensor([3, 1])))
        tensor([1., 1.])
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return ones, `(N,)` fp32."""
        return torch.ones(stats.labels.shape, dtype=torch.float32, device=stats.labels.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrSFT:
    """Trust-region SFT: `w = min(1, p / alpha)`.

    ProFit's step as a ramp: a token below `alpha` still learns, in proportion to its p, so that none is masked for
    good. `alpha = 1` is DFT.

    Attributes:
        alpha: Probability from which a token counts in full, in (0, 1]. Default 0.1, the authors' script's.

    Source: Su et al. 2025, arXiv:2512.17636 (the SFT part of TRAPO).

    Example:
        >>> log_probs = torch.tensor([0.05, 0.1, 0.9]).log()
        >>> TrSFT(alpha=0.1).token_weights(TokenStats(labels=torch.zeros(3), log_probs=log_probs))
        tensor([0.5000, 1.0000, 1.0000])
    """

    alpha: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_probability("alpha", self.alpha)
        check_positive("alpha", self.alpha)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the ramp, `(N,)` fp32 in [0, 1]."""
        return (stats.require("log_probs") - math.log(self.alpha)).clamp(max=0.0).exp()


@dataclass(frozen=True, kw_only=True, slots=True)
class DFT:
    """Dynamic fine-tuning: `w = p`, the gradient of `-p`.

    Attributes:
        threshold: With it mask times weight, `w = p * 1[p >= threshold]`. Default 0, no mask.

    Source: Wu et al. 2025, arXiv:2508.05629; with the mask Li et al. 2025, arXiv:2510.00526.

    Example:
        >>> DFT().token_weights(TokenStats(labels=torch.zeros(1), log_probs=torch.tensor([0.25]).log()))
        tensor([0.2500])
    """

    threshold: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)

    @property
    def probability_floor(self) -> float:
        """`threshold`."""
        return self.threshold

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the probabilities, `(N,)` fp32, 0 below the threshold."""
        return Power(threshold=self.threshold).token_weights(stats)


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """The `(1 - p^k) / k` family: `w = p^k`. `k -> 0` is plain NLL, `k = 1` is DFT; larger k trusts the prior more.

    Attributes:
        k: Exponent, positive. Default 1.
        threshold: With it mask times weight, `w = p^k * 1[p >= threshold]`. Default 0, no mask.

    Source: Li et al. 2025, arXiv:2510.00526 (with `alpha` for k).
    """

    k: float = 1.0
    threshold: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("k", self.k)
        check_probability("threshold", self.threshold)

    @property
    def probability_floor(self) -> float:
        """`threshold`."""
        return self.threshold

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return `p^k`, `(N,)` fp32, 0 below the threshold."""
        log_probs = stats.require("log_probs")
        return torch.where(log_probs >= log_of(self.threshold), (log_probs * self.k).exp(), 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DEFT:
    """Dynamic entropy fine-tuning: `w = p^a` with `a = sum_v p_v^2`.

    `a` is 1 where the model is sure of one token, so that the weight is DFT's, and nears 0 where it is not sure at all,
    so that the weight is plain NLL's. It has no setting. The authors' loss, `(1 - p^a) / (a + 1e-6)` with `a` held
    fixed, has this weight to a millionth of `a`.

    Source: arXiv:2602.11424.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"log_probs", "collision"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return `p^a`, `(N,)` fp32."""
        return (stats.require("log_probs") * stats.require("collision")).exp()


@dataclass(frozen=True, kw_only=True, slots=True)
class EAFT:
    """Entropy-adaptive fine-tuning: `w = (H_20 / scale)^alpha`, less where the model is sure.

    `H_20` is the entropy of the 20 likeliest tokens, renormalized to a distribution of their own. In a vocabulary of
    fewer than 20 tokens it is the entropy of all of them.

    Attributes:
        alpha: Exponent, positive. Default 1, the paper's.
        scale: What the entropy is divided by, in nats. Default ln 20, its largest value, as in the paper, so that the
            weight lies in [0, 1]. LLaMA-Factory has 3.0 (weights smaller by 0.14%), Axolotl none, that is 1 (larger by
            a factor of 3).

    Source: Diao et al. 2026, arXiv:2601.02151.
    """

    alpha: float = 1.0
    scale: float = math.log(ENTROPY_TOP_K)
    needs: ClassVar[frozenset[str]] = frozenset({"topk_entropy"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        check_positive("scale", self.scale)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the scaled entropies to the power `alpha`, `(N,)` fp32."""
        # Rounding puts the entropy of equal tokens a little above its largest value.
        entropy = stats.require("topk_entropy").clamp(0.0, math.log(ENTROPY_TOP_K))
        return (entropy / self.scale) ** self.alpha


@dataclass(frozen=True, kw_only=True, slots=True)
class Focal:
    """Focal loss, as the weight with its gradient: `w = (1 - p)^gamma - gamma * p * (1 - p)^(gamma - 1) * log p`.

    Differentiating `-(1 - p)^gamma * log p` gives `-w * grad log p`, so training follows the focal loss exactly; the
    reported loss is `-w * log p`, as for every objective here. The opposite of ProFit: unlikely tokens count most.

    Attributes:
        gamma: Focusing exponent, 0 (plain NLL) or more. Default 2, the paper's.

    Source: Lin et al. 2017, arXiv:1708.02002.
    """

    gamma: float = 2.0
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < math.inf:
            raise ValueError(f"gamma must be 0 or a positive number, got {self.gamma!r}.")

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the gradient's weights, `(N,)` fp32."""
        log_probs = stats.require("log_probs")
        rest = -torch.expm1(log_probs)  # 1 - p without cancellation
        if self.gamma == 0.0:
            return torch.ones_like(log_probs)
        # (1 - p)^(gamma - 1) diverges at p = 1 for gamma < 1, where log p = 0 makes the product vanish.
        entropy_term: Tensor = torch.special.entr(log_probs.exp())  # -p log p, 0 at p = 0
        slope = torch.where(rest > 0, rest ** (self.gamma - 1.0), 0.0) * entropy_term
        return rest**self.gamma + self.gamma * slope


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """The weight comes with the data: `w` is what the row says about the token.

    For masks and weights that are made elsewhere: token cleaning (arXiv:2502.01968), critical tokens
    (arXiv:2510.10974), tool calls that count more, private heuristics. Tokens of weight 0 never reach the head.

    Source: such as `loss_scale` of ms-swift, or the message weights of mistral-finetune.

    Example:
        >>> stats = TokenStats(labels=torch.zeros(2), token_weights=torch.tensor([0.0, 2.0]))
        >>> Given().token_weights(stats)
        tensor([0., 2.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"token_weights"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the weights of the data, `(N,)` fp32."""
        return stats.require("token_weights").float()


@dataclass(frozen=True, kw_only=True, slots=True)
class PSFT:
    """Proximal fine-tuning: `w = rho` where `rho < 1 + epsilon`, else 0, with `rho = p / r`.

    `r` is the label's probability under the reference. PPO's clipped surrogate with an advantage of one: a token that
    has become likelier than the reference finds it by more than `epsilon` has been learned and rests. The opposite end
    from ProFit. The authors take the reference anew every few steps; here it is the one that was stored.

    Attributes:
        epsilon: How much likelier a token may become, positive. Default 0.28, the upper clip of the authors' script.

    Source: Zhu et al. 2025, arXiv:2508.17784.
    """

    epsilon: float = 0.28
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs", "reference_log_probs"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the clipped ratios, `(N,)` fp32."""
        log_ratio = stats.require("log_probs") - stats.require("reference_log_probs")
        return torch.where(log_ratio < math.log1p(self.epsilon), log_ratio.exp(), 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ASFT:
    """Anchored fine-tuning: DFT plus a KL term to a reference: `w = p - kl_coef * (p - r) / (1 - p)`.

    `r` is the label's probability under the reference. The anchor is `KL(reference || model)` of the event "the label,
    or any other token". That is a lower bound of the KL over the whole vocabulary (data-processing inequality) and has
    the same gradient on the label's own logit, `p - r`; over the other tokens it spreads in proportion to the model's
    probabilities, where the full term would pull each one to its own reference value. So it needs one stored number
    per token in place of a second model in memory. `1 - p` is taken as at least 0.01: below that, fp32's rounding of p
    would reach the weight. On surer tokens the anchor pulls less than the formula says.

    Attributes:
        kl_coef: Weight of the anchor, positive. Default 0.1.

    Source: Zhu et al. 2025, arXiv:2509.23753, with its anchor over the whole vocabulary; the two-event form is ours.
    """

    kl_coef: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs", "reference_log_probs"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_positive("kl_coef", self.kl_coef)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the weights, `(N,)` fp32; negative where the model is surer than the reference by enough."""
        log_probs, reference = stats.require("log_probs"), stats.require("reference_log_probs")
        probs, rest = log_probs.exp(), -torch.expm1(log_probs)
        return probs - self.kl_coef * (probs - reference.exp()) / rest.clamp(min=_ASFT_LEAST_REST)
