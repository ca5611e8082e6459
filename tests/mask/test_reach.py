"""The rule of the map says which part it means; that its figures are the map's is held beside those."""

import pytest

from profit_sft.mask.reach import REGIONS, on_the_map, region_of


@pytest.mark.parametrize(
    ("unsolved", "below", "region"),
    [(0.3, 0.9, "new"), (0.3, 0.0, "new"), (0.29, 0.3, "wording"), (0.29, 0.29, "known"), (0.0, 1.0, "wording")],
)
def test_what_is_out_of_reach_counts_before_what_is_worded_otherwise(unsolved, below, region):
    assert region_of(unsolved, below) == region
    measured = REGIONS[region]
    assert f"{measured.least:+.1f} to {measured.most:+.1f} points" in " ".join(on_the_map(unsolved, below))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match=r"unsolved_share is .*, it must lie in \[0, 1\]"):
        region_of(value, 0.5)
