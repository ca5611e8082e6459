"""Render a conversation by a chat template, and find the characters of it that are to be learned.

Where a template renders a conversation as an extension of its beginning, a turn is what it adds. Some templates mark
what the assistant says (`{% generation %}`). One that rewrites earlier turns is replaced by TRL's training template of
its family, or each turn is rendered by itself, as it will be served. Whatever the way, what a turn says must be in what
is learned, and the turn must end in a special token.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from profit_sft.data.chat_template import QUESTION, CannotLabel, ChatTemplate, EndsNowhere, Span, shared_length
from profit_sft.data.formats import Conversation
from profit_sft.data.long_chats import KnownTurns
from profit_sft.data.messages import Message, is_given, shown
from profit_sft.data.row import Row
from profit_sft.data.settings import DataOptions
from profit_sft.data.spellings import first_left_out, left_out, spellings, with_known_roles
from profit_sft.data.weights import WeightedPart

_EMPTY_THOUGHT = re.compile(r"\s*(?:(?:<think>\s*)?</think>|<\|channel>thought\s*<channel\|>)\s*")
KindSpan = tuple[int, int, str]  # characters from, up to, and of which kind
_FEW_TURNS = 4  # as many cost less to render one by one than to find
_TRAINING_TEMPLATE = (
    "the chat template does not write all that the assistant said as it is generated, so such rows are rendered by "
    "TRL's training template of its family, which does; the saved tokenizer keeps its own"
)
_EACH_TURN = (
    "the chat template rewrites earlier turns, so each trained turn is an example of its own, rendered as it is served"
)
_MARKER = (
    "the chat template ends a chat's last answer in no token, so the one is put there that follows it once the chat "
    "goes on"
)
_TEMPLATE_FIX = "Name another template with --chat_template_path."
_IN_THE_CONTENT = "Or write it into the content as that model does."
_NO_PLACE = f"it has no place that --given_weights could weigh. {_TEMPLATE_FIX}"
# What read_message writes; any other key is the data's own.
_KNOWN_KEYS = ("role", "content", "reasoning_content", "thinking", "reasoning", "tool_calls")
_KNOWN_CALL_KEYS = ("type", "id", "index", "function")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as text.

    Attributes:
        text: All of it.
        trained: The characters that carry labels, in order.
        weights: The weight of each of these stretches.
        answer: The content of the last message that is trained.
        place: Where that begins in the text; None where the template changes it.
        kinds: Characters of each trained turn that are of a kind, as `PART_KINDS` names them.
        notes: What the report should say of it.
        spans: Of characters of the text that a row says are core or style.
        parts: Characters of the text with a weight of their own.
        kind_weights: Weights of the kinds of `spans`.
    """

    text: str
    trained: tuple[Span, ...]
    weights: tuple[float, ...]
    answer: str
    place: int | None
    kinds: tuple[KindSpan, ...] = ()
    notes: tuple[str, ...] = ()
    spans: Sequence[KindSpan] = ()
    parts: Sequence[WeightedPart] = ()
    kind_weights: Mapping[str, float] = field(default_factory=dict)


def render_conversation(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, row: Row, options: DataOptions
) -> list[Rendered]:
    """Render a chat, and say which characters of it are to be learned.

    Args:
        conversation: Of messages.
        tokenizer: With a chat template.
        row: For errors.
        options: How, and what of it is learned.

    Returns:
        The examples: one, or where the template rewrites earlier turns perhaps one for each trained turn.

    Raises:
        DataError: The template is missing, refuses the chat, or leaves out what is to be learned.
    """
    if not tokenizer.chat_template:
        raise row.error(
            f"is a chat, but the tokenizer of '{tokenizer.name_or_path}' has no chat template. Name one with "
            "--chat_template_path, or give text in 'prompt' and 'completion'."
        )
    messages, trained, weights = list(conversation.messages), list(conversation.trained), list(conversation.weights)
    if options.train_on == "last":
        trained, weights = trained[-1:], weights[-1:]
        messages = messages[: trained[0] + 1]
    try:
        template = ChatTemplate(tokenizer, conversation.tools, conversation.template_options, options.template_date)
    except ValueError as error:  # it has several, none of them the default
        raise row.error(
            f"has no chat template to be rendered by: {error} Name one with --chat_template_path."
        ) from None
    known = with_known_roles(messages, template.source)
    trained = [turn - len(messages) + len(known) for turn in trained]
    problem: CannotLabel | None = None
    for spelled in spellings(known, template.source):
        try:
            by_turn = dict(zip(trained, weights, strict=True))
            examples = _examples(_Chat(template, known, spelled, trained, by_turn, options.weighs_parts))
        except CannotLabel as error:
            # What a template leaves out says more than what it stumbles over in a spelling that it does not want.
            problem = error if problem is None or not error.refused else problem
            continue
        without = options.empty_think == "ignore"
        return [_without_empty_thoughts(example) if without else example for example in examples]
    raise row.error(str(problem))


@dataclass(frozen=True, slots=True)
class _Chat:
    """What is rendered: messages as the data has them and as the template wants them, which are trained, how much."""

    template: ChatTemplate
    messages: list[Message]
    spelled: list[Message]
    trained: list[int]
    weights: dict[int, float]
    weighs_parts: bool


def _examples(chat: _Chat) -> list[Rendered]:
    """Return the examples of a chat, with an end behind its last answer where the template writes none."""
    try:
        return _by_first_way(chat)
    except EndsNowhere as error:
        with suppress(CannotLabel):
            ended = _by_first_way(replace(chat, template=chat.template.with_markers()))
            return [_with_note(example, _MARKER) for example in ended]
        raise error from None


def _by_first_way(chat: _Chat) -> list[Rendered]:
    """Return the examples of the first way that labels all of a chat, or raise why the last one does not."""
    with suppress(CannotLabel):
        return [_by_marks(chat) if chat.template.has_marks else _by_extension(chat)]
    if len(chat.trained) == 1:  # as it is served costs no second example
        with suppress(CannotLabel):
            return _turn_by_turn(chat)
    training = chat.template.training_template()
    marked = None if training is None else replace(chat, template=training)
    if marked is not None:
        with suppress(CannotLabel):
            return [_with_note(_by_marks(marked), _TRAINING_TEMPLATE)]
    if marked is None:
        return _turn_by_turn(chat)
    with suppress(CannotLabel):
        return _turn_by_turn(chat)
    return [_with_note(example, _TRAINING_TEMPLATE) for example in _turn_by_turn(marked)]


def _turn_by_turn(chat: _Chat) -> list[Rendered]:
    examples = [_as_served(chat, turn) for turn in chat.trained]
    return examples if len(examples) == 1 else [_with_note(example, _EACH_TURN) for example in examples]


def _by_extension(chat: _Chat) -> Rendered:
    """A turn is what the rendering of the chat up to it adds to that of its prompt."""
    template, spelled = chat.template, chat.spelled
    whole = template.render(spelled)
    known = KnownTurns(template, spelled, whole) if len(chat.trained) > _FEW_TURNS else None
    spans = []
    for turn in chat.trained:
        span = None if known is None else known.like(turn)
        if span is None:
            span = _added_by(chat, turn, whole)
            if known is not None:
                known.add(turn, span)
        spans.append(span)
    return _complete(chat, chat.trained, whole, spans)


def _added_by(chat: _Chat, turn: int, whole: str) -> Span:
    ended = whole if turn == len(chat.spelled) - 1 else chat.template.render(chat.spelled[: turn + 1])
    if not whole.startswith(ended):
        raise CannotLabel(f"{chat.template.name} renders turn {turn + 1} otherwise once the conversation goes on.")
    start, rest = _start_of(chat, turn, ended)
    if rest:
        raise CannotLabel(f"{chat.template.name} does not begin turn {turn + 1} as its generation prompt does.")
    return start, _end_of(chat, turn, whole, start, len(ended))


def _start_of(chat: _Chat, turn: int, ended: str) -> tuple[int, str]:
    """Return where a turn begins that ends a chat, and what its prompt has that the chat does not go on with."""
    prompt = _prompt_of(chat, turn)
    if prompt is None:
        header = chat.template.generation_prompt([QUESTION])
        place = ended.find(header) if header else -1
        if place < 0:
            raise CannotLabel(f"{chat.template.name} does not begin an opening turn as its generation prompt does.")
        return place + len(header), ""
    shared = shared_length(prompt, ended)
    return shared, prompt[shared:]


def _prompt_of(chat: _Chat, turn: int) -> str | None:
    """Return what a turn answers; None where that is nothing, or no user's, which some templates refuse."""
    if turn == 0:
        return None
    try:
        return chat.template.render(chat.spelled[:turn], add_generation_prompt=True)
    except CannotLabel:
        return None


def _end_of(chat: _Chat, turn: int, text: str, start: int, end: int) -> int:
    found = chat.template.end_of_turn(text, start, end)
    if found is None:
        raise EndsNowhere(
            f"{chat.template.name} ends turn {turn + 1} in no special token that the tokenizer has, so a model would "
            f"not learn to stop. {_TEMPLATE_FIX} Or add its end token to the tokenizer."
        )
    return found


def _by_marks(chat: _Chat) -> Rendered:
    """A turn is what the template marks as the assistant's, but for what the generation prompt brings."""
    whole, marks = chat.template.render_marked(chat.spelled)
    answers = [index for index, message in enumerate(chat.spelled) if message["role"] == "assistant"]
    if len(marks) != len(answers):
        raise CannotLabel(
            f"{chat.template.name} marks {len(marks)} stretches as the assistant's, and the row has {len(answers)} "
            f"assistant turns. {_TEMPLATE_FIX}"
        )
    brought: dict[str, str] = {}
    spans, unanswered, ends_seen = [], "", set()
    for turn in chat.trained:
        start, end = marks[answers.index(turn)]
        before = chat.spelled[turn - 1]["role"] if turn else ""
        if before not in brought:
            brought[before] = _brought_by_prompt(chat, turn, whole, start)
        start, rest = _behind(whole, start, brought[before], chat.template)
        unanswered = unanswered or rest
        spans.append((start, _end_of(chat, turn, whole, start, end)))
        calls = "tool_calls" in chat.spelled[turn]
        if turn < len(chat.spelled) - 1 and calls not in ends_seen:  # a template ends all turns that call alike
            ends_seen.add(calls)
            _check_ends_as_generated(chat, turn, whole[: spans[-1][1]])
    example = _complete(chat, chat.trained, whole, spans)
    return _asked_otherwise(chat, example, unanswered)


def _check_ends_as_generated(chat: _Chat, turn: int, text: str) -> None:
    """Refuse a turn that ends in another token where it is the last: gpt-oss generates that one, and stops at it."""
    template = chat.template
    try:
        last = template.render(chat.spelled[: turn + 1]).rstrip()
    except CannotLabel:  # no user has spoken yet, and it wants one
        return
    generated = last[template.without_end(last, 0, len(last)) :]
    if not last.startswith(text) and generated and not text.endswith(generated):
        raise CannotLabel(f"{template.name} ends turn {turn + 1} otherwise once the conversation goes on.")


def _brought_by_prompt(chat: _Chat, turn: int, text: str, start: int) -> str:
    """Return what a turn's generation prompt has of the turn that is marked from `start`: it is not to be learned."""
    prompt = _prompt_of(chat, turn)
    if prompt is not None:
        if not prompt.startswith(text[:start]):
            raise CannotLabel(f"{chat.template.name} rewrites what stands before turn {turn + 1} once it is answered.")
        return prompt[start:]
    header = chat.template.generation_prompt([QUESTION])
    written = max(length for length in range(len(header) + 1) if text[:start].endswith(header[:length]))
    return header[written:]


def _behind(text: str, start: int, brought: str, template: ChatTemplate) -> tuple[int, str]:
    """Return where a turn is learned from, behind what the prompt brings of it, and what of that the turn has not."""
    shared = shared_length(brought, text[start : start + len(brought)])
    if shared == len(brought):
        return start + shared, ""
    return _whole_words(text, start, start + shared, template), brought[shared:]


def _whole_words(text: str, start: int, end: int, template: ChatTemplate) -> int:
    """Return the last place up to `end` that is behind white space or an added token, or `start`."""
    while end > start and not (text[end - 1].isspace() or text.endswith(template.added_tokens, start, end)):
        end -= 1
    return end


def _as_served(chat: _Chat, turn: int) -> Rendered:
    """Render a chat up to one turn, which is all that is trained of it."""
    part = replace(chat, messages=chat.messages[: turn + 1], spelled=chat.spelled[: turn + 1])
    template = chat.template
    if template.has_marks:
        with suppress(CannotLabel):
            return _last_by_marks(part)
    whole = template.render(part.spelled)
    start, rest = _start_of(part, turn, whole)
    if rest:
        whole, start, rest = _put_behind_its_prompt(part, turn, whole, start, rest)
    example = _complete(part, [turn], whole, [(start, _end_of(part, turn, whole, start, len(whole)))])
    return _asked_otherwise(chat, example, rest)


def _last_by_marks(chat: _Chat) -> Rendered:
    turn, (whole, marks) = len(chat.spelled) - 1, chat.template.render_marked(chat.spelled)
    if not marks:
        raise CannotLabel(f"{chat.template.name} marks nothing of turn {turn + 1} as the assistant's. {_TEMPLATE_FIX}")
    start, end = marks[-1]
    start, rest = _behind(whole, start, _brought_by_prompt(chat, turn, whole, start), chat.template)
    example = _complete(chat, [turn], whole, [(start, _end_of(chat, turn, whole, start, end))])
    return _asked_otherwise(chat, example, rest)


def _put_behind_its_prompt(chat: _Chat, turn: int, whole: str, start: int, rest: str) -> tuple[str, int, str]:
    """Return a chat's text, where its last turn begins, and what of its prompt the turn does not go on with.

    Where an answer makes the template drop what stood before it, such as gpt-oss the thoughts before calls, the turn is
    put behind the prompt that it answers.
    """
    template = chat.template
    before = template.render(chat.spelled[:turn]) if turn else ""
    if whole.startswith(before):
        header = len(before)
        start = _whole_words(whole, header, start, template)
        if start > header:
            return whole, start, rest
    elif header_text := template.generation_prompt(chat.spelled[:turn]):
        other = template.render([*chat.spelled[:turn], {"role": "assistant", "content": "\0"}])
        place = whole.rfind(header_text, 0, shared_length(other, whole))
        if place >= 0:
            prompt = before + header_text
            return prompt + whole[place + len(header_text) :], len(prompt), ""
    raise CannotLabel(
        f"{template.name} does not begin turn {turn + 1} as its generation prompt does, so its tokens cannot be "
        f"labeled. {_TEMPLATE_FIX}"
    )


def _asked_otherwise(chat: _Chat, example: Rendered, rest: str) -> Rendered:
    """Note of an example what its prompt ends in and it does not begin with, where there is such a rest."""
    note = (
        f"{chat.template.name} ends its generation prompt in {shown(rest)}, which answers of this data do not begin "
        "with, so a model is asked otherwise than it was trained"
    )
    return _with_note(example, note) if rest else example


def _complete(chat: _Chat, turns: Sequence[int], text: str, spans: Sequence[Span]) -> Rendered:
    """Return an example once all that its turns say is in what is learned, and all that is asked in its text."""
    template = chat.template
    for turn, (start, end) in zip(turns, spans, strict=True):
        lost = left_out(chat.messages[turn], text[_begin_of(chat, turn, text, start) : end])
        if lost is not None:
            several = len(chat.messages[turn].get("tool_calls") or ()) > 1  # gpt-oss makes one call a turn
            fix = "Or make a turn of each call, with its result behind it." if several else _IN_THE_CONTENT
            raise CannotLabel(
                f"{template.name} leaves out the {lost} of turn {turn + 1}, which would not be learned. "
                f"{_TEMPLATE_FIX} {fix}"
            )
        thought = _EMPTY_THOUGHT.match(text, start, end)
        if thought is not None and text.startswith("<think>", thought.end()):
            raise CannotLabel(
                f"{template.name} writes an empty thought before that of turn {turn + 1}. {_TEMPLATE_FIX}"
            )
    ends = [0, *(place for span in spans for place in span), len(text)]
    prompt = "\0".join(text[start:end] for start, end in zip(ends[::2], ends[1::2], strict=True))
    lost_message = first_left_out(chat.messages, turns, prompt)
    if lost_message is not None:
        raise CannotLabel(
            f"{template.name} leaves out message {lost_message + 1}, of role {chat.messages[lost_message]['role']}, so "
            f"what follows would be learned without it. {_TEMPLATE_FIX} Or leave that message out."
        )
    weights = tuple(chat.weights[turn] for turn in turns)
    answer, place = chat.messages[turns[-1]].get("content", ""), _place_of_content(chat, turns[-1], text, spans[-1])
    kinds = tuple(
        found
        for turn, span in zip(turns, spans, strict=True)
        if chat.weighs_parts
        for found in _kinds(chat, turn, text, span)
    )
    return Rendered(text, tuple(spans), weights, answer, place, kinds, tuple(_notes(chat, text)))


def _begin_of(chat: _Chat, turn: int, text: str, start: int) -> int:
    """Return where the line begins on which a turn is learned from, or what is said before ends on it.

    The prompt may bring the first words of a turn: those of a thought.
    """
    begin = text.rfind("\n", 0, start) + 1
    before = (chat.messages[turn - 1].get("content") or "").strip() if turn else ""
    return max(begin, text.rfind(before, begin, start) + len(before)) if before else begin


def _place_of_content(chat: _Chat, turn: int, text: str, span: Span) -> int | None:
    """Return where the content of a turn begins in it: behind the thought, before calls; None where it is changed."""
    message, start, end = chat.messages[turn], span[0], chat.template.without_end(text, *span)
    thought, content = message.get("reasoning_content", "").strip(), message.get("content", "")
    behind = text.find(thought, _begin_of(chat, turn, text, start), end) if thought else -1
    if behind >= 0:
        start = max(start, behind + len(thought))
    find = text.find if "tool_calls" in message else text.rfind
    for words, cut in ((content, 0), (content.strip(), len(content) - len(content.lstrip()))):
        place = find(words, start, end)
        if place >= 0:
            return place - cut
    return None


def _kinds(chat: _Chat, turn: int, text: str, span: Span) -> Iterator[KindSpan]:
    """Yield where thought, content and calls of a turn stand; calls are all that is behind the other two."""
    message, start, end = chat.messages[turn], span[0], chat.template.without_end(text, *span)
    thought, content = message.get("reasoning_content", "").strip(), message.get("content", "").strip()
    if thought:
        place = text.find(thought, _begin_of(chat, turn, text, start), end)
        if place < 0:
            raise CannotLabel(f"{chat.template.name} changes the thought of turn {turn + 1}, so {_NO_PLACE}")
        yield place, place + len(thought), "thought"
        start = max(start, place + len(thought))
    if content:
        written = _place_of_content(chat, turn, text, span)
        if written is None:
            raise CannotLabel(f"{chat.template.name} changes the content of turn {turn + 1}, so {_NO_PLACE}")
        place = text.index(content, written)
        yield place, place + len(content), "content"
        start = place + len(content)
    if "tool_calls" in message:
        yield *_stripped(text, start, end), "tool_call"
        yield *span, "tool_call_turn"


def _stripped(text: str, start: int, end: int) -> Span:
    """Leave out the white space at both ends: a token of it belongs to no kind."""
    words = text[start:end]
    return start + len(words) - len(words.lstrip()), start + len(words.rstrip())


def _notes(chat: _Chat, text: str) -> Iterator[str]:
    """Yield what a template does not use of what it is given, and the day it is told."""
    template = chat.template
    if template.tools and template.writes_the_same(text, chat.spelled, without_tools=True):
        yield f"'tools' are not used: {template.name} writes none"
    yield from _unread_keys(chat, text)
    for key, value in template.own_options.items():
        if is_given(value) and not template.reads(key):
            yield f"'{key}' of chat_template_kwargs is not used: {template.name} does not read it"
    if template.tells_date:
        yield f"{template.name} writes today's date: rows are of {template.date} on every day (--template_date)"


def _unread_keys(chat: _Chat, text: str) -> Iterator[str]:
    """Yield a line for each key of the data's own, of messages or calls, without which the text is the same."""
    calls = [call for message in chat.spelled for call in message.get("tool_calls", ())]
    for holders, known, where in ((chat.spelled, _KNOWN_KEYS, "messages"), (calls, _KNOWN_CALL_KEYS, "tool calls")):
        own = (key for holder in holders for key, value in holder.items() if key not in known and is_given(value))
        for key in dict.fromkeys(own):
            if chat.template.reads(key) and not chat.template.writes_the_same(text, _without_key(chat, key, where)):
                continue
            yield f"key '{key}' of {where} is not used"


def _without_key(chat: _Chat, key: str, where: str) -> list[Message]:
    def rest(holder: Message) -> Message:
        return {name: value for name, value in holder.items() if name != key}

    if where == "messages":
        return [rest(message) for message in chat.spelled]
    return [
        {**message, "tool_calls": [rest(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in chat.spelled
    ]


def _with_note(example: Rendered, note: str) -> Rendered:
    return replace(example, notes=(*example.notes, note))


def _without_empty_thoughts(example: Rendered) -> Rendered:
    """Leave thoughts without a word, which templates put before answers, out of what is learned."""
    found = [(_EMPTY_THOUGHT.match(example.text, start, end), start, end) for start, end in example.trained]
    return replace(example, trained=tuple((m.end() if m else start, end) for m, start, end in found))
