r"""Which number a short text is: `\$1{,}234.50`, `-\frac{3}{4}`, `3 1/2 cups`, `20\%`, `x = 5 \text{ cm}^2`.

Of an equation: `x = 3` and `9 * 2 = 18` give a value, `2x + 3y = 6` is the answer itself.

What a model writes is unchecked input, so every pattern here is linear in its text, and a numeral of more than
`MAX_DIGITS` digits is no number.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 1000  # no benchmark asks for one a tenth as long; int() refuses 4,301
_MAX_EXPONENT = 1000
_MAX_TEXT = 4000

_DIGITS = r"(?:\d{1,3}(?!\d)(?:,\d{3}(?!\d))+|\d+)(?:\.\d+)?|\.\d+"
# A minus counts as a sign only where it cannot be an operator ("14-9").
_SIGN = r"(?:(?<![\w)}.%])[-+])?"
_TIMES_TEN = r"(?: ?(?:\\times|\\cdot|[\u00d7·*x]) ?10 ?(?:\^|\*\*) ?[{(]?([-+]?\d+)[)}]?(?!\d)|[eE]([-+]?\d+)(?!\w))"
NUMBER = re.compile(
    rf"({_SIGN})(?:(\d+) (?:and )?(?=\d+/\d))?({_DIGITS})(?:/(\d+(?:\.\d+)?)|{_TIMES_TEN})?"
    r"(?:(\s?%)|\s(hundred|thousand|million|billion|trillion|dozen)\b)?"
)
_SCALES = {
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "dozen": Fraction(12),
}
_CURRENCY = r"\\?[$£€¥₹₩₽₪฿]|\b(?:USD|EUR|GBP|INR|Rs\.?)(?![A-Za-z])|\bUS(?=\\?\$)"
# In this order: what is written for the eye only, then what is written in several ways.
_TIDYING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[ \t\r\n\f\v]+", " "),
        ("\u2044", "/"),
        (r"\\! ?|\\left\b|\\right\b|\\displaystyle\b|\\(?:dis)?limits\b", ""),
        (r"(?<=\d)(?:\\,|\{,\}|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))", ","),
        (r"\\[,;: ]|\\q?quad\b|~|[\u00a0\u2009\u202f]", " "),
        ("[\u2212\u2013]", "-"),
        ("\u00bd", " 1/2"),
        ("\u00bc", " 1/4"),
        ("\u00be", " 3/4"),
        ("\u2153", " 1/3"),
        ("\u2154", " 2/3"),
        (r"\\%|\bper ?cent\b", "%"),
        (r"\^ ?\{? ?\\circ ?\}?|\\degree\b", "°"),
        (r"\\[dtc]?frac ?\{ ?(-?\d[\d.,]*) ?\} ?\{ ?(\d[\d.,]*) ?\}", r" \1/\2"),
        (r"\\[dtc]?frac ?(\d) ?(\d)", r" \1/\2"),
        (r"\\[dtc]?frac ?(\d) ?\{ ?(\d[\d.,]*) ?\}", r" \1/\2"),
        (r"\\[dtc]?frac ?\{ ?(-?\d[\d.,]*) ?\} ?(\d)", r" \1/\2"),
        (r"\\(?:text(?:bf|it|rm|sf|normal)?|mathrm|mathbf|mathit|mbox|operatorname) ?\{([^{}]*)\}", r" \1 "),
        (rf"{_CURRENCY}|\\[()\[\]]", " "),
        (r"(?<=\d) ?/ ?(?=\d)", "/"),
        (r" +", " "),
        (r"(?<![\w)}.%] )(?<![\w)}.%])- (?=[\d.])", "-"),
        (r"^ | ?\.? ?$", ""),
    )
)
# What a formula only looks like, up to the brace that opens it where there is one.
LOOKS = re.compile(
    r"\\(?:(?:text|math)?color|colorbox|fcolorbox ?\{[^{}]*\}) ?(?:\[[^][{}]*\] ?)?\{[^{}]*\} ?\{?|\\underline ?\{"
)
_BRACE = re.compile(r"\\.|[(){}]", re.DOTALL)  # with what is escaped, which is to be skipped
# Bounded, or a list of a thousand groups would be read anew from each of them.
_REPEATING = re.compile(r"(?<!\d)(\d{1,3}(?:\{?,\}?\d{3}){1,9}|\d*)\.(\d*)\\(?:overline|bar) ?\{(\d+)\}")
# Powers but a lone square or cube, which other patterns read: "10\u207b\u00b3", "2\u00b9\u2070".
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b"
_SUPERSCRIPT = re.compile(
    rf"(?<=[\dA-Za-z)}}\]])(?:[\u00b2\u00b3](?=[{_SUPERSCRIPTS}])|[\u2070\u00b9\u2074-\u2079\u207b])[{_SUPERSCRIPTS}]*"
)
_FROM_SUPERSCRIPT = str.maketrans(_SUPERSCRIPTS, "0123456789-")
COMMAS = str.maketrans({"\u3001": ", ", "\uff0c": ","})  # the first is never one of thousands
# Where a script without spaces meets a number, a letter or a formula.
IDEOGRAPH = "\u3001-\u30ff\u3400-\u9fff\uac00-\ud7af\uff0c\uff1a"
BESIDE_IDEOGRAPH = re.compile(
    rf"(?<=[{IDEOGRAPH}])(?=[-\w\\$(])(?![{IDEOGRAPH}])|(?<=[\w)$}}])(?<![{IDEOGRAPH}])(?=[{IDEOGRAPH}])"
)
# "pi" and "sqrt" are words as units are, and none.
_NO_UNIT = re.compile(r"(?:pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|and|or|to)\b")
# What counts in such a script: none of its numerals (10,000 is one sign), no "and", "half", "more" or "less".
COUNTER = (
    r"(?![万萬亿億兆京百十仟佰拾割成和与或到至と多余餘半만천억백십와반여]|千(?![米克瓦卡焦帕伏赫牛])|조(?!각)|과(?!목)|분의|分[之の]|ダース"
    rf"|[{IDEOGRAPH}]{{0,5}}(?:以[上下]|未[満满]|이[상하]|미만|초과))[{IDEOGRAPH}]{{1,6}}(?<!半)"
)
_UNIT = re.compile(
    rf"[ /-]*(?:([A-Za-zµ]{{2,}})\.?|{COUNTER}|(?<![A-Za-z])[mgshL](?![A-Za-z])|°[CF]?)(?: ?\^\{{?-?\d\}}?|[²³])?"
)


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """A number as it was written.

    Attributes:
        value: The number in front of a percent sign or such a word, if there is one.
        is_percent: Whether a percent sign follows.
        scale: What a word behind it stands for: of "million" 1,000,000; else 1.
        decimals: How many decimals were written; None where they say nothing, as in a fraction.
    """

    value: Fraction
    is_percent: bool = False
    scale: Fraction = Fraction(1)
    decimals: int | None = None

    def equals(self, other: "PlainNumber") -> bool:
        """Say whether both are the same; of 20% against 20 or 0.2, either is, of 3 million 3 or 3,000,000.

        Decimals are exact, but of a fraction that has no end of them six significant ones, rounded, are enough.
        """
        if self.value == other.value or self._meant == other._meant:
            return True
        return any(
            is_rounded(decimal.value, decimal.decimals, exact.value)
            or (decimal.is_percent and is_rounded(decimal._meant, decimal.decimals + 2, exact.value))
            for decimal, exact in ((self, other), (other, self))
            if decimal.decimals and exact.decimals is None
        )

    @property
    def _meant(self) -> Fraction:
        return self.value / 100 if self.is_percent else self.value * self.scale


def is_rounded(decimal: Fraction, decimals: int, exact: Fraction) -> bool:
    """Say whether a number with so many decimals is `exact`, rounded, to six significant digits or more.

    Only of numbers that no decimals give exactly: 0.333333 is 1/3, 0.123457 is not 0.1234567.
    """
    denominator = exact.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    precise = abs(decimal) * Fraction(10) ** decimals >= 10**5
    return denominator > 1 and precise and abs(decimal - exact) * 2 * Fraction(10) ** decimals <= 1


def plain_number(text: str) -> PlainNumber | None:
    r"""Return the number a text is, with or without a unit, or None if it is anything else.

    Args:
        text: Such as the content of a box. Of an equation whose left side is a name or a computation with numbers the
            right side is taken; another equation is none.

    Example:
        >>> plain_number(r"x = \frac{3}{4} \text{ cups}").value
        Fraction(3, 4)
        >>> plain_number("5x") is None and plain_number("3, 4") is None and plain_number("2x = 6") is None
        True
    """
    side = value_side(tidy(text))
    if side is None or len(side) > _MAX_TEXT:
        return None
    side = re.sub(r"^\((.*)\)$", r"\1", side).strip()
    match = NUMBER.match(side)
    return None if match is None or not _is_units(side, match.end()) else _read(match)


def plain_numbers(text: str) -> list[PlainNumber] | None:
    """Return the numbers of a list, such as "3, 5 and 7" or "x = 3 or x = 5"; None if any part is something else."""
    parts = re.split(r",? (?:and|or) (?!\d+/\d)|, |[,;](?!\d{3}(?!\d))|;", tidy(text).strip("{}\\ "))
    if len(parts) > _MAX_TEXT // 4:
        return None
    numbers = [plain_number(part) for part in parts if part.strip()]
    return [number for number in numbers if number is not None] if numbers and None not in numbers else None


def tidy(text: str) -> str:
    r"""Write a text without LaTeX's spaces, `\text`, currency signs, numeric `\frac`, and a last period."""
    if not text.isascii():
        text = "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)
        text = BESIDE_IDEOGRAPH.sub(" ", text.translate(COMMAS))
        text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_FROM_SUPERSCRIPT)}}}", text)
    text = _REPEATING.sub(_as_fraction, unwrapped(text, LOOKS))
    for pattern, replacement in _TIDYING:
        text = pattern.sub(replacement, text)
    return text


def _as_fraction(match: re.Match[str]) -> str:
    r"""Write a decimal that repeats as the fraction it is: `0.1\overline{6}` as 1/6."""
    whole, fixed, repeated = match.groups(default="")
    if len(match[0]) > MAX_DIGITS:
        return match[0]
    whole = re.sub(r"\D", "", whole)  # commas between thousands
    begins, both = int(whole + fixed or 0), int(whole + fixed + repeated)
    value = Fraction(both - begins, (10 ** len(repeated) - 1) * 10 ** len(fixed))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _is_units(text: str, position: int) -> bool:
    while position < len(text):
        match = _UNIT.match(text, position)
        if match is None or (match[1] and _NO_UNIT.match(text, match.start(1))):
            return not text[position:].strip(" .")
        position = match.end()
    return True


def _read(match: re.Match[str]) -> PlainNumber | None:
    sign, whole, digits, below, power, exponent, percent, scale = match.groups()
    if len(match[0]) > MAX_DIGITS:
        return None
    value = Fraction(digits.replace(",", ""))
    if below is not None:
        if Fraction(below) == 0:
            return None
        value /= Fraction(below)
    shift = int(power or exponent or 0)
    if abs(shift) > _MAX_EXPONENT:
        return None
    value = value * Fraction(10) ** shift + int(whole or 0)
    decimals = None if below is not None else max(0, len(digits.partition(".")[2]) - shift)
    return PlainNumber(
        -value if sign == "-" else value,
        is_percent=percent is not None,
        scale=_SCALES.get(scale, Fraction(1)),
        decimals=decimals,
    )


_EQUALS = re.compile(r"(?<![<>!\\=:])==?(?![=<>])|[≈≡]|\\(?:approx|equiv)(?![A-Za-z])")
_COMMA = re.compile(r"[,;](?!\d{3}(?!\d))|[,;](?= )|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\text ?\{ ?(?:and|or) ?\}")
_BRACKET = re.compile(r"\\begin\{|\\end\{|[(\[{]|[)\]}]")
_FUNCTIONS = re.compile(r"\\(?:sqrt|[dtc]?frac|log|ln|exp|sum|prod|int|lim|binom|begin|max|min)(?![A-Za-z])")
# One letter, a word, an angle, a segment, a value of a function, each perhaps with an index.
_NAME = (
    r"(?:[A-Za-z]?\\[A-Za-z]+ ?)?(?:[A-Za-z]+|\{[A-Za-z]+\}|\|[A-Za-z]+\||(?<=[a-z])|(?<=[a-z] ))"
    r"(?:_(?:[A-Za-z0-9]|\{[^{}]*\}))?['\u2032]*(?:\([^()]*\))?"
)
_SINGLE_NAME = re.compile(_NAME)
_NAMES = re.compile(rf"{_NAME}(?: ?(?:[-+*/]|\\cdot|\\times) ?{_NAME}){{0,7}}")
_TUPLE_OF_NAMES = re.compile(rf"\( ?{_NAME}(?: ?, ?{_NAME}){{1,7}} ?\)")
_WORDS = re.compile(r"[A-Za-z'\u2019. -]*")
_FRACTION_OF_NAMES = re.compile(r"\\[dt]?frac ?\{([A-Za-z]+)\} ?\{([A-Za-z]+)\}")
_SHORT_UNITS = frozenset("cm mm km kg mg ml mL ft in hr hrs min sec mi yd oz lb lbs".split())  # noqa: SIM905
_MAX_NAME = 200


def sides(text: str) -> list[str]:
    r"""Split an equation or a chain of them at what is outside brackets, so not within `\sum_{k=1}`."""
    return list(_split(text, _EQUALS))


def items(text: str) -> list[str]:
    """Split a list at commas, "and" and "or" outside brackets."""
    return [item for item in _split(text, _COMMA) if item]


def _split(text: str, separator: "re.Pattern[str]") -> Iterator[str]:
    brackets = [(match.start(), -1 if match[0] in (")", "]", "}") else 1) for match in _BRACKET.finditer(text)]
    depth = start = index = 0
    for match in separator.finditer(text):
        while index < len(brackets) and brackets[index][0] < match.start():
            depth = max(0, depth + brackets[index][1])
            index += 1
        if depth == 0 and match.start() >= start:
            yield text[start : match.start()].strip()
            start = match.end()
    yield text[start:].strip()


def value_side(text: str) -> str | None:
    """Return what stands for the value: all of a text, of `x = 3` and `9 * 2 = 18` the last side.

    None for another equation, such as `2x + 3y = 6`, which is no value but what it says.

    Args:
        text: Tidied, see `numbers.tidy`.
    """
    first, *others = sides(text)
    if not others:
        return text.strip()
    return others[-1] if is_name(first) or is_computation(first) else None


def is_name(side: str, *, single: bool = False) -> bool:
    r"""Say whether the left side of an equation only names a value: `x`, `f(3)`, `\angle ABC`, `(x, y)`, "Total cost".

    Args:
        side: The left side.
        single: Whether sums, products and quotients of names are none, such as `m + n`.
    """
    if len(side) > _MAX_NAME or (len(side) > 1 and not any(map(str.isalpha, side))):
        return False
    side = side if single else _FRACTION_OF_NAMES.sub(r"\1/\2", side)
    if _FUNCTIONS.search(side):
        return False
    if _TUPLE_OF_NAMES.fullmatch(side):
        return True
    names = _SINGLE_NAME if single else _NAMES
    words = bool(re.search(r"[A-Za-z]{3}", side)) and not re.search(r" -|- ", side)
    return not side or bool(names.fullmatch(side)) or (words and bool(_WORDS.fullmatch(side)))


def is_computation(side: str) -> bool:
    """Say whether a text computes with numbers alone; words beside them are units."""
    side = re.sub(r"\\[A-Za-z]+|(?<=\d) ?x ?(?=\d)|(?<![A-Za-z])(?:pi|sqrt)(?![A-Za-z])", " ", side)
    words = re.findall(r"[A-Za-z]+", side)
    return any(map(str.isdigit, side)) and all(len(word) > 2 or word in _SHORT_UNITS for word in words)


def unwrapped(text: str, commands: "re.Pattern[str]") -> str:
    """Leave out commands, but not their group, and the brace that closes what a match opens with its last sign."""
    matches = list(commands.finditer(text))
    closing = closing_brackets(text, "{}") if matches else {}
    drop: set[int] = set()
    for match in matches:
        drop.update(range(match.start(), match.start(1) if match.lastindex else match.end()))
        if not match.lastindex and match.end() in closing:
            drop.add(closing[match.end()] - 1)
    return "".join(sign for place, sign in enumerate(text) if place not in drop) if drop else text


def closing_brackets(text: str, pair: str) -> dict[int, int]:
    """Return where each group in brackets ends, the closing one included, by where its content starts.

    Args:
        text: What a backslash escapes in it is no bracket.
        pair: The two brackets: `{}` or `()`.
    """
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == pair[0]:
            opened.append(match.end())
        elif match[0] == pair[1] and opened:
            closing[opened.pop()] = match.end()
    return closing
