"""Which columns of a chunk's gradient carry all but a given share of it."""

import torch
from torch import Tensor


def largest_values(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the values to keep, in order, and the sum of the others, which is at most `allowed`.

    Values are kept from the largest on. A bisection for the smallest one to keep takes 2 ms where a sort of 49k values
    takes 28 (CPU); what it leaves undecided lies within 1e-6 of that value.

    Args:
        values: `(n,)`, not negative.
        allowed: 0-d float64.
    """
    low, high = torch.zeros((), dtype=values.dtype, device=values.device), values.amax()
    for _ in range(24):
        middle = (low + high) / 2
        fits = torch.where(values < middle, values, 0.0).sum(dtype=torch.float64) <= allowed
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    dropped = values < low
    return (~dropped).nonzero().squeeze(1), torch.where(dropped, values, 0.0).sum(dtype=torch.float64)  # syncs
