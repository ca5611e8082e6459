"""What a token looks like, what sort of token it is, which tokens make a word, and whose turn each belongs to."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

SORTS: Final = ("word start", "word continuation", "number", "punctuation", "whitespace", "special")
WORD_START, WORD_CONTINUATION, NUMBER, PUNCTUATION, WHITESPACE, SPECIAL = range(len(SORTS))
_BROKEN = "\ufffd"  # what a piece of a character's bytes decodes to; texts may have it, too
_MOST_PIECES = 8  # tokens whose bytes may join; a character of UTF-8 has four, and pieces may overlap two characters


class TokenTexts:
    """Texts and sorts of a tokenizer's tokens, each worked out once.

    Args:
        tokenizer: Any fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = added | set(tokenizer.all_special_ids)
        # Many decoders drop the space in front of the first token, so no token is decoded alone.
        self._anchor: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._anchor_text = self._decode([self._anchor])[0]
        spelled = (tokenizer(f"a{text}", add_special_tokens=False)["input_ids"] for text in (_BROKEN, f" {_BROKEN}"))
        self._broken_itself = {tuple(ids[len(self._anchor) :]) for ids in spelled}
        self._texts: dict[int, str] = {}
        self._together: dict[tuple[int, ...], str] = {}

    def text(self, token_id: int) -> str:
        """Return a token's text, with the space it begins with."""
        if token_id not in self._texts:
            self.learn([token_id])
        return self._texts[token_id]

    def is_special(self, token_id: int) -> bool:
        """Return True for what the tokenizer counts as no text, such as the marks of a chat template."""
        return token_id in self._special

    def learn(self, token_ids: Sequence[int] | NDArray[np.int32]) -> None:
        """Work out many texts at once, which is faster."""
        new = [int(index) for index in np.unique(np.asarray(token_ids)) if int(index) not in self._texts]
        for token_id, decoded in zip(new, self._decode([[*self._anchor, index] for index in new]), strict=True):
            text = decoded.removeprefix(self._anchor_text)
            # A padded vocabulary has ids that stand for nothing.
            self._texts[token_id] = text or str(self._tokenizer.convert_ids_to_tokens(token_id) or f"<id {token_id}>")

    def in_context(self, token_ids: Sequence[int] | NDArray[np.int32]) -> list[str]:
        """Return the texts of consecutive tokens; together they are the text.

        Where several tokens are the bytes of one character, the first gets it and the others are empty.
        """
        self.learn(token_ids)
        ids = [int(index) for index in token_ids]
        texts = [self._texts[index] for index in ids]
        first = 0
        while first < len(texts):
            last = first + 1
            if _BROKEN in texts[first]:
                for end in range(first + 2, min(first + _MOST_PIECES, len(ids)) + 1):
                    whole = self._whole(tuple(ids[first:end]))
                    if _BROKEN not in whole or tuple(ids[first:end]) in self._broken_itself:
                        texts[first:end] = [whole] + [""] * (end - first - 1)
                        last = end
                        break
            first = last
        return texts

    def sorts(self, token_ids: NDArray[np.int32], previous_ids: NDArray[np.int32]) -> NDArray[np.int8]:
        """Return the sort of each token, an index into `SORTS`.

        Args:
            token_ids: `(N,)`.
            previous_ids: `(N,)`. The token before each, which decides whether a word begins or goes on.
        """
        together, places = np.unique(np.concatenate([token_ids, previous_ids]), return_inverse=True)
        self.learn(together)
        texts = [self._texts[int(index)] for index in together]
        alone = np.array([self._sort(int(index)) for index in together], dtype=np.int8)
        opens = np.array([text[:1].isspace() for text in texts])
        joins = np.array([text[-1:].isalnum() or text[-1:] == _BROKEN for text in texts]) & (alone != SPECIAL)
        token, previous = places[: len(token_ids)], places[len(token_ids) :]
        sorts = alone[token]
        sorts[(sorts == WORD_START) & ~opens[token] & joins[previous]] = WORD_CONTINUATION
        return sorts

    def words(
        self, token_ids: NDArray[np.int32], sorts: NDArray[np.int8], begins: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], list[str]]:
        """Put tokens together to words and numbers.

        Args:
            token_ids: `(N,)`.
            sorts: `(N,)`, as `sorts` returns them.
            begins: `(N,)`. True where an answer begins, so that no word reaches across.

        Returns:
            `(N,)`, an index into the texts, or -1 for what is no part of a word or number; and the different texts,
            without the space in front.
        """
        unique, places = np.unique(token_ids, return_inverse=True)
        spaced = np.array([self.text(int(index))[:1].isspace() for index in unique], dtype=bool)[places]
        number = sorts == NUMBER
        goes_on = sorts == WORD_CONTINUATION
        goes_on[1:] |= number[1:] & number[:-1] & ~spaced[1:]
        starts = np.flatnonzero(~goes_on | begins)
        ends = np.append(starts[1:], len(token_ids))
        index_of: dict[str, int] = {}
        known: dict[bytes, int] = {}
        found = np.full(len(token_ids), -1, dtype=np.int64)
        chosen = np.isin(sorts[starts], (WORD_START, WORD_CONTINUATION, NUMBER))
        for start, end in zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True):
            key = token_ids[start:end].tobytes()
            if key not in known:
                text = "".join(self.in_context(token_ids[start:end])).strip()
                known[key] = index_of.setdefault(text, len(index_of))
            found[start:end] = known[key]
        return found, list(index_of)

    def _whole(self, token_ids: tuple[int, ...]) -> str:
        """Return what tokens decode to together."""
        if token_ids not in self._together:
            decoded = self._decode([[*self._anchor, *token_ids]])[0]
            self._together[token_ids] = decoded.removeprefix(self._anchor_text)
        return self._together[token_ids]

    def _sort(self, token_id: int) -> int:
        """Return the sort of a token seen alone: a word is taken to begin."""
        if token_id in self._special:
            return SPECIAL
        text = self._texts[token_id].strip()
        if not text:
            return WHITESPACE
        if any(character.isalpha() or character == _BROKEN for character in text):
            return WORD_START
        return NUMBER if any(character.isdigit() for character in text) else PUNCTUATION

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        if not sequences:
            return []
        decoded: list[str] = self._tokenizer.batch_decode(
            sequences, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return decoded


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
