"""The table of answers: every one graded as a careful reader would, on an idle machine and on a busy one."""

import os
import subprocess
import sys

import pytest
from answer_table import CHOICES, FORMULAS, MATH, SETS_TUPLES_INTERVALS, TRUNCATED

from campaign import sampled
from profit_sft.evaluation.grading import grade_choice, grade_math
from profit_sft.evaluation.numbers import plain_numbers


def test_the_table_is_as_large_as_it_says_and_has_no_row_twice():
    rows = [*MATH, *(("cut off", *row) for row in TRUNCATED), *CHOICES]
    assert len(rows) == len(set(rows)) >= 500


@pytest.mark.parametrize(("text", "expected", "right"), MATH)
def test_an_answer(judge, text, expected, right):
    found = grade_math(text, expected, judge)
    assert found.correct is right, found


@pytest.mark.parametrize(("text", "expected", "right"), TRUNCATED)
def test_an_answer_that_was_cut_off(judge, text, expected, right):
    found = grade_math(text, expected, judge, truncated=True)
    assert found.correct is right, found


@pytest.mark.parametrize(("text", "letter"), CHOICES)
def test_a_choice(text, letter):
    for expected in "ABCD":
        found = grade_choice(text, expected)
        assert (found.extracted, found.correct) == (letter, letter == expected), found


def test_numbers_need_no_judge():
    graded = [(text, expected, right, grade_math(text, expected).correct) for text, expected, right in MATH]
    assert all(found is right for _, _, right, found in graded if found is not None)
    not_judged = [(text, expected) for text, expected, _, found in graded if found is None]
    assert not [row for row in not_judged if plain_numbers(row[1]) and plain_numbers(row[0])]
    assert len(not_judged) < len(graded) / 3


@pytest.mark.slow
def test_grades_do_not_depend_on_what_else_the_machine_does(judge):
    rows = sampled(FORMULAS + SETS_TUPLES_INTERVALS, 40)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        found = [grade_math(text, expected, judge).correct for text, expected, _ in rows]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert found == [right for _, _, right in rows]
