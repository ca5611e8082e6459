"""Whether an answer follows its instructions, by lm-evaluation-harness's copy of IFEval's checkers.

Source: Zhou et al. 2023, arXiv:2311.07911. Strict looks at the answer as it is. Loose also takes it without its first
line, its last line, both, and without asterisks, and a version that follows is enough. What a model thinks before it
answers is no part of the answer. Each check runs under limits of processor time and memory (`ifeval_worker.py`); where
it breaks one, or fails, the instruction counts as not followed, and that is told.
"""

import atexit
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from profit_sft.errors import DownloadError
from profit_sft.evaluation.answers import without_thoughts
from profit_sft.evaluation.grading import Grade
from profit_sft.evaluation.limited import CPU_SECONDS, LimitedProcess
from profit_sft.evaluation.results import Record
from profit_sft.evaluation.tasks import each_sample

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_PUNKT = "tokenizers/punkt_tab/english/"
_SECONDS = 30.0


def problems(data: "Dataset") -> "Dataset":
    """Return the rows as they are, once NLTK's sentence data is there: it is missed before a model has answered."""
    ensure_punkt(say=logger.warning)
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
    return float(np.average([grade for grade, _ in samples], weights=weights))


# How the harness aggregates the metrics of these names.
prompt_loose = partial(_share, "prompt_loose", False)
instruction_strict = partial(_share, "instruction_strict", True)
instruction_loose = partial(_share, "instruction_loose", True)


def ifeval_grader(
    say: Callable[[str], None], *, cpu_seconds: int = CPU_SECONDS
) -> Callable[[Mapping[str, Any], str], Grade]:
    """Return the function that grades an answer to a problem of IFEval.

    Args:
        say: Called with one line of text before something is fetched, and for each answer that could not be checked.
        cpu_seconds: Processor time that checking one instruction may take.

    Raises:
        DownloadError: NLTK's sentence data is not there and cannot be fetched.
    """
    ensure_punkt(say=say)
    import nltk

    worker = LimitedProcess(
        "ifeval_worker.py", cpu_seconds=cpu_seconds, environment={"NLTK_DATA": os.pathsep.join(nltk.data.path)}
    )
    atexit.register(worker.close)

    def grade(problem: Mapping[str, Any], text: str) -> Grade:
        text = without_thoughts(text)
        names, arguments = problem["instruction_id_list"], problem["kwargs"]
        alone = ({"instruction_id_list": [name], "kwargs": [one]} for name, one in zip(names, arguments, strict=True))
        found = [worker.ask({"problem": {**problem, **instruction}, "text": text}) for instruction in alone]
        unchecked = [name for name, followed in zip(names, found, strict=True) if followed is None]
        if unchecked:
            say(
                f"ifeval: an answer to problem {problem.get('key')}, of {len(text):,} characters, could not be checked "
                f"for {', '.join(unchecked)}; it counts as not following that"
            )
        strict, loose = [
            list(column) for column in zip(*(verdicts or (False, False) for verdicts in found), strict=True)
        ]
        grades = {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_strict": sum(strict) / len(strict),
            "instruction_loose": sum(loose) / len(loose),
        }
        details = {"scores": grades, "num_instructions": len(strict), "followed": strict, "unchecked": unchecked}
        return Grade(correct=all(strict), extracted=None, rule="whole" if text.strip() else None, details=details)

    return grade


_grader = cache(ifeval_grader)


def ensure_punkt(*, say: Callable[[str], None] = lambda text: None) -> None:
    """Make sure that NLTK finds its English sentence data, which `nltk.download` fetches on first use (4 MB).

    Two of IFEval's checkers need it, and NLTK does not come with it.

    Args:
        say: Called with one line of text before it is fetched.

    Raises:
        DownloadError: It is not there and cannot be fetched; says what to do.
    """
    import nltk

    if _is_there(nltk):
        return
    say("fetching NLTK's sentence data for ifeval (4 MB), once")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)  # NLTK sets none, and would wait for a server that does not answer
    try:
        nltk.download("punkt_tab", quiet=True)
    finally:
        socket.setdefaulttimeout(before)
    if not _is_there(nltk):
        raise DownloadError(
            "ifeval: NLTK's sentence data is not on this machine, and nltk.download cannot fetch it. Where its server "
            "can be reached run `python -m nltk.downloader punkt_tab`; the folder nltk_data it makes may be copied to "
            "this machine and named by the variable NLTK_DATA. Or leave ifeval out."
        )


def _is_there(nltk: ModuleType) -> bool:
    try:
        nltk.data.find(_PUNKT)
    except LookupError:
        return False
    return True
