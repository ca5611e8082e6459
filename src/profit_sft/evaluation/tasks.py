"""The tasks, as task objects of lm-evaluation-harness: problems, prompts and what counts as right."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from profit_sft.data.generated import SYSTEM_PROMPT, generate_problems, is_correct
from profit_sft.evaluation.settings import EvalSettings

Document = Mapping[str, Any]
GENERATED_PROBLEMS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """What became of one answer.

    Attributes:
        correct: Whether it counts as right.
        extracted: What was taken for the answer, None if nothing was found.
        rule: How it was found, None if nothing was.
        details: Further fields of the sample's record.
    """

    correct: bool
    extracted: str | None
    rule: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """One task.

    Attributes:
        name: Its name.
        documents: Its problems, in order.
        prompt: From a problem to what the user says.
        expected: From a problem to the right answer, as text.
        grade: From a problem, an answer, and whether it was cut off, to its grade.
        system_prompt: Its own system message, or None.
    """

    name: str
    documents: Sequence[Document]
    prompt: Callable[[Document], str]
    expected: Callable[[Document], str]
    grade: Callable[[Document, str, bool], Grade]
    system_prompt: str | None = None

    def fingerprint(self) -> str:
        """Return a SHA-256 of all prompts and expected answers."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(f"{self.prompt(document)}\0{self.expected(document)}\0".encode())
        return digest.hexdigest()

    def harness_task(self) -> ConfigurableTask:
        """Return the task as lm-evaluation-harness takes it, in `lm_eval.simple_evaluate(tasks=[...])` as well."""
        return ConfigurableTask(
            config={
                "task": self.name,
                "custom_dataset": lambda **_: {"test": Dataset.from_list([dict(row) for row in self.documents])},
                "test_split": "test",
                "output_type": "generate_until",
                "doc_to_text": self.prompt,
                "doc_to_target": self.expected,
                "process_results": lambda row, texts: {"correct": float(self.grade(row, texts[0], False).correct)},
                "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0},
                "metric_list": [{"metric": "correct", "aggregation": "mean", "higher_is_better": True}],
            }
        )


def load_task(name: str, settings: EvalSettings) -> EvalTask:
    """Load a task's problems.

    Args:
        name: One of `TASKS`.
        settings: Where the data is, and the seed.

    Raises:
        DataError: A file is missing or has a bad row.
        DownloadError: The hub cannot be reached.
    """
    return _generated()


def _generated() -> EvalTask:
    """The project's own held-out problems; the first 48 are the quickstart's."""
    problems = generate_problems(GENERATED_PROBLEMS, seed=1, split="test")
    return EvalTask(
        name="generated",
        documents=[{"question": problem.question, "answer": problem.final_answer} for problem in problems],
        prompt=lambda row: str(row["question"]),
        expected=lambda row: str(row["answer"]),
        grade=lambda row, text, truncated: Grade(
            correct=is_correct(text, row["answer"]), extracted=text, rule="number"
        ),
        system_prompt=SYSTEM_PROMPT,
    )
