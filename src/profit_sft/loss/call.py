"""What one call of the loss carries: its options, its per-token results, and its place in the autograd graph."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from profit_sft.objectives import FROM_THE_HEAD, Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadOptions:
    """What does not change from token to token; see `selective_linear_cross_entropy`."""

    objective: Objective
    normalize: Literal["all", "kept"]
    ignore_index: int
    logit_scale: float
    final_logit_softcapping: float | None
    all_statistics: bool
    ranks: bool
    likeliest: int
    gradient_budget: float | None
    chunk_size: int | None


@dataclass(kw_only=True, slots=True)
class TokenValues:
    """Per-token results of one call, each `(N,)`; NaN where not computed, 0 where ignored."""

    label_mask: Tensor
    log_probs: Tensor
    token_weights: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    rank: Tensor | None
    top1: Tensor | None
    likeliest: Tensor | None  # (N, K)
    likeliest_log_probs: Tensor | None  # (N, K)
    dropped_share: Tensor
    largest_log_prob: Tensor
    nothing_kept: bool = False


@dataclass(kw_only=True, slots=True)
class Swept:
    """What one sweep read off a chunk, each `(C,)`."""

    largest: Tensor
    totals: Tensor
    log_probs: Tensor
    label_entries: Tensor
    entropy: Tensor | None
    topk_entropy: Tensor | None
    collision: Tensor | None

    def statistics(self) -> dict[str, Tensor | None]:
        """Return what the objective may look at, by the name it has there."""
        return {name: getattr(self, name) for name in FROM_THE_HEAD}


class Call(Protocol):
    """A finished computation: the loss, and the gradients on request."""

    loss: Tensor

    def gradients(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return d hidden states, d matrix and d bias times `grad_output`; called at most once."""
        ...


class AttachGradients(torch.autograd.Function):
    """Give a loss whose gradients are known already its place in the graph."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, lm_head_weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        """Return the loss that `call` computed."""
        ctx.call = call
        return call.loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Hand over the gradients, once."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "selective_linear_cross_entropy has no second derivative: its token weights are detached and its "
                "gradients are formed in the forward pass. Call backward without create_graph=True."
            )
        if ctx.call is None:
            raise RuntimeError(
                "the gradients of selective_linear_cross_entropy were handed over in an earlier backward and are "
                "not kept. Call the loss again instead of backward with retain_graph=True."
            )
        gradients = ctx.call.gradients(grad_outputs[0])
        ctx.call = None
        return (*gradients, None)
