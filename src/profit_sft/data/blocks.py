"""A block of rows turned into examples: what `datasets.map` runs, in one process or several."""

import dataclasses
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from profit_sft.data.formats import REQUIRED_FIELDS, detect_format, to_conversation
from profit_sft.data.row import Row, RowSource
from profit_sft.data.settings import FORMATS, DataSettings, Format
from profit_sft.data.tokenize import (
    IGNORE_INDEX,
    TOKEN_KINDS,
    Tokenized,
    label_conversation,
    tokenize_texts,
    weighed,
)
from profit_sft.data.turns import Rendered
from profit_sft.errors import DataError

_CHARACTERS_AT_ONCE = 200_000  # of texts tokenized together; a token of theirs takes some 200 bytes meanwhile
LISTED_ROWS = 100  # bad rows named in a report; the count is always complete
SCHEMA = pyarrow.schema(
    {
        "input_ids": pyarrow.list_(pyarrow.int32()),
        "labels": pyarrow.list_(pyarrow.int32()),
        "row": pyarrow.int64(),
        "token_kinds": pyarrow.list_(pyarrow.int8()),
        "token_weights": pyarrow.list_(pyarrow.float32()),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedRow:
    """A row that was left out, and why."""

    file: str
    row: int
    reason: str


@dataclass(kw_only=True)
class RowCounts:
    """What became of some rows.

    Attributes:
        dataset_format: Format of the first row that could be used.
        rows_read: Rows looked at.
        rows_used: Examples in the data set; a row may give several.
        rows_skipped: Bad rows left out.
        skipped: The first of them.
        rows_truncated: Examples that lost their end to `max_length`.
        rows_too_long: Rows left out because they are longer, where `drop_long_rows` is set.
        rows_of_no_weight: Rows left out because they, or all their turns, have the weight 0.
        total_tokens: Tokens of all rows used.
        label_tokens: Those that carry a label.
        longest: Tokens of the longest row, after truncation.
        notes: What else there is to know: columns and keys that are not used, how chats are rendered.
    """

    dataset_format: str = ""
    rows_read: int = 0
    rows_used: int = 0
    rows_skipped: int = 0
    skipped: list[SkippedRow] = field(default_factory=list)
    rows_truncated: int = 0
    rows_too_long: int = 0
    rows_of_no_weight: int = 0
    total_tokens: int = 0
    label_tokens: int = 0
    longest: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Tally(RowCounts):
    """Counts that go on, and whether any example has kinds or weights of its tokens."""

    has_kinds: bool = False
    has_weights: bool = False

    def add(self, other: "Tally") -> None:
        """Add what became of the rows after these."""
        self.dataset_format = self.dataset_format or other.dataset_format
        self.notes = list(dict.fromkeys(self.notes + other.notes))
        self.skipped = (self.skipped + other.skipped)[:LISTED_ROWS]
        self.longest = max(self.longest, other.longest)
        self.has_kinds = self.has_kinds or other.has_kinds
        self.has_weights = self.has_weights or other.has_weights
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_SUMMED = tuple(entry.name for entry in dataclasses.fields(RowCounts) if entry.type is int and entry.name != "longest")


class BlockPreparer:
    """Called by `datasets.map` with the number of a block's first row; returns its examples as an Arrow table.

    The blocks come in order, so each process reads on where the block before it ended. Beside the table a block leaves
    a line in a file of its process, for what no example tells.

    Args:
        rows: All rows.
        settings: How they are read.
        tokenizer: A fast one.
        block_rows: Rows of a block.
        folder: Where those files go.
    """

    def __init__(
        self,
        rows: RowSource,
        settings: DataSettings,
        tokenizer: PreTrainedTokenizerBase,
        *,
        block_rows: int,
        folder: Path,
    ) -> None:
        self._rows = rows
        self._settings = settings
        self._tokenizer = tokenizer
        self._block_rows = block_rows
        self._folder = folder
        self._reader: Generator[Row] | None = None  # a copy in another process opens its own
        self._position = 0
        self._format: Format | None = None

    def __call__(self, block: Mapping[str, Sequence[int]]) -> pyarrow.Table:
        """Prepare the one block there is in `block`."""
        (start,) = block["start"]
        if self._reader is None or self._position != start:
            self._reader = self._rows.read(start)
        self._position = start + self._block_rows
        tally, examples = Tally(), _Examples()
        try:
            self._prepare(self._reader, tally, examples)
        except BaseException:
            self._reader.close()  # or its file stays open for as long as somebody holds what was raised
            raise
        with (self._folder / f"tally-{os.getpid()}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"start": start, **dataclasses.asdict(tally)}) + "\n")
        return examples.table()

    def _prepare(self, reader: Iterator[Row], tally: Tally, examples: "_Examples") -> None:
        rows = islice(reader, self._block_rows)
        for row, found in prepare_rows(rows, self._settings, self._tokenizer, known_format=self._format):
            tally.rows_read += 1
            if isinstance(found, DataError):
                tally.rows_skipped += 1
                if len(tally.skipped) < LISTED_ROWS:
                    tally.skipped.append(SkippedRow(file=row.file, row=row.number, reason=str(found)))
                continue
            if self._format is None:
                self._format = _format_of(row, self._settings)
            tally.dataset_format = str(self._format)
            tally.rows_of_no_weight += not found
            examples.add(row, found, self._settings, tally)


def read_tally(folder: Path) -> Tally:
    """Return what became of all rows, and delete the files that tell."""
    blocks = []
    for file in folder.glob("tally-*.jsonl"):
        blocks += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        file.unlink()
    whole = Tally()
    for block in sorted(blocks, key=lambda block: int(block.pop("start"))):
        block["skipped"] = [SkippedRow(**skipped) for skipped in block["skipped"]]
        whole.add(Tally(**block))
    return whole


class _Examples:
    """Examples of a block, without Python's ints, which take nine times their memory."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._tokens: dict[str, list[NDArray[Any]]] = {name: [] for name in SCHEMA.names if name != "row"}

    def add(self, row: Row, examples: Sequence[Tokenized], settings: DataSettings, tally: Tally) -> None:
        """Add a row's examples, cut to their length or left out."""
        limit = settings.max_length
        for example in examples:
            if limit is not None and len(example.input_ids) > limit:
                tally.rows_too_long += settings.drop_long_rows
                tally.rows_truncated += not settings.drop_long_rows
                if settings.drop_long_rows:
                    continue
            tally.rows_used += 1
            labels = np.array(example.labels[:limit], np.int32)
            kinds = example.token_kinds
            self._rows.append(row.number)
            self._tokens["input_ids"].append(np.array(example.input_ids[:limit], np.int32))
            self._tokens["labels"].append(labels)
            self._tokens["token_kinds"].append(
                np.full(len(labels), TOKEN_KINDS["none"], np.int8)
                if kinds is None
                else np.array(kinds[:limit], np.int8)
            )
            weights = example.token_weights
            self._tokens["token_weights"].append(
                np.ones(len(labels), np.float32) if weights is None else np.array(weights[:limit], np.float32)
            )
            tally.has_kinds |= kinds is not None
            tally.has_weights |= weights is not None
            tally.notes += [note for note in example.notes if note not in tally.notes]
            tally.total_tokens += len(labels)
            tally.label_tokens += int(np.count_nonzero(labels[1:] != IGNORE_INDEX))
            tally.longest = max(tally.longest, len(labels))

    def table(self) -> pyarrow.Table:
        offsets = np.cumsum([0, *map(len, self._tokens["input_ids"])], dtype=np.int32)
        columns: dict[str, Any] = {
            name: pyarrow.ListArray.from_arrays(
                offsets, pyarrow.array(np.concatenate(arrays) if arrays else [], SCHEMA.field(name).type.value_type)
            )
            for name, arrays in self._tokens.items()
        }
        columns["row"] = pyarrow.array(self._rows, pyarrow.int64())
        return pyarrow.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def prepare_rows(
    rows: Iterable[Row],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    known_format: Format | None = None,
) -> Iterator[tuple[Row, list[Tokenized] | DataError]]:
    """Yield each row with its examples, not cut, none where its weight is 0; or with why it cannot be used.

    Args:
        rows: The rows; some are read ahead, to be tokenized together.
        settings: How they are read.
        tokenizer: A fast one.
        known_format: What rows before these had, for the message about one that fits no format.

    Raises:
        DataError: A row cannot be used, and bad rows are not to be skipped; names file, row, field and the fix.
    """
    ahead: list[tuple[Row, list[Rendered | Tokenized] | DataError]] = []
    characters = 0
    for row in rows:
        found = _texts_or_error(row, settings, tokenizer, known_format)
        ahead.append((row, found))
        if not isinstance(found, DataError):
            known_format = known_format or _format_of(row, settings)
            characters += sum(len(example.text) for example in found if isinstance(example, Rendered))
        if characters > _CHARACTERS_AT_ONCE:
            yield from _tokenized(ahead, settings, tokenizer)
            ahead, characters = [], 0
    yield from _tokenized(ahead, settings, tokenizer)


def _texts_or_error(
    row: Row, settings: DataSettings, tokenizer: PreTrainedTokenizerBase, known_format: Format | None
) -> list[Rendered | Tokenized] | DataError:
    try:
        return label_row(row, settings, tokenizer, known_format=known_format)
    except DataError as error:
        return error


def _tokenized(
    rows: Sequence[tuple[Row, list[Rendered | Tokenized] | DataError]],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[tuple[Row, list[Tokenized] | DataError]]:
    texts = [example for _, found in rows if not isinstance(found, DataError) for example in found]
    examples = iter(tokenize_texts(texts, tokenizer))
    # A long row that is to be left out is no mistake, wherever its labels begin.
    limit = None if settings.drop_long_rows else settings.max_length
    for row, found in rows:
        outcome = found if isinstance(found, DataError) else _usable(row, list(islice(examples, len(found))), limit)
        if isinstance(outcome, DataError) and not settings.skip_bad_rows:
            raise outcome
        yield row, outcome


def _usable(row: Row, examples: list[Tokenized], limit: int | None) -> list[Tokenized] | DataError:
    """Return those of a row's examples that have something to learn, weighed; or why there are none."""
    if limit is not None and row.values.get("token_weights") and any(len(e.input_ids) > limit for e in examples):
        return row.error(
            f"'token_weights' are of a row that is cut to max_length={limit}, so some of them would be lost. Raise "
            "--max_length or drop the row (--drop_long_rows)."
        )
    try:
        weighted = weighed(examples, row)
    except DataError as error:
        return error
    if not weighted:
        return []
    return [example for example in weighted if _has_labels(example, limit)] or _without_labels(row, examples[0], limit)


def label_row(
    row: Row, settings: DataSettings, tokenizer: PreTrainedTokenizerBase, *, known_format: Format | None = None
) -> list[Rendered | Tokenized]:
    """Return the examples of a row before they are tokenized; arguments and errors as `prepare_rows`."""
    if (
        settings.dataset_format == "auto"
        and known_format is not None
        and detect_format(row.values, settings) is None
        and any(field in row.values for field in REQUIRED_FIELDS[known_format])
    ):
        # It has some fields of the file's format and lacks the others; the message should say so.
        settings = dataclasses.replace(settings, dataset_format=known_format)
    return label_conversation(to_conversation(row, settings), tokenizer, row, settings)


def _has_labels(example: Tokenized, limit: int | None) -> bool:
    # The first token is never predicted, so a label there does not count.
    labels = example.labels[1:limit]
    return labels.count(IGNORE_INDEX) < len(labels)


def _without_labels(row: Row, example: Tokenized, limit: int | None) -> DataError:
    first = next((index for index, label in enumerate(example.labels) if label != IGNORE_INDEX and index > 0), None)
    if first is None:
        return row.error("its answer begins with its only token, so nothing is left to predict. Mend or drop the row.")
    return row.error(
        f"its {len(example.input_ids)} tokens are cut to max_length={limit}, before the first answer token (number "
        f"{first + 1}), so nothing is left to train on. Raise --max_length or drop the row (--drop_long_rows)."
    )


def _format_of(row: Row, settings: DataSettings) -> Format | None:
    named = next((name for name in FORMATS if name == settings.dataset_format), None)
    return named or detect_format(row.values, settings)
