"""A tokenizer's chat template as one conversation uses it: alike on every day, with its marks and its end tokens."""

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from profit_sft.data.messages import Message
from profit_sft.data.settings import TEMPLATE_DATE
from profit_sft.models.pretrained import EMBEDDED

Span = tuple[int, int]  # characters, the end exclusive
_MARKS = r"\{%-?\s*generation\s*-?%\}"
_SPACE = re.compile(r"\s*")
QUESTION: Message = {"role": "user", "content": "?"}
_ANSWER: Message = {"role": "assistant", "content": "?"}
_RESULT: Message = {"role": "tool", "name": "?", "content": "?"}
_DIRECTIVES = ("-d", "-m", "d", "m", "Y", "y", "B", "b", "A", "a", "H", "I", "M", "S", "j", "p", "F", "D", "T")


class CannotLabel(Exception):
    """A way of rendering a chat gives no labels; says why and what to do.

    Args:
        text: For the user.
        refused: The template raised.
    """

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


class EndsNowhere(CannotLabel):
    """A turn ends in no token that a model could stop at."""


class ChatTemplate:
    """What renders one conversation.

    Args:
        tokenizer: With a chat template.
        tools: Descriptions of tools.
        options: What the template is told besides.
        template_date: What a template that writes today's date is told, as 2024-07-26.
        source: The template to use in place of the tokenizer's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[dict[str, Any]],
        options: Mapping[str, Any],
        template_date: str,
        source: str | None = None,
    ) -> None:
        self.tools = list(tools)
        # Mypy takes a list of objects for none of objects or functions.
        self._tools: Any = self.tools or None
        self.source: str = tokenizer.get_chat_template(source, self._tools)
        self.name = (
            f"the chat template of '{tokenizer.name_or_path}'" if tokenizer.name_or_path else "the chat template"
        )
        self.has_marks = mentions(self.source, _MARKS)
        self.tells_date = "strftime_now" in self.source
        self._dated = on_date(self.source, template_date) if self.tells_date else self.source
        self.own_options, self.date = options, template_date
        self._ends: dict[bool, tuple[str, str]] | None = None  # see `with_markers`; by whether the last answer calls
        self.added_tokens, self._end_tokens = _added_tokens(
            tokenizer, len(tokenizer), tokenizer.bos_token, eos_token(tokenizer)
        )
        self._tokenizer = tokenizer

    def reads(self, name: str) -> bool:
        """Say whether the template mentions a key or variable."""
        return mentions(self.source, rf"\b{re.escape(name)}\b")

    def training_template(self) -> "ChatTemplate | None":
        """Return TRL's template of this one's family, which keeps and marks all turns; None where there is none."""
        source = _training_source(self._tokenizer, self.source)
        if source is None or source == self.source:
            return None
        return ChatTemplate(self._tokenizer, self.tools, self.own_options, self.date, source)

    def with_markers(self) -> "ChatTemplate":
        """Return one that puts behind a chat's last answer the token that follows once the chat goes on.

        Models like GLM stop at the marker of the next turn. TRL's training template of GLM writes it, too.
        """
        made = copy.copy(self)
        made._ends = {}
        return made

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return a chat as text."""
        text = self._rendered(messages, tools=self._tools, add_generation_prompt=add_generation_prompt)[0]
        return text if add_generation_prompt else self._ended(text, messages)

    def writes_the_same(self, text: str, messages: Sequence[Message], *, without_tools: bool = False) -> bool:
        """Say whether a chat without something, such as the tools, is still this text."""
        try:
            written = self._rendered(messages, tools=None if without_tools else self._tools)[0]
            return self._ended(written, messages) == text
        except CannotLabel:  # it needs what is left out
            return False

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return a chat as text, and what the template marks of it as the assistant's; marks that touch are one."""
        text, marks = self._rendered(messages, tools=self._tools, return_assistant_tokens_mask=True)
        spans: list[Span] = []
        for start, end in marks:
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            elif start < end:
                spans.append((start, end))
        ended = self._ended(text, messages)
        written = shared_length(text, ended)
        return ended, [(start, min(end, written)) for start, end in spans]

    def _ended(self, text: str, messages: Sequence[Message]) -> str:
        """Put the token behind a chat's last answer that stands there once the chat goes on; see `with_markers`."""
        if self._ends is None or not messages or messages[-1]["role"] != "assistant":
            return text
        if text.rstrip().endswith(self._end_tokens):
            return text
        calls = "tool_calls" in messages[-1]
        if calls not in self._ends:
            self._ends[calls] = self._end_once_it_goes_on(messages)
        space, end = self._ends[calls]
        return text.removesuffix(space) + end if text.endswith(space) else text

    def _end_once_it_goes_on(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Return the white space behind a chat's last answer, and what stands there in its place once the chat goes on.

        Both are empty where no token follows that could end an answer.
        """
        last = messages[-1]
        calls = {"tool_calls": last["tool_calls"]} if "tool_calls" in last else {}
        # With the system prompt, without which some templates take no chat.
        chat = [*(message for message in messages[:1] if message["role"] in ("system", "developer")), QUESTION]
        # Without its words: of a thought, templates leave out what is no longer the last.
        answered = [*chat, {**_ANSWER, **calls}]
        ends = self._rendered(answered, tools=self._tools)[0]
        goes_on = self._rendered([*answered, _RESULT if calls else QUESTION], tools=self._tools)[0]
        shared = shared_length(ends, goes_on)
        behind = _SPACE.match(goes_on, shared).end()  # type: ignore[union-attr]  # it always matches
        token = next((token for token in self._end_tokens if goes_on.startswith(token, behind)), "")
        # What begins the assistant's own turn, such as <|im_start|>, tells no turn's end.
        if not token or ends[shared:].strip() or token in self.generation_prompt(chat):
            return "", ""
        return ends[shared:], goes_on[shared:behind] + token

    def _rendered(self, messages: Sequence[Message], **options: Any) -> tuple[str, list[Span]]:
        variables = {**self._tokenizer.special_tokens_map, **self.own_options}
        try:
            # Its annotation says str.
            rendered: Any = render_jinja_template([list(messages)], chat_template=self._dated, **options, **variables)
        except Exception as error:  # templates raise whatever their author chose
            raise CannotLabel(f"the chat template refuses it: {error}. Mend or drop the row.", refused=True) from error
        texts, marks = rendered
        return texts[0], marks[0] if marks else []

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        """Return what the template adds after these messages where the assistant is to speak."""
        without, prompt = self.render(messages), self.render(messages, add_generation_prompt=True)
        return prompt[shared_length(without, prompt) :]

    def end_of_turn(self, text: str, start: int, end: int) -> int | None:
        """Return where the token ends that ends the turn of these characters; None where there is none.

        What templates write after it, such as a newline, is not to be learned. Where the turn itself has none, the
        token that follows ends it: models like GLM stop at the marker of the next turn.
        """
        stripped = start + len(text[start:end].rstrip())
        if text.endswith(self._end_tokens, start, stripped):
            return stripped
        behind = _SPACE.match(text, end).end()  # type: ignore[union-attr]  # it always matches
        following = next((token for token in self._end_tokens if text.startswith(token, behind)), None)
        if following is not None:
            return behind + len(following)
        inside = max(
            (place + len(t) for t in self._end_tokens if (place := text.rfind(t, start, end)) >= 0), default=-1
        )
        return inside if inside >= 0 else None

    def without_end(self, text: str, start: int, end: int) -> int:
        """Return where the token begins that ends these characters, or their end where none does."""
        stripped = start + len(text[start:end].rstrip())
        token = next((token for token in self._end_tokens if text.endswith(token, start, stripped)), None)
        return end if token is None else stripped - len(token)


def shared_length(first: str, second: str) -> int:
    """Return how many characters two texts begin with in common."""
    if second.startswith(first):
        return len(first)
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


@lru_cache(maxsize=256)
def mentions(source: str, pattern: str) -> bool:
    """Say whether a regular expression is found in a template: the same for every row."""
    return re.search(pattern, source) is not None


@lru_cache(maxsize=8)
def on_date(source: str, template_date: str) -> str:
    """Return a template whose `strftime_now` knows one day, so that a row has the same tokens tomorrow."""
    day = date.fromisoformat(template_date)
    replaced = "".join(f" | replace('%{name}', '{_written(day, name)}')" for name in _DIRECTIVES)
    # A block's newline would be trimmed; the empty expression keeps one that the template begins with.
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}{source}"


def trained_date(model_name_or_path: str | None) -> str:
    """Return the day that a model's chats were dated with in training, by its run's settings; else the usual one."""
    folder = Path(model_name_or_path or EMBEDDED).expanduser()  # a hub's or a server's name is no folder
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        with suppress(OSError, ValueError, yaml.YAMLError):  # any model may have a file of that name
            settings = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
            if isinstance(settings, dict) and "template_date" in settings:
                return date.fromisoformat(str(settings["template_date"])).isoformat()
    return TEMPLATE_DATE


def date_chats(tokenizer: Any, model_name_or_path: str) -> None:
    """Have a loaded model's chat template write the day of its training, where it would write today's."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str) and "strftime_now" in template:
        tokenizer.chat_template = on_date(template, trained_date(model_name_or_path))


def _written(day: date, name: str) -> str:
    """`-d` is the day without a leading zero, which not every platform's strftime knows."""
    return str(int(day.strftime(f"%{name[1]}"))) if name[0] == "-" else day.strftime(f"%{name}")


@lru_cache(maxsize=8)
def _added_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, bos: str | None, eos: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the added tokens, and those that may end a turn: Gemma's EOS is <eos>, and turns end in <end_of_turn>.

    A tokenizer that tokens are added to has another `vocab_size`, and is looked at again.
    """
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    ends = {token for token, special in added.items() if special and token != bos} | {eos or ""}
    longest_first = sorted(ends - {""}, key=lambda token: (-len(token), token))
    return tuple(added), tuple(longest_first)


def eos_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the EOS token's text, or None where a tokenizer has none."""
    return tokenizer.eos_token if isinstance(tokenizer.eos_token, str) and tokenizer.eos_token else None


@lru_cache(maxsize=8)
def _training_source(tokenizer: PreTrainedTokenizerBase, source: str) -> str | None:
    try:
        from trl.chat_template_utils import get_training_chat_template
    except ImportError:  # an older TRL has none
        return None
    try:
        found = get_training_chat_template(tokenizer)
    except Exception:  # it knows no such template, or one that raises at a chat with tools
        return None
    return found if found is None else str(found)
