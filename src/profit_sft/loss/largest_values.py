"""Which columns of a chunk's gradient carry all but a given share of it."""

import torch
from torch import Tensor

from profit_sft.loss.devices import accumulation_dtype

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
