import math

import numpy as np
import pytest
import torch

from profit_sft.mask.thresholds import bin_edges, cells, logit_bins, threshold_grid
from profit_sft.objectives import ProFit, TokenStats


def test_the_grid_has_two_digits_from_either_end():
    grid = threshold_grid()
    assert (grid[0], grid[-1], len(grid)) == (0.0, 1.0, 623)
    assert {0.0001, 0.00011, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.999, 0.9999} <= set(grid)
    assert list(grid) == sorted(grid)
    assert set(threshold_grid(0.1234)) - set(grid) == {0.1234}


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_cells_mask_exactly_what_the_objective_masks(direction):
    grid = threshold_grid()
    random = np.random.default_rng(0)
    # On every threshold, one float below and above it, and between.
    on = np.log(np.array(grid[1:])).astype(np.float32)
    log_probs = np.concatenate(
        [on, np.nextafter(on, -np.inf), np.nextafter(on, np.inf), np.log(random.random(500)).astype(np.float32)]
    )
    found = cells(log_probs, grid)
    stats = TokenStats(labels=torch.zeros(len(log_probs)), log_probs=torch.from_numpy(log_probs))
    for index, threshold in enumerate(grid):
        kept = ProFit(threshold=threshold, direction=direction).token_weights(stats).bool().numpy()
        np.testing.assert_array_equal((found > index) == (direction == "higher"), kept)


def test_a_token_falls_into_the_bin_whose_edges_hold_its_probability():
    edges = bin_edges(8)
    assert edges == pytest.approx(
        [0, 1 / (1 + math.exp(7.5)), *(1 / (1 + math.exp(-x)) for x in (-5, -2.5, 0, 2.5, 5, 7.5)), 1]
    )
    p = np.array([0.0, 1e-9, 0.01, 0.3, 0.501, 0.6, 0.95, 0.9999, 1.0])
    with np.errstate(divide="ignore"):
        found = logit_bins(np.log(p).astype(np.float32), 8)
    assert found.tolist() == [0, 0, 2, 3, 4, 4, 5, 7, 7]
