r"""The paper's benchmarks in the paper's form: prompts, worked examples and what counts as right.

The paper (Liu et al. 2026, arXiv:2601.09195v3) evaluates with OpenCompass; its repository ships the configuration of
four benchmarks, of which these follow the wording and the rules, harsh as they are:

    gsm8k_paper     four worked examples as earlier turns; the last number of the text up to the next "Question:"
    math500_paper,
    aime24_paper    "put your final answer within \boxed{}"; a box counts, nothing else
    gpqa_paper      the first "ANSWER: X"; choices rotated by the question's number

How its table 3 was made is not told. Its figures say that ARC, MMLU-Pro and HumanEval have the questions and samples
these tasks give them (see `settings.py`) and that letters were written, not ranked by likelihood: an untrained model
gets 1.69% of ARC, where guessing gives 25%. Their wording here is that of gpqa_paper.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from profit_sft.evaluation.answers import boxed_answer
from profit_sft.evaluation.code_check import check_confirmed, passes
from profit_sft.evaluation.grading import Grade, grade_math
from profit_sft.evaluation.results import Record
from profit_sft.evaluation.tasks import each_sample
from profit_sft.evaluation.tasks.own import judge, math_answer

if TYPE_CHECKING:
    from datasets import Dataset

Doc = Mapping[str, Any]
Grader = Callable[[Doc, str, bool], Grade]

LETTERS = "ABCDEFGHIJ"
_ROTATIONS = ("ABCD", "BCDA", "CDAB", "DABC")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_ANSWER_LETTER = re.compile(r"ANSWER\s*:\s*([A-J])", re.IGNORECASE)
_CODE_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.IGNORECASE | re.DOTALL)


def gsm8k_target(doc: Doc) -> str:
    """Return the number behind the `####` of a GSM8K solution."""
    return math_answer(doc).replace(",", "")


def grade_last_number(doc: Doc, text: str, truncated: bool = False) -> Grade:
    """Grade gsm8k_paper: the last number before a further "Question:", also of a text that was cut off.

    Thousands separators are not known, so that of "1,200" the last number is 200.

    Example:
        >>> grade_last_number({"answer": "#### 18"}, "9*2=18. The answer is 18").correct
        True
        >>> grade_last_number({"answer": "#### 18"}, "It is 18, in 3 days").extracted
        '3'
    """
    numbers = _NUMBER.findall(text.split("Question:")[0])
    if not numbers:
        return Grade(correct=False, extracted=None, rule=None)
    return Grade(correct=float(numbers[-1]) == float(gsm8k_target(doc)), extracted=numbers[-1], rule="last_number")


def grade_box(doc: Doc, text: str, truncated: bool = False) -> Grade:
    r"""Grade math500_paper and aime24_paper: what the last box holds, compared as `grading.py` does."""
    box = boxed_answer(text, truncated=truncated)
    if not box:
        return Grade(correct=False, extracted=None, rule=None)
    return grade_math(rf"\boxed{{{box}}}", str(doc["answer"]), judge())


def choice_prompt(doc: Doc) -> str:
    """Ask for the letter of one of a row's choices, as OpenAI's simple-evals do."""
    letters = LETTERS[: len(doc["choices"])]
    lines = [f"{letter}) {choice}" for letter, choice in zip(letters, doc["choices"], strict=True)]
    return (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        f"format: 'ANSWER: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before "
        f"answering.\n\n{doc['question']}\n\n" + "\n".join(lines)
    )


def grade_letter(doc: Doc, text: str, truncated: bool = False) -> Grade:
    """Grade a choice: the first "ANSWER: X" counts, whatever follows it.

    Example:
        >>> grade_letter({"choices": ["no", "yes"], "answer": "B"}, "It is so. ANSWER: B, not ANSWER: A").correct
        True
    """
    letters = LETTERS[: len(doc["choices"])]
    found = next((match[1].upper() for match in _ANSWER_LETTER.finditer(text) if match[1].upper() in letters), None)
    if found is None:
        return Grade(correct=False, extracted=None, rule=None)
    return Grade(correct=found == doc["answer"], extracted=found, rule="answer_line")


def gpqa_docs(dataset: "Dataset") -> "Dataset":
    """Rotate the choices of GPQA by the number of the question, so that the right one is D, C, B, A, D, ..."""

    def row(doc: Doc, index: int) -> dict[str, Any]:
        texts = [str(doc["Correct Answer"]), *(str(doc[f"Incorrect Answer {wrong}"]) for wrong in (1, 2, 3))]
        order = _ROTATIONS[(index + 1) % 4]  # questions are numbered from 1
        return _choices(doc["Question"], [texts["ABCD".index(letter)] for letter in order], order.index("A"))

    return dataset.map(row, with_indices=True, remove_columns=dataset.column_names)


def hellaswag_docs(dataset: "Dataset") -> "Dataset":
    """Turn lm-evaluation-harness's rows of HellaSwag, with its cleaning of the texts, into questions."""
    from lm_eval.tasks.hellaswag.utils import process_docs

    def row(doc: Doc) -> dict[str, Any]:
        return _choices(f"Which ending makes the most sense?\n{doc['query']}", doc["choices"], doc["gold"])

    cleaned = process_docs(dataset)
    return cleaned.map(row, remove_columns=[name for name in cleaned.column_names if name != "choices"])


def arc_docs(dataset: "Dataset") -> "Dataset":
    """Keep the questions of ARC that have four choices, as OpenCompass does."""

    def row(doc: Doc) -> dict[str, Any]:
        right = list(doc["choices"]["label"]).index(doc["answerKey"])
        return _choices(doc["question"], doc["choices"]["text"], right)

    kept = dataset.filter(lambda doc: len(doc["choices"]["text"]) == 4)
    return kept.map(row, remove_columns=kept.column_names)


def _mmlu_pro_docs(dataset: "Dataset", subject: str) -> "Dataset":
    kept = dataset.filter(lambda doc: doc["category"] == subject)
    return kept.map(
        lambda doc: _choices(doc["question"], doc["options"], LETTERS.index(doc["answer"])),
        remove_columns=kept.column_names,
    )


# What the task files name: MMLU-Pro's questions on one subject.
mmlu_pro_history_docs = partial(_mmlu_pro_docs, subject="history")
mmlu_pro_chemistry_docs = partial(_mmlu_pro_docs, subject="chemistry")


def _choices(question: str, texts: Sequence[str], right: int) -> dict[str, Any]:
    return {"question": question.strip(), "choices": [str(text).strip() for text in texts], "answer": LETTERS[right]}


def code_prompt(doc: Doc) -> str:
    """Ask for the whole of a function whose beginning is given."""
    return f"Complete the following Python function. Give all of it in one code block.\n\n```python\n{doc['prompt']}```"


def grade_code(doc: Doc, text: str, truncated: bool = False) -> Grade:
    """Grade humaneval_paper: the last code block that holds the function, else the text as its continuation.

    Raises:
        ConfigurationError: Running code was not allowed.
    """
    check_confirmed("humaneval_paper")
    define = re.compile(rf"^\s*def\s+{re.escape(doc['entry_point'])}\b", re.MULTILINE)
    blocks = [block for block in _CODE_BLOCK.findall(text) if define.search(block)]
    code = blocks[-1] if blocks else text
    # The prompt is a whole function of nothing but its docstring, and brings the imports that its types need.
    program = f"{doc['prompt']}\n{code}" if define.search(code) else doc["prompt"] + code
    correct = _passes(f"{program}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n")
    return Grade(correct=correct, extracted=code, rule="block" if blocks else "whole")


_passes = lru_cache(maxsize=4096)(passes)  # an answer cut behind its function is the same program at every budget


def _results(grade: Grader, doc: Doc, results: Sequence[Any]) -> dict[str, list[Record]]:
    return {"accuracy": each_sample(lambda text, truncated: grade(doc, text, truncated), results)}


# What the task files name, each grading the samples of a problem.
last_number_results = partial(_results, grade_last_number)
box_results = partial(_results, grade_box)
letter_results = partial(_results, grade_letter)
code_results = partial(_results, grade_code)
