"""Which columns of the vocabulary carry a chunk's gradient, and in which precision each is multiplied.

Among kept tokens most columns of the gradient `G` are a long tail: on real data a twelfth carries all but 0.5% of
`sum |G|`. Those stay in fp32. Rounding the others to bf16 (2^-9 of each factor and of the result) moves a product by at
most `tail_share * 3 * 2^-9` of the gradient's mass, about what rounding leaves in the fp32 logits themselves, and takes
less than half the time where the processor multiplies bf16 in hardware.
"""

import torch
from torch import Tensor

from profit_sft.loss.devices import accumulation_dtype, cpu_multiplies_bf16

# Bits of an fp32 value, read as an integer, that tell buckets apart: the exponent and nine of the mantissa, so that the
# values of a bucket are within 0.2% of each other. Positive numbers have the order of their bits.
_BUCKET_SHIFT = 14
_BUCKETS = 2 ** (31 - _BUCKET_SHIFT)
# Share of sum |G| that may be in bf16. Error of dH on real data (49k columns, 57% kept) and share of columns left in
# fp32: 1e-3: 4.6e-6, 30%; 2e-3: 5.1e-6, 19%; 4e-3: 6.7e-6, 10%; 6e-3: 8.7e-6, 6%; 1e-2: 1.3e-5, 3%. The fp32 logits
# alone give 4.4e-6.
TAIL_SHARE = 5e-3
# With a gradient budget, so much of it if that is more: rounding then adds at most 8 * 3 * 2^-9, a twentieth of it.
TAIL_PER_BUDGET = 8
# With a larger share of the columns in fp32, splitting them costs more than bf16 saves. Time of the loss against fp32
# alone by share (V = 49,152, D = 576, N = 1,024): 8%: 0.81, 14%: 0.87, 25%: 0.95, 41%: 1.12, 77%: 1.30.
_LARGEST_FP32_SHARE = 0.3
# Multiply-adds of a product below which splitting it is not worth its fixed cost.
_SMALLEST_PRODUCT = 2**29
# Columns multiplied at a time: the block stays in cache, and what is made of it is a few MiB. All at once takes a
# quarter longer. Blocks of chosen columns are copied together, so they are half as wide.
_BLOCK_COLUMNS = 4096


def largest_values(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the values to keep, in order, and the sum of the others, which is at most `allowed`.

    Values are kept from the largest on; those that share the bucket of the smallest one kept are kept with it. At least
    the largest is kept, and all of them where one is NaN. Adding up buckets takes 0.5 ms where a sort of 49k values
    takes 4 (CPU).

    Args:
        values: `(n,)`, not negative.
        allowed: 0-d, in the device's `accumulation_dtype`.

    Host syncs: one, or two where deterministic algorithms are asked for.
    """
    if values.device.type == "cpu":
        return _by_buckets(values, allowed)
    if accumulation_dtype(values.device) != torch.float64:
        # A running sum is too much for fp32. The search syncs in any case, and the host has float64.
        places, left_out = largest_values(values.cpu(), allowed.cpu())
        return places.to(values.device), left_out.float().to(values.device)
    return _by_sorting(values, allowed)


def _by_buckets(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    bucket = values.float().abs().view(torch.int32) >> _BUCKET_SHIFT  # (n,); -0 and some NaN have a sign bit
    exact = values.double()
    sums = torch.zeros(_BUCKETS, dtype=torch.float64).index_add_(0, bucket, exact)
    fitting = int((sums.cumsum(0) <= allowed).sum())
    kept = bucket >= bucket.amax().clamp(max=fitting)
    return kept.nonzero().squeeze(1), torch.where(kept, 0.0, exact).sum()


def _by_sorting(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Add up from the smallest value on. A GPU sorts 152k values in the time of one pass, where buckets took 35 ms."""
    ascending, order = values.sort()  # NaN last
    sums = ascending.double()
    # A GPU's cumulative sum is refused where deterministic algorithms are asked for; then it is the host's.
    sums = sums.cpu().cumsum(0).to(sums) if torch.are_deterministic_algorithms_enabled() else sums.cumsum(0)
    fitting = min(int((sums <= allowed).sum()), values.numel() - 1)  # syncs
    left_out = sums[fitting - 1] if fitting else torch.zeros_like(allowed)
    return order[fitting:].sort().values, left_out


def multiplies_bf16_fast(lm_head_weight: Tensor) -> bool:
    """Say whether an fp32 product with `lm_head_weight` is faster in bf16: on CPUs with the instructions for it."""
    return lm_head_weight.device.type == "cpu" and lm_head_weight.dtype == torch.float32 and cpu_multiplies_bf16()


def fp32_columns(mass: Tensor, multiply_adds_per_column: int, *, gradient_budget: float) -> Tensor | None:
    """Return the columns to keep in fp32, `(I,)` int64 in order, or None where all should stay.

    Args:
        mass: `(U,)`, `sum_k |G_kv|`.
        multiply_adds_per_column: Of one of the two products.
        gradient_budget: Share of the mass that may be left out altogether.
    """
    if multiply_adds_per_column * mass.numel() < _SMALLEST_PRODUCT:
        return None
    tail_share = max(TAIL_SHARE, TAIL_PER_BUDGET * gradient_budget)
    columns, _ = largest_values(mass.clamp(min=0.0), tail_share * mass.sum(dtype=torch.float64))
    return columns if columns.numel() <= _LARGEST_FP32_SHARE * mass.numel() else None


def add_products(
    gradient: Tensor,
    columns: Tensor | None,
    inner: Tensor,
    *,
    lm_head_weight: Tensor,
    hidden_states: Tensor,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
) -> None:
    """Add `G @ W` to `d_hidden` and `G.T @ H` to `d_weight`, some columns in fp32 and the others in bf16.

    Everything in between is that of one block of columns, a few MiB.

    Args:
        gradient: `(K, V)` fp32; overwritten where `columns` is None.
        columns: `(U,)` int64, the columns that take part; None: all V.
        inner: `(I,)` int64 in order, places among the U of the columns to multiply in fp32.
        lm_head_weight: `(V, D)` fp32.
        hidden_states: `(K, D)` fp32.
        d_hidden: `(K, D)` fp32, or None where it is not wanted.
        d_weight: `(V, D)` fp32, or None where it is not wanted.
    """
    rounded_hidden = hidden_states.bfloat16()
    count = lm_head_weight.shape[0] if columns is None else columns.numel()
    width = _BLOCK_COLUMNS if columns is None else _BLOCK_COLUMNS // 2
    starts = range(0, count, width)
    for start, block_inner in zip(starts, _split_by_block(inner, starts), strict=True):
        block = slice(start, min(start + width, count))
        chosen = None if columns is None else columns[block]
        if chosen is None:
            part, head = gradient[:, block], lm_head_weight[block]  # (K, b), (b, D)
        else:
            part, head = take_columns(gradient, chosen), lm_head_weight.index_select(0, chosen)
        exact = take_columns(part, block_inner)  # (K, i)
        rounded = part.index_fill_(1, block_inner, 0.0).bfloat16()
        if d_hidden is not None:
            d_hidden += torch.mm(rounded, head.bfloat16())
            d_hidden.addmm_(exact, head.index_select(0, block_inner))
        if d_weight is not None:
            rows = d_weight[block] if chosen is None else d_weight.index_select(0, chosen)  # a view, or a copy
            rows += torch.mm(rounded.T, rounded_hidden)
            rows.index_copy_(0, block_inner, rows.index_select(0, block_inner).addmm_(exact.T, hidden_states))
            if chosen is not None:
                d_weight.index_copy_(0, chosen, rows)  # index_add_ runs on one thread, see head_gradients


def take_columns(rows: Tensor, columns: Tensor) -> Tensor:
    """Return some columns of `rows`, `(K, i)`, contiguous. On the CPU a third faster than `index_select`."""
    return rows.gather(1, columns.expand(rows.shape[0], -1))


def _split_by_block(inner: Tensor, starts: range) -> list[Tensor]:
    """Return the entries of `inner` that fall into each block, counted from the block's start."""
    bounds = torch.searchsorted(inner, torch.tensor([*starts, starts.stop])).tolist()
    return [inner[low:high] - start for start, low, high in zip(starts, bounds, bounds[1:], strict=False)]
