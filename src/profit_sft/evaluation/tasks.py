"""The tasks, as task objects of lm-evaluation-harness: problems, prompts and what counts as right.

gsm8k, math500 and aime24 ask for a final answer in a box; generated asks as the quickstart does, with the system
message "Solve."; gpqa_diamond asks for a letter, its choices in an order drawn for each problem; ifeval asks nothing
besides.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from profit_sft.data.generated import SYSTEM_PROMPT
from profit_sft.evaluation.grading import Grade, grade_choice, grade_math
from profit_sft.evaluation.ifeval import ifeval_grader
from profit_sft.evaluation.math_judge import MathJudge
from profit_sft.evaluation.problems import Problem, generated_problems, load_problems
from profit_sft.evaluation.settings import DEFAULT_MAX_NEW_TOKENS, EvalSettings

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

GENERATED_MAX_NEW_TOKENS = 128  # the longest reference solution has 33, the untrained model rambles
_BOX = "Think step by step. Put your final answer in \\boxed{}."
_LETTER = (
    'Think step by step. End with a line that says "The answer is (X).", with the letter of the right choice for X.'
)


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """One task.

    Attributes:
        name: Its name.
        problems: Its problems, in order.
        prompt: From a problem to what the user says.
        expected: From a problem to the right answer, as text.
        grade: From a problem, an answer, and whether it was cut off, to its grade.
        system_prompt: Its own system message, or None.
        max_new_tokens: The limit of an answer where the settings give none.
    """

    name: str
    problems: Sequence[Problem]
    prompt: Callable[[Problem], str]
    expected: Callable[[Problem], str]
    grade: Callable[[Problem, str, bool], Grade]
    system_prompt: str | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS

    def fingerprint(self) -> str:
        """Return a SHA-256 of all prompts and expected answers."""
        digest = hashlib.sha256()
        for problem in self.problems:
            digest.update(f"{self.prompt(problem)}\0{self.expected(problem)}\0".encode())
        return digest.hexdigest()

    def harness_task(self) -> "ConfigurableTask":
        """Return the task as lm-evaluation-harness takes it, for instance in `simple_evaluate(tasks=[...])`."""
        from datasets import Dataset
        from lm_eval.api.task import ConfigurableTask

        # The index alone: a table of the rows would give all of them all columns any of them has.
        data = {"test": Dataset.from_dict({"problem": list(range(len(self.problems)))})}

        def results(row: dict[str, int], texts: Sequence[str]) -> dict[str, float]:
            # The harness has no third value beside right and wrong.
            return {"correct": float(bool(self.grade(self.problems[row["problem"]], texts[0], False).correct))}

        return ConfigurableTask(
            config={
                "task": self.name,
                "custom_dataset": lambda: data,
                "test_split": "test",
                "output_type": "generate_until",
                "doc_to_text": lambda row: self.prompt(self.problems[row["problem"]]),
                "doc_to_target": lambda row: self.expected(self.problems[row["problem"]]),
                "process_results": results,
                "generation_kwargs": {"until": [], "do_sample": False},
                "metric_list": [{"metric": "correct", "aggregation": "mean", "higher_is_better": True}],
            }
        )


def load_task(
    name: str, settings: EvalSettings, judge: MathJudge, *, report: Callable[[str], None] = lambda text: None
) -> EvalTask:
    """Load a task.

    Args:
        name: One of `TASKS`.
        settings: Where the data is, and the seed.
        judge: Compares formulas.
        report: Called with one line of text before something is fetched.

    Raises:
        DataError: A file is missing or has a bad row.
        DownloadError: The hub or PyPI cannot be reached.
    """
    if name == "generated":
        task = _math_task(name, generated_problems(), judge)
        return replace(task, system_prompt=SYSTEM_PROMPT, max_new_tokens=GENERATED_MAX_NEW_TOKENS)
    problems = load_problems(name, settings.data_dir)
    if name == "gsm8k":
        problems = [{**row, "answer": row["answer"].rpartition("####")[2].strip()} for row in problems]
    if name in ("gsm8k", "math500", "aime24"):
        return _math_task(name, problems, judge, instruction=_BOX)
    if name == "gpqa_diamond":
        return _choice_task(name, problems, settings.seed)
    grade = ifeval_grader(report)
    return EvalTask(
        name=name,
        problems=problems,
        prompt=lambda problem: str(problem["prompt"]),
        expected=lambda problem: ", ".join(problem["instruction_id_list"]),
        grade=lambda problem, text, truncated: grade(problem, text),
    )


def _math_task(name: str, problems: list[Problem], judge: MathJudge, *, instruction: str = "") -> EvalTask:
    question = "question" if "question" in problems[0] else "problem"
    return EvalTask(
        name=name,
        problems=problems,
        prompt=lambda problem: f"{problem[question]}\n\n{instruction}".strip(),
        expected=lambda problem: str(problem["answer"]),
        grade=lambda problem, text, truncated: grade_math(text, str(problem["answer"]), judge, truncated=truncated),
    )


def _choice_task(name: str, problems: list[Problem], seed: int) -> EvalTask:
    shuffled = [_shuffle_choices(problem, f"{seed}/{name}/{index}") for index, problem in enumerate(problems)]
    return EvalTask(
        name=name,
        problems=shuffled,
        prompt=lambda problem: f"{problem['question']}\n\n{problem['choices']}\n\n{_LETTER}",
        expected=lambda problem: str(problem["answer"]),
        grade=lambda problem, text, truncated: grade_choice(text, str(problem["answer"]), truncated=truncated),
    )


def _shuffle_choices(problem: Problem, seed: str) -> dict[str, Any]:
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    random = Random(seed)
    # Of Random's methods only random() is documented to keep its sequence in later Python versions.
    order = sorted(names, key=lambda _: random.random())
    lines = [f"({letter}) {str(problem[name]).strip()}" for letter, name in zip("ABCD", order, strict=True)]
    return {
        "question": str(problem["Question"]).strip(),
        "choices": "\n".join(lines),
        "answer": "ABCD"[order.index("Correct Answer")],
    }
