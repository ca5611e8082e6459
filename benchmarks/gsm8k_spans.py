"""Mark what is core and what is style in GSM8K answers, as `answer_spans`. Two definitions, both by form alone.

notes kept      core: calculator notes `<<6*4=24>>`, and the final number after `####`
                left out: `####` itself, and numbers and operators outside the notes
                style: the other words
notes stripped  the notes are deleted from the text
                core: numbers, the operators between them, and the final number after `####`
                left out: `####`
                style: the other words

Words are everything else: letters, punctuation, number words and the white space among them; white space alone between
two pieces is left out. A sign `$` or `%` at a number belongs to it, and so does `=` behind one.
"""

import re
from typing import Any

_NUMBER = r"\$?(?:\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)%?"
_FIGURES = rf"(?:(?<!\w)-)?\(?{_NUMBER}\)?(?:\s*[-+*/x=]\s*\(?{_NUMBER}\)?)*(?:\s*=\s*\$?)?|[=+*]"
_NOTE = re.compile(r"<<[^<>]*>>")
_PIECE = re.compile(rf"(?P<note>{_NOTE.pattern})|####[^\S\n]*(?P<final>[^\n]*)|(?P<figures>{_FIGURES})")


def marked_row(row: dict[str, Any], *, notes: bool) -> dict[str, Any]:
    """Return question, answer and `answer_spans` of a GSM8K row, its calculator notes kept or stripped."""
    answer = str(row["answer"]).strip()
    if not notes:
        answer = _NOTE.sub("", answer)
    return {"question": row["question"], "answer": answer, "answer_spans": answer_spans(answer, notes=notes)}


def answer_spans(answer: str, *, notes: bool) -> list[dict[str, Any]]:
    """Return the spans of an answer in order: start, end (exclusive, in characters) and kind."""
    spans: list[dict[str, Any]] = []

    def add(start: int, end: int, kind: str) -> None:
        if answer[start:end].strip():
            spans.append({"start": start, "end": end, "kind": kind})

    words_from = 0
    for piece in _PIECE.finditer(answer):
        add(words_from, piece.start(), "style")
        words_from = piece.end()
        if piece["final"] is not None:
            add(*piece.span("final"), "core")
        elif piece["note"] is not None or not notes:
            add(*piece.span(), "core")
    add(words_from, len(answer), "style")
    return spans
