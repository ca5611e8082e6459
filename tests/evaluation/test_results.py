"""From records to figures."""

import pytest

from profit_sft.evaluation.results import summarize


def record(problem, sample, correct, **more):
    common = {"truncated": False, "rule": "boxed", "new_tokens": 10, "seconds": 0.5}
    return {"problem": problem, "sample": sample, "correct": correct, **common, **more}


def test_shares_and_the_mean_over_problems():
    found = summarize(
        "gsm8k",
        [
            record(0, 0, True),
            record(0, 1, False, truncated=True, rule=None, new_tokens=30),
            record(1, 0, True, rule="fallback"),
            record(1, 1, True),
        ],
        max_new_tokens=30,
    )
    assert (found.num_problems, found.samples_per_problem, found.metrics) == (2, 2, ())
    assert found.accuracy.mean == 0.75
    assert found.accuracy.standard_error == pytest.approx(0.25)  # problems' means 0.5 and 1
    assert 0 < found.accuracy.low < 0.75 < found.accuracy.high < 1
    assert (found.truncated_share, found.no_answer_share, found.fallback_share) == (0.25, 0.25, 0.25)
    assert (found.mean_new_tokens, found.generation_seconds) == (15, 2)


def test_instructions_weigh_alike_whatever_their_prompt():
    def scores(strict, count):
        return {
            "scores": {"prompt_strict": float(strict == 1), "instruction_strict": strict},
            "num_instructions": count,
        }

    found = summarize(
        "ifeval", [record(0, 0, True, **scores(1.0, 1)), record(1, 0, False, **scores(0.0, 3))], max_new_tokens=9
    )
    by_name = {metric.name: metric for metric in found.metrics}
    assert by_name["prompt_strict"].mean == 0.5
    assert by_name["instruction_strict"].mean == 0.25  # 1 of 4 instructions
    assert by_name["instruction_strict"].standard_error == pytest.approx(0.375)  # see test_statistics.py


def test_what_is_not_judged_is_neither_right_nor_wrong():
    found = summarize(
        "math500",
        [
            record(0, 0, True),
            record(0, 1, None),
            record(1, 0, False),
            record(1, 1, True),
            record(2, 0, None),
            record(2, 1, None),
        ],
        max_new_tokens=9,
    )
    assert found.accuracy.mean == 0.75  # problem 0 right, half of problem 1, nothing of problem 2
    assert (found.not_judged, found.num_problems) == (3, 3)
    nothing = summarize("math500", [record(0, 0, None), record(1, 0, None)], max_new_tokens=9)
    assert (nothing.accuracy.mean, nothing.not_judged) == (0.0, 2)
