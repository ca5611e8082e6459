"""Whose turn each token of an example belongs to, read off the template's marks, so that a page can fold prompts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# Words that templates write between their marks, or into them, and whose turn they open.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "inst"), "user"),
    **dict.fromkeys(("assistant", "model", "gpt", "bot", "chatbot", "/inst"), "assistant"),
    **dict.fromkeys(("tool", "ipython", "function", "observation", "tool_response"), "tool"),
}
_LONGEST_ROLE = max(map(len, ROLES)) + 2
_WORD = re.compile(r"/?[A-Za-z_]+")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of one turn.

    Attributes:
        role: Whose turn: `system`, `user`, `assistant` or `tool`; where no mark says so, `prompt` or `answer`.
        start: First token.
        end: One past the last.
        labeled: True if they carry labels.
    """

    role: str
    start: int
    end: int
    labeled: bool


def stretches(pieces: Sequence[str], special: Sequence[bool], positions: Iterable[int]) -> list[Stretch]:
    """Cut an example into stretches of one turn, with or without labels; every label token is in one.

    What is left out are the template's marks: special tokens, a role's name behind one, and blank space around a turn,
    all where they carry no label.

    Args:
        pieces: Texts of the tokens.
        special: Which of them are special.
        positions: Indices of the label tokens.

    Example:
        >>> pieces = ["<|user|>", "Hi", "<|end|>", "<|assistant|>", "Yo"]
        >>> for stretch in stretches(pieces, [piece.startswith("<") for piece in pieces], [4]):
        ...     print(stretch)
        Stretch(role='user', start=1, end=2, labeled=False)
        Stretch(role='assistant', start=4, end=5, labeled=True)
    """
    labeled = [False] * len(pieces)
    for position in positions:
        labeled[position] = True
    found: list[Stretch] = []
    for role, begin, content, end in _turns(pieces, special):
        first = begin
        while first < end:
            last = first + 1
            while last < end and labeled[last] == labeled[first]:
                last += 1
            if labeled[first]:
                found.append(Stretch(role or "answer", first, last, True))
            else:
                trimmed = _trimmed(pieces, special, max(first, content), last)
                if trimmed is not None:
                    found.append(Stretch(role or "prompt", *trimmed, False))
            first = last
    return found


def _turns(pieces: Sequence[str], special: Sequence[bool]) -> Iterator[tuple[str, int, int, int]]:
    """Yield of each turn its role, "" where none is known, its first token, that of its content, and its end."""
    role, begin, content, index = "", 0, 0, 0
    while index < len(pieces):
        opened = _role_opened(pieces, special, index) if special[index] else None
        if opened is None:
            index += 1
            continue
        yield role, begin, content, index
        role, begin, content = opened[0], index, opened[1]
        index = content
    yield role, begin, content, len(pieces)


def _role_opened(pieces: Sequence[str], special: Sequence[bool], index: int) -> tuple[str, int] | None:
    """Return the role that the mark at `index` opens, and the first token of its content; None if it opens none."""
    inside = _WORD.findall(pieces[index].lower())
    if len(inside) == 1 and inside[0] in ROLES:
        return ROLES[inside[0]], index + 1
    line, after = "", index + 1  # what is written behind the mark, to the line's end or the next mark
    while after < len(pieces) and not special[after] and "\n" not in line and len(line) <= _LONGEST_ROLE:
        line += pieces[after]
        after += 1
    role, _, rest = line.partition("\n")
    if role.strip().lower() not in ROLES:
        return None
    return ROLES[role.strip().lower()], after - 1 if rest.strip() else after


def _trimmed(pieces: Sequence[str], special: Sequence[bool], start: int, end: int) -> tuple[int, int] | None:
    """Leave out special tokens and blank space at both ends; None if nothing is left."""

    def blank(index: int) -> bool:
        return special[index] or not pieces[index].strip()

    while start < end and blank(start):
        start += 1
    while start < end and blank(end - 1):
        end -= 1
    return (start, end) if start < end else None
