"""Recognize the format of a row and turn it into one conversation."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from profit_sft.data.rows import Row

Format = Literal["messages", "prompt_completion", "sharegpt", "alpaca", "question_answer"]
# In the order in which they are looked for.
REQUIRED_FIELDS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "question_answer": ("question", "answer"),
}
FORMATS = tuple(REQUIRED_FIELDS)
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row in canonical form.

    Attributes:
        messages: `role` and `content` each, or empty for plain text.
        trained_from: Messages from this index on may carry labels; earlier ones are prompt.
        prompt: Plain-text prompt, or None for a chat.
        completion: Plain-text completion, or None for a chat.
    """

    messages: tuple[dict[str, str], ...] = ()
    trained_from: int = 0
    prompt: str | None = None
    completion: str | None = None


def detect_format(columns: Collection[str], *, prompt_column: str | None, response_column: str | None) -> Format | None:
    """Return the format these columns have, or None. Named columns mean question and answer."""
    if prompt_column is not None or response_column is not None:
        return "question_answer"
    return next((name for name, fields in REQUIRED_FIELDS.items() if all(field in columns for field in fields)), None)


def to_conversation(
    row: Row,
    dataset_format: str = "auto",
    *,
    prompt_column: str | None = None,
    response_column: str | None = None,
    system_prompt: str | None = None,
) -> Conversation:
    """Turn one row into a conversation.

    Args:
        row: The row.
        dataset_format: One of `FORMATS`, or `"auto"` to go by the columns.
        prompt_column: Column of the question, for `question_answer`. None: `question`.
        response_column: Column of the answer. None: `answer`.
        system_prompt: Put in front of a chat that has no system message.

    Raises:
        DataError: Names file, row, field and the fix.
    """
    if row.problem is not None:
        raise row.error(f"{row.problem} Mend or drop it (--skip-bad-rows leaves bad rows out).")
    found = dataset_format
    if found == "auto":
        detected = detect_format(row.values, prompt_column=prompt_column, response_column=response_column)
        if detected is None:
            raise _unknown_format(row)
        found = detected
    if found == "messages":
        conversation = _chat(row, "messages", _messages(row, "messages"))
    elif found == "sharegpt":
        conversation = _chat(row, "conversations", _messages(row, "conversations"))
    elif found == "prompt_completion":
        conversation = _prompt_completion(row)
    elif found == "alpaca":
        conversation = _alpaca(row)
    else:
        question = _text(row, prompt_column or "question")
        answer = _text(row, response_column or "answer")
        conversation = _exchange(question, answer)
    if system_prompt is not None and conversation.messages and conversation.messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system_prompt}, *conversation.messages)
        return Conversation(messages=messages, trained_from=conversation.trained_from + 1)
    return conversation


def _unknown_format(row: Row) -> Exception:
    columns = ", ".join(map(repr, row.values)) or "none"
    if "text" in row.values:
        return row.error(
            "only has 'text', which does not say where the prompt ends and the answer begins, so every token would be "
            "trained on. Split it into 'prompt' and 'completion'."
        )
    return row.error(
        f"its columns ({columns}) fit no known format: messages; conversations; prompt and completion; instruction and "
        "output; question and answer. Name the columns with --prompt_column and --response_column."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(row: Row, field: str) -> str:
    if field not in row.values:
        columns = ", ".join(map(repr, row.values)) or "none"
        raise row.error(f"has no field '{field}'; its fields are {columns}.")
    value = row.values[field]
    if not isinstance(value, str) or not value.strip():
        raise row.error(f"'{field}' must be text that is not empty, got {_shown(value)}. Mend or drop the row.")
    return value


def _exchange(question: str, answer: str) -> Conversation:
    return Conversation(
        messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}), trained_from=1
    )


def _alpaca(row: Row) -> Conversation:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    extra = row.values.get("input")
    if extra is not None and not isinstance(extra, str):
        raise row.error(f"'input' must be text or absent, got {_shown(extra)}.")
    exchange = _exchange(f"{instruction}\n\n{extra}" if extra else instruction, output)
    if not row.values.get("system"):
        return exchange
    system = {"role": "system", "content": _text(row, "system")}
    return Conversation(messages=(system, *exchange.messages), trained_from=2)


def _prompt_completion(row: Row) -> Conversation:
    prompt, completion = row.values.get("prompt"), row.values.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        messages = (*_messages(row, "prompt"), *_messages(row, "completion"))
        return _chat(row, "completion", messages, trained_from=len(_messages(row, "prompt")))
    return Conversation(prompt=_text(row, "prompt"), completion=_text(row, "completion"))


def _messages(row: Row, field: str) -> tuple[dict[str, str], ...]:
    """Read a list of messages in OpenAI's or ShareGPT's spelling."""
    turns = row.values.get(field)
    if not isinstance(turns, (list, tuple)) or not turns:
        raise row.error(f"'{field}' must be a list of messages that is not empty, got {_shown(turns)}.")
    messages = []
    for position, turn in enumerate(turns):
        place = f"'{field}[{position}]'"
        if not isinstance(turn, dict):
            raise row.error(f"{place} must be an object with role and content, got {_shown(turn)}.")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        known = _SHAREGPT_ROLES.get(role) if isinstance(role, str) else None
        if known is None:
            raise row.error(f"{place} has role {_shown(role)}; known are {', '.join(ROLES)}, human and gpt.")
        if not isinstance(content, str):
            raise row.error(f"{place} must have text as content, got {_shown(content)}. Only text is trained on.")
        if known == "assistant" and not content.strip():
            raise row.error(f"{place} is an empty assistant turn, nothing to train on. Fill it in or drop the row.")
        messages.append({"role": known, "content": content})
    return tuple(messages)


def _chat(row: Row, field: str, messages: tuple[dict[str, str], ...], trained_from: int = 0) -> Conversation:
    if not any(message["role"] == "assistant" for message in messages[trained_from:]):
        raise row.error(
            f"'{field}' has no assistant turn, nothing to train on. Add one or drop the row (--skip-bad-rows)."
        )
    if any(message["role"] == "system" for message in messages[1:]):
        raise row.error(f"'{field}' has a system message that is not the first. Move it to the front.")
    return Conversation(messages=messages, trained_from=trained_from)
