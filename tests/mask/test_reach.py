"""The rule of the map: its figures are those of the map's published ones, and it says which part it means."""

import importlib.util
from pathlib import Path

import pytest

from profit_sft.mask.reach import AGREED, CHECKED, LARGEST_MISS, REGIONS, on_the_map, region_of

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("map_figures", ROOT / "benchmarks" / "map" / "figures.py")
figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)
DATA = ROOT / "docs" / "results" / "data"


def test_the_figures_of_the_rule_are_those_of_the_map():
    assert figures.regions(figures.read_figures(DATA / "map.json")) == REGIONS


def test_the_rule_is_judged_on_conditions_that_did_not_make_it():
    checked = figures.read_figures(DATA / "map-check.json")
    made = {
        (*figures.condition(row), row["rows"], *row["seeds"]) for row in figures.read_figures(DATA / "map.json")["rows"]
    }
    assert made.isdisjoint((*figures.condition(row), row["rows"], *row["seeds"]) for row in checked["rows"])
    assert figures.hits(checked) == (CHECKED, AGREED, LARGEST_MISS)


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
