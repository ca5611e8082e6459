"""Load rows from local files or a hub data set, each with the place it came from."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from profit_sft.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# A name that ends so means a file, not a hub data set ('nobody/data-v1.5' has a suffix too).
_FILE_SUFFIXES = (*SUFFIXES, ".txt", ".tsv", ".xlsx", ".arrow", ".gz", ".zst", ".xz", ".zip", ".yaml", ".yml", ".pkl")
_LONGEST_CSV_CELL = 2**31 - 1  # what a C long holds on every platform


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands.

    Attributes:
        values: Column name to value.
        file: Path or hub name, for messages.
        number: 1-based row; for jsonl the line number; for csv the header is not counted.
        problem: Why the row could not be read, or None.
    """

    values: dict[str, Any]
    file: str
    number: int
    problem: str | None = None

    def error(self, text: str) -> DataError:
        """Return a DataError that starts with the row's place."""
        return DataError(f"{self.file}, row {self.number}: {text}")


@dataclass(frozen=True, slots=True)
class _Part:
    """One file or hub data set: its number of rows, and how to read them from the start."""

    count: int
    read: Callable[[], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows that can be counted and read, any number of times, without holding a whole jsonl, csv or parquet file.

    Attributes:
        source: As given.
        parts: What it consists of, in order.
        limit: Rows after this many are left out. None: all.
    """

    source: str
    parts: tuple[_Part, ...]
    limit: int | None = None

    def __len__(self) -> int:
        count = sum(part.count for part in self.parts)
        return count if self.limit is None else min(count, self.limit)

    def __iter__(self) -> Iterator[Row]:
        return islice((row for part in self.parts for row in part.read()), self.limit)


def load_rows(source: str, *, name: str | None = None, split: str = "train", limit: int | None = None) -> RowSource:
    """Find and count the rows of a file, a folder or a hub data set.

    A line of a jsonl file or a record of a csv file that cannot be read is yielded with its `problem`, so that the
    caller may leave it out; the rest is raised here.

    Args:
        source: A jsonl, json, parquet or csv file, a folder of them (read in order of their names), or a hub name.
        name: Configuration of a hub data set.
        split: Split of a hub data set. Local files have none.
        limit: Leave out all rows after this many.

    Raises:
        DataError: The source does not exist, is empty, or is of an unknown kind; the message says what to do.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        parts = tuple(_open_file(file) for file in _files_in(path))
    elif path.exists():
        parts = (_open_file(path),)
    elif means_a_file(source):
        raise DataError(
            f"'{source}' does not exist. Check the path: a {', '.join(SUFFIXES)} file or a folder of them. A hub data "
            "set is named like 'openai/gsm8k'."
        )
    else:
        parts = (_open_hub(source, name, split),)
    rows = RowSource(source, parts, limit)
    if len(rows) == 0:
        raise DataError(f"'{source}' has no rows. Name a file or split with at least one.")
    return rows


def means_a_file(source: str) -> bool:
    """Hub names are 'name' or 'owner/name'; anything that looks otherwise was meant as a path."""
    looks_like_a_path = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    return looks_like_a_path or source.lower().endswith(_FILE_SUFFIXES)


def _files_in(folder: Path) -> list[Path]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        raise DataError(
            f"folder '{folder}' was written by save_to_disk. Write its split with to_parquet and name that."
        )
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not files:
        raise DataError(
            f"folder '{folder}' holds no {', '.join(SUFFIXES)} file. Folders inside it are not searched; name one."
        )
    return files


def _open_file(path: Path) -> _Part:
    openers = {".jsonl": _open_jsonl, ".json": _open_json, ".parquet": _open_parquet, ".csv": _open_csv}
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise DataError(f"'{path}' ends in '{path.suffix}', which is not read. Use one of {', '.join(SUFFIXES)}.")
    try:
        return opener(path)
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 (byte {error.start + 1}). Convert it first.") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error}). Check its permissions.") from None


def _checked(values: Any, path: Path, number: int) -> Row:
    if isinstance(values, dict):
        return Row(values, str(path), number)
    return Row({}, str(path), number, f"is a {type(values).__name__}, not an object with named fields.")


def _open_jsonl(path: Path) -> _Part:
    with path.open("rb") as lines:
        count = sum(bool(line.strip()) for line in lines)
    return _Part(count, partial(_jsonl_rows, path))


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _jsonl_row(line, path, number)


def _jsonl_row(line: bytes, path: Path, number: int) -> Row:
    try:
        # Some editors put a byte order mark in front of the first line. The newline would count as a line of JSON.
        text = line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8")
        return _checked(json.loads(text), path, number)
    except UnicodeDecodeError as error:
        problem = f"line {number} is not UTF-8 (byte {error.start + 1} of it). Convert the file first."
    except json.JSONDecodeError as error:
        problem = f"line {number} is not JSON ({error.msg} at column {error.colno})."
    except RecursionError:
        problem = f"line {number} is JSON nested too deeply to read."
    return Row({}, str(path), number, problem)


def _open_json(path: Path) -> _Part:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"'{path}' is not JSON ({error.msg} at line {error.lineno}). A file with one object a line is named .jsonl."
        ) from None
    except RecursionError:
        raise DataError(f"'{path}' is JSON nested too deeply to read. It must hold a list of rows.") from None
    if isinstance(values, dict):  # {"data": [...]}, as some exports have it
        lists = [value for value in values.values() if isinstance(value, list)]
        values = lists[0] if len(lists) == 1 else None
    if not isinstance(values, list):
        raise DataError(f"'{path}' must hold a list of rows, or an object with one list in it.")
    return _Part(len(values), partial(_json_rows, values, path))


def _json_rows(values: list[Any], path: Path) -> Iterator[Row]:
    for number, row in enumerate(values, start=1):
        yield _checked(row, path, number)


def _open_csv(path: Path) -> _Part:
    csv.field_size_limit(_LONGEST_CSV_CELL)  # of the process; its default of 131,072 refuses long answers
    return _Part(sum(1 for _ in _csv_rows(path)), partial(_csv_rows, path))


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for number, values in enumerate(reader, start=1):
                if None in values or None in values.values():
                    yield Row({}, str(path), number, "has another number of cells than the header.")
                else:
                    yield Row(dict(values), str(path), number)
        except csv.Error as error:
            raise DataError(f"'{path}' is not CSV ({error} at line {reader.line_num}). Mend that line.") from None


def _open_parquet(path: Path) -> _Part:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return _Part(file.metadata.num_rows, partial(_parquet_rows, path))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is not a Parquet file ({error}). Write it again, or name another.") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(values, str(path), number)


def _open_hub(source: str, name: str | None, split: str) -> _Part:
    import datasets

    try:
        dataset = datasets.load_dataset(source, name=name, split=split)
    except Exception as error:  # the hub client raises many kinds, offline most of all
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"'{source}' is no local file, and could not be loaded from the hub, split '{split}' ({first}). Check the "
            "name, --dataset_config and the split, or name a local file."
        ) from error
    return _Part(len(dataset), partial(_hub_rows, dataset, source))


def _hub_rows(dataset: Any, source: str) -> Iterator[Row]:
    for number, values in enumerate(dataset, start=1):
        yield Row(values, source, number)
