"""The mean over problems, against values computed by hand, and its interval, against scipy's and its promise."""

import math
from functools import cache

import numpy as np
import pytest
from scipy import stats

from profit_sft.evaluation.statistics import average_interval, estimate_mean, share_interval


def test_problems_are_the_units_not_samples():
    found = estimate_mean([[1, 0], [1, 1], [0, 0]])
    # Means of the problems: 1/2, 1, 0; their standard deviation is 1/2.
    assert found.mean == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(0.5 / math.sqrt(3))


def test_more_samples_of_the_same_problems_do_not_make_the_mean_surer():
    once, often = estimate_mean([[1], [0]]), estimate_mean([[1] * 8, [0] * 8])
    assert once.standard_error == often.standard_error == pytest.approx(0.5)


def test_weighted_mean_has_the_standard_error_of_a_ratio():
    # (1 * 0 + 3 * 1) / 4; squares (1 * 0.75)^2 + (3 * 0.25)^2 = 1.125, times 2 / 1, root 1.5, over 4.
    found = estimate_mean([[0, 0], [1, 1]], [1, 3])
    assert found.mean == pytest.approx(0.75)
    assert found.standard_error == pytest.approx(0.375)


def test_equal_weights_of_any_size_change_nothing():
    scores = [[0.2, 0.4], [1.0, 0.0], [0.5, 0.5], [0.0, 0.1]]
    plain, weighted = estimate_mean(scores), estimate_mean(scores, [7.0] * 4)
    assert weighted.mean == pytest.approx(plain.mean)
    assert weighted.standard_error == pytest.approx(plain.standard_error)


def test_one_problem_does_not_tell_how_sure_it_is():
    assert estimate_mean([[1, 0]]).standard_error is None


@pytest.mark.parametrize("scores", [[], [[1], []]])
def test_nothing_has_no_mean(scores):
    with pytest.raises(ValueError, match="at least one problem, and of each problem at least one sample"):
        estimate_mean(scores)


@pytest.mark.parametrize("right", [0, 1, 7, 19, 20])
def test_with_one_sample_a_problem_the_interval_is_clopper_and_pearsons(right):
    found = estimate_mean([[1.0]] * right + [[0.0]] * (20 - right))
    expected = stats.binomtest(right, 20).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_samples_that_always_agree_count_as_one():
    assert share_interval([1.0] * 5 + [0.0] * 15) == pytest.approx(share_interval([1.0, 0.0, 0.0, 0.0] * 5))
    once, often = estimate_mean([[1]] * 5 + [[0]] * 15), estimate_mean([[1] * 8] * 5 + [[0] * 8] * 15)
    assert (once.low, once.high) == (often.low, often.high)


def test_samples_that_disagree_make_the_interval_narrower():
    low, high = share_interval([0.5] * 20)
    assert high - low < 0.25 < 0.4 < np.diff(share_interval([1.0, 0.0] * 10))


def test_weights_count_as_repeated_problems_only_as_far_as_they_are_equal():
    assert share_interval([0.0, 1.0, 0.5], [3.0, 3.0, 3.0]) == pytest.approx(share_interval([0.0, 1.0, 0.5]))
    # One problem of weight 9 and one of weight 1 are as good as 100 / 82 problems.
    low, high = share_interval([0.0, 0.0], [9.0, 1.0])
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (82 / 100)))


def test_rounding_of_a_mean_does_not_keep_it_from_the_end():
    assert share_interval([1.0] * 49, [0.1] * 49)[1] == 1.0
    assert share_interval([1.0])[1] == 1.0


def drawn_means(generator, *, p, problems, samples, likeness):
    """Means of the samples of problems whose samples correlate by `likeness` (intraclass correlation)."""
    if likeness == 0:
        rates = np.full(problems, p)
    elif likeness == 1:
        rates = (generator.random(problems) < p).astype(float)
    else:
        rates = generator.beta(p * (1 / likeness - 1), (1 - p) * (1 / likeness - 1), size=problems)
    return generator.binomial(samples, rates) / samples


@cache
def interval_of(means):
    return share_interval(means)


def interval(means):
    """Near the ends most draws are a few counts, in another order: each is computed once."""
    return interval_of(tuple(np.sort(means).tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("problems", [20, 30, 200])
@pytest.mark.parametrize("samples", [1, 8])
def test_the_interval_covers_the_truth_near_its_ends_too(samples, problems):
    generator = np.random.default_rng((samples, problems))
    draws = 2000
    for p in (0.01, 0.03, 0.1, 0.5, 0.9, 0.99):
        for likeness in (1.0,) if samples == 1 else (0.0, 0.3, 0.6, 1.0):
            covered = 0
            for _ in range(draws):
                low, high = interval(drawn_means(generator, p=p, problems=problems, samples=samples, likeness=likeness))
                covered += low <= p <= high
            # The worst of these covers 95%, of a finer grid 94.3% (6,000 draws each); a standard error is 0.5 points.
            assert covered / draws >= 0.93, (p, likeness)


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.01, 0.01, 0.01), (0.03, 0.1, 0.5), (0.01, 0.5, 0.99)])
def test_the_interval_of_an_average_of_tasks_covers_the_truth(rates):
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        tasks = [
            drawn_means(generator, p=p, problems=problems, samples=8, likeness=0.4)
            for p, problems in zip(rates, (200, 30, 200), strict=True)
        ]
        low, high = average_interval([task.mean() for task in tasks], [share_interval(task) for task in tasks])
        covered += low <= np.mean(rates) <= high
    assert covered / 1000 >= 0.93


def test_the_average_of_one_figure_has_its_interval():
    assert average_interval([0.4], [(0.3, 0.6)]) == pytest.approx((0.3, 0.6))
