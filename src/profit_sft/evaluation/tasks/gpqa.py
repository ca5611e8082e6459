"""GPQA: four choices in an order that belongs to the problem, of which the letter of one is the answer."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from profit_sft.evaluation.grading import grade_choice
from profit_sft.evaluation.results import Record
from profit_sft.evaluation.tasks import each_sample

if TYPE_CHECKING:
    from datasets import Dataset

_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def problems(data: "Dataset") -> "Dataset":
    """Turn rows into problems: `question`, `choices` by letter and `answer`, the letter of the right one."""
    return data.map(_problem, with_indices=True, remove_columns=data.column_names)


def results(problem: Mapping[str, Any], results: Sequence[Any]) -> dict[str, list[Record]]:
    """Grade the samples of a problem."""
    expected = problem["answer"]
    return {"accuracy": each_sample(lambda text, cut_off: grade_choice(text, expected, truncated=cut_off), results)}


def _problem(row: Mapping[str, Any], index: int) -> dict[str, str]:
    random = Random(f"0/gpqa_diamond/{index}")
    # Of Random's methods only random() is documented to keep its sequence in later Python versions.
    order = sorted(_CHOICES, key=lambda _: random.random())
    lines = [f"({letter}) {str(row[name]).strip()}" for letter, name in zip("ABCD", order, strict=True)]
    return {
        "question": str(row["Question"]).strip(),
        "choices": "\n".join(lines),
        "answer": "ABCD"[order.index("Correct Answer")],
    }
