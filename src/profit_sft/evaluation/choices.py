"""Which of the letters A to D a text chooses.

A letter counts where a box holds it; else where the text says that it is the answer ("the answer is C", "option C is
correct", "I choose (C)"), the last such place; else the last letter in brackets or alone on its line. Two letters side
by side, "(A) or (C)", choose none.
"""

import re

from profit_sft.evaluation.answers import FoundAnswer, Rule, boxed_answer, without_thoughts
from profit_sft.evaluation.numbers import tidy

# A letter in any brackets, quotes, dollars or asterisks around it.
_AROUND = r"[(\[{'\"\u201c\u201d\u2018\u2019`*_$]"
_CLOSING = r"[)\]}'\"\u201c\u201d\u2018\u2019`*_$]"
_WRAPPED = re.compile(rf"(?<![\w\\]){_AROUND}+ ?([A-Da-d]) ?{_CLOSING}+(?![\w])")
_LETTER = r"(?:\x02([A-D])\x03|(?<![\w'\u2019-])([A-D])(?![\w'\u2019]|-\w))"
_LETTERS = rf"{_LETTER}(?: ?(?:,|;|/|&|,? ?(?:and|or)(?: also| even)?) ?(?:(?:option|choice|answer) )?{_LETTER})*"
_NOUN = r"(?:answers?|choices?|options?|response|statement|alternative)"
_BEFORE = re.compile(
    rf"\b{_NOUN}\b(?: [\w'\u2019]+){{0,6}}? ?(?:[:=]|\b(?:is|are|was|be|would be|must be|remains)\b):?"
    rf"(?: (?:clearly|therefore|thus|indeed|simply|most likely|likely|probably|definitely))?"
    rf"(?: (?:either|both|neither|not))?(?: (?:the )?(?:option|choice|letter|answer|statement)s?)?[\s:]*"
    rf"|\b(?:i|we)(?:'d| would| will|'ll)? (?:choose|chose|pick|select|go with)(?: (?:option|choice|answer))?:? ?"
    rf"|\b(?:therefore|thus|hence|so|conclusion)[,:]? (?:it is |it's |it must be )?(?:option|choice|answer) ",
    re.IGNORECASE,
)
_AFTER = re.compile(
    rf"({_LETTERS}) ?(?:(?:is|are|was|seems|must be|would be) (?:both |therefore |thus |clearly |indeed |also )?"
    r"(?:the )?(?:only |most |best )?(?:correct|right|true|best|answer|accurate|appropriate)\b)"
)
_CHOSEN = re.compile(_LETTERS)
_NEGATED = re.compile(r"\b(?:not|neither|n't)[^.\x02]{0,20}$", re.IGNORECASE)
_ALONE = re.compile(r"\x02[A-D]\x03(?: ?(?:,|/|&|and|or) ?\x02[A-D]\x03)*|^[\W_]*[A-D][\W_]*$", re.MULTILINE)


def stated_choice(text: str, *, truncated: bool = False) -> FoundAnswer | None:
    """Return the letter a text chooses; None if it chooses none or several.

    Args:
        text: What the model wrote.
        truncated: Whether it was cut off: a letter its sentence may go on behind is none.
    """
    text = without_thoughts(text)
    boxed = boxed_answer(text, truncated=truncated)
    if boxed:
        letters = re.findall(r"\b([A-Da-d])\b", tidy(boxed)) if len(boxed) < 12 else []
        first = re.match(r"\W*(?:(?:option|choice|answer)\W*)?([A-D])(?![\w'\u2019])", tidy(boxed), re.IGNORECASE)
        if letters or first:
            return _single(letters or [first[1]] if first else letters, "boxed")
    plain = _marked(text)
    end = max(plain.rfind(sign) for sign in ".!?\n") if truncated else len(plain)
    places: list[tuple[int, str]] = []
    for match in _BEFORE.finditer(plain):
        chosen = _CHOSEN.match(plain, match.end())
        negated = re.search(r"\b(?:not|neither)\b", match[0], re.IGNORECASE)
        if chosen and not negated and chosen.end() <= end and not _article(plain, chosen):
            places.append((chosen.start(), chosen[0]))
    for match in _AFTER.finditer(plain):
        if match.end() <= end and not _NEGATED.search(plain[max(0, match.start() - 30) : match.start()]):
            places.append((match.start(1), match[1]))
    if places:
        return _single(re.findall(r"(?<![A-Za-z])[A-D](?![A-Za-z])", max(places)[1]), "stated")
    alone = [] if truncated else _ALONE.findall(plain)
    return _single(re.findall(r"(?<![A-Za-z])[A-D](?![A-Za-z])", alone[-1]), "fallback") if alone else None


def _marked(text: str) -> str:
    r"""Write letters in brackets, quotes or bold between \x02 and \x03, and LaTeX's texts as texts."""
    text = re.sub(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox) ?\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[()\[\]]", "$", text)
    text = re.sub(r"[ \t]+", " ", text)
    text = _WRAPPED.sub(lambda match: f"\x02{match[1].upper()}\x03", text)
    return re.sub(r"\*\*|__", "", text)


def _article(text: str, letters: "re.Match[str]") -> bool:
    """Say whether a bare A is no letter but the article: "the answer is A good one"."""
    return (
        letters[0] == "A"
        and bool(re.match(r" [a-z]", text[letters.end() :]))
        and not _CONTINUES.match(text, letters.end())
    )


_CONTINUES = re.compile(r" (?:because|since|as|for|is|which|and|or|with|due|here|in|given|but|not)\b")


def _single(letters: list[str], rule: Rule) -> FoundAnswer | None:
    found = {letter.upper() for letter in letters}
    return FoundAnswer(found.pop(), rule) if len(found) == 1 else None
