"""The long tables of tests: whole in a campaign, `PROFIT_TESTS=all`, which takes hours; else a sample of each."""

import os
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")
WHOLE = os.environ.get("PROFIT_TESTS") == "all"


def sampled(cases: Sequence[Case], size: int) -> list[Case]:
    """Return every case in a campaign, else an even sample of so many, the first among them."""
    if WHOLE or len(cases) <= size:
        return list(cases)
    return [cases[index * len(cases) // size] for index in range(size)]
