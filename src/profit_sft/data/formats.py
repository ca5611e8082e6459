"""Recognize the format of a row and turn it into one conversation."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any

from profit_sft.data.messages import (
    Message,
    checked_text,
    is_blank,
    is_chat_in_text,
    is_given,
    is_text,
    read_list,
    read_messages,
    read_object,
    read_tool,
    read_weight,
    refuse_media,
    shown,
)
from profit_sft.data.row import Row
from profit_sft.data.settings import DataOptions, Format

REQUIRED_FIELDS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "question_answer": ("question", "answer"),
    "text": ("text",),
}
# A worked solution beside a bare answer is what is to be learned.
_ANSWERS = ("solution", "answer", "response", "output", "assistant")
_QUESTIONS = ("question", "query", "problem", "prompt", "input", "user")
_CHATS = ("messages", "conversation", "chat", "dialogue", "dialog")
_ALSO: dict[Format, tuple[tuple[str, ...], ...]] = {
    "messages": tuple((name,) for name in _CHATS),
    "alpaca": (("instruction", "response"),),
    "question_answer": tuple(product(_QUESTIONS, _ANSWERS)),
}
AS_USUAL = DataOptions()
# The renderer's own; what a template may be told besides is anybody's.
_RENDERERS = ("messages", "conversations", "tools", "chat_template", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row in canonical form.

    Attributes:
        messages: As chat templates take them, or empty for plain text.
        trained: Indices of the assistant turns that may carry labels; the rest is prompt. None: the row is left out.
        weights: The weight of each of these turns, or of the completion alone; empty where the row is left out.
        tools: Descriptions of the tools that a chat may call.
        template_options: What the chat template is told besides, such as `enable_thinking`.
        prompt: Plain-text prompt, or None for a chat. Empty where every token of the completion is trained.
        completion: Plain-text completion, or None for a chat.
        notes: What the report should say of this row: a line for each column that is not used.
    """

    messages: tuple[Message, ...] = ()
    trained: tuple[int, ...] = ()
    weights: tuple[float, ...] = (1.0,)
    tools: tuple[dict[str, Any], ...] = ()
    template_options: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    completion: str | None = None
    notes: tuple[str, ...] = ()


def detect_format(columns: Collection[str], options: DataOptions = AS_USUAL) -> Format | None:
    """Return the format these columns have, or None. Columns that the options name mean question and answer.

    Of a row's values those that are null are passed over where the others have a format: of merged tables a row has the
    columns of its own, and null in those of others. But a question without its answer is no plain text, of which every
    token is trained, whatever stands in a column of text beside it.
    """
    if options.prompt_column is not None or options.response_column is not None:
        return "question_answer"
    of_all = _format_of(tuple(columns), options.names_text)
    if not isinstance(columns, Mapping):
        return of_all
    given = tuple(name for name, value in columns.items() if value is not None)
    found = _format_of(given, options.names_text)
    if found == "text" != of_all and not options.names_text:
        filled = _lowered([name for name in given if not is_blank(columns[name])])
        return next((name for name in _formats_of(tuple(columns)) if _fields_of(name) & filled), found)
    return found or of_all


@lru_cache(maxsize=64)
def _format_of(names: tuple[str, ...], names_text: bool) -> Format | None:
    found = _formats_of(names)
    if names_text and "text" in found and found[0] in ("alpaca", "question_answer"):
        return "text"
    return next(iter(found), None)


def _formats_of(names: tuple[str, ...]) -> list[Format]:
    """Return every format whose columns are all there, the one that goes before the others first."""
    columns = _lowered(names)
    return [name for name in REQUIRED_FIELDS if any(columns.issuperset(of) for of in _choices_of(name))]


def _choices_of(name: Format) -> tuple[tuple[str, ...], ...]:
    """Return the sets of columns of which a format needs one."""
    return (REQUIRED_FIELDS[name], *_ALSO.get(name, ()))


def _fields_of(name: Format) -> set[str]:
    return {field for fields in _choices_of(name) for field in fields}


def _lowered(names: Collection[str]) -> set[str]:
    return {*names, *map(str.lower, names)}


def to_conversation(row: Row, options: DataOptions = AS_USUAL) -> Conversation:
    """Turn one row into a conversation.

    All assistant turns may be trained but those that say they are not; of `prompt` and `completion` only the
    completion. Messages after the last assistant turn are kept: they carry no label and, as attention is causal, change
    none.

    Args:
        row: The row. What it tells the chat template goes before what the options do.
        options: How rows are read.

    Raises:
        DataError: Names file, row, field and the fix.
    """
    if row.problem is not None:
        raise row.error(f"{row.problem} Mend or drop it (--skip-bad-rows leaves bad rows out).")
    found = options.dataset_format
    if found == "auto":
        detected = detect_format(row.values, options)
        if detected is None:
            raise _unknown_format(row)
        found = detected
    columns = _Columns(row)
    refuse_media(row, "the row", row.values)
    row_weight = _row_weight(columns)
    turns = _READERS[found](columns, options)
    if isinstance(turns, Conversation):
        own_prompt = columns.text_if_any("system", "system_prompt")
        if own_prompt is not None:
            raise row.error(
                f"is plain text, which has no place for its system prompt, {shown(own_prompt)}. Write it into "
                "'prompt', or give messages."
            )
        if options.system_prompt is not None:
            raise row.error(
                "is plain text, which has no place for --system_prompt. Write it into the text, or leave the flag out."
            )
        return replace(turns, weights=(row_weight,) if row_weight else (), notes=(*turns.notes, *columns.rest()))
    messages = [message for message, _ in turns]
    trained = [index for index, (message, weight) in enumerate(turns) if weight and message["role"] == "assistant"]
    trained = trained if row_weight else []
    system = _system(columns, messages, options.system_prompt)
    tools = [read_tool(row, name, tool) for name in ("tools", "functions") for tool in columns.list(name)]
    told = {
        **read_object(row, "chat_template_kwargs", options.chat_template_kwargs),
        **read_object(row, "chat_template_kwargs", columns.get("chat_template_kwargs")),
    }
    taken = next((name for name in _RENDERERS if name in told), None)
    if taken is not None:
        raise row.error(f"'chat_template_kwargs' has '{taken}', which a row says otherwise. Leave it out.")
    return Conversation(
        messages=(*system, *messages),
        trained=tuple(index + len(system) for index in trained),
        weights=tuple(row_weight * turns[index][1] for index in trained),
        tools=tuple(tool for index, tool in enumerate(tools) if tool not in tools[:index]),
        template_options=told,
        notes=columns.rest(),
    )


class _Columns:
    """The columns of a row, of which capitals tell none apart, and which of them have been read."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self._read = {"answer_spans", "token_weights"}
        self._names = {name.lower(): name for name in row.values} | {name: name for name in row.values}

    def get(self, name: str) -> Any:
        self._read.add(self._names.get(name, name))
        return self.row.values.get(self._names.get(name, name))

    def list(self, name: str) -> Any:
        return read_list(self.row, name, self.get(name))

    def peek(self, name: str | None) -> str:
        """Return the text of a column, or nothing; the column still counts as not read."""
        value = self.row.values.get(self._names.get(name or "", ""))
        return str(value).strip() if is_text(value) else ""

    def text(self, name: str) -> str:
        if name not in self._names:
            columns = ", ".join(map(repr, self.row.values)) or "none"
            raise self.row.error(f"has no field '{name}'; its fields are {columns}. Add it, or name another column.")
        value = self.get(name)
        if not is_text(value) or not str(value).strip():
            raise self.row.error(f"'{name}' must be text that is not empty, got {shown(value)}. Mend or drop the row.")
        return checked_text(self.row, f"'{name}'", value)

    def text_if_any(self, *names: str) -> str | None:
        """Return the first of these columns that holds text, or None where all are absent or empty."""
        for name in names:
            value = self.get(name)
            if is_blank(value):
                continue
            if not is_text(value):
                raise self.row.error(f"'{name}' must be text or absent, got {shown(value)}. Mend or drop the row.")
            return self.text(name)
        return None

    def first(self, names: Collection[str]) -> str | None:
        """Return the first of these columns that holds something, or that there is."""
        there = [name for name in names if name in self._names]
        return next((name for name in there if is_given(self.row.values[self._names[name]])), next(iter(there), None))

    def rest(self) -> tuple[str, ...]:
        """Return a line for each column that holds something and was not read."""
        values = self.row.values
        return tuple(
            f"column '{name}' is not used" for name in values if name not in self._read and is_given(values[name])
        )


_Turns = list[tuple[Message, float]]  # each with its weight, 0 where it is not to be trained


def _unknown_format(row: Row) -> Exception:
    columns = ", ".join(map(repr, row.values)) or "none"
    return row.error(
        f"its columns ({columns}) fit no known format: messages; conversations; prompt and completion; instruction and "
        "output; question and answer; text. Name the columns with --prompt_column and --response_column."
    )


def _row_weight(columns: _Columns) -> float:
    """Return the product of what a row says of its weight: `weight`, or `train`, a truth value."""
    weight = 1.0
    for name in ("weight", "train"):
        given = columns.get(name)
        weight *= 1.0 if is_blank(given) else read_weight(columns.row, f"the row has {name}", given)
    return weight


def _turn(role: str, text: str) -> tuple[Message, float]:
    return {"role": role, "content": text}, 1.0


def _system(columns: _Columns, messages: list[Message], system_prompt: str | None) -> list[Message]:
    """Return the system message that a column or the flag puts before a chat without one."""
    if messages[0]["role"] in ("system", "developer"):
        return []
    text = columns.text_if_any("system", "system_prompt") or system_prompt
    return [] if text is None else [_turn("system", text)[0]]


def _chat(columns: _Columns, name: str) -> _Turns:
    turns = _messages(columns, name)
    _require_answer(columns, name, turns)
    return turns


def _require_answer(columns: _Columns, name: str, turns: _Turns) -> None:
    if not any(message["role"] == "assistant" for message, _ in turns):
        raise columns.row.error(
            f"'{name}' has no assistant turn, nothing to train on. Add one or drop the row (--skip-bad-rows)."
        )


def _messages(columns: _Columns, name: str) -> _Turns:
    return read_messages(columns.row, name, columns.get(name))


def _prompt_completion(columns: _Columns) -> _Turns | Conversation:
    is_chat = any(isinstance(columns.get(name), list) for name in ("prompt", "completion"))
    if is_chat or is_chat_in_text(columns.get("prompt")):
        before, trained = _messages(columns, "prompt"), _messages(columns, "completion")
        _require_answer(columns, "completion", trained)
        return [*((message, 0.0) for message, _ in before), *trained]
    prompt, completion = columns.text("prompt"), columns.text("completion")
    return Conversation(prompt=prompt, completion=completion)


def _alpaca(columns: _Columns) -> _Turns:
    answer = columns.first(("output", "response")) or "output"
    parts = (columns.text_if_any("instruction"), columns.text_if_any("input", "context"))
    question = "\n\n".join(part for part in parts if part is not None) or columns.text("instruction")
    return [*_history(columns), _turn("user", question), _turn("assistant", columns.text(answer))]


def _history(columns: _Columns) -> _Turns:
    """Read earlier exchanges: pairs of a question and an answer, or messages."""
    earlier = columns.list("history")
    if earlier and isinstance(earlier[0], Mapping):
        return read_messages(columns.row, "history", earlier)
    turns = []
    for pair in earlier:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(map(is_text, pair)):
            raise columns.row.error(
                f"'history' must be pairs of a question and an answer, got {shown(pair)}. Mend or drop the row."
            )
        question, answer = (checked_text(columns.row, "'history'", text) for text in pair)
        turns += [_turn("user", question), _turn("assistant", answer)]
    return turns


def _question_answer(columns: _Columns, options: DataOptions) -> _Turns:
    question = options.prompt_column or columns.first(_QUESTIONS) or "question"
    answer = options.response_column or _answer_column(columns, [name for name in _ANSWERS if name != question])
    if isinstance(columns.get(question), list) or is_chat_in_text(columns.get(question)):
        before = [(message, 0.0) for message, _ in _messages(columns, question)]
    else:
        parts = (columns.text(question), columns.text_if_any("context"))
        before = [*_history(columns), _turn("user", "\n\n".join(part for part in parts if part is not None))]
    return [*before, _turn("assistant", columns.text(answer))]


def _answer_column(columns: _Columns, names: Collection[str]) -> str:
    """Return the first of these columns, or one whose text holds that of the first: a worked answer of a bare one."""
    first = columns.first(names)
    bare = columns.peek(first)
    worked = (name for name in names if bare and bare in columns.peek(name) and len(columns.peek(name)) > len(bare))
    return max(worked, key=lambda name: len(columns.peek(name)), default=first) or "answer"


def _text(columns: _Columns) -> Conversation:
    return Conversation(
        prompt="",
        completion=columns.text("text"),
        notes=("rows of 'text' do not say where an answer begins, so every token is trained",),
    )


_READERS: dict[str, Callable[[_Columns, DataOptions], _Turns | Conversation]] = {
    "messages": lambda columns, _: _chat(columns, columns.first(_CHATS) or "messages"),
    "sharegpt": lambda columns, _: _chat(columns, "conversations"),
    "prompt_completion": lambda columns, _: _prompt_completion(columns),
    "alpaca": lambda columns, _: _alpaca(columns),
    "question_answer": _question_answer,
    "text": lambda columns, _: _text(columns),
}
