"""Checks whether a text follows one instruction of IFEval, in the process of `limited_worker.py`.

A request is {"problem": OBJECT, "text": TEXT}, the problem with one instruction; the answer is two booleans: whether it
is followed strictly, and loosely. The checkers are those of lm-evaluation-harness, but for two.
"""

from typing import Any

import langdetect
from lm_eval.tasks.ifeval import instructions_registry, utils
from lm_eval.tasks.ifeval.instructions import LetterFrequencyChecker, PlaceholderChecker


def answer(request: dict[str, Any]) -> tuple[bool, bool] | None:
    """Say whether the text follows the instruction, strictly and loosely; None where the checker fails over it."""
    # Here and not at import: a process that only imports this module keeps the library as it is.
    instructions_registry.INSTRUCTION_DICT.update(OWN_CHECKERS)
    langdetect.DetectorFactory.seed = 0  # it guesses at random otherwise, and two runs may grade differently
    try:
        found = utils.process_results(request["problem"], [request["text"]])
    except (RecursionError, ValueError):  # of the JSON checker: a thousand brackets, a number of 4,301 digits
        return None
    return bool(found["inst_level_strict_acc"][0]), bool(found["inst_level_loose_acc"][0])


class SignFrequencyChecker(LetterFrequencyChecker):  # type: ignore[misc]  # of an untyped library
    """Counts signs as well as letters, as two problems ask for "#" and "!".

    The original counts a letter drawn at random there, so that the same answer is right today and wrong tomorrow.
    """

    def build_description(self, *, letter: str | None = None, **arguments: Any) -> str:
        """Build it as the original does, and keep the sign."""
        description: str = super().build_description(letter=letter, **arguments)
        if letter:
            self._letter = letter.strip().lower()
        return description


class LinearPlaceholderChecker(PlaceholderChecker):  # type: ignore[misc]  # of an untyped library
    """Counts placeholders such as [name] in linear time.

    The original's pattern takes 13 seconds for 40,000 opening brackets and none that closes.
    """

    def check_following(self, value: str) -> bool:
        """Say whether there are enough."""
        return bool(sum(map(_count_brackets, value.split("\n"))) >= self._num_placeholders)


def _count_brackets(line: str) -> int:
    count, end = 0, -1
    while (start := line.find("[", end + 1)) >= 0 and (end := line.find("]", start)) >= 0:
        count += 1
    return count


OWN_CHECKERS = {
    "keywords:letter_frequency": SignFrequencyChecker,
    "detectable_content:number_placeholders": LinearPlaceholderChecker,
}
