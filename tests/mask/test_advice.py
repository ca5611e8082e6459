"""The threshold profile against numbers worked out by hand, and the warnings at their limits."""

import re

import numpy as np
import pytest

from made_scores import made_example, write_scores
from profit_sft.mask.advice import (
    EMPTY_EXAMPLES_LIMIT,
    FINAL_ANSWER_LIMIT,
    MASKED_GRADIENT_LIMIT,
    MASKED_SHARE_LIMIT,
    NOTHING_MASKED_LIMIT,
    ThresholdRow,
    advise,
    final_answer_mask,
    loss_cost,
    reading_of,
    warnings_about,
)
from profit_sft.mask.report import make_report
from profit_sft.mask.tokens import THRESHOLDS, label_tokens
from tiny import chat_tokenizer

CORE, STYLE = 1, 2


def logs(*p):
    return [float(np.log(value)) for value in p]


def row(**changes):
    fields = {
        "threshold": 0.1,
        "kept_share": 0.8,
        "kept_gradient_share": 0.5,
        "kept_nll_share": 0.3,
        "empty_examples_share": 0.0,
        "masked_answers_share": None,
        "online_cost": 2.5,
        "reference_cost": 2.4,
    }
    return ThresholdRow(**{**fields, **changes})


@pytest.fixture
def advice(tmp_path):
    examples = [
        made_example(0, logs(0.9, 0.05, 0.6), texts="ab7"),
        made_example(1, logs(0.04, 0.02), texts="12"),
        made_example(2, logs(0.3), texts="8"),
        made_example(3, logs(0.5, 0.8, 0.001, 0.95), texts="x4.5"),
    ]
    return advise(write_scores(tmp_path, examples), threshold=0.25, thresholds=[0.1, 0.7])


def test_totals(advice):
    p = np.array([0.9, 0.05, 0.6, 0.04, 0.02, 0.3, 0.5, 0.8, 0.001, 0.95])
    assert (advice.examples, advice.label_tokens, advice.final_answers) == (4, 10, 4)
    assert (advice.model_name_or_path, advice.dataset_name) == ("models/a", "train.jsonl")
    assert advice.mean_p == pytest.approx(p.mean(), abs=1e-6)
    assert advice.median_p == pytest.approx(0.4, abs=1e-6)
    assert advice.nll == pytest.approx(-np.log(p).mean(), abs=1e-6)
    assert advice.top1_share == 0.4  # `made_example` ranks p > 0.5 first
    assert advice.kinds is None


def test_a_row_of_the_profile_by_hand(advice):
    assert [found.threshold for found in advice.profile] == [0.1, 0.25, 0.7]
    found = advice.profile[1]
    kept, masked = np.array([0.9, 0.6, 0.3, 0.5, 0.8, 0.95]), np.array([0.05, 0.04, 0.02, 0.001])
    # The L1 norm of softmax - onehot, from its definition, with the rest of the probability on two other tokens.
    mass = [np.abs(np.array([p - 1, (1 - p) / 3, 2 * (1 - p) / 3])).sum() for p in (*kept, *masked)]
    assert found.kept_share == 0.6
    assert found.kept_gradient_share == pytest.approx(sum(mass[:6]) / sum(mass), abs=1e-6)
    assert found.kept_nll_share == pytest.approx(np.log(kept).sum() / np.log([*kept, *masked]).sum(), abs=1e-6)
    assert found.empty_examples_share == 0.25
    assert found.masked_answers_share == 0.5  # 12 whole, 4.5 in its point; 7 and 8 are kept
    assert (found.online_cost, found.reference_cost) == loss_cost(0.6)


def test_positions_count_from_the_first_label_token(advice):
    assert [(found.first, found.last, found.tokens) for found in advice.positions] == [(1, 1, 4), (2, 2, 3), (3, 4, 3)]
    assert advice.positions[0].mean_p == pytest.approx(np.mean([0.9, 0.04, 0.3, 0.5]), abs=1e-6)
    assert [found.kept_share for found in advice.positions] == pytest.approx([3 / 4, 1 / 3, 2 / 3])


def test_the_bins_of_positions_are_those_of_the_mask_page(tmp_path):
    scores = write_scores(tmp_path, [made_example(0, [-1.0] * 1100, texts="x" * 1100)])
    places = advise(scores).positions
    assert [found.tokens for found in places] == [1, 1, *(2**power for power in range(1, 10)), 76]
    groups = make_report([scores]).figures.by_position
    assert [(group.label.split("-")[-1], group.count) for group in groups] == [
        (str(found.last), found.tokens) for found in places
    ]


def test_a_model_that_is_sure_of_everything_leaves_no_shares_undefined(tmp_path):
    found = advise(write_scores(tmp_path, [made_example(0, [0.0, 1e-8])]))
    assert {(entry.kept_share, entry.kept_gradient_share, entry.kept_nll_share) for entry in found.profile} == {
        (1.0, 1.0, 1.0)
    }


def test_log_p_that_rounding_put_above_zero_makes_no_negative_share(tmp_path):
    found = advise(write_scores(tmp_path, [made_example(0, [1e-7, -9.0])])).profile[3]
    assert (found.kept_share, found.kept_gradient_share, found.kept_nll_share) == (0.5, 0.0, 0.0)


def test_nothing_kept(tmp_path):
    found = advise(write_scores(tmp_path, [made_example(0, logs(0.001, 0.002))])).profile[-1]
    assert (found.kept_share, found.kept_gradient_share, found.empty_examples_share) == (0.0, 0.0, 1.0)
    assert (found.online_cost, found.reference_cost) == (pytest.approx(0.125 + 0.875 * 0.1), 0.0)


def test_kinds_are_compared_where_the_data_has_both(tmp_path):
    both = [made_example(number, logs(0.9, 0.2), kinds=[CORE, STYLE]) for number in range(4)]
    found = advise(write_scores(tmp_path / "both", both), threshold=0.15)
    assert found.kinds.auc == 1.0
    assert [entry.threshold for entry in found.kinds.kept] == sorted([*THRESHOLDS, 0.15])
    one = [made_example(0, logs(0.9, 0.2), kinds=[CORE, CORE])]
    assert advise(write_scores(tmp_path / "one", one)).kinds is None


def test_a_threshold_that_is_no_probability_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"threshold must be a probability in \[0, 1\], got 10"):
        advise(write_scores(tmp_path, [made_example(0, [-1.0])]), threshold=10)


@pytest.mark.parametrize(
    ("kept_share", "online", "reference"),
    [
        (0.0, 0.125 + 0.875 * 0.1, 0.0),
        (0.5, 0.125 + 0.875 * 0.55 + 1.0, 1.5),
        (0.93, 0.125 + 0.875 * 0.937 + 1.86, 2.79),
        (0.94, 1.0 + 1.88, 2.82),  # the prescreen would save less than 5%
        (1.0, 3.0, 3.0),
    ],
)
def test_the_cost_model_by_hand(kept_share, online, reference):
    assert loss_cost(kept_share) == (pytest.approx(online), pytest.approx(reference))


HIDES_DATA = "hides most of the data: 51% of the label tokens and 50% of the gradient"
CASES = [
    ({}, None),
    ({"kept_share": 1 - MASKED_SHARE_LIMIT}, None),
    ({"kept_share": 0.49}, HIDES_DATA),
    ({"kept_gradient_share": 1 - MASKED_GRADIENT_LIMIT + 1e-9}, None),
    ({"kept_gradient_share": 0.19}, "hides most of the signal: 81% of the gradient mass lies in the 20% of the label"),
    ({"kept_share": 0.49, "kept_gradient_share": 0.19}, "hides most of the data: 51% of the label tokens and 81%"),
    ({"empty_examples_share": EMPTY_EXAMPLES_LIMIT}, None),
    ({"empty_examples_share": 0.06}, "6% of the examples have no kept token"),
    ({"masked_answers_share": FINAL_ANSWER_LIMIT}, None),
    ({"masked_answers_share": 0.26}, "In 26% of the examples part of the final answer is masked"),
    ({"kept_share": 0.99, "kept_gradient_share": 1 - NOTHING_MASKED_LIMIT - 1e-9}, None),
    ({"kept_share": 0.99, "kept_gradient_share": 0.96}, "hides next to nothing: 1.0% of the label tokens and 4.0% of"),
    # Long answers whose numbers are unlikely: that it hides little is no reason for a higher threshold.
    ({"kept_share": 0.99, "kept_gradient_share": 0.96, "masked_answers_share": 0.5}, "In 50% of the examples part"),
    (
        {"kept_share": 0.99, "kept_gradient_share": 0.96, "empty_examples_share": 0.06},
        "6% of the examples have no kept",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_warnings_come_beyond_their_limits_and_name_the_numbers(changes, expected):
    found = list(warnings_about(row(**changes)))
    assert len(found) == (expected is not None)
    if expected is not None:
        assert re.search(expected, found[0])


SHARES = [
    (0.0, ["hides nothing: every label token has p of at least 0.1. This is plain SFT"], "sees every label token, as"),
    (0.005, ["hides next to nothing: 0.5% of the label tokens and 1.6% of the gradient"], "sees over 99% of the label"),
    (
        0.5,
        ["hides most of the signal: 83%"],
        "sees 50% of the label tokens. They carry 17% of the gradient mass",
    ),
    (
        0.995,
        [
            "hides most of the data: over 99% of the label tokens and over 99% of the gradient mass. To most",
            "98% of the examples have no kept token",
        ],
        "sees under 1% of the label tokens. They carry under 1% of the gradient mass and under 1% of the NLL",
    ),
    (1.0, ["hides everything: no label token has p of at least 0.1, so a run would learn nothing"], "no label token."),
]


@pytest.mark.parametrize(("masked_share", "warned", "read"), SHARES)
def test_from_nothing_to_everything_masked_the_advice_is_one(tmp_path, masked_share, warned, read):
    count = 1000
    masked = np.arange(count) < round(masked_share * count)
    p = np.random.default_rng(0).permutation(np.where(masked, 0.05, 0.5 + 0.4 * np.arange(count) / count))
    examples = [made_example(number, logs(*p[5 * number : 5 * number + 5])) for number in range(count // 5)]
    found = advise(write_scores(tmp_path, examples))
    assert 1 - found.profile[3].kept_share == pytest.approx(masked_share)
    assert len(found.warnings) == len(warned)
    for text, expected in zip(found.warnings, warned, strict=True):
        assert expected in text
    assert read in found.reading[0]
    said = " ".join((*found.warnings, *found.reading))
    assert not ("lower threshold" in said and "higher threshold" in said)
    assert ("An online mask moves" in said) == (masked_share < 1)  # what is not trained does not move
    assert ("what is masked" in said) == (0 < masked_share < 1)
    assert "100%" not in said
    assert not re.search(r"\b0(\.0)?%", said)


def test_the_reading_gives_the_numbers_and_promises_nothing(advice):
    text = " ".join(reading_of(advice.profile[1]))
    assert "At threshold 0.25 the loss sees 60% of the label tokens" in text
    assert "a model of arithmetic, not a measurement" in text
    assert "No number here predicts accuracy" in advice.caveat
    assert "plain SFT 54.8%, threshold 0.1 38.9%" in advice.caveat  # docs/results/one-to-many.md


def answer_mask(scores):
    return final_answer_mask(label_tokens(scores), scores.tokenizer())


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ("so 12+3=15.", "        xx "),
        ("1,250.50 in all.", "xxxxxxxx        "),
        ("7", "x"),
        ("it is four", "          "),
        ("3 or 4 %", "     x  "),
    ],
)
def test_without_kinds_it_is_the_last_number(tmp_path, texts, wanted):
    scores = write_scores(tmp_path, [made_example(0, [-1.0] * len(texts), texts=texts)])
    found = answer_mask(scores)
    assert "".join("x" if chosen else " " for chosen in found) == wanted


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ([1, 1, 2, 1, 1, 0], [False, False, False, True, True, False]),
        ([1, 1, 1, 1, 1, 1], [True] * 6),
        ([2, 2, 2, 1, 2, 2], [False, False, False, True, False, False]),
    ],
)
def test_with_core_spans_it_is_their_last_run(tmp_path, kinds, wanted):
    scores = write_scores(tmp_path, [made_example(0, [-1.0] * 6, texts="1 23 4", kinds=kinds)])
    assert answer_mask(scores).tolist() == wanted


def test_a_row_without_core_spans_goes_by_its_last_number(tmp_path):
    examples = [
        made_example(0, [-1.0] * 2, texts="1a", kinds=[2, 1]),
        made_example(1, [-1.0] * 2, texts="2b", kinds=[0, 0]),
    ]
    assert answer_mask(write_scores(tmp_path, examples)).tolist() == [False, True, True, False]


def test_a_digit_in_a_special_token_is_no_answer(tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_7|>"]})
    reserved = tokenizer.convert_tokens_to_ids("<|reserved_7|>")
    example = made_example(0, [-1.0] * 2, texts="4x")
    example.input_ids[-1] = reserved
    assert answer_mask(write_scores(tmp_path, [example], tokenizer=tokenizer)).tolist() == [True, False]
