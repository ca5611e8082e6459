"""Whether an answer follows its instructions, by lm-evaluation-harness's copy of IFEval's checkers.

Source: Zhou et al. 2023, arXiv:2311.07911. Strict looks at the answer as it is. Loose also takes it without its first
line, its last line, both, and without asterisks, and a version that follows is enough. What a model thinks before it
answers is no part of the answer.
"""

from collections.abc import Callable, Mapping
from typing import Any

from profit_sft.evaluation.answers import without_thoughts
from profit_sft.evaluation.grading import Grade
from profit_sft.evaluation.punkt import ensure_punkt

_LETTERS = "keywords:letter_frequency"
_PLACEHOLDERS = "detectable_content:number_placeholders"


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
    ours = {
        _LETTERS: _sign_checker(checkers[_LETTERS]),
        _PLACEHOLDERS: _placeholder_checker(checkers[_PLACEHOLDERS]),
    }
    langdetect.DetectorFactory.seed = 0  # it guesses at random otherwise, and two runs may grade differently

    def check(problem: Mapping[str, Any], text: str) -> tuple[bool, bool]:
        """Say whether an answer follows a problem's one instruction, strictly and loosely."""
        try:
            found = utils.process_results(problem, [text])
        except RecursionError:  # the JSON checker, at a thousand brackets within each other
            return False, False
        return bool(found["inst_level_strict_acc"][0]), bool(found["inst_level_loose_acc"][0])

    def grade(problem: Mapping[str, Any], text: str) -> Grade:
        text = without_thoughts(text)
        instructions = zip(problem["instruction_id_list"], problem["kwargs"], strict=True)
        theirs = {name: checkers[name] for name in ours}
        checkers.update(ours)
        try:
            each = [
                check({**problem, "instruction_id_list": [name], "kwargs": [kwargs]}, text)
                for name, kwargs in instructions
            ]
        finally:
            checkers.update(theirs)  # the registry is the harness's, which others in this process may use
        strict, loose = [list(column) for column in zip(*each, strict=True)]
        scores = {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_strict": sum(strict) / len(strict),
            "instruction_loose": sum(loose) / len(loose),
        }
        details = {"scores": scores, "num_instructions": len(strict), "followed": strict}
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


def _placeholder_checker(of_placeholders: type[Any]) -> type[Any]:
    """Return the checker that counts placeholders such as [name] in linear time.

    The original's pattern takes 13 seconds for 40,000 opening brackets and none that closes.
    """

    class LinearPlaceholderChecker(of_placeholders):  # type: ignore[misc]  # known only once the harness is loaded
        def check_following(self, value: str) -> bool:
            return bool(sum(map(_count_brackets, value.split("\n"))) >= self._num_placeholders)

    return LinearPlaceholderChecker


def _count_brackets(line: str) -> int:
    count, end = 0, -1
    while (start := line.find("[", end + 1)) >= 0 and (end := line.find("]", start)) >= 0:
        count += 1
    return count
