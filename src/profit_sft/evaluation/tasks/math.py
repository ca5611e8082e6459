"""Tasks whose answer is a number or a formula."""

import atexit
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from profit_sft.errors import DataError
from profit_sft.evaluation.grading import grade_math
from profit_sft.evaluation.math_judge import MathJudge
from profit_sft.evaluation.results import Record
from profit_sft.evaluation.tasks import each_sample

Problem = Mapping[str, Any]


def answer(problem: Problem) -> str:
    """Return the right answer: of a solution that ends with `#### 18`, as GSM8K's do, what follows the last sign."""
    if problem["answer"] is None:
        raise DataError(f"a row has no answer: {dict(problem)}.")
    return str(problem["answer"]).rpartition("####")[2].strip()


def results(problem: Problem, results: Sequence[Any]) -> dict[str, list[Record]]:
    """Grade the samples of a problem."""
    expected = answer(problem)
    grades = each_sample(lambda text, cut_off: grade_math(text, expected, judge(), truncated=cut_off), results)
    return {"accuracy": grades}


@cache
def judge() -> MathJudge:
    """Return the one of this process; its own starts with the first formula."""
    judge = MathJudge()
    atexit.register(judge.close)
    return judge
