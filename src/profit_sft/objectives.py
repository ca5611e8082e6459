"""Token-level objectives: each is a stop-gradient weight on the log-likelihood of the reference token.

Every objective here trains on `loss = -sum_t w_t * log p_t / normalizer` and differs only in `w_t`, a pure function of
what is known about token `t`: its log-probability, the entropy of the prediction, and its log-probability under a
reference model. This module imports torch alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

ENTROPY_TOP_K = 20  # EAFT measures the entropy of the 20 likeliest tokens, renormalized
ENTRY_POINT_GROUP = "profit_sft.objectives"
_ASFT_LEAST_REST = 0.01

Direction = Literal["higher", "lower", "middle", "random"]
MaskSource = Literal["online", "reference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStats:
    """What an objective may look at. One entry per label token, none for ignored positions, all detached.

    Attributes:
        labels: `(N,)`, int64. Always there, so that shape and device are known.
        log_probs: `(N,)`, fp32. `log p_t` under the model being trained, in nats.
        entropy: `(N,)`, fp32. Entropy of the whole prediction, in nats.
        topk_entropy: `(N,)`, fp32. Entropy of the `ENTROPY_TOP_K` likeliest tokens, renormalized, in nats.
        reference_log_probs: `(N,)`, fp32. `log p_t` under a frozen reference model, in nats.
    """

    labels: Tensor
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    topk_entropy: Tensor | None = None
    reference_log_probs: Tensor | None = None

    def require(self, name: str) -> Tensor:
        """Return the statistic `name`, or raise ValueError when it was not computed."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"the objective needs '{name}', which was not given. {_REMEDIES[name]}")
        return value


_REMEDIES = {
    "log_probs": "Name it in the objective's `needs`.",
    "entropy": "Name it in the objective's `needs`.",
    "topk_entropy": "Name it in the objective's `needs`.",
    "reference_log_probs": "Pass reference_log_probs, one per position, from a frozen reference model.",
}


@runtime_checkable
class Objective(Protocol):
    """What the loss asks of an objective. Any object with these attributes will do; nothing is inherited.

    Attributes:
        needs: Names of the `TokenStats` fields that `token_weights` reads. Without `"log_probs"` the weights are known
            before the head runs, and tokens of weight zero never reach it.
        elementwise: True if the weight of a token depends on that token alone, so that the loss may ask chunk by
            chunk. An objective that ranks the tokens of a batch says False and costs a second projection.
        probability_floor: Below this `p_t` (a probability in [0, 1]) the weight is exactly zero. 0.0: no such floor.
    """

    @property
    def needs(self) -> frozenset[str]: ...  # noqa: D102

    @property
    def elementwise(self) -> bool: ...  # noqa: D102

    @property
    def probability_floor(self) -> float: ...  # noqa: D102

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the detached weights `w_t`, `(N,)` fp32."""
        ...


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _check_probability(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise ValueError(f"{name} must be a probability in [0, 1], got {value!r}. Write 10% as 0.1.")


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0.0 < value < math.inf):
        raise ValueError(f"{name} must be a positive number, got {value!r}.")


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


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ProFit:
    """Keep the reference tokens the model already finds likely: `w = 1[p >= threshold]`.

    Attributes:
        threshold: The paper's tau, a probability. Default 0.1, the paper's.
        direction: `"higher"` keeps `p >= threshold` (the paper). Its ablations: `"lower"` keeps `p < threshold`,
            `"middle"` keeps `threshold <= p < upper_threshold`, `"random"` keeps each token with probability `rate`.
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
        _check_probability("threshold", self.threshold)
        _check_choice("direction", self.direction, ("higher", "lower", "middle", "random"))
        _check_choice("mask_source", self.mask_source, ("online", "reference"))
        for name, needed_by in (("upper_threshold", "middle"), ("rate", "random")):
            value = getattr(self, name)
            if (self.direction == needed_by) != (value is not None):
                verb = "needs" if self.direction == needed_by else "does not use"
                raise ValueError(f"direction '{self.direction}' {verb} {name}, got {name}={value!r}.")
            if value is not None:
                _check_probability(name, value)
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
        # In log space: exp() of an fp32 log-probability would round once more.
        likely = log_probs >= _log(self.threshold)
        if self.direction == "lower":
            return (~likely).float()
        if self.upper_threshold is not None:
            likely = likely & (log_probs < _log(self.upper_threshold))
        return likely.float()


@dataclass(frozen=True, kw_only=True, slots=True)
class DFT:
    """Dynamic fine-tuning: `w = p`, the gradient of `-p`.

    Source: Wu et al. 2025, arXiv:2508.05629.

    Example:
        >>> DFT().token_weights(TokenStats(labels=torch.zeros(1), log_probs=torch.tensor([0.25]).log()))
        tensor([0.2500])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the probabilities, `(N,)` fp32."""
        return stats.require("log_probs").exp()


@dataclass(frozen=True, kw_only=True, slots=True)
class EAFT:
    """Entropy-adaptive fine-tuning: `w = (H_20 / ln 20)^alpha`, less where the model is sure.

    `H_20` is the entropy of the 20 likeliest tokens, renormalized to a distribution of their own. In a vocabulary of
    fewer than 20 tokens it is the entropy of all of them.

    Attributes:
        alpha: Exponent, positive. Default 1, the paper's.

    Source: Diao et al. 2026, arXiv:2601.02151.
    """

    alpha: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"topk_entropy"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the normalized entropies to the power `alpha`, `(N,)` fp32."""
        normalized = stats.require("topk_entropy") / math.log(ENTROPY_TOP_K)
        return normalized.clamp(0.0, 1.0) ** self.alpha


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """The `(1 - p^k) / k` family: `w = p^k`. `k -> 0` is plain NLL, `k = 1` is DFT; larger k trusts the prior more.

    Attributes:
        k: Exponent, positive. Default 1.

    Source: Li et al. 2025, arXiv:2510.00526 (with `alpha` for k).
    """

    k: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"log_probs"})
    elementwise: ClassVar[bool] = True
    probability_floor: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        _check_positive("k", self.k)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return `p^k`, `(N,)` fp32."""
        return (stats.require("log_probs") * self.k).exp()


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
        _check_positive("kl_coef", self.kl_coef)

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the weights, `(N,)` fp32; negative where the model is surer than the reference by enough."""
        log_probs, reference = stats.require("log_probs"), stats.require("reference_log_probs")
        probs, rest = log_probs.exp(), -torch.expm1(log_probs)
        return probs - self.kl_coef * (probs - reference.exp()) / rest.clamp(min=_ASFT_LEAST_REST)


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
        if not 0.0 < self.keep_share <= 1.0:
            raise ValueError(f"keep_share must be a share in (0, 1], got {self.keep_share!r}. Write 60% as 0.6.")

    def token_weights(self, stats: TokenStats) -> Tensor:
        """Return the mask, `(N,)` fp32 of zeros and ones; 1 where the token counts."""
        excess = stats.require("reference_log_probs") - stats.require("log_probs")
        if excess.numel() == 0:
            return excess
        kept = max(1, round(self.keep_share * excess.numel()))
        return (excess >= excess.topk(kept).values[-1]).float()


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


OBJECTIVES: Mapping[str, type[Objective]] = {
    "nll": NLL,
    "profit": ProFit,
    "dft": DFT,
    "eaft": EAFT,
    "power": Power,
    "focal": Focal,
    "asft": ASFT,
    "rho": Rho,
}

# Spellings of other tools: LLaMA-Factory and the official ProFit code (the switches and prob_threshold), TRL, RHO-1.
_NAME_ALIASES = {
    "sft": "nll",
    "ce": "nll",
    "chunked_nll": "nll",
    "use_dft_loss": "dft",
    "use_eaft_loss": "eaft",
    "use_asft_loss": "asft",
    "use_profit_loss": "profit",
    "rho-1": "rho",
    "slm": "rho",
}
_KEYWORD_ALIASES = {
    "prob_threshold": "threshold",
    "threshold_direction": "direction",
    "eaft_alpha": "alpha",
    "asft_alpha": "kl_coef",
    "focal_gamma": "gamma",
}


def make_objective(name: str, **kwargs: Any) -> Objective:
    """Build an objective from its name and keyword arguments, in our spelling or another tool's.

    Args:
        name: A key of `OBJECTIVES`, an alias such as `use_dft_loss`, or the name of an entry point in the group
            `profit_sft.objectives`, which must load to a callable that returns an `Objective`.
        **kwargs: The objective's fields. `prob_threshold` and `threshold_direction` are understood for `profit`;
            a pair of thresholds gives the two bounds of `direction="middle"`.

    Returns:
        The objective.

    Raises:
        ValueError: No objective has this name, or a value is out of range.
        TypeError: The objective has no such field; the message lists those it has.

    Example:
        >>> make_objective("profit", prob_threshold=0.3, threshold_direction="lower").threshold
        0.3
    """
    key = _NAME_ALIASES.get(name.lower(), name.lower())
    factory: Any = OBJECTIVES.get(key)
    if factory is None:
        plugins = {plugin.name: plugin for plugin in entry_points(group=ENTRY_POINT_GROUP)}
        if name not in plugins:
            known = ", ".join([*OBJECTIVES, *sorted(plugins)])
            raise ValueError(f"no objective is named {name!r}. Known: {known}.")
        factory = plugins[name].load()
    arguments = _canonical_keywords(key, factory, kwargs)
    objective = factory(**arguments)
    if not isinstance(objective, Objective):
        raise TypeError(f"{name!r} gave a {type(objective).__name__}, which lacks needs, elementwise or token_weights.")
    return objective


def _canonical_keywords(name: str, factory: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate aliases and refuse what the objective does not have."""
    if not dataclasses.is_dataclass(factory):
        return dict(kwargs)
    fields = [entry.name for entry in dataclasses.fields(factory)]
    arguments: dict[str, Any] = {}
    for keyword, value in kwargs.items():
        target = keyword if keyword in fields else _KEYWORD_ALIASES.get(keyword, keyword)
        if target not in fields:
            raise TypeError(f"objective {name!r} has no field {keyword!r}. It has: {', '.join(fields) or 'none'}.")
        if target in arguments:
            raise TypeError(f"objective {name!r} was given {target!r} twice, once as {keyword!r}.")
        arguments[target] = value
    threshold = arguments.get("threshold")
    if isinstance(threshold, (list, tuple)):
        if len(threshold) != 2:
            raise ValueError(f"threshold takes one probability, or two for direction 'middle', got {threshold!r}.")
        arguments["threshold"], arguments["upper_threshold"] = threshold
        arguments.setdefault("direction", "middle")
    return arguments
