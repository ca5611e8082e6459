"""From a data source to a tokenized data set, with a report of what became of every row."""

import hashlib
import json
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow
from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from profit_sft.data.formats import FORMATS, REQUIRED_FIELDS, Format, detect_format, to_conversation
from profit_sft.data.rows import Row, RowSource, load_rows
from profit_sft.data.settings import DataSettings
from profit_sft.data.tokenize import IGNORE_INDEX, TOKEN_KINDS, Tokenized, tokenize_conversation
from profit_sft.errors import DataError

LISTED_ROWS = 100  # bad rows named in a report; the count is always complete
_ROWS_A_TABLE = 2000  # Python's ints take several times the memory of Arrow's, so few rows are held in lists at a time
_SCHEMA = pyarrow.schema(
    {
        "input_ids": pyarrow.list_(pyarrow.int64()),
        "labels": pyarrow.list_(pyarrow.int64()),
        "row": pyarrow.int64(),
        "token_kinds": pyarrow.list_(pyarrow.int8()),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedRow:
    """A row that was left out, and why."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """What became of the rows.

    Attributes:
        dataset_name: As given.
        dataset_format: Format of the first row that could be used.
        rows_read: Rows looked at.
        rows_used: Rows in the data set: more than were read where a chat gives an example for each turn.
        rows_skipped: Bad rows left out.
        skipped: The first of them.
        rows_truncated: Rows that lost their end to `max_length`.
        total_tokens: Tokens of all rows used.
        label_tokens: Those that carry a label.
        longest: Tokens of the longest row, after truncation.
        fingerprint: SHA-256 of all input_ids and labels in order.
        tokenizer_fingerprint: SHA-256 of vocabulary and chat template.
        notes: What else there is to know: columns and keys that are not used, how chats are rendered.
    """

    dataset_name: str
    dataset_format: str
    rows_read: int
    rows_used: int
    rows_skipped: int
    skipped: tuple[SkippedRow, ...]
    rows_truncated: int
    total_tokens: int
    label_tokens: int
    longest: int
    fingerprint: str
    tokenizer_fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """A data set with `input_ids`, `labels`, `row` (1-based, in the source) and, if rows have spans, `token_kinds`."""

    dataset: Dataset
    report: DataReport


def prepare_dataset(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, progress: bool = False) -> PreparedData:
    """Read, convert, tokenize and label every row.

    Args:
        settings: What to read.
        tokenizer: A fast tokenizer.
        progress: Show a bar on stderr, if that is a terminal.

    Returns:
        The data set and its report.

    Raises:
        DataError: The source or a row cannot be used; names file, row, field and the fix.
    """
    _require_fast(tokenizer)
    collected = _Collected()
    rows = load_rows(
        settings.dataset_name,
        name=settings.dataset_config,
        split=settings.dataset_split,
        limit=settings.max_samples,
    )
    for row in _shown(rows) if progress and sys.stderr.isatty() else rows:
        collected.read += 1
        try:
            examples = _prepare_row(row, settings, tokenizer, known_format=collected.format)
        except DataError as error:
            if not settings.skip_bad_rows:
                raise
            collected.skip(row, str(error))
            continue
        collected.add(row, examples, settings)
    if collected.used == 0:
        raise DataError(
            f"'{settings.dataset_name}': none of its {collected.read} rows can be used. The first: "
            f"{collected.skipped[0].reason}"
        )
    return collected.finish(settings, tokenizer)


def _prepare_row(
    row: Row, settings: DataSettings, tokenizer: PreTrainedTokenizerBase, *, known_format: Format | None
) -> list[Tokenized]:
    columns = {"prompt_column": settings.prompt_column, "response_column": settings.response_column}
    dataset_format = settings.dataset_format
    if (
        dataset_format == "auto"
        and known_format is not None
        and detect_format(row.values, **columns) is None
        and any(field in row.values for field in REQUIRED_FIELDS[known_format])
    ):
        # It has some fields of the file's format and lacks the others; the message should say so.
        dataset_format = known_format
    conversation = to_conversation(
        row,
        dataset_format,
        prompt_column=settings.prompt_column,
        response_column=settings.response_column,
        system_prompt=settings.system_prompt,
        chat_template_kwargs=settings.chat_template_kwargs,
    )
    examples = tokenize_conversation(
        conversation,
        tokenizer,
        row,
        train_on="last" if settings.train_on == "last" else "all",
        empty_think="ignore" if settings.empty_think == "ignore" else "train",
        template_date=settings.template_date,
    )
    usable = [example for example in examples if _has_labels(example, settings)]
    if not usable:
        raise _without_labels(row, examples[0], settings)
    return usable


def _has_labels(example: Tokenized, settings: DataSettings) -> bool:
    # The first token is never predicted, so a label there does not count.
    return any(label != IGNORE_INDEX for label in example.labels[1 : settings.max_length])


def _without_labels(row: Row, example: Tokenized, settings: DataSettings) -> DataError:
    first = next((index for index, label in enumerate(example.labels) if label != IGNORE_INDEX and index > 0), None)
    if first is None:
        return row.error("its answer begins with its only token, so nothing is left to predict. Mend or drop the row.")
    return row.error(
        f"its {len(example.input_ids)} tokens are cut to max_length={settings.max_length}, before the first answer "
        f"token (number {first + 1}), so nothing is left to train on. Raise --max_length or drop the row."
    )


class _Collected:
    """What has been prepared so far."""

    def __init__(self) -> None:
        self.format: Format | None = None
        self.read = self.used = self.truncated = self.skipped_count = 0
        self.total_tokens = self.label_tokens = self.longest = 0
        self.skipped: list[SkippedRow] = []
        self.notes: dict[str, None] = {}  # in the order in which they came up
        self.has_kinds = False
        self._digest = hashlib.sha256()
        self._pending: list[dict[str, object]] = []
        self._tables: list[pyarrow.Table] = []

    def skip(self, row: Row, reason: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < LISTED_ROWS:
            self.skipped.append(SkippedRow(file=row.file, row=row.number, reason=reason))

    def add(self, row: Row, examples: list[Tokenized], settings: DataSettings) -> None:
        if self.format is None:
            columns = {"prompt_column": settings.prompt_column, "response_column": settings.response_column}
            named = next((name for name in FORMATS if name == settings.dataset_format), None)
            self.format = named or detect_format(row.values, **columns)
        for example in examples:
            self._add_example(row, example, settings.max_length)

    def _add_example(self, row: Row, example: Tokenized, limit: int | None) -> None:
        input_ids, labels = example.input_ids[:limit], example.labels[:limit]
        kinds = [TOKEN_KINDS["none"]] * len(input_ids) if example.token_kinds is None else example.token_kinds[:limit]
        self.has_kinds |= example.token_kinds is not None
        self.notes.update(dict.fromkeys(example.notes))
        self.used += 1
        self.truncated += len(example.input_ids) > len(input_ids)
        self.total_tokens += len(input_ids)
        self.label_tokens += sum(label != IGNORE_INDEX for label in labels[1:])
        self.longest = max(self.longest, len(input_ids))
        self._digest.update(array("q", [len(input_ids), *input_ids, *labels]).tobytes())
        self._pending.append({"input_ids": input_ids, "labels": labels, "row": row.number, "token_kinds": kinds})
        if len(self._pending) == _ROWS_A_TABLE:
            self._flush()

    def _flush(self) -> None:
        self._tables.append(pyarrow.Table.from_pylist(self._pending, schema=_SCHEMA))
        self._pending = []

    def finish(self, settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
        self._flush()
        table = pyarrow.concat_tables(self._tables)
        report = DataReport(
            dataset_name=settings.dataset_name,
            dataset_format=str(self.format),
            rows_read=self.read,
            rows_used=self.used,
            rows_skipped=self.skipped_count,
            skipped=tuple(self.skipped),
            rows_truncated=self.truncated,
            total_tokens=self.total_tokens,
            label_tokens=self.label_tokens,
            longest=self.longest,
            fingerprint=self._digest.hexdigest(),
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
            notes=tuple(self.notes),
        )
        return PreparedData(dataset=Dataset(table if self.has_kinds else table.drop(["token_kinds"])), report=report)


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer of '{tokenizer.name_or_path}' is a slow one, which does not tell where its tokens stand in "
            "the text. Use a model with a fast tokenizer (a tokenizer.json file)."
        )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 of what decides about token ids: vocabulary, merges, normalizer and so on, and chat template.

    Args:
        tokenizer: A fast one.

    Raises:
        DataError: The tokenizer is a slow one.
    """
    _require_fast(tokenizer)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are set by the last call, and have no part in what a row's tokens are.
    content = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}
    content["chat_template"] = tokenizer.chat_template
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(rows: RowSource) -> Iterator[Row]:
    columns = (TextColumn("tokenizing rows"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(rows, total=len(rows))
