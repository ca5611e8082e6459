"""A chat in the spellings that chat templates want, and what of it a rendered text leaves out."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

from profit_sft.data.chat_template import mentions
from profit_sft.data.messages import THOUGHT_WITHIN, Message

_DEVELOPER = "['\"]developer['\"]"
_PARTS = r"['\"]text['\"]|\.text\b"  # a template that reads the text of parts
_ESCAPES = re.compile(r"\\[nrtbf]|[\\\"'\s]")
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
    """Write a thought into the content, or take it out."""
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
    """Say what of a message is not in a text, but for white space; None where all of it is."""
    content = message.get("content")
    if isinstance(content, str) and not _holds(text, content):
        return "thought" if "</think>" in content and _holds(text, content.rpartition("</think>")[2]) else "text"
    if not _holds(text, message.get("reasoning_content", "")):
        return "thought"
    for call in message.get("tool_calls", ()):
        if not all(_holds(text, words) for words in _words_of(call["function"])):
            return f"call of '{call['function']['name']}'"
    return None


def _holds(text: str, words: str) -> bool:
    """Templates trim, put thoughts on lines of their own, and write results and arguments as JSON or as Python."""
    if words.strip() in text:
        return True
    bare = _bare_text(text)
    written = (words, json.dumps(words))  # the second has codes in place of what is no ASCII
    return any(all(_bare(piece) in bare for piece in _THINK_TAGS.split(way)) for way in written)


def _bare(text: str) -> str:
    """Return a text without white space, quotation marks and what they are escaped by."""
    return _ESCAPES.sub("", text)


_bare_text = lru_cache(maxsize=4)(_bare)  # a long chat asks for its own text many times over


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
