r"""Where an answer stands in a text.

A text is searched in this order; the first rule that finds something decides:

    boxed     the last closed `\boxed{...}` (or `\fbox{...}`); boxes joined by a comma or "and" count as one
    hashes    what stands behind the last `####` of a line, as in GSM8K's solutions
    stated    the sentence behind the last "answer is", "answer:", "answer = " and the like
    fallback  the last formula between dollars or brackets, or the last number, whichever comes last

What a reasoning model thinks before `</think>` is left out. Of a text that was cut off only a complete answer is taken:
one whose sentence or line goes on to the end of the text may lack its last digits, and the last number so far is no
answer at all.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from profit_sft.evaluation.numbers import NUMBER

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
    text = _BOLD.sub("", text.rpartition("</think>")[2])
    for rule, find in _EXPLICIT.items():
        found = find(text, truncated)
        if found:
            return FoundAnswer(found, rule)
    guess = None if truncated else last_formula_or_number(text)
    return None if guess is None else FoundAnswer(guess, "fallback")


_BOLD = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)")  # not the power in x**2
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{}$\\]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # with what is escaped, which is to be skipped
_BETWEEN_BOXES = re.compile(r"[\s$,;]*(?:\\text\s*\{\s*(?:and|or)\s*\}|and|or)?[\s$,;]*(?:[A-Za-z]\s*=\s*)?")
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_MARKER = re.compile(
    r"\banswers?\b(?:\s+[\w'$\\{}-]+){0,8}?\s*(?:[:=]|\b(?:is|are|was|equals|be)\b)[ \t]*:?\s*", re.IGNORECASE
)
# A period ends a sentence where white space or nothing follows, so not in "3.5" or "a.m".
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=[\s\"')\]]|$)|\n")


def _boxed(text: str, truncated: bool) -> str | None:
    """Return what the last box holds, and those that are joined to it."""
    boxes: list[tuple[int, int, str]] = []
    closing = _closing_braces(text)
    for match in _BOX.finditer(text):
        end = match.end() if match[1] else closing.get(match.end())
        if end is not None and not (match[1] and truncated and end == len(text)):
            boxes.append((match.start(), end, match[1] or text[match.end() : end - 1]))
    joined = boxes[-1:]
    for box in reversed(boxes[:-1]):
        if not _BETWEEN_BOXES.fullmatch(text[box[1] : joined[0][0]]):
            break
        joined.insert(0, box)
    return ", ".join(content.strip() for _, _, content in joined if content.strip())


def _closing_braces(text: str) -> dict[int, int]:
    """Return where each group ends, its closing brace included, by where its content starts."""
    closing: dict[int, int] = {}
    open_groups: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            open_groups.append(match.end())
        elif match[0] == "}" and open_groups:
            closing[open_groups.pop()] = match.end()
    return closing


def _hashes(text: str, truncated: bool) -> str | None:
    matches = list(_HASHES.finditer(text))
    if not matches or (truncated and matches[-1].end() == len(text)):
        return None
    return matches[-1][1].strip()


def _stated(text: str, truncated: bool) -> str | None:
    for match in reversed(list(_MARKER.finditer(text))):
        end = _SENTENCE_END.search(text, match.end())
        if end is None and truncated:
            continue
        piece = text[match.end() : len(text) if end is None else end.start()].strip(" \t*_`:")
        if piece:
            return piece
    return None


_EXPLICIT: dict[Rule, Callable[[str, bool], str | None]] = {"boxed": _boxed, "hashes": _hashes, "stated": _stated}

_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(?!\s)([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def last_formula_or_number(text: str) -> str | None:
    r"""Return the last formula between `$`, `\(` or `\[`, or the last number, whichever ends later."""
    places = [(match.end(), next(filter(None, match.groups()))) for match in _FORMULA.finditer(text)]
    numbers = (match for match in NUMBER.finditer(text) if not text[match.start() - 1 : match.start()].isalpha())
    places += [(match.end(), match[0]) for match in numbers]
    return max(places)[1].strip() if places else None
