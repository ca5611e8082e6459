"""What an objective is, what it may look at, and what several of them share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

ENTROPY_TOP_K = 20  # EAFT measures the entropy of the 20 likeliest tokens, renormalized
# Statistics that only the head can give. An objective that needs none of them is known before the head runs.
FROM_THE_HEAD = frozenset({"log_probs", "entropy", "topk_entropy", "collision"})
# Statistics that come with the labels in a batch, in their layout; also the names of columns of a training data set.
FROM_THE_BATCH = ("reference_log_probs", "token_weights")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStats:
    """What an objective may look at. One entry per label token, none for ignored positions, all detached.

    Attributes:
        labels: `(N,)`, int64. Always there, so that shape and device are known.
        log_probs: `(N,)`, fp32. `log p_t` under the model being trained, in nats.
        entropy: `(N,)`, fp32. Entropy of the whole prediction, in nats.
        topk_entropy: `(N,)`, fp32. Entropy of the `ENTROPY_TOP_K` likeliest tokens, renormalized, in nats.
        collision: `(N,)`, fp32. `sum_v p_v^2`, the chance that two draws from the prediction are the same token.
        reference_log_probs: `(N,)`, fp32. `log p_t` under a frozen reference model, in nats.
        token_weights: `(N,)`, fp32. Weights that came with the data.
    """

    labels: Tensor
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    topk_entropy: Tensor | None = None
    collision: Tensor | None = None
    reference_log_probs: Tensor | None = None
    token_weights: Tensor | None = None

    def require(self, name: str) -> Tensor:
        """Return the statistic `name`, or raise ValueError when it was not computed."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            remedy = _REMEDIES.get(name, "Name it in the objective's `needs`.")
            raise ValueError(f"the objective needs '{name}', which was not given. {remedy}")
        return value


_REMEDIES = {
    "reference_log_probs": "Pass reference_log_probs, one per position, from a frozen reference model.",
    "token_weights": "Pass token_weights, one per position, which come with the data.",
}


@runtime_checkable
class Objective(Protocol):
    """What the loss asks of an objective. Any object with these attributes will do; nothing is inherited.

    A trainer also reads `normalize`, where there is one: `"kept"` for an objective whose source divides by the tokens
    of non-zero weight.

    Attributes:
        needs: Names of the `TokenStats` fields that `token_weights` reads. With none that only the head can give the
            weights are known before it runs, and tokens of weight zero never reach it.
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


def log_of(probability: float) -> float:
    """Return the logarithm, -inf of 0. Masks compare logarithms: exp() of an fp32 one would round once more."""
    return math.log(probability) if probability > 0 else -math.inf


def top_share(values: Tensor, keep_share: float) -> Tensor:
    """Return the mask `(N,)` fp32 of the `keep_share` largest values; at least one, and all that tie with the last."""
    if values.numel() == 0:
        return values.float()
    kept = max(1, round(keep_share * values.numel()))
    return (values >= values.topk(kept).values[-1]).float()


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless `value` is in [0, 1]."""
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise ValueError(f"{name} must be a probability in [0, 1], got {value!r}. Write 10% as 0.1.")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless `value` is in (0, 1]."""
    if not (isinstance(value, (int, float)) and 0.0 < value <= 1.0):
        raise ValueError(f"{name} must be a share in (0, 1], got {value!r}. Write 60% as 0.6.")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a positive, finite number."""
    if not (isinstance(value, (int, float)) and 0.0 < value < math.inf):
        raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
