import dataclasses
import math

import numpy as np
import pytest
import torch

from made_scores import made_example, made_tokens, write_scores
from profit_sft.errors import DataError
from profit_sft.mask.tokens import THRESHOLDS, checked_thresholds, kept_mask, label_tokens, levels, threshold_grid
from profit_sft.objectives import ProFit, TokenStats


def test_tokens_keep_data_order_and_know_their_example_and_place(tmp_path):
    examples = [
        made_example(0, [-1.0, -2.0], kinds=[1, 2]),
        made_example(1, [-3.0], kinds=[0]),
        made_example(2, [-4.0, -5.0, -6.0], kinds=[2, 1, 1]),
        made_example(3, [-7.0], kinds=[1]),
    ]
    tokens = label_tokens(write_scores(tmp_path, examples))
    assert tokens.log_probs.tolist() == [[-1, -2, -3, -4, -5, -6, -7]]
    assert tokens.log_probs.dtype == np.float64
    assert tokens.examples.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert tokens.answer_places.tolist() == [1, 2, 1, 1, 2, 3, 1]
    assert tokens.token_kinds.tolist() == [1, 2, 0, 2, 1, 1, 1]
    assert tokens.num_examples == 4
    assert tokens.token_ids.tolist() == [4, 5, 4, 4, 5, 6, 4]
    assert tokens.previous_ids.tolist() == [0, 4, 0, 0, 4, 5, 0]
    assert tokens.lengths.tolist() == [3, 2, 4, 2]


def with_labels_at(example, positions):
    chosen = np.array(positions) - 1
    values = {name: getattr(example, name)[chosen] for name in ("log_probs", "entropy", "top1", "rank")}
    return dataclasses.replace(example, positions=np.array(positions, np.int32), **values)


def test_a_chat_is_one_answer_whose_turns_follow_no_label(tmp_path):
    chat = with_labels_at(made_example(0, [-1.0] * 20), [3, 4, 5, 9, 10, 20])
    after = with_labels_at(made_example(1, [-1.0] * 21), [21])
    tokens = label_tokens(write_scores(tmp_path, [chat, after]))
    assert tokens.positions.tolist() == [3, 4, 5, 9, 10, 20, 21]
    assert tokens.answer_places.tolist() == [1, 2, 3, 4, 5, 6, 1]
    # The second example goes on at 21, where the first ended at 20, and begins anew all the same.
    assert tokens.follows_none.tolist() == [True, False, False, True, False, True, True]


def test_two_models_have_the_same_tokens(tmp_path):
    first, second = (
        write_scores(tmp_path / name, [made_example(0, values)])
        for name, values in (("before", [-1.0, -2.0]), ("after", [-0.5, -0.25]))
    )
    tokens = label_tokens(first, second)
    assert tokens.log_probs.tolist() == [[-1, -2], [-0.5, -0.25]]
    assert tokens.token_ids.tolist() == [4, 5]


def test_without_spans_there_are_no_kinds(tmp_path):
    assert label_tokens(write_scores(tmp_path, [made_example(0, [-1.0])])).token_kinds is None


@pytest.mark.parametrize("threshold", [0.0, *THRESHOLDS, 1.0])
def test_the_mask_is_that_of_the_objective_down_to_the_last_bit(threshold):
    # At the threshold itself, and one fp32 step to both sides, a mask in another precision differs.
    at = torch.tensor([math.log(threshold)] if threshold else [-200.0])
    log_probs = torch.cat([at, at.nextafter(torch.tensor(9.0)), at.nextafter(torch.tensor(-999.0)), torch.zeros(1)])
    stats = TokenStats(labels=torch.zeros(4, dtype=torch.int64), log_probs=log_probs)
    wanted = ProFit(threshold=threshold).token_weights(stats).bool().tolist()
    assert kept_mask(log_probs.double().numpy(), threshold).tolist() == wanted


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_log_p_that_is_not_finite_is_refused(bad):
    with pytest.raises(DataError, match=r"1 of 3 label tokens have no finite log p: .*--dtype float32"):
        made_tokens([[-1.0, -3.0, -2.0], [-1.0, bad, -2.0]], [0, 0, 0])


def test_no_label_token_is_refused():
    with pytest.raises(DataError, match="no label token to look at"):
        made_tokens([], [])


def test_thresholds_are_sorted_each_once_and_probabilities():
    assert checked_thresholds([0.5, 0.1, 0.5]) == (0.1, 0.5)
    with pytest.raises(ValueError, match=r"threshold must be a probability in \[0, 1\], got 10. Write 10% as 0.1"):
        checked_thresholds([0.1, 10])


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
    found = levels(log_probs, grid)
    stats = TokenStats(labels=torch.zeros(len(log_probs)), log_probs=torch.from_numpy(log_probs))
    for index, threshold in enumerate(grid):
        kept = ProFit(threshold=threshold, direction=direction).token_weights(stats).bool().numpy()
        on_page = found > 2 * index if direction == "higher" else found <= 2 * index + 1
        np.testing.assert_array_equal(on_page, kept)
