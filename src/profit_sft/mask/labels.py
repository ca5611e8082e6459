"""Which tokens carry labels: the first thing to look at before a run, as text and in a terminal."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from profit_sft.data.prepare import PreparedData
from profit_sft.data.tokenize import IGNORE_INDEX
from profit_sft.mask.terminal import visible
from profit_sft.mask.texts import TokenTexts

_UNLABELED_CHARACTERS = 600  # of a stretch without labels; its middle is left out


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedRow:
    """One example as the model reads it.

    Attributes:
        row: 1-based, in the source.
        stretches: Text and whether its tokens carry labels, in turn; together they are the whole text. The first token
            is never predicted, so it counts as one without a label.
        ends_in: Text of the last token of each stretch with labels.
        tokens: How many there are.
        label_tokens: How many of them carry a label.
    """

    row: int
    stretches: tuple[tuple[str, bool], ...]
    ends_in: tuple[str, ...]
    tokens: int
    label_tokens: int


def marked_rows(data: PreparedData, tokenizer: PreTrainedTokenizerBase, examples: int) -> list[MarkedRow]:
    """Return the first examples with their label tokens marked.

    Args:
        data: Prepared rows.
        tokenizer: The one that prepared them.
        examples: How many, at most.
    """
    texts = TokenTexts(tokenizer)
    rows = data.dataset.select(range(min(examples, len(data.dataset))))
    return [_marked_row(row["row"], row["input_ids"], row["labels"], texts) for row in rows]


def _marked_row(row: int, input_ids: list[int], labels: list[int], texts: TokenTexts) -> MarkedRow:
    labeled = [False, *(label != IGNORE_INDEX for label in labels[1:])]
    stretches: list[tuple[str, bool]] = []
    ends = []
    pieces = texts.in_context(input_ids)
    for index, (text, has_label) in enumerate(zip(pieces, labeled, strict=True)):
        if stretches and stretches[-1][1] == has_label:
            stretches[-1] = (stretches[-1][0] + text, has_label)
        else:
            stretches.append((text, has_label))
        if has_label and labeled[index + 1 : index + 2] != [True]:
            ends.append(texts.text(input_ids[index]))
    return MarkedRow(
        row=row, stretches=tuple(stretches), ends_in=tuple(ends), tokens=len(labels), label_tokens=sum(labeled)
    )


def label_ends(rows: Iterable[Mapping[str, Any]]) -> Counter[int]:
    """Count the tokens that stretches of labels end in; the first token of a row is never predicted.

    Args:
        rows: With `labels`; one without them counts for nothing.
    """
    counts: Counter[int] = Counter()
    for row in rows:
        given = row.get("labels")
        labels = np.append(np.array([] if given is None else given, np.int64)[1:], IGNORE_INDEX)
        counts.update(labels[:-1][(labels[:-1] != IGNORE_INDEX) & (labels[1:] == IGNORE_INDEX)].tolist())
    return counts


def turn_ends(data: PreparedData, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the last token of the stretches with labels over all rows, as text, with how many end so; most first."""
    counts = label_ends(data.dataset.select_columns(["labels"]).with_format("numpy"))
    texts = TokenTexts(tokenizer)
    return {texts.text(token): count for token, count in counts.most_common()}


def print_marked_rows(found: list[MarkedRow], out: Console) -> None:
    """Print examples: what carries a label is black on green, or in ⟦ ⟧ where color is lost; the rest is dim."""
    for example in found:
        title = f"row {example.row}: {example.tokens:,} tokens, {example.label_tokens:,} of them labels"
        out.print(Panel(_marked(example, brackets=not out.is_terminal), title=Text(title), title_align="left"))


def _marked(example: MarkedRow, *, brackets: bool) -> Text:
    text = Text()
    for stretch, labeled in example.stretches:
        if labeled:
            shown = visible(stretch, lines=True)
            text.append(f"⟦{shown}⟧" if brackets else shown, style="black on #a6dba0")
        else:
            text.append(visible(_shortened(stretch), lines=True), style="dim")
    return text


def _shortened(text: str) -> str:
    if len(text) <= _UNLABELED_CHARACTERS:
        return text
    half = _UNLABELED_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"
