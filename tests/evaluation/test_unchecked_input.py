"""Nothing a model can write hangs or crashes the grader.

Bounds are of processor time, generous, and far below what a pattern that backtracks takes.
"""

import time
from contextlib import closing
from random import Random

import pytest

from campaign import WHOLE
from profit_sft.evaluation.grading import MathJudge, grade_choice, grade_math
from profit_sft.evaluation.tasks.ifeval import ifeval_grader

CPU_SECONDS = 10  # the slowest text takes a fifth of a second
LENGTH = 100_000 if WHOLE else 20_000
PIECES = [
    *("1", "1,", "1,111,", "1/", "1 ", "1.", "-", "- ", "+1", "1e", "%", "\u0663", "\u00b2", "\u00bd", "\uff11"),
    *("$", "$ ", "$$", "$1", "$1$ ", "\\(", "\\)", "\\[", "\\]", "\\( \\) "),
    *("(", ")", "()", "[", "]", "{", "}", "{}", "\\{", "(1,", "[[1],"),
    *("\\boxed{", "\\boxed{1} ", "\\boxed{1}, ", "\\boxed 1 ", "\\boxed", "\\fbox{", "\\boxed{}"),
    *(
        "\\frac{",
        "\\frac",
        "\\frac{1}{",
        "\\sqrt{",
        "\\sqrt",
        "\\text{",
        "\\text{a}",
        "^",
        "^ ",
        "_",
        "^{",
        "\\\\",
        "\\",
    ),
    *("answer", "answer ", "answer is ", "answer: ", "the answer is 1. ", "the answer is\n", "answer is below. "),
    *("#### ", "####", "#", "#### 1\n", "####\n"),
    *("<think>", "</think>", "<think></think>", "<answer>", "</answer>"),
    *("eggs and dollars ", "apples ", "a ", "a", "ab-", "A ", "(A) ", "(A) or ", "option A is correct. ", "not "),
    *("=", "= ", "x=", "x = 1, ", "a+", "a*b=", "x=1 and ", "\u2248", "<", "\\in "),
    *(
        "\n",
        " ",
        "\t",
        "\r\n",
        "\u00a0",
        "\u2028",
        "\x00",
        "\x02",
        "\x021\x03",
        "\ud800",
        "\U0001f600",
        "*",
        "**",
        "`",
        "'",
    ),
    *("\\color{r}{", "\\pmod{", "(mod {", "{\\choose ", "\u4e2a"),
    *("because ", " as ", "since 1 ", ", so ", "minus ", "million ", " million", "and ", "or ", ", "),
]


def texts():
    for index, piece in enumerate(PIECES):
        long = (piece * (LENGTH // len(piece) + 1))[:LENGTH]
        wrapped = (f"The answer is {long}", f"\\boxed{{{long}}}", f"The answer is 5 {long} 7.")
        yield from (long, *wrapped) if WHOLE else (long, wrapped[index % 3])
    for opening, ending in (("[", "]"), ("(", ")"), ("{", "}"), ("\\frac{", "}{1}"), ("\\sqrt{", "}"), ("-(", ")")):
        yield f"The answer is ${opening * 3000}1{ending * 3000}$"
        yield f"\\boxed{{{opening * 100}1{ending * 100}}}"
    yield f"The answer is 5{',' * LENGTH}"
    yield "The answer is 3 eggs" + " and more eggs and dollars" * 60 + " in 4 boxes."
    for digits in (400, 1100, 4301, 20_000):
        yield from (f"\\boxed{{{'9' * digits}}}", f"The answer is 0.{'3' * digits}", f"1/{'7' * digits}")
        yield from (f"\\boxed{{10^{{{'9' * digits}}}}}", f"\\boxed{{1e{'9' * digits}}}")
    random = Random(0)
    for _ in range(60):
        yield "".join(random.choice(PIECES) for _ in range(random.choice((20, 300, 3000))))


def cpu_seconds(call):
    started = time.process_time()
    call()
    return time.process_time() - started


@pytest.mark.slow
def test_every_text_is_graded_in_a_bounded_time():
    def grade(text):
        grade_math(text, "5")
        grade_math(text, "x^2 = y", truncated=True)
        grade_choice(text, "A")

    slow = [text[:40] for text in texts() if cpu_seconds(lambda text=text: grade(text)) > CPU_SECONDS]
    assert not slow


def test_an_ordinary_long_sentence_is_graded_quickly():
    text = "The answer is 3 eggs" + " and more eggs and dollars" * 60 + " in 4 boxes."
    assert cpu_seconds(lambda: grade_math(text, "5")) < CPU_SECONDS
    assert grade_math(text, "3").correct


def test_signs_that_the_grader_uses_itself_are_white_space():
    assert grade_math("The answer is \x027\x03.", "7").correct
    assert grade_choice("The answer is \x02C\x03.", "C").correct


@pytest.mark.parametrize("digits", [1, 999, 1001, 4301, 20_000])
def test_a_number_of_any_length_is_itself_and_no_other(judge, digits):
    number = "7" * digits
    assert grade_math(f"The answer is {number}.", number, judge).correct
    assert grade_math(f"The answer is {number}.", number[:-1] + "8", judge).correct is False
    assert grade_math(f"\\boxed{{{number}}}", "5", judge).correct is False


ENDLESS = [
    r"9^{9^{9^{9}}}",
    r"\sum_{k=1}^{99999999}\frac{\sin k}{k^2+1}",
    r"\int_0^1 \frac{\sin(x^{99})}{x^{98}+1} dx",
    r"(x+y+z+1)^{3000}",
    r"99999999!",
    r"\binom{99999999}{49999999}",
    "(" * 200 + "x" + ")" * 200,
    r"\sqrt{" * 150 + "2" + "}" * 150,
    "-" * 500 + "1",
    "+".join(f"x_{{{index}}}" for index in range(120)),
    r"\frac{1}{" * 60 + "2" + "}" * 60,
]


@pytest.mark.slow
def test_a_formula_that_comes_to_no_end_is_never_right_and_the_next_one_is_judged():
    with closing(MathJudge(cpu_seconds=1)) as judge:
        for formula in ENDLESS:
            assert not grade_math(f"\\boxed{{{formula}}}", r"\sqrt{3}", judge).correct
        assert grade_math(r"\boxed{\sqrt{8}}", r"2\sqrt{2}", judge).correct


@pytest.mark.slow
def test_ifeval_grades_every_text_in_a_bounded_time(punkt):
    lines = []
    grade = ifeval_grader(lines.append, cpu_seconds=2)
    arguments = {
        "detectable_content:number_placeholders": {"num_placeholders": 2},
        "detectable_format:json_format": {},
        "detectable_format:title": {},
        "detectable_format:number_highlighted_sections": {"num_highlights": 2},
        "detectable_format:number_bullet_lists": {"num_bullets": 2},
        "detectable_format:multiple_sections": {"num_sections": 2, "section_spliter": "Part"},
        "combination:two_responses": {},
        "startend:quotation": {},
        "detectable_content:postscript": {"postscript_marker": "P.S."},
    }
    problem = {"key": 1, "prompt": "x", "instruction_id_list": [*arguments], "kwargs": [*arguments.values()]}
    long = [
        (piece * (LENGTH // len(piece) + 1))[:LENGTH] for piece in ("[", "[a", "*", "<<", '"', "- ", "\n", "Part ", "1")
    ]
    for text in (*long, "[" * 3000 + "]" * 3000, '{"a":' * 3000, "1" * 5000):
        told = len(lines)
        unchecked = grade(problem, text).details["unchecked"]
        assert len(lines) == told + bool(unchecked)
    assert grade(problem, "plain").details["unchecked"] == []
    assert any("could not be checked for detectable_format:json_format" in line for line in lines)
