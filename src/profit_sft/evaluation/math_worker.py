"""Compares formulas with math-verify, in the process of `limited_worker.py`.

A request is {"expected": TEXT, "answers": [TEXT, ...]}; the answer is true if any of the answers equals the expected
one, else false.
"""

from decimal import Decimal
from itertools import permutations
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify

_POINTS = (sympy.Rational(17, 13), sympy.Rational(29, 11), sympy.Rational(5, 7))  # where formulas are compared
_DIGITS = 40
_MAX_MATCHED = 8


def answer(request: dict[str, Any]) -> bool:
    """Say whether any of the answers equals the expected one."""
    expected = formulas(request["expected"])
    return any(same(expected, formulas(answer)) for answer in request["answers"])


def formulas(text: str) -> list[Any]:
    """Return what math-verify reads a text as; nothing of a text without a formula."""
    # Of LaTeX alone: its other reading takes the first number of what it cannot read.
    found = parse(text, extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
    return [_with_imaginary_unit(formula) if isinstance(formula, sympy.Basic) else formula for formula in found]


def _with_imaginary_unit(formula: Any) -> Any:
    return formula.xreplace({symbol: sympy.I for symbol in formula.free_symbols if symbol.name == "i"})


def same(expected: list[Any], answer: list[Any]) -> bool:
    """Say whether any reading of the answer equals one of the expected formula."""
    return any(agree(one, other) for one in expected for other in answer)


def agree(expected: Any, answer: Any) -> bool:
    """Say whether two formulas are equal by math-verify, and nothing contradicts that."""
    if isinstance(expected, sympy.Float) != isinstance(answer, sympy.Float):
        decimal, exact = (expected, answer) if isinstance(expected, sympy.Float) else (answer, expected)
        if isinstance(exact, sympy.Expr) and exact.is_number and not exact.has(sympy.Float) and not _terminates(exact):
            return not _not_rounded(decimal, exact)
    found = verify(expected, answer, timeout_seconds=None, allow_set_relation_comp=True)
    return bool(found) and not contradicts(expected, answer)


def contradicts(expected: Any, answer: Any) -> bool:
    """Say whether two formulas differ after all that math-verify 0.9 calls equal.

    It rounds to six decimals (6.72e-5 is 6.74e-5, 1/2004! is 1/2006!), drops what is small, and takes equations for the
    same whose solutions it does not compare (x^2 + 1 = 0, x^2 + 2 = 0).
    """
    if isinstance(expected, str) or isinstance(answer, str):
        return False
    if isinstance(expected, sympy.Eq) and isinstance(answer, sympy.Eq):
        return equations_differ(expected, answer)
    if isinstance(answer, sympy.Eq):
        answer = answer.rhs
    elif isinstance(expected, sympy.Eq):
        expected = expected.rhs
    if isinstance(expected, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return expected.shape != answer.shape or any(map(contradicts, expected.flat(), answer.flat()))
    if isinstance(expected, sympy.Interval) and isinstance(answer, sympy.Interval):
        return contradicts(expected.start, answer.start) or contradicts(expected.end, answer.end)
    if isinstance(expected, sympy.Tuple) and isinstance(answer, sympy.Tuple):
        return len(expected) != len(answer) or any(map(contradicts, expected, answer))
    if isinstance(expected, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        return sets_differ(list(expected.args), list(answer.args))
    if isinstance(expected, sympy.Expr) and isinstance(answer, sympy.Expr):
        return values_differ(expected, answer)
    return False


def sets_differ(some: list[Any], others: list[Any]) -> bool:
    """Say whether no order of the one makes it the other."""
    if len(some) != len(others) or len(some) > _MAX_MATCHED:
        return len(some) != len(others)
    return all(any(map(contradicts, some, order)) for order in permutations(others))


def equations_differ(one: Any, other: Any) -> bool:
    """Say whether neither left minus right is a constant multiple of the other's."""
    first, second = one.lhs - one.rhs, other.lhs - other.rhs
    if not isinstance(first, sympy.Expr) or not isinstance(second, sympy.Expr):
        return False
    ratios = [_value(first, place) / _value(second, place) for place in range(3) if _value(second, place)]
    return len(ratios) < 2 or any(_far(ratios[0], ratio) for ratio in ratios[1:]) or not ratios[0]


def values_differ(expected: Any, answer: Any) -> bool:
    """Say whether two formulas take other values at some places."""
    return any(_far(_value(expected, place), _value(answer, place)) for place in range(len(_POINTS)))


def _terminates(number: Any) -> bool:
    number = sympy.nsimplify(number.doit()) if number.is_rational else number
    return bool(number.is_Rational and not set(sympy.factorint(number.q)) - {2, 5})


def _not_rounded(decimal: Any, exact: Any) -> bool:
    """Say whether a decimal is not the number, rounded, to six significant digits or more."""
    _, digits, exponent = Decimal(str(decimal)).normalize().as_tuple()
    difference = abs(sympy.Rational(str(decimal)) - exact).evalf(_DIGITS)
    return len(digits) < 6 or not bool(difference * 2 <= sympy.Rational(10) ** int(exponent))


def _value(formula: Any, place: int) -> Any:
    """Return the value of a formula where its variables have certain values, which depend on their names' order."""
    exact = formula.xreplace({number: sympy.Rational(str(number)) for number in formula.atoms(sympy.Float)})
    symbols = sorted(exact.free_symbols, key=str)
    values = {symbol: _POINTS[place] + index for index, symbol in enumerate(symbols)}
    return exact.subs(values).doit().evalf(_DIGITS)


def _far(one: Any, other: Any) -> bool:
    """Say whether two values are numbers and differ by more than the last digits that were computed."""
    if not (one.is_number and other.is_number) or one.has(sympy.nan, sympy.zoo) or other.has(sympy.nan, sympy.zoo):
        return False
    largest = max(abs(one), abs(other))
    return bool(abs(one - other) > largest * sympy.Rational(1, 10 ** (_DIGITS - 10)))
