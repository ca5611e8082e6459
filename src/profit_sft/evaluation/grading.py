r"""Whether an answer is right: the one grader of quickstart, evaluation and studies.

`grade_math` finds the answer (see `answers.py`) and compares it with the expected one, in this order:

    1. as text, with LaTeX's ways to write the same taken out
    2. as numbers or lists of numbers, exactly; units and currency do not count, 20% is 20 as well as 0.2
    3. as formulas, by math-verify (see `MathJudge`)

In a box the whole content is the answer. In a sentence it is the first formula or number ("18 dollars a day for 7
days", "about $\sqrt{2}$ meters"), and what is more than a number is never read as one. Only the third step needs
math-verify; where it is not installed or comes to no end the answer is not judged, which is neither right nor wrong.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profit_sft.evaluation.answers import FoundAnswer, find_answer, stated_choice
from profit_sft.evaluation.formulas import answer_formula, as_latex
from profit_sft.evaluation.limited import CPU_SECONDS, LimitedProcess
from profit_sft.evaluation.numbers import (
    PlainNumber,
    is_computation,
    is_name,
    items,
    plain_number,
    plain_numbers,
    sides,
    tidy,
)

_ABOUT = re.compile(r"≈|\\approx(?![A-Za-z])")  # "x = 1/3 ≈ 0.33" gives both
_MODULUS = re.compile(
    r" ?(?:\\pmod ?(?:\{(?:[^{}]|\{[^{}]*\})*\}|\w+)"
    r"|\( ?(?:\\?mod|\\(?:text|mathrm|operatorname) ?\{ ?mod ?\})(?![A-Za-z])(?:[^(){}]|\{[^{}]*\})*\))"
)
_MAX_VALUES = 4
MAX_FORMULA = 1000  # characters; the longest reference answer of the benchmarks has 62


class MathJudge(LimitedProcess):
    r"""Compares formulas; works from any thread. The process starts with the first comparison.

    Args:
        cpu_seconds: Processor time one comparison may take; the slowest with a reference answer of MATH-500 takes a
            tenth of a second.

    Example:
        >>> from contextlib import closing
        >>> with closing(MathJudge()) as judge:
        ...     judge.equal(r"$\frac{1}{2}$", ["$0.5$"]), judge.equal("$2$", ["$3$"])
        (True, False)
    """

    def __init__(self, *, cpu_seconds: int = CPU_SECONDS) -> None:
        super().__init__("math_worker.py", cpu_seconds=cpu_seconds)

    def equal(self, expected: str, answers: Sequence[str]) -> bool | None:
        r"""Say whether any of the answers equals the expected one.

        Args:
            expected: Text with one formula, in LaTeX between dollars or in `\boxed{}`, or plain.
            answers: Texts likewise; ways to read one answer.

        Returns:
            None if that could not be found out within the worker's processor time and memory, or math-verify is not
            installed.
        """
        if importlib.util.find_spec("math_verify") is None:
            return None
        found = self.ask({"expected": expected, "answers": list(answers)})
        return None if found is None else bool(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """What became of one answer.

    Attributes:
        correct: Whether it counts as right. None: not judged, see the module.
        extracted: What was taken for the answer. None: nothing was found, or the whole text is the answer.
        rule: How it was found: a `Rule` of `answers.py`, or `whole`; None if nothing was found.
        details: Further fields of the sample's record.
    """

    correct: bool | None
    extracted: str | None
    rule: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


def grade_math(text: str, expected: str, judge: MathJudge | None = None, *, truncated: bool = False) -> Grade:
    """Grade an answer that is a number or a formula.

    Args:
        text: What the model wrote.
        expected: The right answer, plain or in LaTeX.
        judge: Compares formulas. None: formulas that are not the same text or number are not judged.
        truncated: Whether the text was cut off, see `find_answer`.

    Example:
        >>> grade_math("She pays 9 * 2 = $18 a day.", "18").correct
        True
        >>> grade_math("The answer is 7 or 8.", "7").correct
        False
    """
    found = find_answer(text, truncated=truncated)
    if found is None:
        return Grade(correct=False, extracted=None, rule=None)
    return Grade(correct=_equal(found, expected, judge), extracted=found.text, rule=found.rule)


def grade_choice(text: str, expected: str, *, truncated: bool = False) -> Grade:
    """Grade an answer that is one of the letters A to D.

    Args:
        text: What the model wrote.
        expected: The right letter.
        truncated: Whether the text was cut off, see `find_answer`.

    Example:
        >>> grade_choice("Only (A) and (C) are stable. The answer is (C).", "C").correct
        True
        >>> grade_choice("It is (A) or (C).", "C").extracted is None
        True
    """
    found = stated_choice(text, truncated=truncated)
    if found is None:
        return Grade(correct=False, extracted=None, rule=None)
    return Grade(correct=found.text == expected, extracted=found.text, rule=found.rule)


def _equal(found: FoundAnswer, expected: str, judge: MathJudge | None) -> bool | None:
    if _same_form(found.text) == _same_form(expected):
        return True
    readings = [found.text] if found.rule == "boxed" else _readings(found.text)
    verdicts = [_same(reading, expected, judge) for reading in readings]
    return True if True in verdicts else None if None in verdicts else False


def _readings(sentence: str) -> list[str]:
    """Return what a sentence may say: its first formula, its first words, and where it has no words, all of it."""
    formula = answer_formula(sentence)
    if formula is None:
        return [re.split(r"[,;:(]| (?:because|since|as|so|which|where|when) ", sentence)[0]]
    words = re.search(r"(?<![A-Za-z\\])(?!sqrt|sin|cos|tan|log|inf)[A-Za-z]{3,}", tidy(sentence))
    return [formula] if words else list(dict.fromkeys((formula, sentence)))


def _same(mine: str, expected: str, judge: MathJudge | None) -> bool | None:
    """Say whether two answers are the same; None: not judged."""
    if not _MODULUS.search(expected):
        mine = _MODULUS.sub("", mine)
    values = [part for part in _ABOUT.split(mine) if part.strip()]
    if len(values) > 1 and not _ABOUT.search(expected):
        verdicts = [_same(part, expected, judge) for part in values[:_MAX_VALUES]]
        return True if True in verdicts else None if None in verdicts else False
    found = _same_plainly(mine, expected)
    if found is not None:
        return found
    if len(mine) > MAX_FORMULA:
        return False
    verdicts = [_judged(part, whole, judge) for part, whole in _questions(as_latex(mine), as_latex(expected))]
    return False if not verdicts or False in verdicts else None if None in verdicts else True


def _judged(mine: str, expected: str, judge: MathJudge | None) -> bool | None:
    found = _same_plainly(mine, expected)
    if found is not None or judge is None:
        return found
    return judge.equal(f"\\boxed{{{expected}}}", [f"\\boxed{{{mine}}}"])


def _same_plainly(mine: str, expected: str) -> bool | None:
    """Compare as texts and as numbers; None: they are formulas."""
    if _same_form(mine) == _same_form(expected):
        return True
    named = _same_names(mine, expected)
    if named is not None:
        return named
    in_base = _same_in_base(mine, expected)
    if in_base is not None:
        return in_base
    my_numbers, numbers = plain_numbers(mine), plain_numbers(expected)
    if my_numbers and numbers:
        return _covers(my_numbers, numbers) and _covers(numbers, my_numbers)
    # A word or a name is no number.
    return False if numbers and not re.search(r"[\d\\√π∞]|(?<![A-Za-z])pi(?![A-Za-z])", mine) else None


def _questions(mine: str, expected: str) -> list[tuple[str, str]]:
    """Return which pairs of formulas must be equal for two answers to be; none: they cannot be.

    An equation is compared as one. Only what names a value is left out: `x = 3` is 3 and `y = 2x` is `2x`, while a bare
    0 is no answer to `5x - 7y = 0`.
    """
    mine_items, expected_items = items(mine), items(expected)
    if len(mine_items) > 1 or len(expected_items) > 1:
        named = all(len(sides(item)) == 2 for item in expected_items)
        return [(mine if named else ", ".join(map(_without_name, mine_items)), expected)]
    mine_sides, expected_sides = sides(mine), sides(expected)
    named = len(expected_sides) == 2 and is_name(tidy(expected_sides[0]), single=True)
    value = expected_sides[-1]
    if len(expected_sides) > 1 and not named:
        return [(mine, expected)] if len(mine_sides) > 1 else []
    if len(mine_sides) == 1:
        return [(mine, value)]
    name = tidy(mine_sides[0])
    if named and is_name(name, single=True):
        other = tidy(expected_sides[0])
        return [] if len(name) == len(other) == 1 and name != other else [(mine_sides[-1], value)]
    if is_computation(name) or (is_name(name) and not named):
        return [(mine_sides[-1], value)]
    if named:
        return [(mine, expected)]
    return [(side, value) for side in (mine_sides[0], mine_sides[-1])]  # of an identity either side is the answer


def _without_name(item: str) -> str:
    first, *others = sides(item)
    return others[-1] if others and is_name(tidy(first), single=True) else item


def _same_names(mine: str, expected: str) -> bool | None:
    """Compare what both say of variables with numbers for values, such as "x = 1, y = 2"; None: not both do."""
    said: list[dict[str, PlainNumber]] = []
    for text in (mine, expected):
        values: dict[str, PlainNumber] = {}
        for item in items(tidy(text)):
            name, *others = sides(item)
            value = plain_number(others[-1]) if others else None
            if value is None or len(name) != 1 or not name.isalpha() or name in values:
                return None
            values[name] = value
        said.append(values)
    return said[0].keys() == said[1].keys() and all(said[1][name].equals(value) for name, value in said[0].items())


def _covers(some: list[PlainNumber], others: list[PlainNumber]) -> bool:
    return all(any(one.equals(other) for other in others) for one in some)


_IN_BASE = re.compile(r"\(?([0-9A-Za-z]+)\)?_ ?\{? ?(\d+) ?\}?")


def _same_in_base(mine: str, expected: str) -> bool | None:
    """Compare numbers written like `52_8`, by digits where only the question names the base; None: these are none."""
    expected_in, mine_in = (_IN_BASE.fullmatch(tidy(text).strip("$ ")) for text in (expected, mine))
    if expected_in is None or not expected_in[1][0].isdigit():
        return None
    digits = mine_in[1] if mine_in else tidy(mine).strip("$ ")
    return digits == expected_in[1] and (mine_in is None or mine_in[2] == expected_in[2])


def _same_form(text: str) -> str:
    """Write a formula without what changes nothing, to compare it as text; words without capitals and article."""
    text = re.sub(r"\\[dt]frac", r"\\frac", tidy(text))
    text = re.sub(r"^(?:an?|the) (?=[A-Za-z]{2})", "", text)
    text = re.sub(r"\s", "", text)
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    return text.casefold() if re.fullmatch(r"[A-Za-z]{2,}", text) else text
