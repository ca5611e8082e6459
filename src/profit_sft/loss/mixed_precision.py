"""Backward products in two precisions: vocabulary columns that carry next to nothing are multiplied in bf16.

Among kept tokens most columns of the gradient `G` are a long tail: on real data a fifth of them carries all but 0.2% of
`sum |G|`. Those stay in fp32. Rounding the others to bf16 (2^-9 of each factor and of the result) moves a product by at
most `tail_share * 3 * 2^-9` of the gradient's mass, about what rounding leaves in the fp32 logits themselves, and takes
less than half the time where the processor multiplies bf16 in hardware.
"""

import torch
from torch import Tensor

from profit_sft.loss.largest_values import largest_values

# Share of sum |G| that may be in bf16. Error of dH on real data (49k columns, 57% kept) and share of columns left in
# fp32: 1e-3: 5e-6, 31%; 2e-3: 9e-6, 20%; 5e-3: 2e-5, 9%; 1e-2: 4e-5, 4%. The fp32 logits alone give 4e-6.
TAIL_SHARE = 2e-3
# With a gradient budget, so much of it: rounding then adds at most 8 * 3 * 2^-9, a twentieth of the budget.
TAIL_PER_BUDGET = 8
# With a larger share of the columns in fp32, splitting them costs what bf16 saves.
_LARGEST_FP32_SHARE = 0.5
# Multiply-adds of a product below which splitting it is not worth its fixed cost.
_SMALLEST_PRODUCT = 2**29
# Columns converted and multiplied at a time: the block stays in cache, and no bf16 copy of all of G is made.
# 580 x 49,152 x 576, both products: 204 ms, with 8,192 columns 216, with all at once 250.
_BLOCK_COLUMNS = 4096


def multiplies_bf16_fast(weight: Tensor) -> bool:
    """Say whether an fp32 product with `weight` is faster in bf16: on CPUs with the instructions for it."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    # Private, and not there in every version; without them fp32 is what is left.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


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
    inner_gradient: Tensor,
    inner: Tensor,
    *,
    weight: Tensor,
    inner_weight: Tensor,
    hidden: Tensor,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
) -> None:
    """Add `G @ W` to `d_hidden` and `G.T @ H` to `d_weight`, the columns `inner` in fp32 and the others in bf16.

    Args:
        gradient: `(K, U)` fp32. Its columns `inner` are set to zero.
        inner_gradient: `(K, I)` fp32, those columns.
        inner: `(I,)` int64.
        weight: `(U, D)` bf16.
        inner_weight: `(I, D)` fp32.
        hidden: `(K, D)` fp32.
        d_hidden: `(K, D)` fp32, or None where it is not wanted.
        d_weight: `(U, D)` fp32, or None where it is not wanted.
    """
    gradient.index_fill_(1, inner, 0.0)
    rounded_hidden = hidden.bfloat16()
    for start in range(0, weight.shape[0], _BLOCK_COLUMNS):
        block = slice(start, start + _BLOCK_COLUMNS)
        rounded = gradient[:, block].bfloat16()  # (K, 4096)
        if d_hidden is not None:
            d_hidden += torch.mm(rounded, weight[block])
        if d_weight is not None:
            d_weight[block] += torch.mm(rounded.T, rounded_hidden)
    if d_hidden is not None:
        d_hidden.addmm_(inner_gradient, inner_weight)
    if d_weight is not None:
        inner_rows = d_weight.index_select(0, inner).addmm_(inner_gradient.T, hidden)
        d_weight.index_copy_(0, inner, inner_rows)
