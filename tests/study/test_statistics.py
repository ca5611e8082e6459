"""Intervals, p-values and verdicts against hand-computed values, scipy, and simulations of what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from profit_sft.study import statistics
from profit_sft.study.statistics import (
    PairedComparison,
    SeedSpread,
    bootstrap_interval,
    holm,
    paired_comparison,
    seed_spread,
    sign_flip_p_value,
    student_t_quantile,
    verdict,
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
    assert found.p_value == pytest.approx(exact, abs=5 * math.sqrt(exact / statistics.RESAMPLES))


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


def test_the_interval_agrees_with_scipys_bootstrap():
    first, second = drawn(0.6, 0.5, 120, seed=5)
    found = paired_comparison(first, second)
    expected = stats.bootstrap(
        (first - second,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(6)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)


def test_tasks_weigh_alike_whatever_their_size():
    first = [1.0] * 10 + [0.0] * 1000
    found = paired_comparison(first, [0.0] * 1010, strata=["small"] * 10 + ["large"] * 1000)
    assert found.difference == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


def test_resampling_stays_within_a_task():
    generator = np.random.default_rng(7)
    scores = np.concatenate([generator.random(40), 10 + generator.random(40)])
    low, high = bootstrap_interval(scores, strata=["a"] * 40 + ["b"] * 40)
    spread = math.sqrt(scores[:40].var() / 40 + scores[40:].var() / 40) / 2
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_the_same_numbers_give_the_same_result():
    first, second = drawn(0.6, 0.5, 200, seed=8)
    assert paired_comparison(first, second) == paired_comparison(first, second)
    assert paired_comparison(first, second, seed=1) != paired_comparison(first, second)


def test_two_that_answer_alike_have_a_p_value_of_one():
    found = paired_comparison([0, 1, 0.5], [0, 1, 0.5])
    assert (found.p_value, found.low, found.high) == (1.0, 0.0, 0.0)


def test_rounding_does_not_break_a_tie():
    # 0.1 + 0.2 is not 0.3; the pattern and its mirror image still count as equally large.
    values = np.array([0.1, 0.2, -0.3, 0.3])
    expected = np.mean([abs(a * 0.1 + b * 0.2 - c * 0.3 + d * 0.3) >= 0.3 - 1e-9 for a, b, c, d in _patterns(4)])
    assert sign_flip_p_value(values, np.random.default_rng(0)) == expected


def _patterns(count):
    return [[1 - 2 * (number >> bit & 1) for bit in range(count)] for number in range(2**count)]


@pytest.mark.parametrize("bad", [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [0.0])], ids=["none", "lengths", "nan"])
def test_unusable_scores_are_refused(bad):
    with pytest.raises(ValueError, match="two score lists over the same problems are needed"):
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


@pytest.mark.parametrize("freedom", [1, 2, 2.7, 4, 30])
@pytest.mark.parametrize("probability", [0.9, 0.975, 0.999])
def test_student_t_quantiles(freedom, probability):
    assert student_t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-5)


def test_the_seed_interval_is_welchs():
    first, second = [0.60, 0.52, 0.58], [0.41, 0.50, 0.44]
    found = seed_spread(first, second)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-5)
    assert seed_spread([0.5], second).low is None
    against_fixed = seed_spread(first, 0.41)
    expected = stats.ttest_1samp(first, 0.41).confidence_interval()
    assert (against_fixed.low + 0.41, against_fixed.high + 0.41) == pytest.approx(
        (expected.low, expected.high), rel=1e-5
    )
    equal = seed_spread([0.5, 0.5], [0.25, 0.25])
    assert (equal.low, equal.high) == (0.25, 0.25)


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    covered = 0
    for seed in range(400):
        found = paired_comparison(*drawn(0.6, 0.45, 100, seed=seed), seed=seed)
        covered += found.low <= 0.15 <= found.high
    # Three standard errors of a share of 400 at 95% are 3.3 points; percentile intervals run a little narrow.
    assert 0.915 <= covered / 400 <= 0.985


def test_false_findings_among_eight_comparisons_stay_near_five_percent(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    found = 0
    for seed in range(250):
        generator = np.random.default_rng(seed)
        hardness = generator.random(100)
        scores = (generator.random((9, 100)) < hardness).astype(float)  # nine models, none better than another
        p_values = [paired_comparison(scores[index], scores[0], seed=seed).p_value for index in range(1, 9)]
        found += min(holm(p_values)) < 0.05
    # A share of 250 at 5% has a standard error of 1.4 points.
    assert found / 250 <= 0.05 + 3 * 0.014


def test_a_real_difference_is_found():
    found = paired_comparison(*drawn(0.75, 0.5, 200, seed=10))
    assert found.low > 0
    assert found.p_value < 0.001


def comparison(difference, *, better=30, worse=10):
    return PairedComparison(
        difference=difference, low=0.0, high=1.0, p_value=0.01, better=better, worse=worse, num_problems=100
    )


def spread(low, high):
    return SeedSpread(first_seeds=3, second_seeds=3, low=low, high=high)


@pytest.mark.parametrize(
    ("difference", "adjusted_p", "seeds", "words"),
    [
        (0.2, 0.05, spread(0.1, 0.3), "no difference shown between a and b"),
        (0.2, 0.01, spread(0.1, 0.3), "a is better than b"),
        (-0.2, 0.01, spread(-0.3, -0.1), "a is worse than b"),
        (0.2, 0.01, spread(-0.1, 0.5), "these models of a are better than those of b, but seeds differ too much"),
        (-0.2, 0.01, spread(None, None), "these models of a are worse than those of b; with one seed of either"),
    ],
)
def test_the_verdict_says_no_more_than_is_shown(difference, adjusted_p, seeds, words):
    assert verdict(comparison(difference), adjusted_p, seeds, first="a", second="b").startswith(words)


def test_the_verdict_on_two_that_answer_alike_says_so():
    text = verdict(comparison(0.0, better=0, worse=0), 1.0, spread(0, 0), first="a", second="b")
    assert text == "no difference shown: a and b scored the same on each of 100 problems"
