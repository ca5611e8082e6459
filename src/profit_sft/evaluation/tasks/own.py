"""The tasks in this project's own form: numbers and formulas, GPQA's letters, the generated arithmetic problems."""

import atexit
from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from profit_sft.data.generated import generate_problems
from profit_sft.errors import DataError
from profit_sft.evaluation.grading import MathJudge, grade_choice, grade_math
from profit_sft.evaluation.results import Record
from profit_sft.evaluation.tasks import each_sample

if TYPE_CHECKING:
    from datasets import Dataset

Problem = Mapping[str, Any]

_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def generated_data(problems: int, **metadata: Any) -> "dict[str, Dataset]":
    """Return the held-out arithmetic problems, asked as the quickstart asks them; the first 48 are the quickstart's.

    Args:
        problems: How many, of the 420 there are.
        metadata: What else the task file says of itself, all of which the harness passes on.
    """
    from datasets import Dataset

    made = generate_problems(problems, seed=1, split="test")
    rows = [{"question": problem.question, "answer": str(problem.final_answer)} for problem in made]
    return {"test": Dataset.from_list(rows)}


def math_answer(problem: Problem) -> str:
    """Return the right answer: of a solution that ends with `#### 18`, as GSM8K's do, what follows the last sign."""
    if problem["answer"] is None:
        raise DataError(f"a row has no answer: {dict(problem)}.")
    return str(problem["answer"]).rpartition("####")[2].strip()


def math_results(problem: Problem, results: Sequence[Any]) -> dict[str, list[Record]]:
    """Grade the samples of a problem whose answer is a number or a formula."""
    expected = math_answer(problem)
    grades = each_sample(lambda text, cut_off: grade_math(text, expected, judge(), truncated=cut_off), results)
    return {"accuracy": grades}


@cache
def judge() -> MathJudge:
    """Return the one of this process; its own starts with the first formula."""
    judge = MathJudge()
    atexit.register(judge.close)
    return judge


def gpqa_problems(data: "Dataset") -> "Dataset":
    """Turn rows into problems: `question`, `choices` by letter and `answer`, the letter of the right one.

    The order of the choices belongs to the problem.
    """
    return data.map(_gpqa_problem, with_indices=True, remove_columns=data.column_names)


def gpqa_results(problem: Problem, results: Sequence[Any]) -> dict[str, list[Record]]:
    """Grade the samples of a problem."""
    expected = problem["answer"]
    return {"accuracy": each_sample(lambda text, cut_off: grade_choice(text, expected, truncated=cut_off), results)}


def _gpqa_problem(row: Problem, index: int) -> dict[str, str]:
    random = Random(f"0/gpqa_diamond/{index}")
    # Of Random's methods only random() is documented to keep its sequence in later Python versions.
    order = sorted(_CHOICES, key=lambda _: random.random())
    lines = [f"({letter}) {str(row[name]).strip()}" for letter, name in zip("ABCD", order, strict=True)]
    return {
        "question": str(row["Question"]).strip(),
        "choices": "\n".join(lines),
        "answer": "ABCD"[order.index("Correct Answer")],
    }
