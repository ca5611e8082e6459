"""A chat in the spellings that chat templates want, and what of it a rendered text leaves out."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

from profit_sft.data.chat_template import mentions
from profit_sft.data.messages import THOUGHT_WITHIN, Message

_DEVELOPER = "['\"]developer['\"]"
_PARTS = r"['\"]text['\"]|\.text\b"  # a template that reads the text of parts
_ESCAPES = re.compile(r"\\[nrtbf]|[\\\"'\s]")
_GAP = "\0"  # what stood around a text that is taken out is none together
_THINK_TAGS = re.compile(r"</?think>")


def spellings(messages: Sequence[Message], source: str) -> Iterator[list[Message]]:
    """Yield a chat in every spelling that the template `source` may want, the most usual first.

    Arguments of calls are an object or JSON text; what is said beside a call is absent, null or empty; content is text
    or a list of parts; and for a template that knows its tags, a thought is a key or stands in the content.
    """
    tried: list[list[Message]] = []
    moves = (False, True) if mentions(source, "</think>") else (False,)
    parted = (False, True) if mentions(source, _PARTS) else (False,)
    for moved, parts, beside, as_text in product(moves, parted, ("absent", "null", "empty"), (False, True)):
        chat = [_with_thought_moved(message) if moved else message for message in messages]
        spelled = [_spelled(message, beside, parts=parts, as_text=as_text) for message in chat]
        if spelled not in tried:
            tried.append(spelled)
            yield spelled


def with_known_roles(messages: Sequence[Message], source: str) -> list[Message]:
    """Where the template `source` knows no developer, the system says it; what both say first becomes one message."""
    if mentions(source, _DEVELOPER) or not any(message["role"] == "developer" for message in messages):
        return list(messages)
    renamed = [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]
    first = next((index for index, message in enumerate(renamed) if message["role"] != "system"), len(renamed))
    if first < 2:
        return renamed
    joined = "\n\n".join(message["content"] for message in renamed[:first])
    return [{**renamed[0], "content": joined}, *renamed[first:]]


def _with_thought_moved(message: Message) -> Message:
    """Write an assistant's thought into the content, or take it out; what others write in its tags is their text."""
    if message["role"] != "assistant":
        return message
    content = message.get("content", "")
    if "reasoning_content" in message:
        rest = {key: value for key, value in message.items() if key != "reasoning_content"}
        return {**rest, "content": f"<think>\n{message['reasoning_content']}\n</think>\n\n{content}"}
    found = THOUGHT_WITHIN.match(content)
    return message if found is None else {**message, "content": found[2], "reasoning_content": found[1]}


def _spelled(message: Message, beside: str, *, parts: bool, as_text: bool) -> Message:
    spelled = dict(message)
    if "reasoning_content" in message:
        # transformers does the same for the second, which gpt-oss reads; Gemma 4 reads the third.
        spelled |= dict.fromkeys(("thinking", "reasoning"), message["reasoning_content"])
    if "content" not in message and beside != "absent":
        spelled["content"] = None if beside == "null" else ""
    if parts and isinstance(spelled.get("content"), str):
        spelled["content"] = [{"type": "text", "text": spelled["content"]}]
    if as_text and "tool_calls" in message:
        spelled["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
    return spelled


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _json(function["arguments"])}}


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def left_out(message: Message, text: str) -> str | None:
    """Say what of an answer is not in a text, each part in a place of its own; None where all of it is.

    A thought stands before what is said, wherever calls stand. Templates trim, and write thoughts, results and
    arguments in ways of their own, so what is not there as it is given is looked for but for `_bare`.
    """
    *thoughts, said = _THINK_TAGS.split(message.get("content") or "")
    parts = [part for part in (message.get("reasoning_content", ""), *thoughts, said) if part.strip()]
    calls = message.get("tool_calls", ())
    for write in (_as_given, _written):
        whole = text if write is _as_given else _bare_text(text)
        rests = [rest for backward in (False, True) if (rest := _without(parts, write, whole, backward)) is not None]
        wanted = Counter(words for call in calls for words in _words_of(call["function"]))
        lost = [words for words, count in wanted.items() if not any(_has(rest, words, write, count) for rest in rests)]
        if rests and not lost:
            return None
    if not rests:
        return "text" if said.strip() and _without([said], write, whole, backward=False) is None else "thought"
    losing = next((call for call in calls if not {*lost}.isdisjoint(_words_of(call["function"]))), calls[0])
    return f"call of '{losing['function']['name']}'"


def first_left_out(messages: Sequence[Message], trained: Collection[int], prompt: str) -> int | None:
    """Return the first message of others than the assistant that has no place of its own in a text, or None.

    Args:
        messages: A chat.
        trained: The turns that the text is without.
        prompt: The text of all other messages.
    """
    said = []
    for index, message in enumerate(messages):
        words = message.get("content") or ""
        if message["role"] == "assistant":  # templates drop thoughts of earlier turns
            words = _THINK_TAGS.split(words)[-1]
        if index not in trained:
            said.append((words, index))
    for write in (_as_given, _written):
        rest = prompt if write is _as_given else _bare_text(prompt)
        lost = []
        # What is within another text, as it is looked for, must not take its place.
        for words, index in sorted(said, key=lambda one: -len(write(one[0])[0])):
            without = _without([words], write, rest, backward=False)
            if without is not None:
                rest = without
            elif messages[index]["role"] != "assistant":
                lost.append(index)
        if not lost:
            return None
    return min(lost)


_Ways = Callable[[str], tuple[str, ...]]


def _as_given(words: str) -> tuple[str, ...]:
    return (words.strip(),)


def _written(words: str) -> tuple[str, ...]:
    return _bare(words), _bare(json.dumps(words))  # the second has codes in place of what is no ASCII


def _bare(text: str) -> str:
    """Return a text without white space, quotation marks and what they are escaped by."""
    return _ESCAPES.sub("", text)


_bare_text = lru_cache(maxsize=4)(_bare)  # spellings of a chat have its text in common


def _without(parts: Sequence[str], write: _Ways, text: str, backward: bool) -> str | None:
    """Return a text without these parts, found in this order from its front or its back; None where one is not."""
    start, end = 0, len(text)
    pieces = []
    for part in reversed(parts) if backward else parts:
        find = text.rfind if backward else text.find
        place, length = next(((p, len(way)) for way in write(part) if (p := find(way, start, end)) >= 0), (-1, 0))
        if place < 0:
            return None
        pieces.append(text[place + length : end] if backward else text[start:place])
        start, end = (start, place) if backward else (place + length, end)
    return _GAP.join([*pieces, text[start:end]])


def _has(text: str, words: str, write: _Ways, count: int) -> bool:
    return any(text.count(way) >= count for way in write(words))


def _words_of(function: Mapping[str, Any]) -> Iterator[str]:
    """What has to be in a rendered call whatever its syntax: the name, and keys and texts of the arguments."""
    yield function["name"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        yield arguments
    elif isinstance(arguments, Mapping):
        for key, value in arguments.items():
            yield str(key)
            if isinstance(value, str):
                yield value
