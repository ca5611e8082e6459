"""IFEval: instructions that a program can check."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from profit_sft.evaluation.grading import Grade
from profit_sft.evaluation.ifeval import ifeval_grader
from profit_sft.evaluation.punkt import ensure_punkt
from profit_sft.evaluation.results import Record
from profit_sft.evaluation.tasks import each_sample

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_grader = cache(ifeval_grader)


def problems(data: "Dataset") -> "Dataset":
    """Return the rows as they are, once NLTK's sentence data is there: it is missed before a model has answered."""
    ensure_punkt(report=logger.warning)
    return data


def instructions(problem: Mapping[str, Any]) -> str:
    """Name what an answer is to follow."""
    return ", ".join(problem["instruction_id_list"])


def results(problem: Mapping[str, Any], results: Sequence[Any]) -> dict[str, list[Record]]:
    """Grade the samples of a problem, by instruction as well."""
    grade: Callable[[Mapping[str, Any], str], Grade] = _grader(logger.warning)
    grades = each_sample(lambda text, cut_off: grade(problem, text), results)
    return {name: grades for name in ("accuracy", "prompt_loose", "instruction_strict", "instruction_loose")}


def _share(name: str, by_instruction: bool, problems: Sequence[list[Record]]) -> float:
    samples = [(sample["scores"][name], sample["num_instructions"]) for problem in problems for sample in problem]
    weights = [count if by_instruction else 1 for _, count in samples]
    return float(np.average([score for score, _ in samples], weights=weights))


# How the harness aggregates the metrics of these names.
prompt_loose = partial(_share, "prompt_loose", False)
instruction_strict = partial(_share, "instruction_strict", True)
instruction_loose = partial(_share, "instruction_loose", True)
