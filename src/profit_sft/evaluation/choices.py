"""Which of the letters A to D a text chooses.

A letter counts where a box holds it; else where the text says that it is the answer ("the answer is C", "option C is
correct", "I choose (C)"), the last such place; else the letter the text begins with ("C, because"), or the last one in
brackets or alone on its line. Two letters side by side, "(A) or (C)", choose none.
"""

import re

from profit_sft.evaluation.answers import FoundAnswer, Rule, boxed_answer, without_thoughts
from profit_sft.evaluation.numbers import tidy

# A letter in any brackets, quotes, dollars or asterisks around it.
_WRAPPED = re.compile(r"(?<![\w\\])[(\[{'\"\u201c\u2018`*_$]{1,8} ?([A-Da-d]) ?[)\]}'\"\u201d\u2019`*_$]{1,8}(?!\w)")
_LETTER = r"(?:\x02[A-D]\x03|(?<![\w'\u2019-])[A-D](?![\w'\u2019]|-\w))"
_JOINED = r"(?: ?[,;/&] ?(?:(?:and|or) )?| (?:and|or) )(?:also |even )?(?:(?:option|choice|answer) )?"
_LETTERS = rf"{_LETTER}(?:{_JOINED}{_LETTER}){{0,5}}"
_NOUN = r"(?:answers?|choices?|options?|response|statement|alternative)"
_BEFORE = re.compile(
    rf"\b{_NOUN}\b(?: [\w'\u2019]+){{0,6}}? ?(?:[:=]|\b(?:is|are|was|be|would be|must be|remains)\b):?"
    r"(?: (?:clearly|therefore|thus|indeed|simply|most likely|likely|probably|definitely))?"
    r"(?: (?:either|both|neither|not))?(?: (?:the )?(?:option|choice|letter|answer|statement)s?)?[\s:]*"
    r"|<answer>\s*|\bcorrect: ?|\bit (?:must|has to|should) be "
    r"|\b(?:i|we)(?:'d| would| will|'ll)? (?:choose|chose|pick|select|go with)(?: (?:option|choice|answer))?:? ?"
    r"|\b(?:therefore|thus|hence|so|conclusion)[,:]? (?:it is |it's |it must be )?(?:option|choice|answer) ",
    re.IGNORECASE,
)
_CHOSEN = re.compile(rf"{_LETTERS}|[a-d](?=[.)]?\s*$)", re.MULTILINE)
_AFTER = re.compile(
    rf"({_LETTERS}) ?(?:(?:is|are|was|seems|must be|would be) (?:both |therefore |thus |clearly |indeed |also )?"
    r"(?:the )?(?:only |most |best )?(?:correct|right|true|best|answer|accurate|appropriate)\b)"
)
_NEGATION = re.compile(r"\b(?:not|neither)\b|n't\b", re.IGNORECASE)
_CONTINUES = re.compile(r" (?:because|since|as|for|is|which|and|or|with|due|here|in|given|but|not)\b")
_BEGINNING = re.compile(
    r"\W*(?:(?i:option|choice) )?([A-D])(?:[.):,\x03](?!\s*(?:is|are|was|would|can)\b)| because\b|\W*$)"
)
_ALONE = re.compile(
    rf"\x02[A-D]\x03(?:{_JOINED}\x02[A-D]\x03){{0,5}}|^(?:[^\w\n]|_)*[A-D](?:[^\w\n]|_)*$", re.MULTILINE
)
_NEAR = 24  # characters in which "not" belongs to a letter
_SHORT = 40  # characters of a box that is searched for letters


def stated_choice(text: str, *, truncated: bool = False) -> FoundAnswer | None:
    """Return the letter a text chooses; None if it chooses none or several.

    Args:
        text: What the model wrote.
        truncated: Whether it was cut off: a letter its sentence may go on behind is none.
    """
    text = without_thoughts(text)
    letters = _boxed_letters(boxed_answer(text, truncated=truncated) or "")
    if letters:
        return _single(letters, "boxed")
    plain = _marked(text)
    end = max(plain.rfind(sign) for sign in ".!?\n") if truncated else len(plain)
    stated = _stated(plain, end)
    if stated:
        return _single(stated, "stated")
    return None if truncated else _single(_guessed(plain), "fallback")


def _boxed_letters(box: str) -> str:
    plain = tidy(box)
    if len(plain) <= _SHORT and re.fullmatch(r"(?:[\W_]|(?i:and|or|option|choice|answer|the|is)\b|[A-Da-d]\b)+", plain):
        return "".join(re.findall(r"\b[A-Da-d]\b", plain))
    first = re.match(r"\W*(?:(?:option|choice|answer)\W*)?([A-D])(?![\w'\u2019])", plain, re.IGNORECASE)
    return first[1] if first else ""


def _marked(text: str) -> str:
    r"""Write letters in brackets, quotes or bold between \x02 and \x03, and LaTeX's texts as texts."""
    text = re.sub(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox) ?\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[()\[\]]", "$", text)
    text = re.sub(r"[ \t\x02\x03]+", " ", text)
    text = _WRAPPED.sub(lambda match: f"\x02{match[1].upper()}\x03", text)
    return re.sub(r"\*\*|__", "", text)


def _stated(text: str, end: int) -> str:
    """Return the letters of the last place that says what the answer is, of those that are complete at `end`."""
    found = (-1, "")
    for match in _BEFORE.finditer(text):
        chosen = _CHOSEN.match(text, match.end())
        if chosen and chosen.end() <= end and not _NEGATION.search(match[0]) and not _is_article(text, chosen):
            found = max(found, (chosen.start(), chosen[0]))
    for match in _AFTER.finditer(text):
        before = text[max(0, match.start() - _NEAR) : match.start()].rpartition(".")[2]
        if match.end() <= end and not _NEGATION.search(before):
            found = max(found, (match.start(1), match[1]))
    return _letters(found[1])


def _is_article(text: str, chosen: "re.Match[str]") -> bool:
    """Say whether a bare A is the article: "the answer is A good one"."""
    lower = re.compile(r" [a-z]").match(text, chosen.end())
    return chosen[0] == "A" and bool(lower) and not _CONTINUES.match(text, chosen.end())


def _guessed(text: str) -> str:
    begins = _BEGINNING.match(text)
    if begins and len(re.findall(r"^[^\w\n]*[A-D][.):]", text, re.MULTILINE)) <= 1:
        chosen = re.compile(_LETTERS).search(text, max(0, begins.start(1) - 1))
        letters = _letters(chosen[0] if chosen else begins[1])
        if len(letters) == 1:
            return letters
    alone = list(_ALONE.finditer(text))
    if not alone or _NEGATION.search(text[max(0, alone[-1].start() - 5) : alone[-1].start()]):
        return ""
    return _letters(alone[-1][0])


def _letters(text: str) -> str:
    return "".join(re.findall(r"(?<![A-Za-z])[A-Da-d](?![A-Za-z])", text))


def _single(letters: str, rule: Rule) -> FoundAnswer | None:
    found = set(letters.upper())
    return FoundAnswer(found.pop(), rule) if len(found) == 1 else None
