"""Right and wrong answers in odd forms; then the benchmarks' reference solutions, as if a model had written them."""

import json

import pytest

from profit_sft.data.generated import generate_problems
from profit_sft.evaluation.grading import grade_choice, grade_math

RIGHT = [
    # whole numbers, units, currency, separators
    ("She earns $18 every day.\n#### 18", "18"),
    ("The answer is $1,250.00.", "1250"),
    (r"\boxed{1{,}250}", "1250"),
    (r"\boxed{\$1250}", "1250"),
    (r"\boxed{1250 \text{ dollars}}", "1250"),
    ("The answer is 1250 dollars a month, or 41 a day.", "1250"),
    ("The answer is 9 * 2 = $18.", "18"),
    ("#### 10000", "10,000"),
    (r"\boxed{073}", "73"),
    (r"\boxed{73}", "073"),
    ("The total is 5 apples and she eats 2, so 3 are left", "3"),
    # decimals, fractions, percent
    (r"\boxed{0.5}", r"\frac{1}{2}"),
    (r"\boxed{\dfrac{1}{2}}", "0.5"),
    (r"\boxed{1/2}", r"\frac12"),
    (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}"),
    (r"\boxed{3\frac{1}{2}}", r"\frac{7}{2}"),
    (r"The answer is \boxed{15\frac{1}{2}} or $\boxed{\frac{31}{2}}$ inches.", "15.5"),
    (r"\boxed{20\%}", "20"),
    ("The answer is 20%.", "0.2"),
    (r"\boxed{0.2}", r"20\%"),
    (r"\boxed{45}", r"45^\circ"),
    (r"\boxed{6.72 \times 10^{-5}}", ".0000672"),
    # several values
    (r"\boxed{1, -2}", "-2, 1"),
    (r"$x = \boxed{1}$ or $x = \boxed{-2}$", "-2, 1"),
    (r"\boxed{\{3, 5\}}", r"\{5, 3\}"),
    (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)"),
    # formulas
    (r"\boxed{3 + 2x}", "2x + 3"),
    ("The answer is 2*x + 3.", "2x+3"),
    (r"\boxed{y = 2x + 3}", "y=2x+3"),
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{5}", "x=5"),
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}"),
    ("The answer is 2*sqrt(2).", r"2\sqrt{2}"),
    ("The answer is 3*pi/4.", r"\frac{3\pi}{4}"),
    ("The answer is x**2 + 1.", "x^2+1"),
    (r"\boxed{2^{10}}", "1024"),
    (r"The answer is $2^{10}$.", "1024"),
    (r"\boxed{9i + 6}", "6+9i"),
    (r"\boxed{9 i + 6}", "6+9i"),
    (r"\boxed{\begin{bmatrix} 1 \\ 2 \end{bmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    # intervals
    (r"\boxed{[0, 1)}", r"x \in [0,1)"),
    (r"\boxed{(-\infty, 2] \cup [3, \infty)}", r"(-\infty,2]\cup[3,\infty)"),
    # words and letters
    (r"\boxed{\text{Even}}", r"\text{even}"),
    (r"\boxed{C}", r"\text{(C)}"),
    (r"The answer is $\text{Tuesday}$.", r"\text{Tuesday}"),
    # the rules' order
    ("First I thought the answer is 7.\n#### 8", "8"),
    (r"#### 7, but really \boxed{8}", "8"),
]
WRONG = [
    ("", "5"),
    ("I do not know.", "5"),
    (r"\boxed{}", "5"),
    (r"\boxed{-5}", "5"),
    (r"\boxed{50}", "5"),
    (r"\boxed{5x}", "5"),
    (r"\boxed{3, 5}", "5"),
    (r"\boxed{5 \text{ to } 7}", "5"),
    (r"The numbers are \boxed{3} and \boxed{5}.", "5"),
    (r"First \boxed{5}. Then \boxed{6}.", "5"),
    ("The answer is 3 apples and 5 pears.", "5"),
    ("The answer is 2^{5}.", "2"),
    ("The answer is 1,250.", "1"),
    ("#### 1,250", "125"),
    (r"\boxed{0.33}", r"\frac{1}{3}"),
    (r"\boxed{(5, 3)}", "(3, 5)"),
    (r"\boxed{(0, 1)}", "[0,1)"),
    (r"\boxed{1}", "1, -2"),
    (r"\boxed{2x - 3}", "2x+3"),
    (r"\boxed{6 - 9i}", "6+9i"),
    (r"\boxed{\text{odd}}", r"\text{even}"),
    (r"\boxed{2\%}", "20"),
    ("5 is in the text, but the answer is 6.", "5"),
]


@pytest.mark.parametrize(("text", "expected"), RIGHT)
def test_right_answers_in_odd_forms(judge, text, expected):
    found = grade_math(text, expected, judge)
    assert found.correct, found


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_wrong_answers(judge, text, expected):
    found = grade_math(text, expected, judge)
    assert not found.correct, found


def test_a_text_that_was_cut_off_is_wrong_unless_its_answer_is_complete(judge):
    text = "There are 5 apples and 5"
    assert grade_math(text, "5", judge).correct
    found = grade_math(text, "5", judge, truncated=True)
    assert (found.correct, found.extracted, found.rule) == (False, None, None)
    assert grade_math(r"So \boxed{5}, which", "5", judge, truncated=True).correct


def test_a_comparison_without_end_is_neither_right_nor_wrong(judge, monkeypatch):
    monkeypatch.setattr(judge, "equal", lambda expected, answers: None)
    assert grade_math(r"\boxed{x^{9^{9}}}", "y", judge).correct is None


@pytest.mark.parametrize(
    ("text", "letter", "rule"),
    [
        ("Only (A) and (C) are stable. The answer is (C).", "C", "stated"),
        ("The answer is C", "C", "stated"),
        ("**Answer:** B) because", "B", "stated"),
        ("The correct answer is option D.", "D", "stated"),
        ("Answer: Choice (D)", "D", "stated"),
        (r"\boxed{A}", "A", "boxed"),
        (r"\boxed{\text{(B)}}", "B", "boxed"),
        ("Not (A). So (D)", "D", "stated"),
        ("Since $A = 3$ here, it is (D)", "D", "fallback"),
        ("Thinking.\n\nB.\n", "B", "fallback"),
    ],
)
def test_choices(text, letter, rule):
    found = grade_choice(text, letter)
    assert (found.correct, found.extracted, found.rule) == (True, letter, rule)
    assert not grade_choice(text, "ABCD"["BCDA".index(letter)]).correct


@pytest.mark.parametrize("text", ["", "A good question.", "The answer is Apple.", "None of them, as I said"])
def test_no_choice(text):
    found = grade_choice(text, "A")
    assert (found.correct, found.extracted, found.rule) == (False, None, None)


def test_a_choice_in_a_text_that_was_cut_off():
    assert grade_choice("Not (A). So (D)", "D", truncated=True).rule is None
    assert grade_choice("The answer is (D). As", "D", truncated=True).correct


def test_reference_solutions_of_the_generated_problems_are_right_without_a_judge():
    for problem in generate_problems(300, seed=5, split="test") + generate_problems(100, seed=6, steps=3):
        found = grade_math(problem.solution, str(problem.final_answer))
        assert found.correct, (problem.solution, found)
        assert grade_math(problem.solution, str(problem.final_answer + 1)).correct is False


def reference_solutions(folder, task):
    rows = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]
    if task == "gsm8k_test":
        return [(row["answer"], row["answer"].rpartition("####")[2].strip()) for row in rows]
    return [(row["solution"], str(row["answer"])) for row in rows]


@pytest.mark.parametrize(("task", "count"), [("gsm8k_test", 1319), ("math500", 500), ("aime24", 30)])
def test_every_reference_solution_is_right(judge, shared_data, task, count):
    solutions = reference_solutions(shared_data, task)
    assert len(solutions) == count
    wrong = [index for index, (text, answer) in enumerate(solutions) if not grade_math(text, answer, judge).correct]
    assert not wrong


@pytest.mark.parametrize("task", ["gsm8k_test", "math500", "aime24"])
def test_reference_solutions_are_wrong_answers_to_the_next_problem(judge, shared_data, task):
    solutions = reference_solutions(shared_data, task)
    following = [answer for _, answer in solutions[1:] + solutions[:1]]
    for (text, answer), other in zip(solutions, following, strict=True):
        if grade_math(text, other, judge).correct:
            # Neighbors may have the same answer, then in any form.
            assert grade_math(f"\\boxed{{{answer}}}", other, judge).correct
