"""Which columns of a chunk's gradient carry all but a given share of it."""

import torch
from torch import Tensor

from profit_sft.loss.call import accumulation_dtype, on_cpu

# Bits of an fp32 value, read as an integer, that tell buckets apart: the exponent and nine of the mantissa, so that the
# values of a bucket are within 0.2% of each other. Positive numbers have the order of their bits.
_BUCKET_SHIFT = 14
_BUCKETS = 2 ** (31 - _BUCKET_SHIFT)


def largest_values(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the values to keep, in order, and the sum of the others, which is at most `allowed`.

    Values are kept from the largest on; those that share the bucket of the smallest one kept are kept with it. At least
    the largest is kept, and all of them where one is NaN. Adding up buckets takes 0.5 ms where a sort of 49k values
    takes 4 (CPU).

    Args:
        values: `(n,)`, not negative.
        allowed: 0-d, the largest sum that may be left out.
    """
    if not on_cpu(values):
        return _by_sorting(values, allowed)
    bucket = values.float().abs().view(torch.int32) >> _BUCKET_SHIFT  # (n,); -0 and some NaN have a sign bit
    exact = values.to(accumulation_dtype(values.device))
    sums = torch.zeros(_BUCKETS, dtype=exact.dtype, device=values.device).index_add_(0, bucket, exact)
    fitting = int((sums.cumsum(0) <= allowed).sum())
    kept = bucket >= bucket.amax().clamp(max=fitting)
    return kept.nonzero().squeeze(1), torch.where(kept, 0.0, exact).sum()


def _by_sorting(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """As `largest_values`, from the smallest value on; a GPU sorts faster than it fills buckets.

    Syncs once, and where deterministic algorithms are asked for, which a GPU's cumulative sum is not, it is taken on
    the CPU.
    """
    ascending, order = values.sort()  # NaN last
    sums = ascending.to(accumulation_dtype(values.device))
    sums = sums.cpu().cumsum(0).to(sums) if torch.are_deterministic_algorithms_enabled() else sums.cumsum(0)
    fitting = min(int((sums <= allowed).sum()), values.numel() - 1)  # syncs
    left_out = sums[fitting - 1] if fitting else torch.zeros_like(allowed)
    return order[fitting:].sort().values, left_out
