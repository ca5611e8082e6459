r"""Which number a short text is: `\$1{,}234.50`, `-\frac{3}{4}`, `3 1/2 cups`, `20\%`, `x = 5 \text{ cm}^2`."""

import re
from dataclasses import dataclass
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A minus counts as a sign only where it cannot be an operator ("14-9").
_SIGN = r"(?:(?<![\w)}.%])[-+])?"
NUMBER = re.compile(rf"({_SIGN})(?:(\d+) (?=\d+/))?({_DIGITS})(?:/(\d+(?:\.\d+)?))?(\s?%)?")
# In this order: what is written for the eye only, then what is written in several ways.
_TIDYING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!\s*|\\left\b|\\right\b", ""),
        (r"(?<=\d)(?:\\,|\{,\}|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))", ","),
        (r"\\[,;: ]|\\q?quad\b|~|[\u00a0\u2009\u202f]", " "),
        ("[\u2212\u2013]", "-"),
        (r"\\%|\bper ?cent\b", "%"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", "°"),
        (r"\\[dtc]?frac\s*\{\s*(-?\d[\d.,]*)\s*\}\s*\{\s*(\d[\d.,]*)\s*\}", r" \1/\2"),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r" \1/\2"),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\?[$£€¥]|\bUSD\b|\\[()\[\]]", " "),
        (r"(?<=\d)\s?/\s?(?=\d)", "/"),
        (r"\s+", " "),
        (r"(?<![\w)}.%] )(?<![\w)}.%])- (?=[\d.])", "-"),
        (r"^ | ?\.? ?$", ""),
    )
)
# "pi" and "sqrt" are words as units are, and none.
_NOT_UNITS = r"(?:pi|sqrt|sin|cos|tan|log|ln)\b"
_POWER = r"(?: ?\^\{?-?\d\}?|[²³])?"
_UNIT = rf"(?:(?!{_NOT_UNITS})[A-Za-zµ]{{2,}}\.?|(?<![A-Za-z])[mgshL](?![A-Za-z])|°C?|°F){_POWER}"
_WITH_UNITS = re.compile(rf"{NUMBER.pattern}(?:[ /-]*{_UNIT})*")


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """A number as it was written.

    Attributes:
        value: The number in front of a percent sign, if there is one.
        is_percent: Whether there is.
        is_whole: Whether it has neither a fraction bar nor decimals.
    """

    value: Fraction
    is_percent: bool = False
    is_whole: bool = True

    def equals(self, other: "PlainNumber") -> bool:
        """Say whether both are the same; of 20% against 20 or 0.2, either is."""
        mine = self.value / 100 if self.is_percent else self.value
        theirs = other.value / 100 if other.is_percent else other.value
        return self.value == other.value or mine == theirs


def plain_number(text: str) -> PlainNumber | None:
    r"""Return the number a text is, with or without a unit, or None if it is anything else.

    Args:
        text: Such as the content of a box. Of an equation the right side is taken.

    Example:
        >>> plain_number(r"x = \frac{3}{4} \text{ cups}").value
        Fraction(3, 4)
        >>> plain_number("5x") is None and plain_number("3, 4") is None
        True
    """
    match = _WITH_UNITS.fullmatch(_right_side(re.sub(r"^\((.*)\)$", r"\1", tidy(text)).strip()))
    return None if match is None else _read(match)


def first_number(text: str) -> PlainNumber | None:
    """Return the first number of a sentence, after its last equals sign if it has one; None if there is none.

    A number that goes on as a formula ("2^10", "5x") is not one.

    Example:
        >>> first_number("9 * 2 = $18 every day, for 7 days").value
        Fraction(18, 1)
    """
    sentence = _right_side(tidy(text))
    match = NUMBER.search(sentence)
    if match is None or re.match(r"\s?[\^*+_\\(]|[a-z](?![a-z])|\s?pi\b", sentence[match.end() :]):
        return None
    return _read(match)


def tidy(text: str) -> str:
    r"""Write a text without LaTeX's spaces, `\text`, currency signs, numeric `\frac`, and a last period."""
    for pattern, replacement in _TIDYING:
        text = pattern.sub(replacement, text)
    return text


def _right_side(text: str) -> str:
    return re.split(r"(?<![<>!\\])=|≈|\\approx", text)[-1].strip()


def _read(match: re.Match[str]) -> PlainNumber | None:
    sign, whole, digits, below, percent = match.groups()[:5]
    value = Fraction(digits.replace(",", ""))
    if below is not None:
        if Fraction(below) == 0:
            return None
        value /= Fraction(below)
    value += int(whole or 0)
    is_whole = below is None and "." not in digits
    return PlainNumber(-value if sign == "-" else value, is_percent=percent is not None, is_whole=is_whole)
