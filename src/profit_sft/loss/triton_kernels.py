"""CUDA kernels for the elementwise parts of the selective loss; the matrix products stay cuBLAS's.

Prescreen, chunks and normalization are `chunked.py`'s. What differs is how a chunk's logits `(C, V)` fp32 are read:

    _sweep_fwd_kernel        one read: row maximum, sum of exponentials, entropy, sum of squared probabilities
    _column_sums_fwd_kernel  one read of the kept rows: column sums of the gradient, for the bias and the budget
    _gradient_fwd_kernel     one read of the kept rows and chosen columns, one write: the gradient in the dtype of the
                             operands, `(K, U)`, so that masked rows and dropped columns are never written

Bytes moved a chunk, exact, bf16: 4 C V (sweep) + 4 K V + 2 K V (gradient). Logits stay as they are, so nothing is saved
for the backward pass but the finished gradients. Accumulation is fp32. No kernel syncs with the host.

Timed on no GPU yet; correct under Triton's interpreter for every option (tests/loss, backend "triton").
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from profit_sft.loss.call import Swept
from profit_sft.loss.chunked import ChunkedCall, topk_entropy

# Powers of two; a row of 152k logits is 38 steps of the sweep. Untuned: no GPU was at hand.
_SWEEP_BLOCK_V = 4096
_GRADIENT_BLOCK_V = 1024
_SUMS_BLOCK_V = 256
_SUMS_ROWS = 256


@triton.jit
def _sweep_fwd_kernel(
    logits_ptr,
    stride_logits_c,
    largest_ptr,
    totals_ptr,
    entropy_ptr,
    collision_ptr,
    V,
    HAS_ENTROPY: tl.constexpr,
    HAS_COLLISION: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits_c
    largest = -float("inf")
    total = 0.0
    weighted = 0.0  # sum of exp(z - largest) * (z - largest)
    squares = 0.0  # sum of exp(z - largest)^2
    for start in range(0, V, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        inside = columns < V
        z = tl.load(row_ptr + columns, mask=inside, other=-float("inf"))
        new_largest = tl.maximum(largest, tl.max(z, axis=0))
        # A block of -inf before any other (a padded vocabulary): the sums stay 0, where -inf less -inf would be NaN.
        origin = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        rescale = tl.exp(largest - origin)
        exps = tl.exp(z - origin)
        if HAS_ENTROPY:
            # Before the first block there is nothing to shift, and the shift would be -inf.
            shift = tl.where(total > 0.0, largest - origin, 0.0)
            shifted = tl.maximum(z - origin, -1e4)  # -inf has p = 0: 0 * -1e4, not 0 * -inf
            weighted = rescale * (weighted + total * shift) + tl.sum(exps * shifted, axis=0)
        if HAS_COLLISION:
            squares = squares * rescale * rescale + tl.sum(exps * exps, axis=0)
        total = total * rescale + tl.sum(exps, axis=0)
        largest = new_largest
    tl.store(largest_ptr + row, largest)
    tl.store(totals_ptr + row, total)
    if HAS_ENTROPY:
        tl.store(entropy_ptr + row, tl.log(total) - weighted / total)
    if HAS_COLLISION:
        tl.store(collision_ptr + row, squares / (total * total))


@triton.jit
def _column_sums_fwd_kernel(
    logits_ptr,
    stride_logits_c,
    rows_ptr,
    largest_ptr,
    factors_ptr,
    sums_ptr,
    K,
    V,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < V
    first = tl.program_id(1) * ROWS
    sums = tl.zeros((BLOCK_V,), dtype=tl.float32)
    for k in range(first, tl.minimum(first + ROWS, K)):
        row = tl.load(rows_ptr + k).to(tl.int64)
        z = tl.load(logits_ptr + row * stride_logits_c + columns, mask=inside, other=-float("inf"))
        entries = tl.exp(z - tl.load(largest_ptr + k)) * tl.load(factors_ptr + k)
        if HAS_SOFTCAP:
            entries *= tl.where(inside, 1.0 - (z / softcap) * (z / softcap), 0.0)
        sums += entries
    tl.store(sums_ptr + tl.program_id(1).to(tl.int64) * V + columns, sums, mask=inside)


@triton.jit
def _gradient_fwd_kernel(
    logits_ptr,
    stride_logits_c,
    rows_ptr,
    columns_ptr,
    targets_ptr,
    largest_ptr,
    factors_ptr,
    label_entries_ptr,
    gradient_ptr,
    U,
    softcap,
    HAS_COLUMNS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    k = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = places < U
    columns = places.to(tl.int64)
    if HAS_COLUMNS:
        columns = tl.load(columns_ptr + places, mask=inside, other=0)
    row = tl.load(rows_ptr + k).to(tl.int64)
    factor = tl.load(factors_ptr + k)
    z = tl.load(logits_ptr + row * stride_logits_c + columns, mask=inside, other=-float("inf"))
    entries = tl.exp(z - tl.load(largest_ptr + k))
    if HAS_SOFTCAP:
        entries *= tl.where(inside, 1.0 - (z / softcap) * (z / softcap), 0.0)
    entries += tl.where(columns == tl.load(targets_ptr + k), tl.load(label_entries_ptr + k), 0.0)
    gradient = (entries * factor).to(gradient_ptr.dtype.element_ty)
    tl.store(gradient_ptr + k * U + places, gradient, mask=inside)


# True where TRITON_INTERPRET=1 was set when this module was first imported.
INTERPRETED = isinstance(_sweep_fwd_kernel, InterpretedFunction)


class TritonCall(ChunkedCall):
    """`ChunkedCall` with kernels in place of chains of elementwise operations."""

    def _sweep(self, tokens: Tensor, logits: Tensor) -> Swept:
        """Read the statistics off the logits `(C, V)`, which stay as they are."""
        count, vocab_size = logits.shape
        swept = self._unswept(logits)
        if swept.topk_entropy is not None:
            swept.topk_entropy = topk_entropy(logits)
        if count:
            _sweep_fwd_kernel[(count,)](
                logits,
                logits.stride(0),
                swept.largest,
                swept.totals,
                swept.largest if swept.entropy is None else swept.entropy,
                swept.largest if swept.collision is None else swept.collision,
                vocab_size,
                HAS_ENTROPY=swept.entropy is not None,
                HAS_COLLISION=swept.collision is not None,
                BLOCK_V=min(_SWEEP_BLOCK_V, triton.next_power_of_2(vocab_size)),
            )
        self._read_off(tokens, logits.gather(-1, self.targets[tokens][:, None]).squeeze(1), swept)
        return swept

    def _kept_gradients(
        self, tokens: Tensor, logits: Tensor, kept: Tensor, token_weights: Tensor, swept: Swept
    ) -> None:
        """Form the gradients of the kept rows `(K,)` of a chunk."""
        rows, tokens = kept, tokens[kept]
        factors = (token_weights * self.options.logit_scale / swept.totals)[kept]  # (K,)
        label_entries, largest = swept.label_entries[kept], swept.largest[kept]
        targets = self.targets[tokens]
        if self.sums.d_bias is not None:
            sums = self._column_sums(logits, rows, largest, factors)
            self.sums.add_to_d_bias(sums.index_add_(0, targets, label_entries * factors))
        columns = None
        if self.sums.gradient_budget > 0.0:
            columns = self._within_budget(logits, rows, targets, largest, factors, label_entries)
        scale = self.sums.range_scale(token_weights[kept] * self.options.logit_scale, swept.log_probs[kept])
        gradient = self._gradient(logits, rows, columns, targets, largest, factors * scale, label_entries)
        self.sums.add_columns(gradient, tokens, columns, scale)

    def _within_budget(
        self, logits: Tensor, rows: Tensor, targets: Tensor, largest: Tensor, factors: Tensor, label_entries: Tensor
    ) -> Tensor | None:
        mass = self._column_sums(logits, rows, largest, factors.abs())
        target_logits = logits[rows, targets]
        own = (target_logits - largest).exp() * self._slope(target_logits)  # (K,), what mass holds at the label
        label = ((own + label_entries) * factors).abs()
        mass.index_add_(0, targets, label - own * factors.abs())
        return self.sums.within_budget(mass)

    def _column_sums(self, logits: Tensor, rows: Tensor, largest: Tensor, factors: Tensor) -> Tensor:
        """Return `sum_k factors_k exp(z_kv - largest_k) slope_kv`, `(V,)` fp32, without the labels' own entries."""
        vocab_size = logits.shape[1]
        splits = triton.cdiv(rows.numel(), _SUMS_ROWS)
        sums = logits.new_empty((splits, vocab_size))
        _column_sums_fwd_kernel[(triton.cdiv(vocab_size, _SUMS_BLOCK_V), splits)](
            logits,
            logits.stride(0),
            rows,
            largest,
            factors,
            sums,
            rows.numel(),
            vocab_size,
            self.options.final_logit_softcapping or 1.0,
            HAS_SOFTCAP=self.options.final_logit_softcapping is not None,
            ROWS=_SUMS_ROWS,
            BLOCK_V=_SUMS_BLOCK_V,
        )
        return sums.sum(dim=0)

    def _gradient(
        self,
        logits: Tensor,
        rows: Tensor,
        columns: Tensor | None,
        targets: Tensor,
        largest: Tensor,
        factors: Tensor,
        label_entries: Tensor,
    ) -> Tensor:
        """Return the gradient of the raw logits on the chosen rows and columns, `(K, U)` in the operands' dtype."""
        width = logits.shape[1] if columns is None else columns.numel()
        gradient = torch.empty((rows.numel(), width), dtype=self.lm_head_weight.dtype, device=logits.device)
        if gradient.numel():
            block = min(_GRADIENT_BLOCK_V, triton.next_power_of_2(width))
            _gradient_fwd_kernel[(rows.numel(), triton.cdiv(width, block))](
                logits,
                logits.stride(0),
                rows,
                rows if columns is None else columns,
                targets,
                largest,
                factors,
                label_entries,
                gradient,
                width,
                self.options.final_logit_softcapping or 1.0,
                HAS_COLUMNS=columns is not None,
                HAS_SOFTCAP=self.options.final_logit_softcapping is not None,
                BLOCK_V=block,
            )
        return gradient
