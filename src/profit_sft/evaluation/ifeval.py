"""Whether an answer follows its instructions, by lm-evaluation-harness's copy of IFEval's checkers.

Source: Zhou et al. 2023, arXiv:2311.07911. Strict looks at the answer as it is. Loose also takes it without its first
line, its last line, both, and without asterisks, and a version that follows is enough.
"""

from collections.abc import Callable, Mapping
from typing import Any

from profit_sft.evaluation.grading import Grade
from profit_sft.evaluation.punkt import ensure_punkt

_LETTERS = "keywords:letter_frequency"


def ifeval_grader(report: Callable[[str], None]) -> Callable[[Mapping[str, Any], str], Grade]:
    """Return the function that grades an answer to a problem of IFEval.

    Args:
        report: Called with one line of text before something is fetched.

    Raises:
        DownloadError: NLTK's sentence data is not there and cannot be fetched.
    """
    ensure_punkt(report=report)
    import langdetect
    from lm_eval.tasks.ifeval import instructions_registry, utils

    checkers = instructions_registry.INSTRUCTION_DICT
    of_signs = _sign_checker(checkers[_LETTERS])
    langdetect.DetectorFactory.seed = 0  # it guesses at random otherwise, and two runs may grade differently

    def grade(problem: Mapping[str, Any], text: str) -> Grade:
        of_letters, checkers[_LETTERS] = checkers[_LETTERS], of_signs
        try:
            found = utils.process_results(problem, [text])
        finally:
            checkers[_LETTERS] = of_letters  # the registry is the harness's, which others in this process may use
        strict, loose = found["inst_level_strict_acc"], found["inst_level_loose_acc"]
        scores = {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_strict": sum(strict) / len(strict),
            "instruction_loose": sum(loose) / len(loose),
        }
        details = {"scores": scores, "num_instructions": len(strict), "followed": list(map(bool, strict))}
        return Grade(correct=all(strict), extracted=None, rule="whole" if text.strip() else None, details=details)

    return grade


def _sign_checker(of_letters: type[Any]) -> type[Any]:
    """Return the checker of letter frequencies that also counts signs, as two problems ask for "#" and "!".

    The original counts a letter drawn at random there, so that the same answer is right today and wrong tomorrow.
    """

    class SignFrequencyChecker(of_letters):  # type: ignore[misc]  # known only once the harness is loaded
        def build_description(self, *, letter: str | None = None, **arguments: Any) -> str:
            description: str = super().build_description(letter=letter, **arguments)
            if letter:
                self._letter = letter.strip().lower()
            return description

    return SignFrequencyChecker
