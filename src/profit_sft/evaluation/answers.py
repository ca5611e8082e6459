r"""Where an answer stands in a text.

What a reasoning model thinks, between `<think>` and `</think>`, is left out first; a thought that does not end hides
all that follows. The rest is searched in this order; the first rule that finds something decides:

    boxed     the last closed `\boxed{...}` (or `\fbox{...}`); boxes joined by a comma, "and" or "or" are one answer
    hashes    what stands behind the last `####` of a line, as in GSM8K's solutions
    stated    the sentence behind the last "answer is", "answer:", "answer = " and the like
    fallback  the last formula or number

What an answer is said not to be is left out, and of a statement that is taken back at once ("8. Wait, no, it is 7")
what follows counts. Of a text that was cut off only a complete answer is taken: one whose sentence or line goes on to
the end of the text may lack its last digits, and the last number so far is no answer at all. Every search takes time in
proportion to its text.

Which of the letters A to D a text chooses is found likewise: a letter counts where a box holds it; else where the text
says that it is the answer ("the answer is C", "option C is correct", "I choose (C)"), the last such place; else the
letter the text begins with ("C, because"), or the last one in brackets or alone on its line. Two letters side by side,
"(A) or (C)", choose none.
"""

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from profit_sft.evaluation.formulas import delimited_formulas, last_formula, outside
from profit_sft.evaluation.numbers import BESIDE_IDEOGRAPH, closing_brackets, tidy, unwrapped

Rule = Literal["boxed", "hashes", "stated", "fallback"]


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """An answer in a text: its characters, of several boxes joined by commas, and the rule that found it."""

    text: str
    rule: Rule


def find_answer(text: str, *, truncated: bool = False) -> FoundAnswer | None:
    r"""Find the answer in a text by the rules of this module.

    Args:
        text: What the model wrote.
        truncated: Whether it was cut off.

    Returns:
        None if there is no answer.

    Example:
        >>> find_answer(r"So $x=\frac{1}{2}$ and the answer is $\boxed{\frac{1}{2}}$.")
        FoundAnswer(text='\\frac{1}{2}', rule='boxed')
        >>> find_answer("The answer is 12 dollars. I hope this helps!")
        FoundAnswer(text='12 dollars', rule='stated')
        >>> find_answer("The answer is 12", truncated=True)
    """
    text = _DENIED.sub(" ", _BOLD.sub("", without_thoughts(text)))
    for rule, find in _EXPLICIT.items():
        found = find(text, truncated)
        if found:
            return FoundAnswer(found, rule)
    guess = None if truncated else last_formula(text)
    return None if guess is None else FoundAnswer(guess, "fallback")


def boxed_answer(text: str, *, truncated: bool = False) -> str | None:
    """Return what the last box holds, and those joined to it, if there is one."""
    return _boxed(_BOLD.sub("", text), truncated)


def without_thoughts(text: str) -> str:
    """Return a text without what stands between `<think>` and `</think>`, and the white space behind it.

    A closing tag alone ends a thought that began in the prompt, so that all before it is one; an opening tag alone
    begins one that goes on to the end.

    Example:
        >>> without_thoughts("<think>4? No.</think> It is 5."), without_thoughts("<think>Is it 5")
        ('It is 5.', '')
    """
    kept: list[str] = []
    start, thinking = 0, False
    for tag in _THOUGHT.finditer(text):
        if tag[0].startswith("</"):
            if not thinking:
                kept.clear()
            start, thinking = tag.end(), False
        elif not thinking:
            kept.append(text[start : tag.start()])
            thinking = True
    return "".join(kept if thinking else [*kept, text[start:]])


_THOUGHT = re.compile(r"<think>|</think>\s*", re.IGNORECASE)
_BOLD = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)")  # not the power in x**2
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{}$\\]+))")
_LAYOUT = re.compile(r"\\(?:q?quad|[,;:! ()\[\]\\])|\\text *\{|[\s${}&*~]")
_BETWEEN_BOXES = re.compile(r"(?:[A-Za-z]{1,12})??[,;]?(?:and|or|aswellas)?[,;]?(?:\\?[A-Za-z](?:_\w)?=)?")
_MAX_BETWEEN_BOXES = 60
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_MARKER = re.compile(
    r"<answer>\s*|\banswers?\b(?:,?\s+[\w'$\\{}-]+){0,8}?\s*(?:[:=]|\b(?:is|are|was|equals|be)\b)[ \t]*:?\s*",
    re.IGNORECASE,
)
_VALUE = r"[-\u2212]?[$\\(√π∞\d]"
# What an answer is said not to be: "the answer is not 8 but 7".
_DENIED = re.compile(
    # Words between, of which none says what it is: "the answer is 3, it cannot be -3" denies another value.
    r"\banswers?\b(?:,?\s+(?!(?:is|are|was|were|equals|be)\b)"
    r"(?:(?:part|question|problem)\s+\(?\w{1,3}\)?|[A-Za-z'\u2019-]+)){0,4}?"
    r"\s+(?:(?:is|was|be)\s+not|(?:cannot|(?:can|should|would|will|could)\s+(?:not|never))\s+be"
    rf"|(?:is|was|ca)n['\u2019]t(?:\s+be)?)\s+(?={_VALUE})\S+",
    re.IGNORECASE,
)
# A value with its unit, or two.
_UNIT_WORD = r"(?!(?:also|too|in|works?|fails?|sold)\b)[A-Za-z%]+"
_BARE_VALUE = rf"(?:\$[^$\n]*\$|{_VALUE}[^\s=]*)(?: (?:and|or) {_VALUE}[^\s=]*| {_UNIT_WORD}){{0,2}}[ \t]*"
# An answer that is taken back at once: "the answer is 8. Wait, no, it is 7".
_TAKEN_BACK = r"(?:wait|no|oops|sorry|actually|correction|scratch that|or rather|i mean)\b[\s,.:;!-]{0,4}"
_CORRECTION = re.compile(
    rf"[\s,.;!?()$*_\u2014\u2026-]{{0,12}}\b{_TAKEN_BACK}(?:{_TAKEN_BACK}){{0,3}}"
    # Behind "wait" alone "that's 2 hours" says the same in other words.
    r"(?:(?:it|the answer|(?:(?<=no, )|(?<=no )|(?<=sorry, )|(?<=oops, ))that)(?:['\u2019]s| is| should be| must be) "
    r"|make (?:that|it) |(?<=wait, no, )|(?<=rather )|(?<=mean )"
    # Without a verb the value alone, and not "Wait, 48/2 = 24 and 48+24 = 72" or "No, 3 of them are red".
    rf"|(?:(?<=wait, )|(?<=no, ))(?={_BARE_VALUE}(?:[.!?)](?:[\s)]|$)|\n|$)))"
    # And not "Actually, that is 5 more than before".
    rf"(?={_VALUE})(?!\S{{0,40}}(?<![,.;:!?])(?: \w+)? (?:is|are|was|were|of|than)\b)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,;(\u2014\u2026]|\.\.")
_FOLLOWS = re.compile(r"(?:(?:given |shown )?(?:below|as follows|by|here)|the following)[.:]?", re.IGNORECASE)
_HEADING = re.compile(
    r"[*_ ]*(?:step|part|case|section|problem|question|(?:final )?answer)\b|[^\d\\$√π∞]*$", re.IGNORECASE
)
# A period ends a sentence where white space or nothing follows, so not in "3.5" or "a.m".
_SENTENCE_END = re.compile(r"(?<!\\)(?<!\bapprox)(?<!\bRs)(?<!\bNo)[.!?](?=[\s\"')\]]|$)|\n|</answer>")


def _boxed(text: str, truncated: bool) -> str | None:
    """Return what the last box holds, and those that are joined to it; boxes within a box are only drawn."""
    boxes: list[tuple[int, int, str]] = []
    closing = closing_brackets(text, "{}")
    for match in _BOX.finditer(text):
        end = match.end() if match[1] else closing.get(match.end())
        inner = boxes and match.start() < boxes[-1][1]
        if end is not None and not inner and not (match[1] and truncated and end == len(text)):
            boxes.append((match.start(), end, match[1] or text[match.end() : end - 1]))
    joined = boxes[-1:]
    for box in reversed(boxes[:-1]):
        if not _joined(text[box[1] : joined[0][0]]):
            break
        joined.insert(0, box)
    return ", ".join(
        dict.fromkeys(content for content in (unwrapped(box[2], _BOX).strip() for box in joined) if content)
    )


def _joined(between: str) -> bool:
    if len(between) > _MAX_BETWEEN_BOXES:
        return False
    between = _LAYOUT.sub("", between)
    return not between or (
        bool(re.search(r"[,;]|and|or|aswellas", between)) and bool(_BETWEEN_BOXES.fullmatch(between))
    )


def _hashes(text: str, truncated: bool) -> str | None:
    for match in reversed(list(_HASHES.finditer(text))):
        if truncated and match.end() == len(text):
            continue
        # Four of them also make a heading: "#### Step 1", "#### Answer".
        return None if _HEADING.match(match[1]) else match[1].strip()
    return None


def _stated(text: str, truncated: bool) -> str | None:
    formulas = delimited_formulas(text)
    ends = [match.start() for match in _SENTENCE_END.finditer(text) if outside(formulas, match.start())]
    if not truncated:
        ends.append(len(text))
    for marker in reversed(list(_MARKER.finditer(text))):
        piece = _sentence(text, marker.end(), ends) if outside(formulas, marker.start()) else ""
        if piece:
            start = text.index(piece, marker.end())
            corrections = (_CORRECTION.match(text, place) for place in _clauses(text, start, start + len(piece)))
            corrected = next((found for found in corrections if found), None)
            return piece if corrected is None else _sentence(text, corrected.end(), ends) or None
    return None


def _clauses(text: str, start: int, end: int) -> list[int]:
    """Return where what may take an answer back can begin: at a comma or dash within its sentence, and behind it."""
    return [match.start() for match in _CLAUSE.finditer(text, start, end)] + [end]


def _sentence(text: str, start: int, ends: list[int]) -> str:
    """Return the sentence that starts at a place, or of "as follows" the next one; empty if it has no end."""
    for end in ends[bisect_left(ends, start) :]:
        piece = text[start:end].strip(" \t\r\n*_`:")
        if piece and not _FOLLOWS.fullmatch(piece):
            return piece
        if not piece:
            return ""
        start = end + 1
    return ""


_EXPLICIT: dict[Rule, Callable[[str, bool], str | None]] = {"boxed": _boxed, "hashes": _hashes, "stated": _stated}


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
# What also says it, where nothing of the above does: of what explains an answer, "so B" may be a compound or a gene.
_IN_PASSING = re.compile(
    r"(?:\bit(?:'s|\u2019s| is) |\bi(?:'d|\u2019d| would)? (?:say|think) (?:it(?:'s|\u2019s| is) |that )?"
    r"|\b(?:therefore|thus|hence|so)[,:]? |^\W{0,3}(?:choose|pick|select) )"
    r"(?=[\x02(]?(?-i:[A-D])[\x03)]?(?:[.!;\n]|,? (?:because|since)\b|$))"
    r"|\bbut (?:rather )?(?=[\x02(]?(?-i:[A-D])[\x03)]?(?:[.!;\n]|$))",
    re.IGNORECASE,
)
_TAKES_BACK = re.compile(rf"\b(?:{_TAKEN_BACK}){{1,4}}$", re.IGNORECASE)
_STARTS = re.compile(r"(?:\A|[.!?\n])\W*(?:(?:therefore|thus|hence|so|then|but)[,:]? )?\Z", re.IGNORECASE)  # a sentence
_ENDS = re.compile(r"\W*\Z")
_CHOSEN = re.compile(rf"{_LETTERS}|[a-d](?=[.)]?\s*$)", re.MULTILINE)
_AFTER = re.compile(
    rf"({_LETTERS}) ?(?:(?:is|are|was|seems|must be|would be) (?:both |therefore |thus |clearly |indeed |also )?"
    r"(?:the )?(?:only |most |best )?(?:correct|right|true|best|answer|accurate|appropriate)\b)"
)
_NEGATION = re.compile(r"\b(?:not|neither|cannot|never)\b|n['\u2019]t\b", re.IGNORECASE)
_CONTINUES = re.compile(r" (?:because|since|as|for|is|which|and|or|with|due|here|in|given|but|not)\b")
_BEGINNING = re.compile(
    r"\W*(?:(?i:option|choice) )?([A-D])(?:[.):,\x03](?!\s*(?:is|are|was|would|can)\b)| because\b|\W*$)"
)
_ONLY = re.compile(r"\W*([a-d])\W*")
_ALONE = re.compile(
    rf"\x02[A-D]\x03(?:{_JOINED}\x02[A-D]\x03){{0,5}}|^(?:[^\w\n]|_)*[A-D](?:[^\w\n]|_)*$", re.MULTILINE
)
_Place = tuple[int, int, str]  # where letters begin, where what names them begins, and the letters
_NEAR = 24  # characters in which "not" belongs to a letter, or a correction to what follows it
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
    in_passing = _places(_IN_PASSING, plain, end)
    stated = _stated_letters(plain, end, in_passing)
    if stated:
        return _single(stated, "stated")
    guessed = "" if truncated else _guessed(plain)
    if guessed:
        return _single(guessed, "fallback")
    return _single(_last(in_passing), "stated")


def _boxed_letters(box: str) -> str:
    plain = tidy(box)
    if len(plain) <= _SHORT and re.fullmatch(r"(?:[\W_]|(?i:and|or|option|choice|answer|the|is)\b|[A-Da-d]\b)+", plain):
        return "".join(re.findall(r"\b[A-Da-d]\b", plain))
    first = re.match(r"\W*(?:(?:option|choice|answer)\W*)?([A-D])(?![\w'\u2019])", plain, re.IGNORECASE)
    return first[1] if first else ""


def _marked(text: str) -> str:
    r"""Write letters in brackets, quotes or bold between \x02 and \x03, and LaTeX's texts as texts."""
    text = re.sub(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox) ?\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[()\[\]]", "$", BESIDE_IDEOGRAPH.sub(" ", text))
    text = re.sub(r"[ \t\x02\x03]+", " ", text)
    text = _WRAPPED.sub(lambda match: f"\x02{match[1].upper()}\x03", text)
    return re.sub(r"\*\*|__", "", text)


def _stated_letters(text: str, end: int, in_passing: list[_Place]) -> str:
    """Return the letters of the last place that says what the answer is, of those that are complete at `end`."""
    found = _places(_BEFORE, text, end)
    for match in _AFTER.finditer(text):
        before = text[max(0, match.start() - _NEAR) : match.start()].rpartition(".")[2]
        if match.end() <= end and not _NEGATION.search(before):
            found.append((match.start(1), match.start(), match[1]))
    if not found:
        said = [place for place in in_passing if _stands_behind(_STARTS, text, place)]
    elif len(set(_last(found).upper())) != 1:
        said = in_passing
    else:  # one letter, which only a correction or the last sentence takes back
        said = [place for place in in_passing if _stands_behind(_TAKES_BACK, text, place)]
        for place in in_passing[-1:]:
            if _stands_behind(_STARTS, text, place) and _ENDS.match(text, place[0] + len(place[2])):
                said.append(place)
    return _last([*found, *said])


def _stands_behind(pattern: "re.Pattern[str]", text: str, place: _Place) -> bool:
    """Say whether what stands right before a place ends in a pattern."""
    return bool(pattern.search(text, max(0, place[1] - _NEAR), place[1]))


def _last(places: list[_Place]) -> str:
    """Return the letters of the last place; none where there is none."""
    return _letters(max(places)[2]) if places else ""


def _places(pattern: "re.Pattern[str]", text: str, end: int) -> list[_Place]:
    """Return each place where a pattern names letters."""
    found = []
    for match in pattern.finditer(text):
        chosen = _CHOSEN.match(text, match.end())
        if chosen and chosen.end() <= end and not _NEGATION.search(match[0]) and not _is_article(text, chosen):
            found.append((chosen.start(), match.start(), chosen[0]))
    return found


def _is_article(text: str, chosen: "re.Match[str]") -> bool:
    """Say whether a bare A is the article: "the answer is A good one"."""
    lower = re.compile(r" [a-z]").match(text, chosen.end())
    return chosen[0] == "A" and bool(lower) and not _CONTINUES.match(text, chosen.end())


def _guessed(text: str) -> str:
    if only := _ONLY.fullmatch(text):
        return only[1]
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
