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
# Parts of a message that would be lost, so a row that has them is refused rather than half trained on.
_UNSUPPORTED_KEYS = ("tool_calls", "function_call", "reasoning_content", "thinking")


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

    All assistant turns may be trained; of `prompt` and `completion` only the completion. Messages after the last
    assistant turn are kept: they carry no label and, as attention is causal, change none.

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
    return conversation if system_prompt is None else _with_system_prompt(conversation, system_prompt, row)


def _with_system_prompt(conversation: Conversation, system_prompt: str, row: Row) -> Conversation:
    if conversation.prompt is not None:
        raise row.error(
            "'prompt' and 'completion' are plain text, which has no place for --system_prompt. Write it into 'prompt', "
            "or leave the flag out."
        )
    if conversation.messages[0]["role"] == "system":
        return conversation
    messages = ({"role": "system", "content": system_prompt}, *conversation.messages)
    return Conversation(messages=messages, trained_from=conversation.trained_from + 1)


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


def shown(value: Any) -> str:
    """Return a value as an error message quotes it: on one line, and shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(row: Row, field: str) -> str:
    if field not in row.values:
        columns = ", ".join(map(repr, row.values)) or "none"
        raise row.error(f"has no field '{field}'; its fields are {columns}. Add it, or name another column.")
    value = row.values[field]
    if not isinstance(value, str) or not value.strip():
        raise row.error(f"'{field}' must be text that is not empty, got {shown(value)}. Mend or drop the row.")
    _check_encodable(row, f"'{field}'", value)
    return value


def _check_encodable(row: Row, place: str, text: str) -> None:
    r"""Refuse half of a UTF-16 pair, which JSON can spell (`\ud83d`) and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise row.error(
            f"{place} has a lone surrogate, {shown(text[error.start])}, at character {error.start + 1}, which is no "
            "text. Mend or drop the row."
        ) from None


def _exchange(question: str, answer: str) -> Conversation:
    return Conversation(
        messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}), trained_from=1
    )


def _alpaca(row: Row) -> Conversation:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    extra = row.values.get("input")
    if extra is not None and not isinstance(extra, str):
        raise row.error(f"'input' must be text or absent, got {shown(extra)}. Mend or drop the row.")
    exchange = _exchange(f"{instruction}\n\n{_text(row, 'input')}" if extra and extra.strip() else instruction, output)
    if not row.values.get("system"):
        return exchange
    system = {"role": "system", "content": _text(row, "system")}
    return Conversation(messages=(system, *exchange.messages), trained_from=2)


def _prompt_completion(row: Row) -> Conversation:
    prompt, completion = row.values.get("prompt"), row.values.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        before, trained = _messages(row, "prompt"), _messages(row, "completion")
        return _chat(row, "completion", (*before, *trained), trained_from=len(before))
    return Conversation(prompt=_text(row, "prompt"), completion=_text(row, "completion"))


def _messages(row: Row, field: str) -> tuple[dict[str, str], ...]:
    """Read a list of messages in OpenAI's or ShareGPT's spelling."""
    turns = row.values.get(field)
    if not isinstance(turns, (list, tuple)) or not turns:
        raise row.error(
            f"'{field}' must be a list of messages that is not empty, got {shown(turns)}. Mend or drop the row."
        )
    return tuple(_message(row, f"'{field}[{position}]'", turn) for position, turn in enumerate(turns))


def _message(row: Row, place: str, turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise row.error(f"{place} must be an object with role and content, got {shown(turn)}. Mend or drop the row.")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    known = _SHAREGPT_ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise row.error(
            f"{place} has role {shown(role)}; known are {', '.join(ROLES)}, human and gpt. Rename it or drop the row."
        )
    lost = next((key for key in _UNSUPPORTED_KEYS if turn.get(key)), None)
    if lost is not None:
        raise row.error(
            f"{place} has '{lost}', which would not be trained on. Write it into the content, as the chat template "
            "would, or drop the row."
        )
    if not isinstance(content, str):
        raise row.error(
            f"{place} must have text as content, got {shown(content)}. Only text is trained on; mend or drop the row."
        )
    if known == "assistant" and not content.strip():
        raise row.error(f"{place} is an empty assistant turn, nothing to train on. Fill it in or drop the row.")
    _check_encodable(row, place, content)
    return {"role": known, "content": content}


def _chat(row: Row, field: str, messages: tuple[dict[str, str], ...], trained_from: int = 0) -> Conversation:
    if not any(message["role"] == "assistant" for message in messages[trained_from:]):
        raise row.error(
            f"'{field}' has no assistant turn, nothing to train on. Add one or drop the row (--skip-bad-rows)."
        )
    if messages[0]["role"] == "assistant":
        first = "prompt" if trained_from else field
        raise row.error(
            f"'{first}' begins with an assistant turn, which answers nothing. Put a user message first or drop the row."
        )
    if any(message["role"] == "system" for message in messages[1:]):
        raise row.error(f"'{field}' has a system message that is not the first. Move it to the front.")
    return Conversation(messages=messages, trained_from=trained_from)
