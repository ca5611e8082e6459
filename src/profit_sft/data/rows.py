"""Read rows from local files or a hub data set, each with the place it came from."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profit_sft.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands.

    Attributes:
        values: Column name to value.
        file: Path or hub name, for messages.
        number: 1-based row; for jsonl the line number.
        problem: Why the row could not be read, or None.
    """

    values: dict[str, Any]
    file: str
    number: int
    problem: str | None = None

    def error(self, text: str) -> DataError:
        """Return a DataError that starts with the row's place."""
        return DataError(f"{self.file}, row {self.number}: {text}")


def read_rows(source: str, *, name: str | None = None, split: str = "train", limit: int | None = None) -> Iterator[Row]:
    """Read rows one by one.

    Args:
        source: A jsonl, json, parquet or csv file, a folder of them, or a hub name.
        name: Configuration of a hub data set.
        split: Split of a hub data set.
        limit: Stop after this many rows.

    Raises:
        DataError: The source does not exist, is empty, or is of an unknown kind; the message says what to do.
    """
    count = 0
    for row in _all_rows(source, name, split):
        if limit is not None and count >= limit:
            return
        count += 1
        yield row
    if count == 0:
        raise DataError(f"'{source}' has no rows. Name a file or split with at least one.")


def _all_rows(source: str, name: str | None, split: str) -> Iterator[Row]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"folder '{source}' holds no {', '.join(SUFFIXES)} file.")
        for file in files:
            yield from _file_rows(file)
    elif path.is_file():
        yield from _file_rows(path)
    elif path.suffix or source.startswith((".", "/", "~")):
        raise DataError(f"'{source}' does not exist. Check the path; a hub data set is named like 'openai/gsm8k'.")
    else:
        yield from _hub_rows(source, name, split)


def _file_rows(path: Path) -> Iterator[Row]:
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"'{path}' ends in '{path.suffix}', which is not read. Use one of {', '.join(SUFFIXES)}.")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 (byte {error.start}). Convert it first.") from None


def _checked(values: Any, path: Path, number: int) -> Row:
    if isinstance(values, dict):
        return Row(values, str(path), number)
    return Row({}, str(path), number, f"is a {type(values).__name__}, not an object with named fields.")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                yield Row({}, str(path), number, f"is not JSON ({error.msg} at column {error.colno}).")
            else:
                yield _checked(values, path, number)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"'{path}' is not JSON ({error.msg} at line {error.lineno}). A file with one object a line is named .jsonl."
        ) from None
    if isinstance(values, dict):  # {"data": [...]}, as some exports have it
        lists = [value for value in values.values() if isinstance(value, list)]
        values = lists[0] if len(lists) == 1 else None
    if not isinstance(values, list):
        raise DataError(f"'{path}' must hold a list of rows, or an object with one list in it.")
    for number, row in enumerate(values, start=1):
        yield _checked(row, path, number)


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, values in enumerate(csv.DictReader(lines), start=1):
            if None in values or None in values.values():
                yield Row({}, str(path), number, "has another number of cells than the header.")
            else:
                yield Row(dict(values), str(path), number)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"'{path}' is not a Parquet file ({error}).") from None
    number = 0
    for batch in file.iter_batches():
        for values in batch.to_pylist():
            number += 1
            yield Row(values, str(path), number)


def _hub_rows(source: str, name: str | None, split: str) -> Iterator[Row]:
    import datasets

    try:
        dataset = datasets.load_dataset(source, name=name, split=split)
    except Exception as error:  # the hub client raises many kinds, offline most of all
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"'{source}' is no local file, and could not be loaded from the hub, split '{split}' ({first}). Check the "
            "name, --dataset_config and the split, or name a local file."
        ) from error
    for number, values in enumerate(dataset, start=1):
        yield Row(values, source, number)
