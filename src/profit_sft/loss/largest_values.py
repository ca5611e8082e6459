"""Which columns of a chunk's gradient carry all but a given share of it."""

import torch
from torch import Tensor

from profit_sft.loss.call import accumulation_dtype

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
    bucket = values.float().abs().view(torch.int32) >> _BUCKET_SHIFT  # (n,); -0 and some NaN have a sign bit
    exact = values.to(accumulation_dtype(values.device))
    sums = torch.zeros(_BUCKETS, dtype=exact.dtype, device=values.device).index_add_(0, bucket, exact)
    kept = bucket >= bucket.amax().clamp(max=_buckets_that_fit(sums, allowed))
    return kept.nonzero().squeeze(1), torch.where(kept, 0.0, exact).sum()  # syncs


def _buckets_that_fit(sums: Tensor, allowed: Tensor) -> int:
    """Return how many buckets, from the smallest values on, add up to at most `allowed`.

    On the CPU: a GPU's cumulative sum is refused where deterministic algorithms are asked for. Syncs.
    """
    return int((sums.cpu().double().cumsum(0) <= allowed.cpu().double()).sum())
