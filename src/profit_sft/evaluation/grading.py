r"""Whether an answer is right.

`grade_math` finds the answer (see `answers.py`) and compares it with the expected one, in this order:

    1. as text, with LaTeX's ways to write the same taken out
    2. as numbers, exactly; units and currency do not count, 20% is 20 as well as 0.2
    3. as formulas, by math-verify, if they are not two whole numbers

A number may be expected and a sentence found ("18 dollars a day for 7 days"): then its first number after the last
equals sign counts. In a box the whole content does, so `\boxed{3, 5}` is not 5.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from profit_sft.evaluation.answers import FoundAnswer, find_answer
from profit_sft.evaluation.math_judge import MathJudge
from profit_sft.evaluation.numbers import first_number, plain_number, tidy


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """What became of one answer.

    Attributes:
        correct: Whether it counts as right.
        extracted: What was taken for the answer. None: nothing was found, or the whole text is the answer.
        rule: How it was found: a `Rule` of `answers.py`, or `whole`; None if nothing was found.
        details: Further fields of the sample's record.
    """

    correct: bool
    extracted: str | None
    rule: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


def grade_math(text: str, expected: str, judge: MathJudge, *, truncated: bool = False) -> Grade:
    """Grade an answer that is a number or a formula.

    Args:
        text: What the model wrote.
        expected: The right answer, plain or in LaTeX.
        judge: Compares formulas.
        truncated: Whether the text was cut off, see `find_answer`.

    Returns:
        The grade. `gave_up` in its details says that math-verify found no end; that counts as wrong.
    """
    found = find_answer(text, truncated=truncated)
    if found is None:
        return Grade(correct=False, extracted=None, rule=None)
    equal = _equal(found, expected, judge)
    details = {"gave_up": True} if equal is None else {}
    return Grade(correct=bool(equal), extracted=found.text, rule=found.rule, details=details)


def grade_choice(text: str, expected: str, *, truncated: bool = False) -> Grade:
    """Grade an answer that is one of the letters A to D.

    Args:
        text: What the model wrote.
        expected: The right letter.
        truncated: Whether the text was cut off, see `find_answer`.

    Example:
        >>> grade_choice("Only (A) and (C) are stable. The answer is (C).", "C").correct
        True
    """
    found = find_answer(text, truncated=truncated)
    letter = None if found is None or found.rule == "fallback" else _letter(found.text)
    if found is not None and letter is not None:
        return Grade(correct=letter == expected, extracted=letter, rule=found.rule)
    lone = [] if truncated else re.findall(r"\(([A-D])\)|^\W*([A-D])\W*$", text, re.MULTILINE)
    if not lone:
        return Grade(correct=False, extracted=None, rule=None)
    letter = "".join(lone[-1])
    return Grade(correct=letter == expected, extracted=letter, rule="fallback")


def _letter(text: str) -> str | None:
    match = re.match(r"[\s($*_]*(?i:option |choice )?[\s($*_]*([A-D])(?![A-Za-z'])", tidy(text))
    return None if match is None else match[1]


def _equal(found: FoundAnswer, expected: str, judge: MathJudge) -> bool | None:
    if _same_form(found.text) == _same_form(expected):
        return True
    right, mine = plain_number(expected), plain_number(found.text)
    if right is not None and mine is None and found.rule != "boxed":
        mine = first_number(found.text)
    if right is not None and mine is not None:
        if right.equals(mine):
            return True
        if right.is_whole and mine.is_whole:
            return False
    return judge.equal(f"\\boxed{{{expected}}}", _readings(found))


def _same_form(text: str) -> str:
    """Write a formula without what changes nothing, to compare it as text; words without capitals."""
    text = re.sub(r"\\[dt]frac", r"\\frac", tidy(text))
    text = re.sub(r"\s|\\displaystyle", "", text)
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    return text.casefold() if re.fullmatch(r"[A-Za-z]{2,}", text) else text


# How formulas are written without LaTeX, which math-verify takes for products of letters.
_TO_LATEX = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![\\A-Za-z])pi\b|π", r"\\pi "),
        (r"(?<![\\A-Za-z])(?:infinity|inf)\b|∞", r"\\infty "),
        (r"(?<![\\A-Za-z])sqrt\s*(?:\(([^()]*)\)|(\w+))", r"\\sqrt{\1\2}"),
        (r"√\s*(?:\(([^()]*)\)|(\w+))", r"\\sqrt{\1\2}"),
        (r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|log|ln)\b", r"\\\1"),
        (r"\*\*\s*(?:\(([^()]*)\)|(-?\w+))", r"^{\1\2}"),
        (r"(?<=\d)[eE]([+-]?\d+)\b", r"\\cdot 10^{\1}"),
        (r"(?<=\d)\s*\*?\s*i\b", "i"),
        (r"[·\u00d7]|\*", r"\\cdot "),
        (r"≤", r"\\le "),
        (r"≥", r"\\ge "),
    )
)


def _readings(found: FoundAnswer) -> list[str]:
    """Return how math-verify may read an answer: all of it a formula, or a sentence with formulas between dollars."""
    formula = found.text.strip().strip("$")
    for pattern, replacement in _TO_LATEX:
        formula = pattern.sub(replacement, formula)
    sentence = [found.text] if "$" in formula or "\\(" in formula or "\\[" in formula else []
    return [f"\\boxed{{{formula}}}", *sentence]
