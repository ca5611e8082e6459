"""The comparison over seeds against scipy and by hand, and the promise of the verdict by simulation."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from profit_sft.study.seeds import SeedVariance, pooled_seed_variance, seed_comparison

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from verdicts import Design, draw_study, false_verdict_share, found, shown_of_methods

MEANS = [{0: 0.60, 1: 0.52, 2: 0.58}, {0: 0.41, 1: 0.50, 2: 0.44}]


def runs_of(means, problems=400):
    """Runs with these means whose problems add nothing of their own: all score alike."""
    return {seed: np.full(problems, mean) for seed, mean in means.items()}


def test_two_variants_that_ran_the_same_seeds_are_a_paired_t_test():
    pooled = pooled_seed_variance(MEANS)
    assert (pooled.paired_freedom, pooled.unpaired_freedom) == (2, 4)
    found = seed_comparison(*map(runs_of, MEANS), pooled)
    expected = stats.ttest_rel(*(list(means.values()) for means in MEANS))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.first_seeds, found.second_seeds, found.paired, found.freedom) == (3, 3, True, pytest.approx(2))


def test_two_that_did_not_are_students_t_test():
    first, second = MEANS[0], {seed + 10: mean for seed, mean in MEANS[1].items()}
    found = seed_comparison(runs_of(first), runs_of(second), pooled_seed_variance([first, second]))
    expected = stats.ttest_ind(list(first.values()), list(second.values()))
    assert (found.p_value, found.freedom) == (pytest.approx(expected.pvalue), pytest.approx(4))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert not found.paired


def test_the_untrained_model_is_the_same_every_time():
    pooled = pooled_seed_variance(MEANS[:1])
    found = seed_comparison({None: np.full(400, 0.41)}, runs_of(MEANS[0]), pooled)
    expected = stats.ttest_1samp(list(MEANS[0].values()), 0.41)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.first_seeds, found.second_seeds) == (1, 3)


def test_the_variance_is_that_of_all_variants():
    # Residuals of the seeds about each variant's mean, then less the mean residual of each seed.
    table = np.array([[0.60, 0.52, 0.58], [0.41, 0.50, 0.44], [0.30, 0.35, 0.25]])
    pooled = pooled_seed_variance([dict(enumerate(row)) for row in table])
    within = table - table.mean(axis=1, keepdims=True)
    assert pooled.unpaired == pytest.approx((within**2).sum() / 6)
    assert pooled.paired == pytest.approx(((within - within.mean(axis=0)) ** 2).sum() / 4)
    assert (pooled.paired_freedom, pooled.unpaired_freedom) == (4, 6)


def test_variants_may_have_run_different_seeds():
    pooled = pooled_seed_variance([{0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.5}, {0: 0.3}])
    assert (pooled.paired_freedom, pooled.unpaired_freedom) == (1, 3)
    assert pooled.paired == pytest.approx(0, abs=1e-12)
    disjoint = pooled_seed_variance([{0: 0.5, 1: 0.6}, {2: 0.4, 3: 0.6}])
    assert (disjoint.paired, disjoint.unpaired_freedom) == (None, 2)


def test_variants_without_room_to_vary_do_not_make_the_others_look_steady():
    at_the_floor = [{0: 0.0, 1: 0.0025, 2: 0.0}] * 8
    assert pooled_seed_variance([*MEANS, *at_the_floor]) == pooled_seed_variance(MEANS)
    alone = pooled_seed_variance([MEANS[0], *at_the_floor])
    assert alone.unpaired_freedom == 18, "with one left there is no pool, so all are in it"


@pytest.mark.parametrize(
    ("first", "second"),
    [({0: 0.5}, {0: 0.4, 1: 0.3}), ({0: 0.5}, {5: 0.4, 6: 0.3}), ({None: 0.5}, {0: 0.4})],
    ids=["one in common", "a single run", "untrained"],
)
def test_one_seed_says_nothing_of_the_method(first, second):
    found = seed_comparison(runs_of(first), runs_of(second), pooled_seed_variance(MEANS))
    assert (found.low, found.high, found.p_value, found.freedom) == (None, None, None, None)


def test_without_any_variance_there_is_no_division_by_it():
    none = SeedVariance(paired=0.0, paired_freedom=2, unpaired=0.0, unpaired_freedom=4)
    same, other = runs_of({0: 0.5, 1: 0.5}), runs_of({0: 0.25, 1: 0.25})
    assert seed_comparison(same, same, none).p_value == 1.0
    assert seed_comparison(same, other, none).p_value == 0.0


def test_what_seeds_and_problems_both_count_is_taken_off_once():
    # Answers by chance alone: the seeds, the problems and what they share see the same variance.
    widths = []
    for number in range(20):
        generator = np.random.default_rng(number)
        sides = [dict(enumerate((generator.random((40, 300)) < 0.5).astype(float))) for _ in range(2)]
        pooled = pooled_seed_variance([{seed: run.mean() for seed, run in side.items()} for side in sides])
        found = seed_comparison(*sides, pooled)
        widths.append((found.high - found.low) / 2 / (1.96 * np.sqrt(2 * 0.25 / 300 / 40)))
    # At least the larger of two estimates, so a little more than 1; counted twice it would be 1.4.
    assert 1 < np.mean(widths) < 1.2


def test_different_tastes_in_problems_count_against_a_difference():
    generator = np.random.default_rng(4)
    taste = generator.random((2, 50)) < 0.5  # each variant answers a fixed half right, whatever the seed
    sides = [dict.fromkeys(range(3), side.astype(float)) for side in taste]
    pooled = pooled_seed_variance([{seed: run.mean() for seed, run in side.items()} for side in sides])
    found = seed_comparison(*sides, pooled)
    assert pooled.paired == pytest.approx(0, abs=1e-12)
    assert found.high - found.low > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    "design",
    [
        Design(variants=3),
        Design(variants=3, seed_sd=5),
        Design(variants=12, seed_sd=4.6),
        Design(variants=12, seeds=5, problems=100, samples=8, seed_sd=2),
        Design(variants=3, tasks=5, seed_sd=4.6, problems=100),
        Design(variants=12, problems=100, samples=8, seed_sd=4, taste_sd=1),
    ],
    ids=str,
)
def test_where_nothing_differs_a_verdict_is_given_in_five_percent_of_studies_at_most(design):
    # 300 studies: a share of 5% has a standard error of 1.3 points. Welch's interval alone gave 12 to 25% here.
    assert false_verdict_share(design, 300) <= 0.05 + 2.5 * 0.013


@pytest.mark.slow
def test_a_difference_of_ten_points_is_found_with_five_seeds():
    design = Design(seeds=5, seed_sd=2, differences=(10,))
    assert np.mean([shown[0] for shown in found(design, 60)]) > 0.9


def test_the_simulation_draws_what_it_says():
    design = Design(variants=4, seeds=50, problems=200, seed_sd=4.6, differences=(10,))
    study = draw_study(design, np.random.default_rng(0))
    means = study.mean(axis=(2, 3))
    assert means[1].mean() - means[0].mean() == pytest.approx(0.10, abs=0.03)
    # Of 200 answers by chance come about 3 points more.
    assert 0.045 < means.std(axis=1, ddof=1).mean() < 0.065
    assert len(shown_of_methods(study)) == 3
