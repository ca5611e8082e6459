"""Find the turns of a long chat in few renderings: a turn between alike neighbors begins and ends alike.

To render each beginning of a chat costs the square of its turns. So the chat is rendered once more with its contents
marked; of each kind of turn the first is found by rendering its beginning, the rest by what stands around them.
"""

from collections.abc import Sequence
from typing import Any

from profit_sft.data.chat_template import CannotLabel, ChatTemplate, Span
from profit_sft.data.messages import Message

_START, _END = "\ue000", "\ue001"  # for private use; a chat that has them itself is rendered turn by turn


class KnownTurns:
    """The turns of a chat that were found, and those like them.

    Args:
        template: What renders the chat.
        messages: The chat.
        whole: It, rendered.
    """

    def __init__(self, template: ChatTemplate, messages: Sequence[Message], whole: str) -> None:
        self._template, self._messages, self._whole = template, messages, whole
        self._around: dict[tuple[Any, ...], tuple[str, str]] = {}
        try:
            marked = template.render([_marked(message) for message in messages])
        except CannotLabel:
            marked = ""
        self._contents = _contents(marked, messages, whole)

    def like(self, turn: int) -> Span | None:
        """Return the characters of a turn that is like one that was found; None where it is like none."""
        around, neighbors = self._around.get(self._kind(turn)), self._neighbors(turn)
        if around is None or neighbors is None:
            return None
        before, after = around
        start, end = neighbors[0] + len(before), neighbors[1] - len(after)
        alike = start < end and self._whole.startswith(before, neighbors[0]) and self._whole.startswith(after, end)
        return (start, end) if alike and self._template.end_of_turn(self._whole, start, end) == end else None

    def add(self, turn: int, span: Span) -> None:
        """Keep a turn that was found by rendering its beginning."""
        neighbors = self._neighbors(turn)
        if neighbors is not None:
            around = (self._whole[neighbors[0] : span[0]], self._whole[span[1] : neighbors[1]])
            self._around.setdefault(self._kind(turn), around)

    def _kind(self, turn: int) -> tuple[Any, ...]:
        near = self._messages[max(turn - 1, 0) : turn + 2]
        return tuple((message["role"], "tool_calls" in message, "reasoning_content" in message) for message in near)

    def _neighbors(self, turn: int) -> Span | None:
        """Return where the content of the message before ends, and where that of the one after begins."""
        if self._contents is None or not 0 < turn < len(self._messages) - 1:
            return None
        before, after = self._contents[turn - 1], self._contents[turn + 1]
        return None if before is None or after is None else (before[1], after[0])


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1:
        content = content[0]["text"]
    return content if isinstance(content, str) else ""


def _marked(message: Message) -> Message:
    text = _text(message)
    core = text.strip()
    if not core:
        return message
    marked = text.replace(core, f"{_START}{core}{_END}", 1)
    return {**message, "content": marked if isinstance(message["content"], str) else [{"type": "text", "text": marked}]}


def _contents(marked: str, messages: Sequence[Message], whole: str) -> list[Span | None] | None:
    """Return where each message's content stands in `whole`; None where the marks do not tell."""
    pieces = marked.split(_START)
    expected = [bool(_text(message).strip()) for message in messages]
    if len(pieces) != 1 + sum(expected) or marked.replace(_START, "").replace(_END, "") != whole:
        return None
    place, found = len(pieces[0]), []
    for piece in pieces[1:]:
        content, end, rest = piece.partition(_END)
        if not end or _END in rest:
            return None
        found.append((place, place + len(content)))
        place += len(content) + len(rest)
    spans = iter(found)
    return [next(spans) if has_text else None for has_text in expected]
