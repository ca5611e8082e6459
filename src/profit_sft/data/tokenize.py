"""Turn a conversation into token ids and labels: only what the assistant says carries labels."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from operator import itemgetter

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from profit_sft.data.chat_template import eos_token
from profit_sft.data.formats import AS_USUAL, Conversation
from profit_sft.data.messages import read_list, shown
from profit_sft.data.row import Row
from profit_sft.data.settings import DataOptions
from profit_sft.data.turns import KindSpan, Rendered, render_conversation
from profit_sft.data.weights import WeightedPart, check_parts, given_weights, shifted_parts, spread, weights_of_parts

IGNORE_INDEX = -100
_LONG_PIECE = 2000  # characters; of 140,000 at once tokenizing took a third more time
TOKEN_KINDS = {"none": 0, "core": 1, "style": 2}  # what a token is, where rows carry `answer_spans`


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One example.

    Attributes:
        input_ids: Token ids.
        labels: The same ids where the assistant speaks, `IGNORE_INDEX` elsewhere.
        token_kinds: One of `TOKEN_KINDS` a token, or None where the row has no spans.
        token_weights: The weight of each token, or None where the row brings none but 1.
        notes: What the report should say of it, once for all rows.
    """

    input_ids: list[int]
    labels: list[int]
    token_kinds: list[int] | None
    token_weights: list[float] | None = None
    notes: tuple[str, ...] = ()


def tokenize_conversation(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, row: Row, options: DataOptions = AS_USUAL
) -> list[Tokenized]:
    """Render, tokenize and label one conversation: its examples, none where its weight is 0.

    Arguments and errors as `label_conversation`.
    """
    return weighed(tokenize_texts(label_conversation(conversation, tokenizer, row, options), tokenizer), row)


def label_conversation(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, row: Row, options: DataOptions = AS_USUAL
) -> list[Rendered | Tokenized]:
    """Render and label one conversation: its examples, none where its weight is 0; plain text is tokenized already.

    A trained turn's labels are what it says and the token that ends the turn; what a template puts after that token is
    not trained. A row gives several examples where the chat template rewrites earlier turns, so that each trained turn
    is rendered as it will be served (`profit_sft.data.turns`).

    Plain text has no template: its labels are the completion and the EOS token, from where the tokens of prompt and
    completion part from those of the prompt alone, as in TRL.

    Args:
        conversation: The row in canonical form.
        tokenizer: A fast one, with a chat template unless the conversation is plain text.
        row: For messages, for its `answer_spans`: character spans `start`, `end`, `kind` of the last answer, and for
            the stretches in its `token_weights`.
        options: How it is rendered, and what of it is learned.

    Raises:
        DataError: The template is missing or cannot be used so; names file, row and the fix.
    """
    if not conversation.weights:
        return []
    if conversation.prompt is not None:
        return [_plain_text(conversation, tokenizer, row, options.kind_weights)]
    weights, rendered = options.kind_weights, render_conversation(conversation, tokenizer, row, options)
    examples: list[Rendered | Tokenized] = []
    for example in rendered:
        spans, parts = _of_answer(row, example.answer) if example is rendered[-1] else ([], [])
        if spans or parts:
            if example.place is None:
                column = "answer_spans" if spans else "token_weights"
                raise row.error(
                    f"'{column}' cannot be placed, since the chat template changes the answer's text. Drop that "
                    "column, or name another template with --chat_template_path."
                )
            spans, parts = shifted_parts(spans, example.place), shifted_parts(parts, example.place)
        notes = conversation.notes + example.notes
        parts = [*parts, *((start, end, weights[kind]) for start, end, kind in example.kinds if kind in weights)]
        examples.append(replace(example, spans=spans, parts=parts, notes=notes, kind_weights=weights))
    return examples


def tokenize_texts(examples: Sequence[Rendered | Tokenized], tokenizer: PreTrainedTokenizerBase) -> list[Tokenized]:
    """Tokenize the examples that are text in one call, which takes all cores, and label every token of theirs."""
    texts = [pieces(example.text, tokenizer) for example in examples if isinstance(example, Rendered)]
    if not texts:
        return [example for example in examples if isinstance(example, Tokenized)]
    # Not verbose: that a text is longer than the model's limit is for the report to say.
    encoded = tokenizer(list(chain(*texts)), add_special_tokens=False, return_attention_mask=False, verbose=False)
    encodings, of_text, places_of = iter(encoded.encodings or ()), iter(texts), _reader_of_places(tokenizer)
    return [
        _labeled(example, *_joined(next(of_text), encodings, places_of)) if isinstance(example, Rendered) else example
        for example in examples
    ]


_Places = list[tuple[int, int]]  # of tokens: characters, the end exclusive


def _reader_of_places(tokenizer: PreTrainedTokenizerBase) -> Callable[[_Places], _Places]:
    """Return what makes a tokenizer's offsets the places of its tokens, with the spaces that they begin with.

    Some byte-level ones (GPT-NeoX's, so OLMo's) trim these, so that a token of spaces is empty and stands at its end.
    """
    processor = tokenizer.backend_tokenizer.post_processor
    trims = processor is not None and b'"trim_offsets":true' in processor.__getstate__()
    return _untrimmed if trims else list


def _untrimmed(offsets: _Places) -> _Places:
    ends = [0, *(end for _, end in offsets)]
    return [(min(start, before), end) for (start, end), before in zip(offsets, ends, strict=False)]


def pieces(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Cut a long text before tokens that are found before all else: its pieces have its tokens, and take less time.

    A cut is before such a token and not behind it, as some tokenizers treat what stands first in a text otherwise.
    """
    if len(text) < 2 * _LONG_PIECE or tokenizer.split_special_tokens:
        return [text]
    found, cut_before = _found_first(tokenizer, len(tokenizer))
    starts = [0]
    for match in found.finditer(text):
        if match.start() - starts[-1] >= _LONG_PIECE and match.group() in cut_before:
            starts.append(match.start())
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


@lru_cache(maxsize=8)
def _found_first(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[re.Pattern[str], frozenset[str]]:
    """Return what finds the added tokens that are looked for in the text as it is, and those that take nothing else.

    A tokenizer that tokens are added to has another `vocab_size`, and is looked at again.
    """
    tokens = [token for token in tokenizer.added_tokens_decoder.values() if not token.normalized and token.content]
    longest_first = sorted((token.content for token in tokens), key=len, reverse=True)
    alone = {token.content for token in tokens if not (token.lstrip or token.rstrip or token.single_word)}
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"), frozenset(alone)


def _joined(
    texts: Sequence[str], encodings: Iterator[Encoding], places_of: Callable[[_Places], _Places]
) -> tuple[list[int], _Places]:
    """Return ids and places of a text, given its pieces; taken one text at a time, as offsets are large."""
    if len(texts) == 1:
        encoding = next(encodings)
        return encoding.ids, places_of(encoding.offsets)
    input_ids, offsets, place = [], [], 0
    for text, encoding in zip(texts, encodings, strict=False):
        input_ids += encoding.ids
        offsets += [(start + place, end + place) for start, end in places_of(encoding.offsets)]
        place += len(text)
    return input_ids, offsets


def _labeled(example: Rendered, input_ids: list[int], offsets: Sequence[tuple[int, int]]) -> Tokenized:
    """Label every token that reaches into a trained stretch of characters."""
    labels = [IGNORE_INDEX] * len(input_ids)
    weights = [1.0] * len(input_ids) if example.parts or any(weight != 1.0 for weight in example.weights) else None
    token = 0
    for (first, last), weight in zip(example.trained, example.weights, strict=True):
        # A token that reaches into the stretch is of it: where a prompt ends in a space, the first word may have it.
        # Tokens come in order, so that both their beginnings and their ends rise.
        begin = bisect_right(offsets, first, token, key=itemgetter(1))
        token = bisect_left(offsets, last, begin, key=itemgetter(0))
        labels[begin:token] = input_ids[begin:token]
        if weights is not None:
            weights[begin:token] = [weight] * (token - begin)
    token_weights = None if weights is None else weights_of_parts(weights, offsets, example.parts)
    if not example.spans:
        return Tokenized(input_ids, labels, None, token_weights, example.notes)
    kinds = [
        TOKEN_KINDS["none"] if label == IGNORE_INDEX else _kind(example.spans, *place)
        for label, place in zip(labels, offsets, strict=True)
    ]
    token_weights = _weights_of_kinds(token_weights, kinds, example.kind_weights)
    return Tokenized(input_ids, labels, kinds, token_weights, example.notes)


def _weights_of_kinds(
    token_weights: list[float] | None, kinds: Sequence[int], kind_weights: Mapping[str, float]
) -> list[float] | None:
    """Multiply the weights of core and style tokens with those of their kind, if it has one."""
    by_kind = {TOKEN_KINDS[kind]: weight for kind, weight in kind_weights.items() if kind in TOKEN_KINDS}
    if not by_kind:
        return token_weights
    weights = token_weights or [1.0] * len(kinds)
    return [weight * by_kind.get(kind, 1.0) for weight, kind in zip(weights, kinds, strict=True)]


def weighed(examples: list[Tokenized], row: Row) -> list[Tokenized]:
    """Multiply the weights of a row's tokens with the numbers in its column `token_weights`, if that has numbers.

    Raises:
        DataError: There are not as many as tokens or label tokens, or the row gives several examples.
    """
    numbers, _ = given_weights(row)
    if not numbers:
        return examples
    if not examples:
        return []
    if len(examples) > 1:
        raise row.error(
            f"'token_weights' has a number a token, but the row gives {len(examples)} examples, one a turn, as the "
            "chat template rewrites earlier turns. Give stretches of the last answer, or a weight to each message."
        )
    (example,) = examples
    own = spread(row, numbers, [label != IGNORE_INDEX for label in example.labels])
    others = example.token_weights or [1.0] * len(own)
    return [replace(example, token_weights=[a * b for a, b in zip(own, others, strict=True)])]


def _of_answer(row: Row, answer: str) -> tuple[list[KindSpan], list[WeightedPart]]:
    """Read what a row says of the characters of its last answer."""
    parts = given_weights(row)[1]
    check_parts(row, parts, answer)
    return _answer_spans(row, answer), parts


def _answer_spans(row: Row, answer: str) -> list[KindSpan]:
    """Read the row's `answer_spans`, if it has any."""
    given = read_list(row, "answer_spans", row.values.get("answer_spans"))
    try:
        spans = [(span["start"], span["end"], span["kind"]) for span in given]
    except (TypeError, KeyError):
        raise row.error(
            f"'answer_spans' must be a list of objects with start, end and kind, got {shown(given)}. Mend or drop it."
        ) from None
    for start, end, kind in spans:
        if kind not in ("core", "style"):
            raise row.error(f"'answer_spans' has kind {kind!r}; known are 'core' and 'style'.")
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(answer)):
            raise row.error(
                f"'answer_spans' has start {start!r} and end {end!r}, but the last answer has {len(answer)} "
                "characters. Count both from its beginning, start before end."
            )
    return spans


def _kind(spans: Sequence[KindSpan], start: int, end: int) -> int:
    """A token that overlaps a core span is core; the end-of-turn token lies in no span and is neither."""
    overlapping = {kind for first, last, kind in spans if first < end and start < last}
    return TOKEN_KINDS["core" if "core" in overlapping else "style" if overlapping else "none"]


def _plain_text(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, row: Row, kind_weights: Mapping[str, float]
) -> Tokenized:
    """Prompt and completion without a template; the completion starts where the two tokenizations part, as in TRL."""
    prompt, completion = conversation.prompt, conversation.completion
    assert prompt is not None
    assert completion is not None
    spans, parts = _of_answer(row, completion)
    if "content" in kind_weights and completion:
        parts = [*parts, (0, len(completion), kind_weights["content"])]
    spans, parts = shifted_parts(spans, len(prompt)), shifted_parts(parts, len(prompt))
    eos = eos_token(tokenizer) or ""
    text = prompt + completion if completion.endswith(eos) else prompt + completion + eos
    prompt_ids: list[int] = tokenizer(prompt)["input_ids"]
    encoded = tokenizer(text, return_offsets_mapping=True)
    input_ids: list[int] = encoded["input_ids"]
    offsets = _reader_of_places(tokenizer)(encoded["offset_mapping"])
    shared = 0
    while shared < min(len(prompt_ids), len(input_ids)) and prompt_ids[shared] == input_ids[shared]:
        shared += 1
    if shared == len(input_ids):
        raise row.error("'completion' adds no token to 'prompt', nothing to train on. Mend or drop the row.")
    kinds = [_kind(spans, start, end) for start, end in offsets[shared:]]
    kinds = [TOKEN_KINDS["none"]] * shared + kinds
    labels = [IGNORE_INDEX] * shared + input_ids[shared:]
    weights = weights_of_parts([conversation.weights[0]] * len(labels), offsets, parts)
    if spans:
        weights = _weights_of_kinds(weights, kinds, kind_weights)
    return Tokenized(input_ids, labels, kinds if spans else None, weights, conversation.notes)
