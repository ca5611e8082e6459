"""Courses, first and last values, and texts of the figures of a log."""

import math

import pytest

from profit_sft.runs.figures import before_after, metric, other_names, points, thinned, warnings_in


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("kept_share", 0.6431, "64.3%"),
        ("loss", 0.6171383261680603, "0.6171"),
        ("tokens_per_second", 12345.6, "12,346"),
        ("learning_rate", 1.6e-4, "1.60e-04"),
        ("loss", math.nan, "not finite"),
        ("loss", None, "not finite"),
        ("my_own_figure", 2.0, "2"),
    ],
)
def test_a_value_is_written_as_people_write_it(name, value, text):
    assert metric(name).text(value) == text


def test_a_course_has_the_last_value_of_a_step_and_gaps_where_a_value_is_not_finite():
    logs = [
        {"step": 2, "loss": math.nan},
        {"step": 4, "loss": None},
        {"step": 1, "loss": 1.0},
        {"step": 1, "loss": 3},
        {"step": 3, "loss": True},
    ]
    assert points(logs, "loss") == [(1, 3.0), (2, None), (4, None)]


def test_a_long_course_is_averaged_and_says_so():
    course = [(step, float(step)) for step in range(1, 1001)]
    few, size = thinned(course)
    assert size == 3
    assert len(few) == 334
    assert few[0] == (3, 2.0)
    assert few[-1] == (1000, 1000.0)
    assert thinned([(1, 1.0), (2, None), (3, 1.0)], most=2)[0] == [(2, None), (3, 1.0)]


def test_what_others_log_has_a_course_and_bookkeeping_has_none():
    logs = [{"step": 1, "loss": 1.0, "epoch": 0.1, "num_tokens": 5, "my_reward": 0.5, "entropy": 1.0, "note": "x"}]
    logs += [{"step": 1, "train_runtime": 5.0, "train_loss": 1.0, "eval_runtime": 1.0, "eval_samples_per_second": 2.0}]
    assert other_names(logs) == ["my_reward", "entropy"]


def test_first_and_last_values_and_each_warning_once():
    logs = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "warning": "w"},
        {"step": 3, "warning": "w"},
        {"step": 3, "loss": 0.5},
    ]
    assert [(kind.name, first, last) for kind, first, last in before_after(logs)] == [("loss", 1.0, 0.5)]
    assert warnings_in(logs) == [(2, "w")]
