"""Whether an answer follows its instructions, by lm-evaluation-harness's copy of IFEval's checkers.

Source: Zhou et al. 2023, arXiv:2311.07911. Strict looks at the answer as it is. Loose also takes it without its first
line, its last line, both, and without asterisks, and a version that follows is enough. What a model thinks before it
answers is no part of the answer. Each check runs under limits of processor time and memory (`ifeval_worker.py`); where
it breaks one, or fails, the instruction counts as not followed, and that is told.
"""

import atexit
import os
from collections.abc import Callable, Mapping
from typing import Any

from profit_sft.evaluation.answers import without_thoughts
from profit_sft.evaluation.grading import Grade
from profit_sft.evaluation.limited import CPU_SECONDS, LimitedProcess
from profit_sft.evaluation.punkt import ensure_punkt


def ifeval_grader(
    report: Callable[[str], None], *, cpu_seconds: int = CPU_SECONDS
) -> Callable[[Mapping[str, Any], str], Grade]:
    """Return the function that grades an answer to a problem of IFEval.

    Args:
        report: Called with one line of text before something is fetched, and for each answer that could not be checked.
        cpu_seconds: Processor time that checking one instruction may take.

    Raises:
        DownloadError: NLTK's sentence data is not there and cannot be fetched.
    """
    ensure_punkt(report=report)
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
            report(
                f"ifeval: an answer to problem {problem.get('key')}, of {len(text):,} characters, could not be checked "
                f"for {', '.join(unchecked)}; it counts as not following that"
            )
        strict, loose = [
            list(column) for column in zip(*(verdicts or (False, False) for verdicts in found), strict=True)
        ]
        scores = {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_strict": sum(strict) / len(strict),
            "instruction_loose": sum(loose) / len(loose),
        }
        details = {"scores": scores, "num_instructions": len(strict), "followed": strict, "unchecked": unchecked}
        return Grade(correct=all(strict), extracted=None, rule="whole" if text.strip() else None, details=details)

    return grade
