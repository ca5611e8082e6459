"""The mean over problems and its standard error, against values computed by hand."""

import math

import pytest

from profit_sft.evaluation.statistics import estimate_mean


def test_problems_are_the_units_not_samples():
    found = estimate_mean([[1, 0], [1, 1], [0, 0]])
    # Means of the problems: 1/2, 1, 0; their standard deviation is 1/2. Variances within: 1/2, 0, 0.
    assert found.mean == pytest.approx(0.5)
    assert found.between_problems == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(0.5 / math.sqrt(3))
    assert found.within_problem == pytest.approx(math.sqrt(1 / 6))


def test_more_samples_of_the_same_problems_do_not_make_the_mean_surer():
    once, often = estimate_mean([[1], [0]]), estimate_mean([[1] * 8, [0] * 8])
    assert once.standard_error == often.standard_error == pytest.approx(0.5)


def test_weighted_mean_has_the_standard_error_of_a_ratio():
    # (1 * 0 + 3 * 1) / 4; squares (1 * 0.75)^2 + (3 * 0.25)^2 = 1.125, times 2 / 1, root 1.5, over 4.
    found = estimate_mean([[0, 0], [1, 1]], [1, 3])
    assert found.mean == pytest.approx(0.75)
    assert found.standard_error == pytest.approx(0.375)
    assert found.between_problems == pytest.approx(math.sqrt(0.5))


def test_equal_weights_of_any_size_change_nothing():
    scores = [[0.2, 0.4], [1.0, 0.0], [0.5, 0.5], [0.0, 0.1]]
    plain, weighted = estimate_mean(scores), estimate_mean(scores, [7.0] * 4)
    assert weighted.mean == pytest.approx(plain.mean)
    assert weighted.standard_error == pytest.approx(plain.standard_error)


def test_what_one_problem_or_one_sample_cannot_tell_is_none():
    found = estimate_mean([[1, 0]])
    assert (found.standard_error, found.between_problems) == (None, None)
    assert found.within_problem == pytest.approx(math.sqrt(0.5))
    assert estimate_mean([[1], [0]]).within_problem is None


@pytest.mark.parametrize("scores", [[], [[1], []]])
def test_nothing_has_no_mean(scores):
    with pytest.raises(ValueError, match="at least one problem, and of each problem at least one sample"):
        estimate_mean(scores)
