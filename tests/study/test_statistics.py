"""Intervals and p-values against hand-computed values, scipy, and simulations of what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from profit_sft.study.statistics import (
    RESAMPLES,
    difference_interval,
    holm,
    mean_interval,
    paired_comparison,
    problem_shares,
    sign_flip_p_value,
    strata_of,
)


def drawn(rate_first, rate_second, problems, *, seed, shared=0.5):
    """Right or wrong answers of two models; with chance `shared` a problem is as hard for both."""
    generator = np.random.default_rng(seed)
    easy = generator.random(problems)
    own = generator.random((2, problems))
    draw = np.where(generator.random(problems) < shared, easy, own)
    return (draw[0] < rate_first).astype(float), (draw[1] < rate_second).astype(float)


def test_six_problems_by_hand():
    # Differences 1, 1, 1, 1, 0, -1: of 32 sign patterns 12 sum to 3 or more in size.
    found = paired_comparison([1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1])
    assert (found.better, found.worse, found.num_problems) == (4, 1, 6)
    assert found.difference == pytest.approx(0.5)
    assert found.p_value == pytest.approx(12 / 32)


def test_the_exact_sign_flip_test_is_mcnemars_for_right_and_wrong():
    first, second = drawn(0.8, 0.4, 24, seed=1)
    found = paired_comparison(first, second)
    assert found.better + found.worse <= 13, "the exact branch"
    assert found.p_value == pytest.approx(stats.binomtest(found.better, found.better + found.worse).pvalue)


def test_many_problems_agree_with_the_exact_distribution():
    first, second = drawn(0.62, 0.5, 300, seed=2)
    found = paired_comparison(first, second)
    exact = stats.binomtest(found.better, found.better + found.worse).pvalue
    assert 0.001 < exact < 0.2
    assert found.p_value == pytest.approx(exact, abs=5 * math.sqrt(exact / RESAMPLES))


def test_shares_of_samples_agree_with_scipys_permutation_test():
    generator = np.random.default_rng(3)
    first, second = generator.integers(0, 9, size=(2, 60)) / 8
    expected = stats.permutation_test(
        (first, second),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(4),
    ).pvalue
    assert paired_comparison(first, second).p_value == pytest.approx(expected, abs=0.02)


def test_in_the_middle_the_interval_is_about_that_of_a_bootstrap():
    first, second = drawn(0.6, 0.5, 400, seed=5)
    found = paired_comparison(first, second)
    expected = stats.bootstrap(
        (first - second,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(6)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)


def test_two_that_never_answer_right_may_still_differ():
    low, high = difference_interval(np.zeros(20), np.zeros(20))
    # Newcombe's method 10 of 0 of 20 against 0 of 20, with exact intervals up to 16.8% of each.
    assert (low, high) == pytest.approx((-0.168, 0.168), abs=1e-3)


def test_tasks_weigh_alike_whatever_their_size():
    first = [1.0] * 10 + [0.0] * 1000
    found = paired_comparison(first, [0.0] * 1010, strata=["small"] * 10 + ["large"] * 1000)
    assert found.difference == pytest.approx(0.5)
    assert 0.25 < found.low < 0.5 < found.high < 0.51, "the ten problems decide how sure it is"
    assert problem_shares(strata_of(["a", "b", "b", "a", "a"], 5)) == pytest.approx([1 / 6, 1 / 4, 1 / 4, 1 / 6, 1 / 6])


def test_the_interval_of_an_average_leaves_out_how_tasks_differ():
    generator = np.random.default_rng(7)
    scores = (generator.random(200) < np.repeat([0.2, 0.8], 100)).astype(float)
    low, high = mean_interval(scores, strata=["a"] * 100 + ["b"] * 100)
    spread = math.sqrt(scores[:100].var() / 100 + scores[100:].var() / 100) / 2
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_the_same_numbers_give_the_same_result():
    first, second = drawn(0.55, 0.5, 200, seed=8)
    assert paired_comparison(first, second) == paired_comparison(first, second)
    assert paired_comparison(first, second, seed=1) != paired_comparison(first, second)


def test_two_that_answer_alike_have_a_p_value_of_one():
    found = paired_comparison([0, 1, 0.5], [0, 1, 0.5])
    assert (found.p_value, found.better, found.worse) == (1.0, 0, 0)
    assert found.low < 0 < found.high


def test_a_single_problem_that_differs_shows_nothing():
    assert paired_comparison([0, 1, 1], [0, 1, 0]).p_value == paired_comparison([1], [0]).p_value == 1.0


def test_rounding_does_not_break_a_tie():
    # 0.1 + 0.2 is not 0.3; the pattern and its mirror image still count as equally large.
    values = np.array([0.1, 0.2, -0.3, 0.3])
    expected = np.mean([abs(a * 0.1 + b * 0.2 - c * 0.3 + d * 0.3) >= 0.3 - 1e-9 for a, b, c, d in _patterns(4)])
    assert sign_flip_p_value(values) == expected


def _patterns(count):
    return [[1 - 2 * (number >> bit & 1) for bit in range(count)] for number in range(2**count)]


@pytest.mark.parametrize("bad", [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [0.0])], ids=["none", "lengths", "nan"])
def test_unusable_accuracies_are_refused(bad):
    with pytest.raises(ValueError, match="two lists of accuracies over the same problems are needed"):
        paired_comparison(*bad)


def test_holm_by_hand_and_by_its_bounds():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    # Step-down never adjusts below Bonferroni's first step nor above Bonferroni.
    p_values = list(np.random.default_rng(9).random(20) ** 3)
    adjusted = holm(p_values)
    assert adjusted[int(np.argmin(p_values))] == pytest.approx(20 * min(p_values))
    assert all(low <= high <= min(1.0, 20 * low) + 1e-12 for low, high in zip(p_values, adjusted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("problems", [20, 200])
@pytest.mark.parametrize("runs", [1, 8])
def test_the_interval_of_a_difference_covers_the_truth_near_the_ends_too(runs, problems):
    generator = np.random.default_rng((runs, problems))
    for rates in ((0.01, 0.03), (0.1, 0.05), (0.5, 0.6), (0.95, 0.9)):
        for spread in (0.0, 1.5):  # of the problems' difficulty, in probits
            covered = 0
            for _ in range(400):
                difficulty = generator.normal(0, spread, problems)
                first, second = (
                    generator.binomial(runs, stats.norm.cdf(stats.norm.ppf(rate) * math.hypot(1, spread) + difficulty))
                    / runs
                    for rate in rates
                )
                low, high = difference_interval(first, second)
                covered += low <= rates[0] - rates[1] <= high
            # A standard error is 1.1 points; of 3,000 draws it is 94.8% at least.
            assert covered / 400 >= 0.92, (rates, spread)


def test_false_findings_among_eight_comparisons_stay_near_five_percent():
    found = 0
    for seed in range(250):
        generator = np.random.default_rng(seed)
        hardness = generator.random(100)
        scores = (generator.random((9, 100)) < hardness).astype(float)  # nine models, none better than another
        p_values = [sign_flip_p_value(scores[index] - scores[0], seed=seed, resamples=1000) for index in range(1, 9)]
        found += min(holm(p_values)) < 0.05
    # A share of 250 at 5% has a standard error of 1.4 points.
    assert found / 250 <= 0.05 + 3 * 0.014


def test_a_real_difference_is_found():
    found = paired_comparison(*drawn(0.75, 0.5, 200, seed=10))
    assert found.low > 0
    assert found.p_value < 0.001
