"""The selective loss in plain torch, on any device.

Logits are computed for a chunk of label tokens at a time, in fp32. From them come the statistics, from those the
weights, and while the logits are still there the gradients

    G = w * (softmax(z) - onehot(y)) * dz/draw      (K, V), rows of kept tokens
    dH = G @ W,   dW = G.T @ H,   db = G.sum(0)

so nothing is projected twice and a masked token costs no backward product. `backward` only scales what is stored.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from profit_sft.objectives import ENTROPY_TOP_K, Objective, TokenStats

# fp32 logits held at once. On two cores (V = 49,152, D = 576, N = 2,048) 64 MiB was within 3% of the best size.
_CHUNK_BYTES = 64 * 2**20
_GPU_CHUNK_TOKENS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadOptions:
    """What does not change from token to token; see `selective_linear_cross_entropy`."""

    objective: Objective
    normalize: Literal["all", "kept"]
    ignore_index: int
    logit_scale: float
    logit_softcap: float | None
    all_statistics: bool
    chunk_size: int | None


@dataclass(kw_only=True, slots=True)
class TokenValues:
    """Per-token results of one call, each `(N,)`; NaN where not computed, 0 where ignored."""

    label_mask: Tensor
    log_probs: Tensor
    weights: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    nothing_kept: bool = False


def chunked_selective_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    num_items: int | Tensor | None,
    per_token: dict[str, Tensor | None],
    options: HeadOptions,
) -> tuple[Tensor, TokenValues]:
    """Compute the loss and the per-token values.

    Args:
        hidden: `(N, D)`, floating point.
        weight: `(V, D)`.
        labels: `(N,)`, int64, checked.
        bias: `(V,)` or None.
        num_items: Normalizer, or None to count here.
        per_token: `reference_log_probs` and `weights`, each `(N,)` or None.
        options: The rest.

    Returns:
        The 0-d loss, differentiable in hidden, weight and bias, and the values.
    """
    wanted = _Gradients(
        hidden=hidden.requires_grad and torch.is_grad_enabled(),
        weight=weight.requires_grad and torch.is_grad_enabled(),
        bias=bias is not None and bias.requires_grad and torch.is_grad_enabled(),
    )
    run = _Run(hidden.detach(), weight.detach(), labels, None if bias is None else bias.detach(), options, wanted)
    with torch.no_grad():
        run.all_tokens(num_items, per_token)
    loss: Tensor = _AttachGradients.apply(hidden, weight, bias, run)  # type: ignore[no-untyped-call]
    return loss, run.values


@dataclass(slots=True)
class _Gradients:
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool


class _AttachGradients(torch.autograd.Function):
    """Give a loss whose gradients are known already its place in the graph."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, run: "_Run") -> Tensor:
        ctx.run = run
        return run.loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "selective_linear_cross_entropy has no second derivative: its token weights are detached and its "
                "gradients are formed in the forward pass. Call backward without create_graph=True."
            )
        if ctx.run is None:
            raise RuntimeError(
                "the gradients of selective_linear_cross_entropy were handed over in an earlier backward and are "
                "not kept. Call the loss again instead of backward with retain_graph=True."
            )
        gradients = ctx.run.gradients(grad_outputs[0])
        ctx.run = None
        return (*gradients, None)


class _Run:
    """One call: holds the inputs, accumulates loss and gradients chunk by chunk."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        options: HeadOptions,
        wanted: _Gradients,
    ) -> None:
        self.options = options
        self.wanted = wanted
        self.hidden, self.bias = hidden, bias
        # float64 inputs are computed in float64 (gradcheck); everything else in fp32.
        self.dtype = torch.float64 if torch.float64 in (hidden.dtype, weight.dtype) else torch.float32
        self.native = hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype != self.dtype
        self.weight_dtype = weight.dtype
        self.weight = weight if self.native else weight.to(self.dtype)  # (V, D)
        label_mask = labels != options.ignore_index
        self.rows = label_mask.nonzero().squeeze(1)  # (M,) positions with a label; syncs with the host
        self.targets = labels[self.rows]  # (M,)
        self.values = TokenValues(
            label_mask=label_mask,
            log_probs=self._blank(label_mask),
            weights=torch.zeros(labels.shape, dtype=torch.float32, device=labels.device),
            entropy=self._blank(label_mask) if options.all_statistics or "entropy" in options.objective.needs else None,
            is_top1=torch.zeros_like(label_mask) if options.all_statistics else None,
        )
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=hidden.device)
        self.loss = torch.zeros((), dtype=self.dtype, device=hidden.device)
        self.scale: Tensor | None = None  # still to be multiplied into the gradients
        self.d_hidden = torch.zeros_like(hidden) if wanted.hidden else None  # (N, D)
        self.d_weight = torch.zeros(weight.shape, dtype=self.dtype, device=weight.device) if wanted.weight else None
        self.d_bias = torch.zeros(weight.shape[0], dtype=self.dtype, device=weight.device) if wanted.bias else None

    @staticmethod
    def _blank(label_mask: Tensor) -> Tensor:
        return torch.where(label_mask, math.nan, 0.0).to(torch.float32)  # (N,)

    def all_tokens(self, num_items: int | Tensor | None, per_token: dict[str, Tensor | None]) -> None:
        """Run the chunks, then normalize."""
        if num_items is None and self.options.normalize == "all":
            num_items = max(self.rows.numel(), 1)
        # A normalizer known beforehand is folded into the small (K, D) factors instead of the (V, D) result.
        self.inverse = None if num_items is None else 1.0 / torch.as_tensor(num_items, device=self.hidden.device)
        reference, known = per_token["reference_log_probs"], per_token["weights"]
        token_reference = None if reference is None else reference[self.rows].to(self.dtype)
        objective = self.options.objective
        if known is not None:
            token_weights: Tensor | None = known[self.rows].to(self.dtype)
        elif not objective.needs & {"log_probs", "entropy", "topk_entropy"}:
            stats = TokenStats(labels=self.targets, reference_log_probs=token_reference)
            token_weights = objective.token_weights(stats)
        elif not objective.elementwise:
            self._chunks(None, token_reference, gradients=False)
            token_weights = objective.token_weights(self._stats_of_all(token_reference))
        else:
            token_weights = None
        self._chunks(token_weights, token_reference, gradients=True)
        kept = self.values.weights != 0
        self.values.nothing_kept = self.rows.numel() > 0 and not bool(kept.any())
        if self.inverse is None:
            self.inverse = self.scale = 1.0 / kept.sum().clamp(min=1)
        self.loss = (self.loss_sum * self.inverse).to(self.dtype)

    def _stats_of_all(self, token_reference: Tensor | None) -> TokenStats:
        values = self.values
        return TokenStats(
            labels=self.targets,
            log_probs=values.log_probs[self.rows],
            entropy=None if values.entropy is None else values.entropy[self.rows],
            reference_log_probs=token_reference,
        )

    def _chunks(self, token_weights: Tensor | None, token_reference: Tensor | None, *, gradients: bool) -> None:
        rows, targets = self.rows, self.targets
        if token_weights is not None:
            self.values.weights[rows] = token_weights.float()
            if not self.options.all_statistics:
                kept = token_weights.nonzero().squeeze(1)  # syncs with the host
                rows, targets, token_weights = rows[kept], targets[kept], token_weights[kept]
        for start in range(0, rows.numel(), self._chunk_size()):
            part = slice(start, start + self._chunk_size())
            self._chunk(
                rows[part],
                targets[part],
                None if token_weights is None else token_weights[part],
                None if token_reference is None or token_weights is not None else token_reference[part],
                gradients=gradients,
            )

    def _chunk_size(self) -> int:
        if self.options.chunk_size is not None:
            return self.options.chunk_size
        if self.hidden.is_cuda:
            return _GPU_CHUNK_TOKENS
        return max(64, _CHUNK_BYTES // (4 * self.weight.shape[0]))

    def _chunk(
        self,
        rows: Tensor,
        targets: Tensor,
        token_weights: Tensor | None,
        token_reference: Tensor | None,
        *,
        gradients: bool,
    ) -> None:
        hidden = self.hidden[rows]  # (C, D)
        logits = self._logits(hidden)  # (C, V) fp32
        slope = self._softcap(logits)  # (C, V) or None: d logits / d raw logits
        stats, total = self._statistics(rows, logits, targets, token_reference)
        # From here on `logits` holds exp(logits - max), `total` its row sums.
        if not gradients:
            return
        if token_weights is None:
            token_weights = self.options.objective.token_weights(stats).to(self.dtype)
        self.values.weights[rows] = token_weights.float()
        assert stats.log_probs is not None
        # A masked token may have log p = -inf; zero times that must stay zero.
        terms = torch.where(token_weights != 0, token_weights * stats.log_probs, 0.0)
        self.loss_sum -= terms.sum(dtype=torch.float64)
        if self.wanted.hidden or self.wanted.weight or self.wanted.bias:
            self._gradients(rows, hidden, targets, logits, slope, token_weights, total)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._product(hidden, self.weight.T)
        if self.bias is not None:
            logits += self.bias
        if self.options.logit_scale != 1.0:
            logits *= self.options.logit_scale
        return logits

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """Matrix product with fp32 accumulation and output, from bf16 or fp16 operands where the device has that."""
        if self.native:
            return torch.mm(left, right, out_dtype=torch.float32)
        return left.to(self.dtype) @ right

    def _softcap(self, logits: Tensor) -> Tensor | None:
        """Cap `logits` in place; return the derivative of the cap, a second `(C, V)` buffer."""
        cap = self.options.logit_softcap
        if cap is None:
            return None
        logits.div_(cap).tanh_()
        slope = 1.0 - logits.square()
        logits.mul_(cap)
        return slope

    def _statistics(
        self, rows: Tensor, logits: Tensor, targets: Tensor, token_reference: Tensor | None
    ) -> tuple[TokenStats, Tensor]:
        """Read the statistics off `logits`, which become `exp(logits - max)` in place; also return their row sums."""
        needs, values = self.options.objective.needs, self.values
        largest = logits.amax(dim=-1, keepdim=True)  # (C, 1)
        target_logits = logits.gather(-1, targets[:, None])  # (C, 1)
        topk_entropy = _topk_entropy(logits) if "topk_entropy" in needs else None
        logits.sub_(largest)
        if values.entropy is not None:
            weighted = torch.empty_like(largest)
            for start in range(0, logits.shape[0], 16):  # a few rows at a time stay in cache
                block = logits[start : start + 16]
                probs = block.exp()
                weighted[start : start + 16] = torch.linalg.vecdot(probs, block)[:, None]
                block.copy_(probs)
        else:
            logits.exp_()
        total = logits.sum(dim=-1, keepdim=True)  # (C, 1)
        log_total = total.log()
        log_probs = (target_logits - largest - log_total).squeeze(1)
        values.log_probs[rows] = log_probs.float()
        entropy = None
        if values.entropy is not None:
            entropy = (log_total - weighted / total).squeeze(1)
            values.entropy[rows] = entropy.float()
        if values.is_top1 is not None:
            values.is_top1[rows] = (target_logits >= largest).squeeze(1)
        stats = TokenStats(
            labels=targets,
            log_probs=log_probs,
            entropy=entropy,
            topk_entropy=topk_entropy,
            reference_log_probs=token_reference,
        )
        return stats, total

    def _gradients(
        self,
        rows: Tensor,
        hidden: Tensor,
        targets: Tensor,
        exps: Tensor,
        slope: Tensor | None,
        token_weights: Tensor,
        total: Tensor,
    ) -> None:
        kept = token_weights.nonzero().squeeze(1)  # (K,) syncs with the host
        if kept.numel() == 0:
            return
        if kept.numel() < rows.numel():
            rows, hidden, targets, exps = rows[kept], hidden[kept], targets[kept], exps[kept]
            token_weights, total = token_weights[kept], total[kept]
            slope = None if slope is None else slope[kept]
        scaled = (token_weights * self.options.logit_scale)[:, None]  # (K, 1)
        gradient = exps.mul_(scaled / total)  # (K, V): w * softmax
        gradient.scatter_add_(-1, targets[:, None], -scaled)
        if slope is not None:
            gradient.mul_(slope)
        inverse = 1.0 if self.inverse is None else self.inverse
        if self.d_bias is not None:
            self.d_bias += gradient.sum(dim=0) * inverse
        operand = gradient.to(self.weight.dtype)
        if self.d_hidden is not None:
            product = self._product(operand, self.weight)  # (K, D) fp32
            self.d_hidden[rows] = (product * inverse).to(self.d_hidden.dtype)
        if self.d_weight is not None:
            if self.native:
                self.d_weight += self._product(operand.T, hidden) * inverse
            else:
                self.d_weight.addmm_(operand.T, hidden.to(self.dtype) * inverse)

    def gradients(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return d hidden, d weight, d bias, times `grad_output`, in the dtypes of the inputs."""
        scale = grad_output if self.scale is None else grad_output * self.scale
        # Reading one scalar is free on the CPU; on a GPU it would sync, and the multiplication is the cheaper one.
        unscaled = not scale.is_cuda and scale.item() == 1.0
        found = []
        for gradient, dtype in (
            (self.d_hidden, self.hidden.dtype),
            (self.d_weight, self.weight_dtype),
            (self.d_bias, None if self.bias is None else self.bias.dtype),
        ):
            if gradient is not None and not unscaled:
                gradient = gradient.mul_(scale)
            found.append(gradient if gradient is None else gradient.to(dtype))
        return found[0], found[1], found[2]


def _topk_entropy(logits: Tensor) -> Tensor:
    """Entropy of the likeliest tokens, renormalized, `(C,)`, from logits `(C, V)`."""
    likeliest = logits.topk(min(ENTROPY_TOP_K, logits.shape[-1]), dim=-1).values.log_softmax(dim=-1)
    return -(likeliest.exp() * likeliest).sum(dim=-1)
