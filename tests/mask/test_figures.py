import dataclasses
import math

import numpy as np
import pytest

from profit_sft.errors import DataError
from profit_sft.mask.figures import bin_edges, count_figures, logit_bins
from profit_sft.mask.report import make_report
from profit_sft.mask.texts import TokenTexts
from profit_sft.mask.tokens import label_tokens, threshold_grid
from profit_sft.scores.store import ScoreSet

GRID = threshold_grid()
NONE, CORE, STYLE = 0, 1, 2


def figures(*score_sets):
    return count_figures(label_tokens(*score_sets), TokenTexts(score_sets[0].tokenizer()), GRID)


@pytest.fixture
def scores(make_scores, text_example):
    """Two answers, "It is four." and "It is 44", whose tokens are "It", " is", " four", "." and "4"."""
    return make_scores(
        [
            text_example(0, "What?", "It is four.", p=[0.05, 0.1, 0.6, 0.95], kinds=[STYLE, STYLE, CORE, NONE]),
            text_example(1, "Two?", "It is44", p=[0.2, 0.05, 0.3, 0.99], kinds=[STYLE, STYLE, CORE, CORE]),
        ]
    )


def test_every_share_of_a_group_is_its_tokens(scores):
    total = figures(scores).total
    assert (total.count, total.both) == (8, None)
    assert total.mean_p == (pytest.approx((0.05 + 0.1 + 0.6 + 0.95 + 0.2 + 0.05 + 0.3 + 0.99) / 8),)
    # A token exactly at a threshold is kept on either side, as the objective keeps it.
    for threshold, higher, lower in (
        *((0.0, 8, 0), (0.05, 8, 2), (0.1, 6, 3), (0.11, 5, 3), (0.5, 3, 5), (0.99, 1, 8), (1.0, 0, 8)),
    ):
        at = GRID.index(threshold)
        assert (total.kept(at, "higher"), total.kept(at, "lower")) == (higher, lower)
        assert total.kept(at, "middle", upper=GRID.index(0.99)) == higher
    assert total.kept(GRID.index(0.1), "middle", upper=GRID.index(0.3)) == 3


def test_groups_by_kind_sort_and_place(scores):
    found = figures(scores)
    at = GRID.index(0.1)
    assert [(group.kind, group.count, group.kept(at, "higher")) for group in found.by_kind] == [
        ("none", 1, 1),
        ("core", 3, 3),
        ("style", 4, 2),
    ]
    assert {(group.sort, group.kind): group.count for group in found.by_sort} == {
        ("word start", "style"): 4,
        ("word start", "core"): 1,
        ("punctuation", "none"): 1,
        ("number", "core"): 2,
    }
    assert [(group.label, group.count, group.kept(at, "higher")) for group in found.by_position] == [
        ("1", 2, 1),
        ("2", 2, 1),
        ("3-4", 4, 4),
    ]
    assert [group.mean_p[0] for group in found.by_position] == pytest.approx([0.125, 0.075, 2.84 / 4])


def test_tokens_and_words_are_counted_by_text_sort_and_kind(scores):
    found = figures(scores)
    at = GRID.index(0.1)
    tokens = {group.label: (group.sort, group.kind, group.count, group.kept(at, "higher")) for group in found.tokens}
    assert tokens == {
        "It": ("word start", "style", 2, 1),
        " is": ("word start", "style", 2, 1),
        " four": ("word start", "core", 1, 1),
        ".": ("punctuation", "none", 1, 1),
        "4": ("number", "core", 2, 2),
    }
    words = {group.label: (group.sort, group.count) for group in found.words}
    assert words == {"It": ("word", 2), "is": ("word", 2), "four": ("word", 1), "44": ("number", 2)}


def test_histogram_counts_every_token_once(scores):
    found = figures(scores)
    assert found.histogram.shape == (1, 3, len(found.histogram_edges) - 1)
    assert found.histogram.sum(axis=(0, 2)).tolist() == [1, 3, 4]
    place = np.searchsorted(found.histogram_edges, 0.6) - 1
    assert found.histogram[0, CORE, place] == 1
    assert found.density is None


def test_without_kinds_there_is_one_kind(make_scores, text_example):
    found = figures(make_scores([text_example(0, "a", "It is", p=[0.2, 0.3])]))
    assert found.by_kind == ()
    assert {group.kind for group in (*found.by_sort, *found.tokens)} == {""}
    assert found.histogram.shape[1] == 1


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_movement_is_that_of_each_token(make_scores, text_example, direction):
    before, after = (
        make_scores([text_example(number, "ab", "two plus two? It is four." * 3, seed=seed) for number in range(9)])
        for seed in (1, 2)
    )
    total = figures(before, after).total
    first, second = before.column("log_probs"), after.column("log_probs")
    for threshold in (0.001, 0.1, 0.5, 0.97):
        kept = [(values >= np.float32(np.log(threshold))) == (direction == "higher") for values in (first, second)]
        assert total.moved(GRID.index(threshold), direction) == {
            "kept_kept": (kept[0] & kept[1]).sum(),
            "kept_masked": (kept[0] & ~kept[1]).sum(),
            "masked_kept": (~kept[0] & kept[1]).sum(),
            "masked_masked": (~kept[0] & ~kept[1]).sum(),
        }
    density = figures(before, after).density
    assert density.sum() == len(first)
    # Rows are the first model's bins: their sums do not depend on the second's.
    np.testing.assert_array_equal(density.sum(axis=1), figures(before, before).density.sum(axis=1))


def test_one_model_has_not_moved(scores):
    with pytest.raises(ValueError, match="there is one model, so nothing has moved"):
        figures(scores).total.moved(0, "higher")


def test_tables_list_the_most_masked_of_every_sort_however_many_there_are(make_scores, text_example):
    # 60 different numbers masked once; a word masked 40 times must not be crowded out, nor crowd them out.
    examples = [text_example(0, "a", " is" * 40, p=[0.01] * 40)]
    letters = "".join(chr(code) for code in range(33, 127) if not chr(code).isalnum())
    examples.append(text_example(1, "a", letters, p=np.linspace(0.001, 0.09, len(letters))))
    listed = figures(make_scores(examples)).tokens
    assert [group.count for group in listed if group.label == " is"] == [40]
    assert sum(group.sort == "punctuation" for group in listed) == 30


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("fingerprint", "other", "other tokens or labels of as many rows"),
        ("tokenizer_fingerprint", "other", "another tokenizer or chat template"),
    ],
)
def test_other_data_is_not_compared(scores, field, value, told):
    data = {**scores.manifest.data, field: value}
    other = ScoreSet(scores.folder, dataclasses.replace(scores.manifest, data=data))
    with pytest.raises(DataError, match=f"are not scores of the same data: {told}. Score the same rows"):
        label_tokens(scores, other)
    with pytest.raises(DataError, match="are not scores of the same data"):
        make_report([scores, other])


def test_a_token_falls_into_the_bin_whose_edges_hold_its_probability():
    edges = bin_edges(8)
    assert edges == pytest.approx(
        [0, 1 / (1 + math.exp(7.5)), *(1 / (1 + math.exp(-x)) for x in (-5, -2.5, 0, 2.5, 5, 7.5)), 1]
    )
    p = np.array([0.0, 1e-9, 0.01, 0.3, 0.501, 0.6, 0.95, 0.9999, 1.0])
    with np.errstate(divide="ignore"):
        found = logit_bins(np.log(p), 8)
    assert found.tolist() == [0, 0, 2, 3, 4, 4, 5, 7, 7]


def test_log_p_that_rounding_put_above_zero_is_in_the_last_bin(make_scores, text_example):
    example = text_example(0, "a", "It is", p=[0.5, 1.0])
    example.log_probs[1] = 1e-7
    found = figures(make_scores([example]))
    assert found.histogram.sum() == 2
    assert found.histogram[0, 0, -1] == 1
