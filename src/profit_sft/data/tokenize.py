"""Turn a conversation into token ids and labels: only what the assistant says carries labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from profit_sft.data.formats import Conversation
from profit_sft.data.rows import Row

IGNORE_INDEX = -100
TOKEN_KINDS = {"none": 0, "core": 1, "style": 2}  # what a token is, where rows carry `answer_spans`
TrainOn = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One example.

    Attributes:
        input_ids: Token ids.
        labels: The same ids where the assistant speaks, `IGNORE_INDEX` elsewhere.
        token_kinds: One of `TOKEN_KINDS` a token, or None where the row has no spans.
    """

    input_ids: list[int]
    labels: list[int]
    token_kinds: list[int] | None


def tokenize_conversation(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, row: Row, *, train_on: TrainOn = "all"
) -> Tokenized:
    """Render, tokenize and label one conversation.

    A trained turn's labels are its content and the token that ends the turn; what a template puts after that token is
    not trained. Works with any chat template that renders a conversation as an extension of its beginning; one that
    rewrites earlier turns is refused, unless only the last turn is trained.

    Args:
        conversation: The row in canonical form.
        tokenizer: With a chat template, unless the conversation is plain text.
        row: For messages, and for its `answer_spans`: character spans `start`, `end`, `kind` of the last answer.
        train_on: Label all assistant turns from `trained_from` on, or the last one only.

    Raises:
        DataError: The template is missing or cannot be used so; names file, row and the fix.
    """
    if conversation.prompt is not None:
        return _plain_text(conversation, tokenizer, row)
    if not tokenizer.chat_template:
        raise row.error(
            f"is a chat, but the tokenizer of '{tokenizer.name_or_path}' has no chat template. Name one with "
            "--chat_template_path, or give text in 'prompt' and 'completion'."
        )
    messages = list(conversation.messages)
    turns = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index >= conversation.trained_from
    ]
    if train_on == "last":
        turns = turns[-1:]
        messages = messages[: turns[0] + 1]
    whole = _render(tokenizer, messages, row)
    trained = [_trained_characters(tokenizer, messages, turn, whole, row) for turn in turns]
    return _encode(whole, trained, tokenizer, row, answer_start=trained[-1][0])


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], row: Row, **options: Any) -> str:
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # templates raise whatever their author chose
        raise row.error(f"the chat template refuses it: {error}. Mend or drop the row.") from error
    assert isinstance(text, str)
    return text


def _trained_characters(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], turn: int, whole: str, row: Row
) -> tuple[int, int]:
    """Return the characters of `whole` that turn `turn` adds: from the end of its prompt to its end-of-turn token."""
    prompt = _render(tokenizer, messages[:turn], row, add_generation_prompt=True)
    ended = _render(tokenizer, messages[: turn + 1], row)
    if not (ended.startswith(prompt) and whole.startswith(ended)):
        raise row.error(
            f"the chat template renders turn {turn + 1} otherwise once the conversation goes on (templates that drop "
            "earlier reasoning do), so its tokens cannot be labelled. Train the last turn only: --train_on last."
        )
    start, end = len(prompt), len(ended)
    eos = tokenizer.eos_token
    if isinstance(eos, str):
        # Templates may put a newline after the token that ends the turn; nothing is to be learned from it.
        last = whole.rfind(eos, start, end)
        if last >= 0 and not whole[last + len(eos) : end].strip():
            end = last + len(eos)
    return start, end


def _encode(
    text: str, trained: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, row: Row, *, answer_start: int
) -> Tokenized:
    """Tokenize and label every token that lies in a trained stretch of characters."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids: list[int] = encoded["input_ids"]
    labels, kinds = [], []
    spans = _answer_spans(row)
    for token, (start, end) in zip(input_ids, encoded["offset_mapping"], strict=True):
        # A token that begins before the answer belongs to the prompt, though it may reach into the answer.
        counts = any(first <= start and start < last for first, last in trained) and end > start
        labels.append(token if counts else IGNORE_INDEX)
        kinds.append(_kind(spans, start - answer_start, end - answer_start) if counts and spans else 0)
    return Tokenized(input_ids, labels, kinds if spans else None)


def _answer_spans(row: Row) -> list[tuple[int, int, str]]:
    spans = row.values.get("answer_spans") or []
    try:
        found = [(int(span["start"]), int(span["end"]), str(span["kind"])) for span in spans]
    except (TypeError, KeyError, ValueError):
        raise row.error("'answer_spans' must be a list of objects with start, end and kind.") from None
    for _, _, kind in found:
        if kind not in ("core", "style"):
            raise row.error(f"'answer_spans' has kind {kind!r}; known are 'core' and 'style'.")
    return found


def _kind(spans: Sequence[tuple[int, int, str]], start: int, end: int) -> int:
    """A token that overlaps a core span is core; the end-of-turn token lies in no span and is neither."""
    overlapping = {kind for first, last, kind in spans if first < end and start < last}
    return TOKEN_KINDS["core" if "core" in overlapping else "style" if overlapping else "none"]


def _plain_text(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, row: Row) -> Tokenized:
    """Prompt and completion without a template; the completion starts where the two tokenizations part, as in TRL."""
    assert conversation.prompt is not None
    assert conversation.completion is not None
    eos = tokenizer.eos_token if isinstance(tokenizer.eos_token, str) else ""
    completion = conversation.completion
    if not completion.endswith(eos):
        completion += eos
    prompt_ids: list[int] = tokenizer(conversation.prompt)["input_ids"]
    input_ids: list[int] = tokenizer(conversation.prompt + completion)["input_ids"]
    shared = 0
    while shared < min(len(prompt_ids), len(input_ids)) and prompt_ids[shared] == input_ids[shared]:
        shared += 1
    if shared == len(input_ids):
        raise row.error("'completion' adds no token to 'prompt', nothing to train on. Mend or drop the row.")
    return Tokenized(input_ids, [IGNORE_INDEX] * shared + input_ids[shared:], None)
