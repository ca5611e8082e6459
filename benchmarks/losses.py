"""The losses that `loss.py` compares: this library's, and what others publish for the same work.

Each is a function of hidden states `(N, D)`, the head `(V, D)`, labels `(N,)` and a threshold, of one of three
objectives: the threshold's mask, plain NLL, DFT. What gives log-probabilities or losses of single tokens gets the mask
from here; what gives one number alone is compared in what it computes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from profit_sft import DFT, NLL, Objective, ProFit, selective_linear_cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Kind = Literal["mask", "nll", "dft"]


def weights(kind: Kind, log_probs: Tensor, threshold: float) -> Tensor:
    """Return the token weights of an objective, `(N,)`, for natural log-probabilities `(N,)`; no gradient."""
    detached = log_probs.detach()
    if kind == "mask":
        return (detached >= math.log(threshold)).to(log_probs.dtype)
    return detached.exp() if kind == "dft" else torch.ones_like(detached)


def ours(objective: Callable[[float], Objective], gradient_budget: float | None = None) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
        return selective_linear_cross_entropy(
            hidden, weight, labels, objective=objective(threshold), gradient_budget=gradient_budget
        ).loss

    return loss


def weighted(kind: Kind, log_probs_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """Return the loss of an objective on the log-probabilities of a function that knows none."""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
        log_probs = log_probs_of(hidden, weight, labels)
        return -(weights(kind, log_probs, threshold) * log_probs).sum() / log_probs.numel()

    return loss


def full_logits(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The official code's formula: softmax of all logits, gather."""
    logits = (hidden @ weight.T).float()
    return logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)


def trl_head(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """TRL's fused head."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    return _ChunkedLogProbFunction.apply(
        hidden, weight, None, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs",)
    )[0]


def cut_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Cut cross-entropy. Without CUDA its form for torch.compile runs."""
    from cut_cross_entropy import linear_cross_entropy

    implementation = "cce" if hidden.is_cuda else "torch_compile"
    return -linear_cross_entropy(hidden, weight, labels, reduction="none", impl=implementation)


def torch_own(*, chunked: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Torch's own loss by tokens; plain it holds all logits, chunked it takes its default options."""

    def log_probs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions() if chunked else None
        return -torch.nn.functional.linear_cross_entropy(hidden, weight, labels, reduction="none", options=options)

    return log_probs


def torch_mean(*, chunked: bool) -> Loss:
    """Torch's own loss as one number: chunked, its gradients are made in the forward pass already."""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions() if chunked else None
        return torch.nn.functional.linear_cross_entropy(hidden, weight, labels, options=options)

    return loss


def liger(*, use_token_scaling: bool) -> Loss:
    """Liger's fused linear cross-entropy; scaled by p of the token it is DFT."""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(use_token_scaling=use_token_scaling)(weight, hidden, labels)

    return loss


def quack(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Quack's chunked linear cross-entropy."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(hidden, weight, labels)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        function: Returns the loss, 0-d.
        kind: The objective it computes.
        bounds: On the relative errors of loss, dH and dW against float64, in fp32 and in bf16.
        package: Where it comes from, as PyPI names it; None: from here.
        needs_cuda: It has no form for CPUs.
    """

    function: Loss
    kind: Kind
    bounds: tuple[float, float]
    package: str | None = None
    needs_cuda: bool = False


def _own(function: Loss, kind: Kind = "mask", *, bound: float = 1e-4) -> Variant:
    # In bf16: one rounding of every gradient, and of the softmax before it.
    return Variant(function=function, kind=kind, bounds=(bound, max(bound, 1e-2)))


def _peer(function: Loss, kind: Kind, package: str, *, needs_cuda: bool = False) -> Variant:
    # Another formula or normalizer is off by more; in bf16 a peer's logits are rounded, and some masks flip.
    return Variant(function=function, kind=kind, bounds=(1e-2, 0.5), package=package, needs_cuda=needs_cuda)


VARIANTS: dict[str, Variant] = {
    "ours exact": _own(ours(lambda threshold: ProFit(threshold=threshold))),
    "ours exact, all in fp32": _own(ours(lambda threshold: ProFit(threshold=threshold), 0.0)),
    # A budget leaves out what it says.
    "ours delta 0.3%": _own(ours(lambda threshold: ProFit(threshold=threshold), 0.003), bound=1e-2),
    "ours delta 1%": _own(ours(lambda threshold: ProFit(threshold=threshold), 0.01), bound=3e-2),
    "trl fused head": _peer(weighted("mask", trl_head), "mask", "trl"),
    "official formula, full logits": _peer(weighted("mask", full_logits), "mask", "torch"),
    "cut-cross-entropy": _peer(weighted("mask", cut_cross_entropy), "mask", "cut-cross-entropy"),
    "torch linear_cross_entropy": _peer(weighted("mask", torch_own(chunked=False)), "mask", "torch"),
    "torch linear_cross_entropy, chunked": _peer(weighted("mask", torch_own(chunked=True)), "mask", "torch"),
    "ours, nll": _own(ours(lambda threshold: NLL()), "nll"),
    "trl fused head, nll": _peer(weighted("nll", trl_head), "nll", "trl"),
    "torch linear_cross_entropy, nll": _peer(torch_mean(chunked=False), "nll", "torch"),
    "torch linear_cross_entropy, chunked, nll": _peer(torch_mean(chunked=True), "nll", "torch"),
    "liger, nll": _peer(liger(use_token_scaling=False), "nll", "liger-kernel", needs_cuda=True),
    "quack, nll": _peer(quack, "nll", "quack-kernels", needs_cuda=True),
    "ours, dft": _own(ours(lambda threshold: DFT()), "dft"),
    "trl fused head, dft": _peer(weighted("dft", trl_head), "dft", "trl"),
    "liger, dft": _peer(liger(use_token_scaling=True), "dft", "liger-kernel", needs_cuda=True),
}
