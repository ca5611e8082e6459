import math

import numpy as np
import pytest
import torch

from made_scores import made_example, write_scores
from profit_sft.errors import DataError
from profit_sft.mask.tokens import THRESHOLDS, LabelTokens, checked_thresholds, kept_mask, label_tokens
from profit_sft.objectives import ProFit, TokenStats


def test_tokens_keep_data_order_and_know_their_example_and_place(tmp_path):
    examples = [
        made_example(0, [-1.0, -2.0], kinds=[1, 2]),
        made_example(1, [-3.0], kinds=[0]),
        made_example(2, [-4.0, -5.0, -6.0], kinds=[2, 1, 1]),
        made_example(3, [-7.0], kinds=[1]),
    ]
    tokens = label_tokens(write_scores(tmp_path, examples))
    assert tokens.log_probs.tolist() == [-1, -2, -3, -4, -5, -6, -7]
    assert tokens.log_probs.dtype == np.float64
    assert tokens.examples.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert tokens.answer_positions.tolist() == [0, 1, 0, 0, 1, 2, 0]
    assert tokens.token_kinds.tolist() == [1, 2, 0, 2, 1, 1, 1]
    assert tokens.num_examples == 4


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
        LabelTokens(log_probs=np.array([-1.0, bad, -2.0]), examples=np.zeros(3, np.int64))


def test_no_label_token_is_refused():
    with pytest.raises(DataError, match="no label token to look at"):
        LabelTokens(log_probs=np.zeros(0), examples=np.zeros(0, np.int64))


def test_thresholds_are_sorted_each_once_and_probabilities():
    assert checked_thresholds([0.5, 0.1, 0.5]) == (0.1, 0.5)
    with pytest.raises(ValueError, match=r"threshold must be a probability in \[0, 1\], got 10. Write 10% as 0.1"):
        checked_thresholds([0.1, 10])
