"""Which columns of a chunk's gradient carry all but a given share of it."""

import torch
from torch import Tensor


def largest_values(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the values to keep, in order, and the sum of the others, which is at most `allowed`.

    Values are kept from the largest on. A bisection for the smallest one to keep takes 1 ms where a sort of 49k values
    takes 28 (CPU); what it leaves undecided lies within 0.3% of that value.

    Args:
        values: `(n,)`, not negative.
        allowed: 0-d float64.
    """
    largest = values.amax()
    smallest_kept = torch.zeros_like(largest)
    # Bisected are the binary logarithms, relative to the largest: masses span many orders of magnitude.
    low, high = torch.full_like(largest, -60.0), torch.zeros_like(largest)
    for _ in range(14):
        middle = (low + high) / 2
        candidate = largest * torch.exp2(middle)
        fits = torch.where(values < candidate, values, 0.0).sum(dtype=torch.float64) <= allowed
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        smallest_kept = torch.where(fits, candidate, smallest_kept)
    dropped = values < smallest_kept
    return (~dropped).nonzero().squeeze(1), torch.where(dropped, values, 0.0).sum(dtype=torch.float64)  # syncs
