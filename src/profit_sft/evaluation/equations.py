r"""What an equation is an answer to: `x = 3` and `9 * 2 = 18` give a value, `2x + 3y = 6` is the answer itself."""

import re
from collections.abc import Iterator

_EQUALS = re.compile(r"(?<![<>!\\=:])==?(?![=<>])|≈|\\approx(?![A-Za-z])")
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
    r"""Say whether the left side of an equation only names a value: `x`, `f(3)`, `\angle ABC`, "Total cost".

    Args:
        side: The left side.
        single: Whether sums, products and quotients of names are none, such as `m + n`.
    """
    if len(side) > _MAX_NAME or (len(side) > 1 and not any(map(str.isalpha, side))):
        return False
    side = side if single else _FRACTION_OF_NAMES.sub(r"\1/\2", side)
    if _FUNCTIONS.search(side):
        return False
    names = _SINGLE_NAME if single else _NAMES
    words = bool(re.search(r"[A-Za-z]{3}", side)) and not re.search(r" -|- ", side)
    return not side or bool(names.fullmatch(side)) or (words and bool(_WORDS.fullmatch(side)))


def is_computation(side: str) -> bool:
    """Say whether a text computes with numbers alone; words beside them are units."""
    side = re.sub(r"\\[A-Za-z]+|(?<=\d) ?x ?(?=\d)|(?<![A-Za-z])(?:pi|sqrt)(?![A-Za-z])", " ", side)
    words = re.findall(r"[A-Za-z]+", side)
    return any(map(str.isdigit, side)) and all(len(word) > 2 or word in _SHORT_UNITS for word in words)
