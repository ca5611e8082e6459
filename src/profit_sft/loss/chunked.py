"""The selective loss in plain torch, on any device.

Tokens pass three stages, and most of the work of a masked token is saved by the first:

1. Prescreen. `log p = z_y - logsumexp(z) <= z_y - logsumexp(z over a prefix of the vocabulary)`. A token whose bound
   lies under the objective's probability floor is masked, and is not projected any further. Byte-pair vocabularies
   are sorted by frequency, so a short prefix (a slice, no gather) settles nearly every token that will be masked.
2. Sweep. The survivors' logits, a chunk at a time, in fp32. A few rows at a time, while they are in cache, logits
   become statistics, statistics become weights, and rows of non-zero weight become gradients, moved to the front:

       G = w * softmax(z) * dz/draw, and -w * dz/draw more at the label      (K, V)

3. Products. `dH = G @ W`, `dW = G.T @ H`, `db = G.sum(0)`, formed while G is there, so nothing is projected twice.
   With a gradient budget both run on the columns that carry all but that share of `sum |G|`.

`backward` only scales what is stored. Bytes moved by the sweep: `(C, V)` fp32 read once and written once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from profit_sft.objectives import ENTROPY_TOP_K, Objective, TokenStats

# fp32 logits held at once. Larger chunks feed the products better, smaller ones touch less fresh memory; between 64
# and 256 MiB the difference was under 5% (two cores, V = 49,152, D = 576, N = 2,048).
_CHUNK_BYTES = 128 * 2**20
_GPU_CHUNK_TOKENS = 4096
# Rows of the sweep that are worked on at once, so that they stay in a core's cache.
_BLOCK_BYTES = 2 * 2**20

# Prefixes of the vocabulary tried on the first tokens of a call, as shares; the cheapest is used for the others.
_PREFIX_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
_PILOT_TOKENS = 256
_MIN_SCREENED_VOCABULARY = 2048
# The bound must fail by more than rounding before a token is dropped: nats, and relative to the largest logit.
_SCREEN_MARGIN = 1e-3
_SCREEN_RELATIVE_MARGIN = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadOptions:
    """What does not change from token to token; see `selective_linear_cross_entropy`."""

    objective: Objective
    normalize: Literal["all", "kept"]
    ignore_index: int
    logit_scale: float
    logit_softcap: float | None
    all_statistics: bool
    gradient_budget: float
    chunk_size: int | None


@dataclass(kw_only=True, slots=True)
class TokenValues:
    """Per-token results of one call, each `(N,)`; NaN where not computed, 0 where ignored."""

    label_mask: Tensor
    log_probs: Tensor
    weights: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    dropped_share: Tensor
    largest_log_prob: Tensor
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
    run = ChunkedRun(hidden, weight, labels, bias, options)
    with torch.no_grad():
        run.all_tokens(num_items, per_token)
    loss: Tensor = AttachGradients.apply(hidden, weight, bias, run)  # type: ignore[no-untyped-call]
    return loss, run.values


class AttachGradients(torch.autograd.Function):
    """Give a loss whose gradients are known already its place in the graph."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, run: "ChunkedRun") -> Tensor:
        """Return the loss that `run` computed."""
        ctx.run = run
        return run.loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Hand over the gradients, once."""
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


class ChunkedRun:
    """One call of the loss: holds its inputs, and accumulates loss and gradients chunk by chunk."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, options: HeadOptions
    ) -> None:
        self.options = options
        recording = torch.is_grad_enabled()
        self.hidden_dtype, self.weight_dtype = hidden.dtype, weight.dtype
        # float64 inputs are computed in float64 (gradcheck); everything else in fp32.
        self.dtype = torch.float64 if torch.float64 in (hidden.dtype, weight.dtype) else torch.float32
        self.native = hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype != self.dtype
        label_mask = labels != options.ignore_index
        self.rows = label_mask.nonzero().squeeze(1)  # (M,) positions with a label; syncs with the host
        self.targets = labels[self.rows]  # (M,)
        operand_dtype = weight.dtype if self.native else self.dtype
        self.hidden = hidden.detach()[self.rows].to(operand_dtype)  # (M, D)
        self.weight = weight.detach().to(operand_dtype)  # (V, D)
        self.bias = None if bias is None else bias.detach().to(self.dtype)  # (V,)
        self.bias_dtype = None if bias is None else bias.dtype
        self.values = TokenValues(
            label_mask=label_mask,
            log_probs=_blank(label_mask),
            weights=torch.zeros(labels.shape, dtype=torch.float32, device=labels.device),
            entropy=_blank(label_mask) if options.all_statistics or "entropy" in options.objective.needs else None,
            is_top1=torch.zeros_like(label_mask) if options.all_statistics else None,
            dropped_share=torch.zeros((), dtype=torch.float64, device=hidden.device),
            largest_log_prob=torch.full((), -math.inf, dtype=self.dtype, device=hidden.device),
        )
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=hidden.device)
        self.loss = torch.zeros((), dtype=self.dtype, device=hidden.device)
        self.total_mass = torch.zeros((), dtype=torch.float64, device=hidden.device)
        self.inverse: Tensor | None = None  # 1 / normalizer, if it is known before the gradients are formed
        self.scale: Tensor | None = None  # still to be multiplied into the gradients
        wants_hidden, wants_weight = recording and hidden.requires_grad, recording and weight.requires_grad
        wants_bias = recording and bias is not None and bias.requires_grad
        self.wants_gradients = wants_hidden or wants_weight or wants_bias
        device = hidden.device
        self.d_hidden = torch.zeros(hidden.shape, dtype=self.dtype, device=device) if wants_hidden else None  # (N, D)
        self.wants_weight = wants_weight
        self.d_weight: Tensor | None = None  # (V, D), made by the first chunk that has something to put there
        self.d_bias = torch.zeros(weight.shape[0], dtype=self.dtype, device=device) if wants_bias else None  # (V,)

    # -- the order of things ------------------------------------------------------------------------------------

    def all_tokens(self, num_items: int | Tensor | None, per_token: dict[str, Tensor | None]) -> None:
        """Run every label token through the stages, then normalize."""
        if num_items is None and self.options.normalize == "all":
            num_items = max(self.rows.numel(), 1)
        # A normalizer known beforehand is folded into the small (K, D) factors instead of the (V, D) result.
        if num_items is not None:
            self.inverse = 1.0 / torch.as_tensor(num_items, dtype=self.dtype, device=self.hidden.device)
        reference, known = per_token["reference_log_probs"], per_token["weights"]
        token_reference = None if reference is None else reference[self.rows].to(self.dtype)
        objective = self.options.objective
        if known is not None:
            self._known(known[self.rows].to(self.dtype))
        elif not objective.needs & {"log_probs", "entropy", "topk_entropy"}:
            stats = TokenStats(labels=self.targets, reference_log_probs=token_reference)
            self._known(objective.token_weights(stats).to(self.dtype))
        elif not objective.elementwise:
            self._known(self._weights_of_whole_batch(token_reference))
        elif objective.probability_floor > 0.0 and not self.options.all_statistics and self._worth_screening():
            self._screened(token_reference)
        else:
            for tokens in self._chunks(torch.arange(self.rows.numel(), device=self.hidden.device)):
                self._chunk(tokens, self._logits(tokens), None, token_reference)
        self._finish()

    def _known(self, token_weights: Tensor) -> None:
        """Weights `(M,)` are known: project only the tokens that count, or all if their statistics are wanted."""
        self.values.weights[self.rows] = token_weights.float()
        tokens = torch.arange(self.rows.numel(), device=self.hidden.device)
        if not self.options.all_statistics:
            tokens = token_weights.nonzero().squeeze(1)  # syncs with the host
        for part in self._chunks(tokens):
            self._chunk(part, self._logits(part), token_weights[part], None)

    def _weights_of_whole_batch(self, token_reference: Tensor | None) -> Tensor:
        """Statistics of every token first, then the weights of all, `(M,)`."""
        found: list[TokenStats] = []
        for tokens in self._chunks(torch.arange(self.rows.numel(), device=self.hidden.device)):
            logits = self._logits(tokens)
            for part in self._blocks(tokens.numel()):
                block, _, stats = self._statistics(tokens[part], logits[part], None)
                found.append(stats)
                del block

        def joined(name: str) -> Tensor | None:
            parts = [getattr(stats, name) for stats in found]
            return None if not parts or parts[0] is None else torch.cat(parts)

        stats = TokenStats(
            labels=self.targets,
            log_probs=joined("log_probs") if found else self.hidden.new_zeros(0),
            entropy=joined("entropy"),
            topk_entropy=joined("topk_entropy"),
            reference_log_probs=token_reference,
        )
        return self.options.objective.token_weights(stats).to(self.dtype)

    def _finish(self) -> None:
        kept = self.values.weights != 0
        self.values.nothing_kept = self.rows.numel() > 0 and not bool(kept.any())
        if self.inverse is None:
            self.inverse = self.scale = 1.0 / kept.sum().clamp(min=1)
        self.loss = (self.loss_sum * self.inverse).to(self.dtype)
        self.values.dropped_share = (self.values.dropped_share / self.total_mass.clamp(min=1e-30)).float()

    def _chunk_size(self) -> int:
        if self.options.chunk_size is not None:
            return self.options.chunk_size
        if self.hidden.is_cuda:
            return _GPU_CHUNK_TOKENS
        return max(64, _CHUNK_BYTES // (4 * self.weight.shape[0]))

    def _chunks(self, tokens: Tensor) -> Iterator[Tensor]:
        """Split `tokens` into chunks of nearly equal size, none above the chunk size."""
        count = -(-tokens.numel() // self._chunk_size())
        yield from tokens.tensor_split(count) if count else ()

    def _blocks(self, count: int) -> Iterator[slice]:
        """Slices of the rows that are worked on at once."""
        step = count if self.hidden.is_cuda else max(1, _BLOCK_BYTES // (4 * self.weight.shape[0]))
        for start in range(0, count, max(step, 1)):
            yield slice(start, start + step)

    # -- stage 1: prescreen -------------------------------------------------------------------------------------

    def _worth_screening(self) -> bool:
        return self.weight.shape[0] >= _MIN_SCREENED_VOCABULARY and self.rows.numel() > 0

    def _screened(self, token_reference: Tensor | None) -> None:
        """Screen group by group, and hand the survivors on with the logits they already have."""
        target_logits = self._target_logits()  # (M,)
        width = self._prefix_width(target_logits[:_PILOT_TOKENS])
        tokens = torch.arange(self.rows.numel(), device=self.hidden.device)
        if width == 0:
            for part in self._chunks(tokens):
                self._chunk(part, self._logits(part), None, token_reference)
            return
        groups = -(-tokens.numel() // (2 * self._chunk_size()))
        for group in tokens.tensor_split(groups):
            prefix = self._transformed(self._product(self.hidden[group], self.weight[:width].T), slice(width))
            survives = self._may_be_kept(group, prefix, target_logits)
            survivors = survives.nonzero().squeeze(1)  # syncs with the host
            for part in self._chunks(survivors):
                logits = self._logits(group[part], raw_prefix=prefix[part])
                self._chunk(group[part], logits, None, token_reference)

    def _target_logits(self) -> Tensor:
        raw = (self.hidden.to(self.dtype) * self.weight[self.targets].to(self.dtype)).sum(-1)  # (M,)
        return self._transformed(raw[:, None], self.targets, one_each=True).squeeze(1)

    def _prefix_width(self, target_logits: Tensor) -> int:
        """Try prefixes on the first tokens; return the columns of the cheapest, 0 if screening would not pay.

        Cost in projections of all columns for all tokens: the prefix for everyone, the rest for the survivors.
        """
        vocab_size = self.weight.shape[0]
        pilot = torch.arange(target_logits.numel(), device=self.hidden.device)
        widest = int(_PREFIX_SHARES[-1] * vocab_size)
        prefix = self._transformed(self._product(self.hidden[pilot], self.weight[:widest].T), slice(widest))
        best_cost, best_width = 0.95, 0  # a saving below 5% is not worth the extra pass
        for share in _PREFIX_SHARES:
            width = int(share * vocab_size)
            survivors = self._may_be_kept(pilot, prefix[:, :width], target_logits).float().mean().item()
            cost = share + (1.0 - share) * survivors
            if cost < best_cost:
                best_cost, best_width = cost, width
        return best_width

    def _may_be_kept(self, tokens: Tensor, prefix: Tensor, target_logits: Tensor) -> Tensor:
        """Return the mask `(G,)`, False where the prefix alone proves p below the floor."""
        largest = prefix.amax(dim=-1)  # (G,)
        prefix_lse = torch.cat([torch.logsumexp(prefix[part], dim=-1) for part in self._blocks(prefix.shape[0])])
        own = target_logits[tokens]
        # The label's own term belongs to the sum whether or not the prefix holds it.
        outside = self.targets[tokens] >= prefix.shape[1]
        bound = own - torch.where(outside, torch.logaddexp(prefix_lse, own), prefix_lse)
        margin = _SCREEN_MARGIN + _SCREEN_RELATIVE_MARGIN * torch.maximum(largest.abs(), own.abs())
        survives = bound + margin >= math.log(self.options.objective.probability_floor)
        # For the warning that nothing was kept: an upper bound of what was dropped here.
        dropped = torch.where(survives, -math.inf, bound + margin)
        self.values.largest_log_prob = torch.maximum(self.values.largest_log_prob, dropped.amax())
        return survives

    # -- stage 2: sweep -----------------------------------------------------------------------------------------

    def _product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """Matrix product with fp32 accumulation and output, from bf16 or fp16 operands where the device has that."""
        if self.native:
            product = torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
            return product if out is None else out.copy_(product)
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)

    def _transformed(self, raw: Tensor, columns: slice | Tensor, *, one_each: bool = False) -> Tensor:
        """Add the bias, scale and cap, in place. `columns` are the vocabulary entries of `raw`'s columns, or rows."""
        if self.bias is not None:
            raw += self.bias[columns][:, None] if one_each else self.bias[columns]
        if self.options.logit_scale != 1.0:
            raw *= self.options.logit_scale
        cap = self.options.logit_softcap
        return raw if cap is None else raw.div_(cap).tanh_().mul_(cap)

    def _logits(self, tokens: Tensor, raw_prefix: Tensor | None = None) -> Tensor:
        """Return the logits `(C, V)` fp32 of some tokens; `raw_prefix` holds their first columns, finished."""
        hidden = self.hidden[tokens]
        if raw_prefix is None:
            return self._transformed(self._product(hidden, self.weight.T), slice(None))
        width = raw_prefix.shape[1]
        logits = torch.empty((hidden.shape[0], self.weight.shape[0]), dtype=self.dtype, device=hidden.device)
        logits[:, :width] = raw_prefix
        self._product(hidden, self.weight[width:].T, out=logits[:, width:])
        self._transformed(logits[:, width:], slice(width, None))
        return logits

    def _chunk(
        self, tokens: Tensor, logits: Tensor, token_weights: Tensor | None, token_reference: Tensor | None
    ) -> None:
        """Sweep one chunk's logits `(C, V)`, which are overwritten, and form its products."""
        front = 0
        kept_tokens, kept_weights = [], []
        label_entries = []
        for part in self._blocks(tokens.numel()):
            block_tokens = tokens[part]
            targets = self.targets[block_tokens][:, None]
            reference = None if token_reference is None else token_reference[block_tokens]
            label_slope = self._label_slope(logits[part].gather(-1, targets))
            slope = self._slope(logits[part])
            block, total, stats = self._statistics(block_tokens, logits[part], reference)
            weights = (
                self.options.objective.token_weights(stats).to(self.dtype)
                if token_weights is None
                else token_weights[part]
            )
            assert stats.log_probs is not None
            self.values.weights[self.rows[block_tokens]] = weights.float()
            # A masked token may have log p = -inf; zero times that must stay zero.
            self.loss_sum -= torch.where(weights != 0, weights * stats.log_probs, 0.0).sum(dtype=torch.float64)
            if not self.wants_gradients:
                continue
            scaled = weights * self.options.logit_scale
            kept = weights.nonzero().squeeze(1)  # syncs with the host
            count = kept.numel()
            in_place = count == block.shape[0] and front == part.start
            gradient = block if in_place else block[kept]  # (K, V) or a view
            gradient.mul_((scaled / total.squeeze(1))[kept][:, None])
            if slope is not None:
                gradient.mul_(slope[kept])
            if not in_place:
                logits[front : front + count] = gradient
            front += count
            kept_tokens.append(block_tokens[kept])
            kept_weights.append(weights[kept])
            label_entries.append((scaled * label_slope)[kept])
        if front:
            self._products(
                logits[:front], torch.cat(kept_tokens), torch.cat(kept_weights), torch.cat(label_entries)
            )

    def _slope(self, logits: Tensor) -> Tensor | None:
        """Derivative of the soft cap at every logit of a block, `(b, V)`, or None without one."""
        cap = self.options.logit_softcap
        return None if cap is None else 1.0 - (logits / cap).square_()

    def _label_slope(self, target_logits: Tensor) -> Tensor:
        """Derivative of the soft cap at the label's logit, `(b,)`; 1 without one."""
        cap = self.options.logit_softcap
        if cap is None:
            return torch.ones_like(target_logits).squeeze(1)
        return (1.0 - (target_logits / cap).square_()).squeeze(1)

    def _statistics(
        self, tokens: Tensor, logits: Tensor, token_reference: Tensor | None
    ) -> tuple[Tensor, Tensor, TokenStats]:
        """Read the statistics off a block of logits `(b, V)`.

        Returns:
            The block turned into `exp(logits - max)` in place, its row sums `(b, 1)`, and the statistics.
        """
        values, rows, targets = self.values, self.rows[tokens], self.targets[tokens][:, None]
        largest = logits.amax(dim=-1, keepdim=True)  # (b, 1)
        target_logits = logits.gather(-1, targets)  # (b, 1)
        topk_entropy = _topk_entropy(logits) if "topk_entropy" in self.options.objective.needs else None
        logits.sub_(largest)
        shifted = logits.clone() if values.entropy is not None else None
        exps = logits.exp_()
        total = exps.sum(dim=-1, keepdim=True)  # (b, 1)
        log_probs = (target_logits - largest - total.log()).squeeze(1)
        values.log_probs[rows] = log_probs.float()
        values.largest_log_prob = torch.maximum(values.largest_log_prob, log_probs.amax())
        entropy = None
        if values.entropy is not None:
            assert shifted is not None
            entropy = total.log().squeeze(1) - torch.linalg.vecdot(exps, shifted) / total.squeeze(1)
            values.entropy[rows] = entropy.float()
        if values.is_top1 is not None:
            values.is_top1[rows] = (target_logits >= largest).squeeze(1)
        stats = TokenStats(
            labels=self.targets[tokens],
            log_probs=log_probs,
            entropy=entropy,
            topk_entropy=topk_entropy,
            reference_log_probs=token_reference,
        )
        return exps, total, stats

    # -- stage 3: products --------------------------------------------------------------------------------------

    def _products(self, softmax_part: Tensor, tokens: Tensor, token_weights: Tensor, label_entries: Tensor) -> None:
        """Add one chunk's gradients.

        Args:
            softmax_part: `(K, V)`, `w * scale * slope * softmax`; becomes the gradient of the raw logits.
            tokens: `(K,)`, the kept tokens.
            token_weights: `(K,)`.
            label_entries: `(K,)`, `w * scale * slope` at the label, still to be subtracted there.
        """
        targets = self.targets[tokens]
        mass = self._column_mass(softmax_part, token_weights, targets, label_entries)
        gradient = softmax_part.scatter_add_(-1, targets[:, None], -label_entries[:, None])
        inverse: Tensor | float = 1.0 if self.inverse is None else self.inverse
        hidden, columns = self.hidden[tokens], None
        if self.d_bias is not None:
            self.d_bias += gradient.sum(dim=0) * inverse
        if mass is not None:
            gradient, tokens, hidden, columns = self._within_budget(gradient, tokens, hidden, mass)
        operand = gradient.to(self.weight.dtype)
        if self.d_hidden is not None:
            head = self.weight if columns is None else self.weight[columns]
            self.d_hidden[self.rows[tokens]] = self._product(operand, head) * inverse
        if self.wants_weight:
            self._add_to_d_weight(operand, hidden, columns, inverse)

    def _add_to_d_weight(
        self, gradient: Tensor, hidden: Tensor, columns: Tensor | None, inverse: Tensor | float
    ) -> None:
        if columns is None and not self.native:
            scaled = hidden * inverse
            if self.d_weight is None:
                self.d_weight = torch.mm(gradient.T, scaled)
            else:
                self.d_weight.addmm_(gradient.T, scaled)
            return
        product = self._product(gradient.T, hidden) * inverse  # (V or U, D) fp32
        if columns is None and self.d_weight is None:
            self.d_weight = product
            return
        if self.d_weight is None:
            self.d_weight = torch.zeros(self.weight.shape, dtype=self.dtype, device=self.weight.device)
        if columns is None:
            self.d_weight += product
        else:
            self.d_weight.index_add_(0, columns, product)

    def _column_mass(
        self, softmax_part: Tensor, token_weights: Tensor, targets: Tensor, label_entries: Tensor
    ) -> Tensor | None:
        """Return `sum_k |G_kv|`, `(V,)`, from one pass over the softmax part; None without a budget."""
        if self.options.gradient_budget == 0.0:
            return None
        mass = torch.mv(softmax_part.T, token_weights.sign())
        own = softmax_part.gather(-1, targets[:, None]).squeeze(1)  # counted above as |w| p, but the entry is |w| (1-p)
        mass.index_add_(0, targets, (own - label_entries).abs() - own.abs())
        return mass

    def _within_budget(
        self, gradient: Tensor, tokens: Tensor, hidden: Tensor, mass: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Leave out whole tokens, then columns, that carry at most the budget of the chunk's absolute gradient.

        Returns:
            The gradient of what is left `(K', U)`, its tokens, their hidden states, and the columns.
        """
        total = mass.sum(dtype=torch.float64)
        allowed = self.options.gradient_budget * total
        # A row sums to zero but for the soft cap's slope, so its mass is about twice what the label's entry holds.
        label = gradient.gather(-1, self.targets[tokens][:, None]).squeeze(1)
        row_mass = 2.0 * label.abs()
        if self.options.logit_softcap is not None:
            row_mass = torch.linalg.vector_norm(gradient, ord=1, dim=-1)
        ordered, order = row_mass.sort()
        row_sums = ordered.cumsum(0, dtype=torch.float64)
        rows_out = int(torch.searchsorted(row_sums, allowed / 2))  # syncs with the host
        left_out = row_sums[rows_out - 1] if rows_out else torch.zeros_like(total)
        ordered, order_columns = mass.sort(descending=True)
        column_sums = ordered.cumsum(0, dtype=torch.float64)
        wanted = int(torch.searchsorted(column_sums, total - (allowed - left_out))) + 1  # syncs with the host
        columns = order_columns[:wanted].sort().values
        self.values.dropped_share += left_out + (total - column_sums[min(wanted, len(column_sums)) - 1])
        self.total_mass += total
        if rows_out:
            kept = order[rows_out:].sort().values
            gradient, tokens, hidden = gradient[kept], tokens[kept], hidden[kept]
        return gradient.index_select(1, columns), tokens, hidden, columns

    def gradients(self, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return d hidden, d weight, d bias, times `grad_output`, in the dtypes of the inputs."""
        scale = grad_output if self.scale is None else grad_output * self.scale
        if self.wants_weight and self.d_weight is None:
            self.d_weight = torch.zeros(self.weight.shape, dtype=self.dtype, device=self.weight.device)
        # Reading one scalar is free on the CPU; on a GPU it would sync, and the multiplication is the cheaper one.
        unscaled = not scale.is_cuda and scale.item() == 1.0
        found = []
        for gradient, dtype in (
            (self.d_hidden, self.hidden_dtype),
            (self.d_weight, self.weight_dtype),
            (self.d_bias, self.bias_dtype),
        ):
            if gradient is not None and not unscaled:
                gradient = gradient.mul_(scale)
            found.append(gradient if gradient is None or dtype is None else gradient.to(dtype))
        return found[0], found[1], found[2]


def _blank(label_mask: Tensor) -> Tensor:
    return torch.where(label_mask, math.nan, 0.0).to(torch.float32)  # (N,)


def _topk_entropy(logits: Tensor) -> Tensor:
    """Entropy of the likeliest tokens, renormalized, `(b,)`, from logits `(b, V)`."""
    likeliest = logits.topk(min(ENTROPY_TOP_K, logits.shape[-1]), dim=-1).values.log_softmax(dim=-1)
    return -(likeliest.exp() * likeliest).sum(dim=-1)
