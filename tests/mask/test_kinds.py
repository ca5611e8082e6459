"""Core against style tokens: by hand, against scipy, and where there is little or nothing to compare."""

import numpy as np
import pytest
from scipy import stats

from made_scores import made_example, made_tokens, write_scores
from profit_sft.errors import DataError
from profit_sft.mask.kinds import HISTOGRAM_BINS, compare_kinds, compare_scores, describe

CORE, STYLE, NONE = 1, 2, 0


def tokens(p, kinds, examples=None):
    places = np.zeros(len(p), np.int64) if examples is None else np.array(examples)
    return made_tokens(np.log(p), places, kinds)


def drawn(examples=60, *, shift=1.0, spread=0.0, seed=0):
    """Examples of 4 core and 6 style tokens and an end token; `spread` makes whole examples easy or hard."""
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(examples), 11)
    kinds = np.tile([CORE] * 4 + [STYLE] * 6 + [NONE], examples)
    easiness = np.repeat(random.normal(0, spread, examples), 11)
    log_odds = random.normal(0, 1, names.size) + easiness + shift * (kinds == CORE)
    return made_tokens(-np.log1p(np.exp(-log_odds)), names, kinds)


def test_a_case_small_enough_to_count_by_hand():
    found = compare_kinds(
        tokens([0.9, 0.5, 0.5, 0.1, 0.04], [CORE, CORE, STYLE, STYLE, NONE]), thresholds=[0.05, 0.2, 0.6]
    )
    assert found.u == 3.5  # 0.9 beats both, 0.5 beats 0.1 and ties with 0.5
    assert found.auc == 0.875
    assert found.rank_biserial == 0.75
    assert (found.core.tokens, found.style.tokens) == (2, 2)
    assert found.core.mean_p == pytest.approx(0.7)
    assert found.style.median_p == pytest.approx(0.3)
    assert found.core.mean_log_prob == pytest.approx(np.log([0.9, 0.5]).mean())
    core, style = np.log([0.9, 0.5]), np.log([0.5, 0.1])
    assert found.cohens_d == pytest.approx(
        (core.mean() - style.mean()) / np.sqrt((core.var(ddof=1) + style.var(ddof=1)) / 2)
    )
    assert [(row.threshold, row.core_kept_share, row.style_kept_share) for row in found.kept] == [
        (0.05, 1.0, 1.0),
        (0.2, 1.0, 0.5),
        (0.6, 0.5, 0.0),
    ]
    assert found.auc_interval is None
    assert found.within_examples.mean_auc == 0.875


@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.0])
def test_u_p_value_and_auc_are_scipys(shift):
    data = drawn(shift=shift)
    found = compare_kinds(data)
    core, style = (data.log_probs[0, data.token_kinds == kind] for kind in (CORE, STYLE))
    wanted = stats.mannwhitneyu(core, style)
    assert found.u == wanted.statistic
    assert found.p_value == wanted.pvalue
    pairs = (core[:, None] > style).mean() + 0.5 * (core[:, None] == style).mean()
    assert found.auc == pytest.approx(pairs, abs=1e-12)


def test_the_interval_is_that_of_scipys_bootstrap_over_examples():
    data = drawn(40, spread=1.0)
    grid = data.log_probs.reshape(40, 11)

    def auc(examples):
        core, style = grid[examples, :4].ravel(), grid[examples, 4:10].ravel()
        return stats.mannwhitneyu(core, style).statistic / (core.size * style.size)

    options = {"n_resamples": 2000, "vectorized": False, "method": "percentile"}
    wanted = stats.bootstrap((np.arange(40),), auc, **options, rng=np.random.default_rng(5)).confidence_interval
    found = compare_kinds(data, resamples=2000)
    assert found.auc_interval == pytest.approx(tuple(wanted), abs=0.01)
    assert found.resamples == 2000
    assert found.auc_interval[0] < found.auc < found.auc_interval[1]


def test_the_interval_is_repeatable_and_depends_on_the_seed():
    data = drawn()
    assert compare_kinds(data, seed=3).auc_interval == compare_kinds(data, seed=3).auc_interval
    assert compare_kinds(data, seed=3).auc_interval != compare_kinds(data, seed=4).auc_interval


def test_copies_of_a_token_within_its_example_do_not_narrow_the_interval():
    data = drawn(30)
    copies = made_tokens(*(np.repeat(values, 5) for values in (data.log_probs[0], data.examples, data.token_kinds)))
    once, five_times = compare_kinds(data), compare_kinds(copies)
    assert five_times.auc == pytest.approx(once.auc)
    assert five_times.auc_interval == pytest.approx(once.auc_interval)
    assert five_times.p_value < once.p_value**2  # which takes tokens for independent


def test_resamples_without_one_of_the_kinds_are_left_out():
    examples = np.repeat(np.arange(12), 2)
    kinds = [CORE, CORE] + [STYLE] * 22  # a draw without example 0 has no core token
    found = compare_kinds(tokens(np.linspace(0.9, 0.1, 24), kinds, examples), resamples=200)
    assert 100 < found.resamples < 160  # 1 - (11/12)^12 = 65%
    assert found.auc_interval == (1.0, 1.0)
    assert found.within_examples is None


def test_within_examples_their_easiness_does_not_count():
    data = drawn(200, shift=1.0, spread=5.0)
    found = compare_kinds(data)
    core, style = (data.log_probs.reshape(200, 11)[:, part] for part in (slice(0, 4), slice(4, 10)))
    aucs = [stats.mannwhitneyu(*pair).statistic / 24 for pair in zip(core, style, strict=True)]
    assert found.within_examples.examples == 200
    assert found.within_examples.mean_auc == pytest.approx(np.mean(aucs))
    assert found.within_examples.above_half_share == np.mean(np.array(aucs) > 0.5)
    assert found.within_examples.p_value == pytest.approx(stats.wilcoxon(np.array(aucs) - 0.5).pvalue)
    assert found.within_examples.mean_auc > found.auc + 0.1


def test_examples_need_not_be_next_to_each_other_nor_in_order():
    data = drawn(20)
    order = np.random.default_rng(1).permutation(data.examples.size)
    mixed = made_tokens(data.log_probs[0, order], data.examples[order], data.token_kinds[order])
    found, wanted = compare_kinds(mixed), compare_kinds(data)
    assert found.auc_interval == wanted.auc_interval
    assert found.within_examples.mean_auc == pytest.approx(wanted.within_examples.mean_auc)


def test_the_histogram_counts_every_token_once_and_one_is_in_the_last_bin():
    found = compare_kinds(tokens([1.0, 0.97, 0.5, 0.024, 0.026, 0.999], [CORE, CORE, CORE, STYLE, STYLE, STYLE]))
    assert len(found.core.histogram) == HISTOGRAM_BINS == 20
    assert found.core.histogram[19] == 2
    assert found.core.histogram[10] == 1
    assert found.style.histogram == (2, *[0] * 18, 1)


def test_all_equal_is_no_difference():
    found = compare_kinds(tokens([0.5] * 24, [CORE, STYLE] * 12, np.repeat(np.arange(12), 2)))
    assert found.auc == 0.5
    assert found.p_value == 1.0
    assert found.auc_interval == (0.5, 0.5)
    assert found.cohens_d is None
    assert found.within_examples.p_value == 1.0
    assert "neither kind is shown to be likelier" in describe(found)


def test_two_tokens_are_enough_to_say_something():
    found = compare_kinds(tokens([0.9, 0.1], [CORE, STYLE]))
    assert (found.auc, found.cohens_d) == (1.0, None)
    assert "100% of all pairs; 50% would be no difference. With so few examples there is no interval." in describe(
        found
    )


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (1.0, "the likelier ones here, as the paper supposes."),
        (0.5, "as the paper supposes, though the two kinds overlap widely."),
        (-1.0, "the less likely ones here, the opposite"),
    ],
)
def test_the_description_says_which_way_it_came_out(shift, words):
    assert words in describe(compare_kinds(drawn(shift=shift)))


@pytest.mark.parametrize(("only", "missing"), [(CORE, "style"), (STYLE, "core")])
def test_one_kind_alone_is_refused_by_name(only, missing):
    with pytest.raises(DataError, match=f"no label token is of kind '{missing}'.*Mark both kinds in 'answer_spans'"):
        compare_kinds(tokens([0.5, 0.2], [only, NONE]))


def test_scores_without_kinds_are_refused_with_the_fix(tmp_path):
    scores = write_scores(tmp_path, [made_example(0, [-1.0, -2.0])])
    with pytest.raises(DataError, match="Add a column 'answer_spans' and score again"):
        compare_scores(scores)


def test_scores_with_kinds_are_compared(tmp_path):
    examples = [made_example(number, [-0.1, -3.0], kinds=[CORE, STYLE]) for number in range(11)]
    found = compare_scores(write_scores(tmp_path, examples), thresholds=[0.5], resamples=10)
    assert (found.auc, found.auc_interval, found.resamples) == (1.0, (1.0, 1.0), 10)
    assert [row.threshold for row in found.kept] == [0.5]
