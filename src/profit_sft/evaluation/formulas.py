r"""Formulas in running text: those between dollars or brackets, and those a sentence writes without any.

`answer_formula` is what a sentence that states an answer says: of "9 * 2 = $18 every day" it is `9 * 2 = 18`, of "about
$\sqrt{2}$ meters" `\sqrt{2}`, of "pi/2, since it is a right angle" `pi/2`. Every function here takes time in proportion
to its text.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass

from profit_sft.evaluation.numbers import COMMAS, COUNTER, IDEOGRAPH, LOOKS, NUMBER, closing_brackets, tidy, unwrapped

_DELIMITER = re.compile(r"\\[()\[\]]|\$\$|(?<!\\)\$")
_CLOSING = {r"\(": r"\)", r"\[": r"\]", "$$": "$$", "$": "$"}
_MAX_INLINE = 1000  # characters between two single dollars


@dataclass(frozen=True, slots=True)
class Formula:
    r"""A formula between `$`, `$$`, `\(` or `\[`: where it starts and ends, delimiters included, and its content."""

    start: int
    end: int
    content: str


def delimited_formulas(text: str) -> list[Formula]:
    """Return the formulas of a text in order.

    A single dollar opens one where no white space follows, and closes it where none precedes and no digit follows, so
    that "$5 and $6" holds none.
    """
    found: list[Formula] = []
    opened: re.Match[str] | None = None
    for match in _DELIMITER.finditer(text):
        sign = match[0]
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        if opened is not None and sign == _CLOSING[opened[0]]:
            content = text[opened.end() : match.start()]
            whole = sign != "$" or (
                not before.isspace() and not after.isdigit() and "\n" not in content and len(content) <= _MAX_INLINE
            )
            if whole and content.strip():
                found.append(Formula(opened.start(), match.end(), content))
                opened = None
                continue
        if sign in _CLOSING and (opened is None or opened[0] == "$" or sign != "$"):
            opens = sign != "$" or (after and not after.isspace())
            opened = match if opens else opened if sign != "$" else None
    return found


def outside(formulas: list[Formula], position: int) -> bool:
    """Say whether a position lies in none of the formulas, which are in order."""
    index = bisect_left([formula.end for formula in formulas], position + 1)
    return index == len(formulas) or position < formulas[index].start


# One thing a sentence is made of. A formula between delimiters is put in as its number between \x02 and \x03.
_TOKEN = re.compile(
    r"\x02(?P<formula>\d+)\x03"
    r"|(?P<ordinal>\d+(?:st|nd|rd|th)\b)"
    rf"|(?P<number>(?<![^\W\d_]){NUMBER.pattern})"
    r"|(?P<relation>\\(?:leq?|geq?|neq?|in|approx|sim)(?![A-Za-z])|[<>]=?|[≤≥≠∈≈]|={1,2})"
    r"|(?P<operator>\*\*|\\(?:cdot|times|div|pm|mp|cup|cap|setminus)(?![A-Za-z])|[-+*/^_·\u00d7÷±\u222a∩:])"
    r"|(?P<open>\\?\{|[(\[])"
    r"|(?P<close>\\?\}|[)\]])"
    r"|(?P<command>\\(?!boxed|fbox|begin|end|text|item|tag)[A-Za-z]+|[√π∞∅]|(?<![A-Za-z])(?:pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|infinity|inf)(?![A-Za-z]))"
    r"|(?P<separator>[,;]|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))"
    r"|(?P<suffix>[!%²³])"
    r"|(?P<variable>(?<![A-Za-z])[A-Za-z](?![A-Za-z'\u2019])|[\u03b1-ω])"
    r"|(?P<word>[^\W\d_](?:\w|['\u2019])*\.?|°[CF]?)"
    r"|(?P<other>\S)"
)
_MAX_SENTENCE = 2000
# Where the answer ends and the reason starts.
_REASON = re.compile(
    r"[,;:.]? (?:because|since|as|so|which|where|when|if|given|assuming|due|that is|i\.e\.)(?![A-Za-z])", re.IGNORECASE
)
# Operations in words, where they stand beside a number.
_SPOKEN = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\bcube root of (\d+)", r"\\sqrt[3]{\1}"),
        (r"\b(?:square )?root of (?=[\d(\x02])", r"\\sqrt "),
        (r"(?<=[\d)}%]) minus (?=[\d.])", " - "),
        (r"\b(?:minus|negative) (?=[\d.])", "-"),
        (r"(?<=\d) plus (?=[\d.])", " + "),
        (r"(?<=\d) times (?=[\d.])", " * "),
        (r"(?<=\d) (?:divided by|over) (?=[\d.])", "/"),
        (r"(?<=\d) squared\b", "^2"),
        (r"(?<=\d) cubed\b", "^3"),
        (r"(?<=\d) factorial\b", "!"),
        (r"(?<=\d) to the power of (-?\d+)", r"^{\1}"),
        (r"\bhalf of (?=[\d.])", "1/2 * "),
        (r"\btwice (?=[\d.])", "2 * "),
    )
)
_TIMES = re.compile(r"(?<=\d )x(?= \d)")
_BETWEEN_INTERVALS = re.compile(r"(?<=[)\]] )U(?= [(\[])")
_OPERANDS = frozenset({"formula", "number", "command", "variable"})
_ARTICLES = frozenset({"a", "A", "I"})
_MAX_OPENING = 8  # brackets and signs in front of what they enclose


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    spaced: bool  # white space precedes it


def answer_formula(sentence: str) -> str | None:
    """Return the formula or number that a sentence gives for the answer, the first it holds; None if it holds none.

    Units within it are left out. Formulas joined by commas, "and" or "or" are one answer.

    Args:
        sentence: What stands behind "the answer is", say.

    Example:
        >>> answer_formula("18 dollars a day for 7 days"), answer_formula("Ann's and Bob's")
        ('18', None)
        >>> answer_formula("$3$ and $5$ meters"), answer_formula("9 * 2 = $18 every day")
        ('3, 5', '9 * 2 = 18')
    """
    tokens = _tokens(_without_reason(sentence[:_MAX_SENTENCE]))
    position = _next_start(tokens, 0)
    if position is None:
        return None
    first, end = _run(tokens, position)
    parts = [first]
    while end < len(tokens) and tokens[end].kind == "separator":
        while end < len(tokens) and tokens[end].kind == "separator":
            end += 1
        if not _starts(tokens, end):
            break
        part, end = _run(tokens, end)
        parts.append(part)
    # "18, 3 times 6" goes on, so that it is no list.
    return ", ".join(parts) if _next_start(tokens, end) is None else first


def last_formula(text: str) -> str | None:
    """Return the last formula or number of a text, with or without delimiters around it; None if there is none."""
    tokens = _tokens(text[-_MAX_SENTENCE:])
    found: str | None = None
    position = _next_start(tokens, 0)
    while position is not None:
        found, end = _run(tokens, position)
        position = _next_start(tokens, end)
    return found


def _without_reason(sentence: str) -> str:
    formulas = delimited_formulas(sentence)
    first = re.search(r"[\d\\$√π∞]", sentence)
    for match in _REASON.finditer(sentence, 0 if first is None else first.start()):
        if outside(formulas, match.start()):
            return sentence[: match.start()]
    return sentence


def _tokens(text: str) -> list[_Token]:
    text = re.sub("[\x02\x03]", " ", text)
    formulas = delimited_formulas(text)
    pieces, position = [], 0
    for index, formula in enumerate(formulas):
        pieces += [text[position : formula.start], f"\x02{index}\x03"]
        position = formula.end
    plain = tidy("".join([*pieces, text[position:]]))
    for pattern, replacement in _SPOKEN:
        plain = pattern.sub(replacement, plain)
    plain = _BETWEEN_INTERVALS.sub("\u222a", _TIMES.sub("*", plain))
    tokens: list[_Token] = []
    end = 0
    for match in _TOKEN.finditer(plain):
        kind = next(kind for kind in _KINDS if match[kind] is not None)
        content = formulas[int(match[kind])].content.strip() if kind == "formula" else match[0]
        tokens.append(_Token(kind, content, match.start() > end))
        end = match.end()
    return tokens


_KINDS = tuple(_TOKEN.groupindex)


def _next_start(tokens: list[_Token], position: int) -> int | None:
    return next((index for index in range(position, len(tokens)) if _starts(tokens, index)), None)


def _starts(tokens: list[_Token], index: int) -> bool:
    """Say whether a formula may start with a token."""
    end = index
    while end < len(tokens) and end - index < _MAX_OPENING and _opens(tokens, end, inside=end > index):
        end += 1
    if end >= len(tokens):
        return False
    kind, following = tokens[end].kind, tokens[end + 1] if end + 1 < len(tokens) else None
    if kind in ("formula", "number", "command"):
        return True
    if kind != "variable" or following is None:
        return False
    if end > index and following.text in (",", ")", "}", "]"):
        return True
    calls = following.text == "(" and not following.spaced
    return calls or (following.kind in ("relation", "operator") and _goes_on(tokens, end + 1))


def _opens(tokens: list[_Token], index: int, *, inside: bool) -> bool:
    signed = tokens[index].text in ("-", "+", "±", r"\pm") and index + 1 < len(tokens)
    return tokens[index].kind == "open" or (signed and (inside or not tokens[index + 1].spaced))


def _goes_on(tokens: list[_Token], index: int) -> bool:
    """Say whether what stands behind an operator or relation belongs to a formula."""
    end = index + 1
    while end < len(tokens) and end - index < _MAX_OPENING and _opens(tokens, end, inside=True):
        end += 1
    if end >= len(tokens) or (tokens[end].text in _ARTICLES and tokens[index].spaced and tokens[end].spaced):
        return False
    return tokens[end].kind in _OPERANDS


def _run(tokens: list[_Token], start: int) -> tuple[str, int]:
    """Read the formula that starts at a token; return it and the index behind it."""
    taken: list[_Token] = []
    depth = 0
    complete = (0, start)  # how much of `taken` is a whole formula, and where the tokens go on behind it
    index = start
    while index < len(tokens):
        token = tokens[index]
        last = taken[-1].kind if taken else "operator"
        if token.kind in ("word", "ordinal", "other"):
            skipped = _behind_units(tokens, index) if depth == 0 and last in (*_OPERANDS, "close") else None
            if skipped is None:
                break
            index = skipped
            continue
        if not _joins(tokens, index, last, depth):
            break
        depth += {"open": 1, "close": -1}.get(token.kind, 0)
        taken.append(token)
        index += 1
        if depth == 0 and token.kind in (*_OPERANDS, "close", "suffix"):
            complete = (len(taken), index)
    taken, index = taken[: complete[0]], max(complete[1], start + 1)
    text = "".join((" " if token.spaced else "") + token.text for token in taken).strip()
    return text or tokens[start].text, index


def _joins(tokens: list[_Token], index: int, last: str, depth: int) -> bool:
    """Say whether a token carries on a formula whose last token is of kind `last`."""
    token = tokens[index]
    operand = last in _OPERANDS or last in ("close", "suffix")
    if token.kind in ("operator", "relation"):
        if token.text == ":" and not (last == "number" and not token.spaced):
            return False
        return _goes_on(tokens, index)
    if token.kind == "separator":
        return depth > 0
    if token.kind == "close":
        return depth > 0
    if token.kind == "suffix":
        return operand and not token.spaced
    if token.kind == "open":
        return not operand or not token.spaced or last == "command"
    if not operand or last == "command":
        return True
    if token.kind == "number":
        return False
    if token.kind == "variable":
        following = tokens[index + 1].kind if index + 1 < len(tokens) else ""
        return not token.spaced or (token.text not in _ARTICLES and following != "word")
    return not token.spaced or (last == "number" and token.kind in ("formula", "command"))


def _behind_units(tokens: list[_Token], index: int) -> int | None:
    """Return where a computation goes on behind the unit of a number: of "5 apples + 3 apples" at the plus."""
    end = index
    while end < len(tokens) and tokens[end].kind == "word" and end - index < 3:
        end += 1
    computes = end < len(tokens) and end > index and tokens[end].kind in ("operator", "relation")
    return end if computes and tokens[end].text not in (":", "_", "^") and _goes_on(tokens, end) else None


# How formulas are written without LaTeX, which math-verify takes for products of letters, and signs for commands.
_TO_LATEX = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\$|\\[()\[\]]", " "),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])|π", r"\\pi "),
        (r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])|∞", r"\\infty "),
        (r"(?<![\\A-Za-z])sqrt|√", r"\\sqrt"),
        (r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln)(?![A-Za-z])", r"\\\1 "),
        (r"\*\*", "^"),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"(?<=\d)[eE]([+-]?\d+)(?!\w)", r"\\cdot 10^{\1}"),
        (r"(?<=\d) ?\*? ?i(?![A-Za-z])", "i"),
        (r"[·\u00d7]|\*", r"\\cdot "),
        (r"(?<=\d )x(?= \d)", r"\\cdot "),
        (r"÷", "/"),
        (r"±", r"\\pm "),
        # Of \choose, math-verify knows what stands in braces of its own.
        (r"((?<!\\)\{[^{}]*\\choose[^{}]*(?<!\\)\}|(?<![\w\\])\w+ ?\\choose ?\w+(?! ?[\w}]))", r"{\1}"),
        (r"≤|<=|=<", r"\\le "),
        (r"≥|>=", r"\\ge "),
        (r"≠|!=", r"\\ne "),
        (r"\u222a|(?<=[)\]]) ?U ?(?=[(\[])", r"\\cup "),
        (r"∩", r"\\cap "),
        (r"∈", r"\\in "),
        (r"∅|\\varnothing", r"\\emptyset "),
        (r"[\u2212\u2013]", "-"),
        (r"^ ?[A-Za-z] ?\\in(?![A-Za-z])", ""),
    )
)
_UNITS = re.compile(
    r"(?: *\\(?:text|mbox|mathrm) ?\{ ?[A-Za-z][A-Za-z .]*\}|(?<=[\d}) ]) *(?!\\)(?<![\\A-Za-z])[A-Za-z]{3,}\.?"
    rf"|(?<=[\w}}) ])(?<![{IDEOGRAPH}]){COUNTER})"
    r"(?: ?\^ ?\{?[23]\}?)?$"
)
_NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
_GREEK = {name: chr(code) for code, name in enumerate(_NAMES, 0x3B1)}
_ARGUMENT = re.compile(r"(\\sqrt|\^) ?(?:(\()|(-?\d{2,}(?:\.\d+)?|(?<=t)\d+|(?<=t )\d+))")


def as_latex(formula: str) -> str:
    r"""Write a formula in LaTeX: `2*sqrt(3)/x**2` as `2\cdot \sqrt{3}/x^2`, without a unit behind it.

    Example:
        >>> as_latex("(1 + sqrt(5))/2")
        '(1 + \\sqrt{5})/2'
        >>> as_latex("x**10")
        'x^{10}'
    """
    formula = unwrapped(formula, LOOKS).translate(COMMAS)
    for pattern, replacement in _TO_LATEX:
        formula = pattern.sub(replacement, formula)
    for name, sign in _GREEK.items():
        formula = formula.replace(sign, f"\\{name} ")
    formula = _with_braces(formula).strip()
    value = _UNITS.sub("", formula)
    return value if re.search(r"[\d\\]", value) else formula


def _with_braces(formula: str) -> str:
    """Put braces around what a root or a power without braces takes: a group in brackets, or all digits of a number."""
    closing = closing_brackets(formula, "()")
    drop: dict[int, str] = {}
    for match in _ARGUMENT.finditer(formula):
        if match[2]:
            end = closing.get(match.end(2))
            if end is not None:
                drop[match.start(2)], drop[end - 1] = "{", "}"
        else:
            drop[match.start(3)] = "{" + formula[match.start(3)]
            last = match.end(3) - 1
            drop[last] = (drop[last] if last in drop else formula[last]) + "}"
    return "".join(drop.get(place, sign) for place, sign in enumerate(formula))
