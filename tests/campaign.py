"""The long tables of tests: whole in a campaign, `PROFIT_TESTS=all`, which takes hours; else a sample of each."""

import os
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

Case = TypeVar("Case")
WHOLE = os.environ.get("PROFIT_TESTS") == "all"


def sampled(cases: Sequence[Case], size: int) -> list[Case]:
    """Return every case in a campaign, else an even sample of so many, the first among them."""
    if WHOLE or len(cases) <= size:
        return list(cases)
    return [cases[index * len(cases) // size] for index in range(size)]


def meeting(rows: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Return the indices of so many rows that each two values of two parameters that meet in a row meet in one of them.

    Args:
        rows: Values by parameter.
    """
    pairs = [set(combinations(sorted(row.items()), min(2, len(row)))) for row in rows]
    left, chosen = set().union(*pairs), []
    while left:
        best = max(range(len(rows)), key=lambda index: len(pairs[index] & left))
        left -= pairs[best]
        chosen.append(best)
    return sorted(chosen)
