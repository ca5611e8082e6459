"""One message of a chat, in any spelling: as a chat template takes it, and whether it is to be trained."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from profit_sft.data.row import Row

Message = dict[str, Any]  # role, content, and for an assistant perhaps reasoning_content and tool_calls; nothing null

_ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),  # ShareGPT: the content is the call
    **dict.fromkeys(("tool", "ipython", "observation", "function"), "tool"),
    **dict.fromkeys(("tool_response", "function_response", "tool_result"), "tool"),
}
_CALL_ROLES = ("function_call", "tool_call")
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning", "thought", "thoughts")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")  # the last two LangChain's and Anthropic's
_CALL_KEYS = ("id", "index", "type", "function", "name")
_TRAIN_KEYS = ("weight", "train", "loss", "trainable", "training")
_MASK_KEYS = ("mask", "masked")  # true: not to be trained
_WEIGHT_KEYS = frozenset((*_TRAIN_KEYS, *_MASK_KEYS))
_MEDIA = ("images", "image", "videos", "video", "audios", "audio", "image_url", "input_audio")
_TRUTHS = {"true": 1.0, "false": 0.0}
THOUGHT_WITHIN = re.compile(r"\s*<think>\s*(.*?)\s*</think>\s*(.*)", re.DOTALL)  # content that begins with one
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")


def read_messages(row: Row, field: str, given: Any) -> list[tuple[Message, float]]:
    """Read a chat: a list of messages, JSON text of one, or the lists of their keys, as `datasets` keeps some.

    Args:
        row: The row, for errors.
        field: Its column.
        given: What stands there.

    Returns:
        Each message and its weight: 0 where it says that it is not to be trained (`weight: 0`, `train: false`).

    Raises:
        DataError: Names file, row, place and the fix.
    """
    turns = _parsed(given)
    if isinstance(turns, Mapping) and all(isinstance(values, (list, tuple)) for values in turns.values()):
        lengths = {key: len(values) for key, values in turns.items()}
        if len(set(lengths.values())) > 1:
            found_lengths = ", ".join(f"{length} of '{key}'" for key, length in lengths.items())
            raise row.error(f"'{field}' has lists of different lengths: {found_lengths}. Mend or drop the row.")
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    if not isinstance(turns, (list, tuple)) or not turns:
        raise row.error(
            f"'{field}' must be a list of messages that is not empty, got {shown(turns)}. Mend or drop the row."
        )
    found: list[tuple[Message, float]] = []
    was_call = False
    for position, turn in enumerate(map(_parsed, turns)):  # `datasets` writes messages of mixed kinds as JSON text
        for given_message in _messages_of(turn):
            if _says_nothing(given_message):
                continue
            message, weight = _read_message(row, f"'{field}[{position}]'", given_message)
            is_call = _is_one_call(given_message) and message.keys() == {"role", "tool_calls"}
            if is_call and was_call and found[-1][1] == weight:  # calls in parallel: one turn makes them
                calls = [*found[-1][0]["tool_calls"], *message["tool_calls"]]
                found[-1] = {**found[-1][0], "tool_calls": calls}, weight
            else:
                found.append((message, weight))
            was_call = is_call
    return found


def _is_one_call(turn: Any) -> bool:
    """Tell a turn of ShareGPT's whose role says that it is a call."""
    return str(turn.get("role", turn.get("from"))).lower() in _CALL_ROLES


def _messages_of(turn: Any) -> list[Any]:
    """Return the messages of a turn whose keys are who speaks, as in BELLE (`human`, `assistant`), or the turn."""
    if not isinstance(turn, Mapping) or not turn or not {"role", "from"}.isdisjoint(turn):
        return [turn]
    if not all(key.lower() in _ROLES for key in turn):
        return [turn]
    return [{"role": key, "content": said} for key, said in turn.items() if said is not None]


def _says_nothing(turn: Any) -> bool:
    """Tell a system message of rows that have none."""
    role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
    return role == "system" and turn.get("content", turn.get("value")) is None


def _read_message(row: Row, place: str, turn: Any) -> tuple[Message, float]:
    """Read one message in OpenAI's or ShareGPT's spelling. Unknown keys stay: some chat templates have their own."""
    if not isinstance(turn, Mapping):
        raise row.error(f"{place} must be an object with role and content, got {shown(turn)}. Mend or drop the row.")
    rest = {key: value for key, value in turn.items() if value is not None}
    for key in rest.keys() & _WEIGHT_KEYS:
        if is_blank(rest[key]):
            del rest[key]
    named = rest.pop("role" if "role" in rest else "from", None)
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise row.error(
            f"{place} has role {shown(named)}; known are system, developer, user, assistant, tool, human and gpt. "
            "Rename it or drop the row."
        )
    refuse_media(row, place, rest)
    given = rest.pop("content" if "content" in rest else "value", None)
    weights = [read_weight(row, f"{place} has {key}", rest.pop(key)) for key in _TRAIN_KEYS if key in rest]
    weights += [
        0.0 if read_weight(row, f"{place} has {key}", rest.pop(key)) else 1.0 for key in _MASK_KEYS if key in rest
    ]
    message: Message = {"role": role}
    rest |= _keys_of_parts(given) if role != "tool" else {}
    if role == "assistant":
        calls = rest.pop("tool_calls", None) or []
        one_call = rest.pop("function_call", None)
        if named.lower() in _CALL_ROLES and isinstance(read := _parsed(given), (Mapping, list)):
            given, calls = None, read if isinstance(read, list) else [read]
        content, thoughts = _content(row, place, given)
        thoughts += [_thought(row, place, key, rest.pop(key)) for key in _REASONING_KEYS if key in rest]
        if any(map(str.strip, thoughts)) and content and (within := THOUGHT_WITHIN.match(content)):
            thoughts, content = [*thoughts, within[1]], within[2]
        tool_calls = _tool_calls(row, place, calls)
        if is_given(_parsed(one_call)):
            tool_calls = _with_one_call(row, place, tool_calls, *_tool_calls(row, place, [one_call]))
        message |= _answer(row, place, content, _different(thoughts), tool_calls)
    else:
        if role == "tool":
            given = _result(given)
        # A tool's JSON text is what the model is shown.
        content, thoughts = _content(row, place, given, read_text=role != "tool")
        if content is None or thoughts:
            raise row.error(
                f"{place} must have text as content, got {shown(given)}. Only text is trained on; mend or drop the row."
            )
        _refuse_keys_of_answers(row, place, role, rest)
        message["content"] = content
    return message | rest, math.prod(weights, start=1.0)


def _refuse_keys_of_answers(row: Row, place: str, role: str, rest: dict[str, Any]) -> None:
    """Refuse thoughts and calls of others than the assistant, which templates may write; drop empty ones."""
    for key in ("tool_calls", "function_call", *_REASONING_KEYS) if rest else ():
        if is_given(_parsed(rest.pop(key, None))):
            raise row.error(f"{place} has '{key}', but is of role {role}: only an assistant has it. Leave it out.")


def refuse_media(row: Row, place: str, values: Mapping[str, Any]) -> None:
    """Raise DataError where there are images, videos or audio."""
    name = next((name for name in _MEDIA if is_given(values.get(name))), None) if values.keys() & _MEDIA else None
    if name is not None:
        raise row.error(
            f"{place} has '{name}', and only text is trained on: the model would not see them. Leave them or the row "
            "out."
        )


def _keys_of_parts(given: Any) -> dict[str, Any]:
    """Return what parts have beside text, such as `cache_control`: no chat template sees it, so it will be named."""
    parts = _parts_in_text(given)
    parts = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, (list, tuple)) else []
    known = ("type", *_TEXT_PARTS, *_THOUGHT_PARTS)
    return {
        f"content[].{key}": value
        for part in parts
        for key, value in part.items()
        if key not in known and value is not None
    }


def _result(given: Any) -> Any:
    """Return what a tool says: nothing is empty text, and an object or a list of what are no parts is JSON text."""
    is_parts = isinstance(given, (list, tuple)) and all(isinstance(part, Mapping) and "type" in part for part in given)
    if isinstance(given, Mapping) or (isinstance(given, (list, tuple)) and not is_parts):
        return json.dumps(without_nulls(given), ensure_ascii=False)
    return "" if given is None else given


def _different(thoughts: Sequence[str]) -> list[str]:
    """Return the thoughts that say something, of those alike but for white space around them the first."""
    return list({thought.strip(): thought for thought in reversed(thoughts) if thought.strip()}.values())[::-1]


def _answer(
    row: Row, place: str, content: str | None, thoughts: list[str], tool_calls: list[dict[str, Any]]
) -> Message:
    if len(thoughts) > 1:
        raise row.error(f"{place} has two different thoughts, {shown(thoughts[0])} and {shown(thoughts[1])}. Keep one.")
    if not tool_calls and not thoughts and not (content and content.strip()):
        raise row.error(f"{place} is an empty assistant turn, nothing to train on. Fill it in or drop the row.")
    message: Message = {} if content is None else {"content": content}
    if thoughts:
        message["reasoning_content"] = thoughts[0]
    if tool_calls:
        message["tool_calls"] = tool_calls
    return message


def _parts_in_text(value: Any) -> Any:
    """Return the list of parts that JSON text is, as csv keeps them, and anything else as it is."""
    parts = _parsed(value)
    is_parts = isinstance(parts, list) and all(
        isinstance(part, Mapping) and part.get("type") in (*_TEXT_PARTS, *_THOUGHT_PARTS) for part in parts
    )
    return parts if is_parts and parts else value


def _content(row: Row, place: str, value: Any, *, read_text: bool = True) -> tuple[str | None, list[str]]:
    """Return the text and the thoughts of a content: text, a number, a list of parts, or nothing."""
    value = _parts_in_text(value) if read_text else value
    if isinstance(value, (list, tuple)) and value:
        text: list[str] = []
        thoughts: list[str] = []
        for part in value:
            kind, words = _part(row, place, part)
            (thoughts if kind in _THOUGHT_PARTS else text).append(words)
        return "".join(text) if text else None, thoughts
    if value is None or is_text(value):
        return None if value is None else checked_text(row, place, value), []
    raise row.error(
        f"{place} must have text as content, got {shown(value)}. Only text is trained on; mend or drop the row."
    )


def _part(row: Row, place: str, part: Any) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", checked_text(row, place, part)
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind in (*_TEXT_PARTS, *_THOUGHT_PARTS):
        words = part.get("text") if part.get("text") is not None else part.get(kind)
        refuse_media(row, f"{place} in a part", part)
        weighed = next((key for key in _TRAIN_KEYS if part.get(key) is not None), None)
        if weighed is not None:
            raise row.error(
                f"{place} has a part with '{weighed}', which is of whole messages. Give 'token_weights' for a stretch."
            )
        if isinstance(words, str):
            return kind, checked_text(row, place, words)
    raise row.error(
        f"{place} has a part that is no text, {shown(part)}. Only text is trained on; leave such parts or rows out."
    )


def _thought(row: Row, place: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise row.error(f"{place} has {shown(value)} as '{key}', which must be text. Mend it or leave it out.")
    return checked_text(row, place, value)


def _tool_calls(row: Row, place: str, calls: Any) -> list[dict[str, Any]]:
    calls = _parsed(without_nulls(calls))
    if not isinstance(calls, (list, tuple)):
        raise row.error(f"{place} has 'tool_calls' that are no list, {shown(calls)}. Mend or drop the row.")
    return [_tool_call(row, place, _parsed(call)) for call in calls if call is not None]


def _with_one_call(row: Row, place: str, calls: list[dict[str, Any]], call: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls and OpenAI's older spelling of one, which says the same as they or stands alone."""
    if calls and [other["function"] for other in calls] != [call["function"]]:
        raise row.error(f"{place} has a 'function_call' and other 'tool_calls', {shown(calls)}. Keep one of the two.")
    return calls or [call]


def _tool_call(row: Row, place: str, call: Any) -> dict[str, Any]:
    """Return a call as OpenAI nests it, its arguments as an object where they are one in JSON; other keys stay."""
    if isinstance(call, Mapping):
        nested = _parsed(call.get("function"))
        function = nested if isinstance(nested, Mapping) else call
        name = function.get("name")
        if isinstance(name, str) and name:
            key = next((key for key in _ARGUMENT_KEYS if function.get(key) is not None), None)
            arguments = None if key is None else _parsed(function[key])
            if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
                arguments = {}  # OpenAI writes empty text where nothing is given
            rest = {k: v for k, v in {**function, **call}.items() if k not in (*_CALL_KEYS, key) and v is not None}
            outer = {key: call[key] for key in ("id", "index") if call.get(key) is not None}
            return {"type": "function", **outer, **rest, "function": {"name": name, "arguments": arguments}}
    raise row.error(
        f"{place} has a tool call without the name of a function, {shown(call)}. Give name and arguments, or drop the "
        "row."
    )


def is_blank(value: Any) -> bool:
    """Say whether nothing is given: null, NaN as pandas writes it, or an empty cell."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def read_weight(row: Row, place: str, value: Any) -> float:
    """Return a weight: a number from 0 on, or a truth value; numbers may be text.

    Args:
        row: The row, for errors.
        place: What has it, such as `'messages[1]' has weight`.
        value: What stands there.

    Raises:
        DataError: It is none; names file, row, place and the fix.
    """
    try:
        found = _TRUTHS.get(str(value).lower())
        weight = float(value) if found is None else found
    except (TypeError, ValueError):
        weight = math.nan
    if not 0.0 <= weight < math.inf:
        raise row.error(
            f"{place} {shown(value)}, which must be a number from 0 on: 0 is not trained, 1 counts in full. Mend or "
            "drop it."
        )
    return weight


def without_nulls(value: Any) -> Any:
    """Leave out what is null in objects: parquet fills in the keys that other rows have. JSON text means its nulls."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item) for item in value]
    return value


def _parsed(value: Any) -> Any:
    """Return what JSON text says if it is an object, a list or null, and anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[", "null")):
        try:
            return json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value
    return value


def read_list(row: Row, field: str, value: Any) -> Sequence[Any]:
    """Return a list, or the list that JSON text is; an absent one is empty."""
    if value is None:
        return ()
    value = _parsed(without_nulls(value))
    if not is_given(value):
        return ()
    if not isinstance(value, (list, tuple)):
        raise row.error(f"'{field}' must be a list or JSON text of one, got {shown(value)}. Mend or drop the row.")
    return value


def read_object(row: Row, field: str, value: Any) -> dict[str, Any]:
    """Return an object, or the object that JSON text is, without nulls; an absent one is empty."""
    if value is None:
        return {}
    value = _parsed(value)
    if not is_given(value):
        return {}
    if not isinstance(value, Mapping):
        raise row.error(f"'{field}' must be an object or JSON text of one, got {shown(value)}. Mend or drop the row.")
    return dict(without_nulls(value))


def read_tool(row: Row, field: str, tool: Any) -> dict[str, Any]:
    """Return the description of a tool as OpenAI nests it; what of it is JSON text becomes an object."""
    tool = _parsed(tool)
    if isinstance(tool, Mapping) and tool:
        nested = dict(tool) if "name" not in tool or "function" in tool else {"type": "function", "function": tool}
        function = _parsed(nested.get("function", {}))
        if isinstance(function, Mapping):
            parsed = {key: _parsed(value) if key == "parameters" else value for key, value in function.items()}
            return {**nested, "function": parsed} if "function" in nested else nested
    raise row.error(f"'{field}' must hold descriptions of tools, got {shown(tool)}. Mend or drop the row.")


def is_chat_in_text(value: Any) -> bool:
    """Say whether a value is JSON text of a list of messages, as csv keeps them."""
    turns = _parsed(value) if isinstance(value, str) else None
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(isinstance(turn, Mapping) and not {"role", "from"}.isdisjoint(turn) for turn in turns)
    )


def is_given(value: Any) -> bool:
    """Say whether there is anything in a column or key."""
    return value is not None and value not in ("", [], {})


def is_text(value: Any) -> bool:
    """Say whether a value is text, or a number, which is taken for one."""
    return isinstance(value, (str, int, float)) and not isinstance(value, bool) and value == value  # a NaN is absent


def checked_text(row: Row, place: str, value: str | int | float) -> str:
    r"""Return text, and refuse half of a UTF-16 pair, which JSON can spell (`\ud83d`) and no tokenizer takes."""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise row.error(
            f"{place} has a lone surrogate, {shown(text[error.start])}, at character {error.start + 1}, which is no "
            "text. Mend or drop the row."
        ) from None
    return text


def shown(value: Any) -> str:
    """Return a value as an error message quotes it: on one line, and shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
