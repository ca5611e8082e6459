"""Turn a conversation into token ids and labels: only what the assistant says carries labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from profit_sft.data.formats import Conversation, shown
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


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """Characters `start` to `end` (exclusive) of the last answer, all of one kind: `core` or `style`."""

    start: int
    end: int
    kind: str


def tokenize_conversation(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, row: Row, *, train_on: TrainOn = "all"
) -> list[Tokenized]:
    """Render, tokenize and label one conversation: its examples, of which there is at least one.

    A trained turn's labels are its content and the token that ends the turn; what a template puts after that token is
    not trained. Works with any chat template that renders a conversation as an extension of its beginning; one that
    rewrites earlier turns is refused, unless only the last turn is trained.

    Plain text has no template: its labels are the completion and the EOS token, from where the tokens of prompt and
    completion part from those of the prompt alone, as in TRL.

    Args:
        conversation: The row in canonical form.
        tokenizer: A fast one, with a chat template unless the conversation is plain text.
        row: For messages, and for its `answer_spans`: character spans `start`, `end`, `kind` of the last answer.
        train_on: Label all assistant turns from `trained_from` on, or the last one only.

    Raises:
        DataError: The template is missing or cannot be used so; names file, row and the fix.
    """
    if conversation.prompt is not None:
        return [_plain_text(conversation, tokenizer, row)]
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
    answer = messages[turns[-1]]["content"]
    spans = _answer_spans(row, answer)
    if spans:
        spans = _shifted(spans, _place_of(answer, whole, trained[-1], row))
    return [_encode(whole, trained, spans, tokenizer)]


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
    if not ended.startswith(prompt):
        raise row.error(
            f"the chat template's generation prompt is not how it begins turn {turn + 1} (some add a thinking tag to "
            "the prompt alone), so its tokens cannot be labeled. Name another template with --chat_template_path."
        )
    if not whole.startswith(ended):
        raise row.error(
            f"the chat template renders turn {turn + 1} otherwise once the conversation goes on (templates that drop "
            "earlier reasoning do), so its tokens cannot be labeled. Train the last turn only: --train_on last."
        )
    return len(prompt), _end_of_turn(whole, len(prompt), len(ended), tokenizer)


def _end_of_turn(text: str, start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Leave out the newline some templates put after the token that ends the turn: nothing is to be learned from it."""
    stripped = text[start:end].rstrip()
    if len(stripped) == end - start:
        return end
    if stripped.endswith(_eos(tokenizer)):
        return start + len(stripped)
    # Gemma's EOS is <eos> and its turns end in <end_of_turn>; Qwen's base models differ likewise.
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return start + len(stripped) if stripped.endswith(special) else end


def _eos(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return (tokenizer.eos_token,) if isinstance(tokenizer.eos_token, str) and tokenizer.eos_token else ()


def _encode(
    text: str,
    trained: Sequence[tuple[int, int]],
    spans: Sequence[AnswerSpan],
    tokenizer: PreTrainedTokenizerBase,
) -> Tokenized:
    """Tokenize and label every token that lies in a trained stretch of characters."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids: list[int] = encoded["input_ids"]
    labels, kinds = [], []
    for token, (start, end) in zip(input_ids, encoded["offset_mapping"], strict=True):
        counts = any(_lies_in(start, end, first, last) for first, last in trained)
        labels.append(token if counts else IGNORE_INDEX)
        kinds.append(_kind(spans, start, end) if counts and spans else TOKEN_KINDS["none"])
    return Tokenized(input_ids, labels, kinds if spans else None)


def _lies_in(start: int, end: int, first: int, last: int) -> bool:
    """Say whether the token of characters `start` to `end` belongs to the stretch `first` to `last`."""
    if start == end:
        # Tokenizers with `trim_offsets` (GPT-NeoX's, so OLMo's) report a token of spaces as empty, at its end.
        return first < end <= last
    # A token that begins before the answer belongs to the prompt, though it may reach into the answer.
    return first <= start < last


def _answer_spans(row: Row, answer: str) -> list[AnswerSpan]:
    """Read the row's `answer_spans`, if it has any."""
    given = row.values.get("answer_spans") or []
    try:
        spans = [AnswerSpan(span["start"], span["end"], span["kind"]) for span in given]
    except (TypeError, KeyError):
        raise row.error(
            f"'answer_spans' must be a list of objects with start, end and kind, got {shown(given)}. Mend or drop it."
        ) from None
    for span in spans:
        if span.kind not in ("core", "style"):
            raise row.error(f"'answer_spans' has kind {span.kind!r}; known are 'core' and 'style'.")
        if not (
            isinstance(span.start, int) and isinstance(span.end, int) and 0 <= span.start < span.end <= len(answer)
        ):
            raise row.error(
                f"'answer_spans' has start {span.start!r} and end {span.end!r}, but the last answer has {len(answer)} "
                "characters. Count both from its beginning, start before end."
            )
    return spans


def _shifted(spans: Sequence[AnswerSpan], by: int) -> list[AnswerSpan]:
    return [AnswerSpan(span.start + by, span.end + by, span.kind) for span in spans]


def _place_of(answer: str, whole: str, trained: tuple[int, int], row: Row) -> int:
    """Return where the answer begins in the rendered text; templates may trim it, or put an empty thought before it."""
    for text, cut in ((answer, 0), (answer.strip(), len(answer) - len(answer.lstrip()))):
        place = whole.find(text, *trained)
        if place >= 0:
            return place - cut
    raise row.error(
        "'answer_spans' cannot be placed, since the chat template changes the answer's text. Drop that column, or name "
        "another template with --chat_template_path."
    )


def _kind(spans: Sequence[AnswerSpan], start: int, end: int) -> int:
    """A token that overlaps a core span is core; the end-of-turn token lies in no span and is neither."""
    start = min(start, end - 1)  # an empty token of spaces stands at its end
    overlapping = {span.kind for span in spans if span.start < end and start < span.end}
    return TOKEN_KINDS["core" if "core" in overlapping else "style" if overlapping else "none"]


def _plain_text(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, row: Row) -> Tokenized:
    """Prompt and completion without a template; the completion starts where the two tokenizations part, as in TRL."""
    prompt, completion = conversation.prompt, conversation.completion
    assert prompt is not None
    assert completion is not None
    spans = _shifted(_answer_spans(row, completion), len(prompt))
    eos = _eos(tokenizer)
    text = prompt + completion if completion.endswith(eos) else "".join((prompt, completion, *eos))
    prompt_ids: list[int] = tokenizer(prompt)["input_ids"]
    encoded = tokenizer(text, return_offsets_mapping=True)
    input_ids: list[int] = encoded["input_ids"]
    shared = 0
    while shared < min(len(prompt_ids), len(input_ids)) and prompt_ids[shared] == input_ids[shared]:
        shared += 1
    if shared == len(input_ids):
        raise row.error("'completion' adds no token to 'prompt', nothing to train on. Mend or drop the row.")
    kinds = [_kind(spans, start, end) for start, end in encoded["offset_mapping"][shared:]]
    kinds = [TOKEN_KINDS["none"]] * shared + kinds
    return Tokenized(input_ids, [IGNORE_INDEX] * shared + input_ids[shared:], kinds if spans else None)
