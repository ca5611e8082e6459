"""Rows of one local file, of every kind that is read, each with its number."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from profit_sft.data.formats import detect_format
from profit_sft.data.row import Row, RowSource
from profit_sft.errors import DataError, first_line
from profit_sft.files import check_regular_file

_ROWS_A_BATCH = 256  # turned into Python's objects at once
_LONGEST_CSV_CELL = 2**31 - 1  # what a C long holds on every platform
_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def kind_of(path: Path) -> str:
    """Return what the file's name says it holds, compressed or not: `.jsonl` of `rows.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _COMPRESSED and suffixes[-2] in _TEXT_KINDS:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def open_file(path: Path) -> RowSource:
    """Return the rows of a file; they are counted, and the file is looked at, when `len` is asked for.

    Raises:
        DataError: Its name says that it is of a kind that is not read.
    """
    check_regular_file(path)
    kind = kind_of(path)
    read = _READERS.get(kind)
    if read is None:
        raise DataError(f"'{path}' ends in '{path.suffix}', which is not read. Use one of {', '.join(SUFFIXES)}.")
    count = _COUNTERS.get(kind, partial(_counted, read))
    state = path.stat()
    return RowSource(
        str(path),
        partial(_read, read, path),
        count=partial(_count, count, path),
        identity=f"{path.absolute()} {state.st_size} {state.st_mtime_ns}",
    )


def _read(read: Callable[[Path], Iterator[Row]], path: Path, start: int) -> Generator[Row]:
    with _in_words(path):
        yield from islice(read(path), start, None)


def _count(count: Callable[[Path], int], path: Path) -> int:
    with _in_words(path):
        return count(path)


def _counted(read: Callable[[Path], Iterator[Row]], path: Path) -> int:
    return sum(1 for _ in read(path))


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Say in words what keeps a file from being read."""
    import pyarrow

    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 (byte {error.start + 1}). Convert it first.") from None
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(f"'{path}' cannot be read ({error}). Check its permissions.") from None
    except (OSError, EOFError, ValueError, OverflowError, lzma.LZMAError, zlib.error, pyarrow.ArrowException) as error:
        kind = _KINDS_IN_WORDS.get(kind_of(path), "a whole")
        raise DataError(
            f"'{path}' is not {kind} file ({first_line(error)}). Write or fetch it again, or name another."
        ) from None


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", _COMPRESSED.get(path.suffix.lower(), open)(path, "rb"))


def _checked(values: Any, path: Path, number: int) -> Row:
    if isinstance(values, dict):
        return Row(values, str(path), number)
    return Row({}, str(path), number, f"is a {type(values).__name__}, not an object with named fields.")


def _count_lines(path: Path) -> int:
    with _opened(path) as lines:
        return sum(bool(line.strip()) for line in lines)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _jsonl_row(line, path, number)


class _KeyTwice(Exception):
    """An object has one key more than once."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _KeyTwice(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return found


def _jsonl_row(line: bytes, path: Path, number: int) -> Row:
    try:
        # Some editors put a byte order mark in front of the first line. The newline would count as a line of JSON.
        text = line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8")
        return _checked(json.loads(text, object_pairs_hook=_without_twins), path, number)
    except _KeyTwice as error:
        problem = f"has the key {error.args[0]!r} twice in one object, of which one would be lost."
    except UnicodeDecodeError as error:
        problem = f"line {number} is not UTF-8 (byte {error.start + 1} of it). Convert the file first."
    except json.JSONDecodeError as error:
        problem = f"line {number} is not JSON ({error.msg} at column {error.colno})."
    except RecursionError:
        problem = f"line {number} is JSON nested too deeply to read."
    except ValueError as error:  # a number of more than 4,300 digits
        problem = f"line {number} cannot be read ({first_line(error)})."
    return Row({}, str(path), number, problem)


def _json_rows(path: Path) -> Iterator[Row]:
    """Read a list of rows, an object with one list in it, or one object a line, as `datasets` and pandas write them."""
    with _opened(path) as file:
        content = file.read().decode("utf-8-sig")
    try:
        values = json.loads(content, object_pairs_hook=_without_twins)
    except _KeyTwice as error:
        raise DataError(
            f"'{path}' has the key {error.args[0]!r} twice in one object, of which one would be lost. Mend that object."
        ) from None
    except json.JSONDecodeError as error:
        if _is_an_object(content.lstrip().split("\n", 1)[0]):
            yield from _jsonl_rows(path)
            return
        raise DataError(
            f"'{path}' is not JSON ({error.msg} at line {error.lineno}), nor has it one object a line. Mend that line."
        ) from None
    except ValueError as error:
        raise DataError(f"'{path}' cannot be read ({first_line(error)}). Mend or leave out that number.") from None
    except RecursionError:
        raise DataError(f"'{path}' is JSON nested too deeply to read. It must hold a list of rows.") from None
    if _is_a_row(values):
        values = [values]  # one object a line, of which there is one
    if isinstance(values, dict):  # {"data": [...]}, as some exports have it
        lists = [value for value in values.values() if isinstance(value, list)]
        values = lists[0] if len(lists) == 1 else None
    if not isinstance(values, list):
        raise DataError(f"'{path}' must hold a list of rows, an object with one list in it, or one object a line.")
    for number, row in enumerate(values, start=1):
        yield _checked(row, path, number)


def _is_a_row(values: Any) -> bool:
    """Tell a row, such as a chat, from an object with a list of rows in it, whatever that is called."""
    if not isinstance(values, dict) or detect_format(values) is None:
        return False
    within = [item for value in values.values() if isinstance(value, list) for item in value]
    return not any(_is_a_row(item) for item in within)


def _is_an_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_twice(columns: Sequence[str], path: Path) -> None:
    twice = next((name for name, count in Counter(columns).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"'{path}' has two columns named '{twice}', of which one would be lost. Rename one.")


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CSV_CELL)  # of the process; its default of 131,072 refuses long answers
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", newline="") as lines:
        # Strict: or a quote that nobody closes would swallow all rows after it.
        reader = csv.DictReader(lines, delimiter="\t" if kind_of(path) == ".tsv" else ",", strict=True)
        number = 0
        try:
            _refuse_twice(reader.fieldnames or (), path)
            for number, values in enumerate(reader, start=1):
                if None in values or None in values.values():
                    yield Row({}, str(path), number, "has another number of cells than the header.")
                else:
                    # An empty cell is a null: of merged tables a row has the columns of its own.
                    yield Row({name: cell or None for name, cell in values.items()}, str(path), number)
        except csv.Error as error:
            raise DataError(
                f"'{path}' is not CSV from row {number + 1} on ({error} at line {reader.line_num}). A quote may "
                "not be closed there."
            ) from None


def _count_parquet(path: Path) -> int:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from _batch_rows(file.iter_batches(batch_size=_ROWS_A_BATCH), path)


def _count_arrow(path: Path) -> int:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        return sum(batch.num_rows for batch in _arrow_batches(file))


def _arrow_rows(path: Path) -> Iterator[Row]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        yield from _batch_rows(_arrow_batches(file), path)


def _arrow_batches(file: Any) -> Iterator[Any]:
    """Yield the record batches of Arrow's stream format, which `datasets` writes, or of its file format."""
    import pyarrow

    try:
        yield from pyarrow.ipc.open_stream(file)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        reader = pyarrow.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def _batch_rows(batches: Iterator[Any], path: Path) -> Iterator[Row]:
    number, decoded = 0, None
    for batch in batches:
        _refuse_twice(batch.schema.names, path)
        decoded = decoded or _reader_of_values(batch.schema)
        for start in range(0, batch.num_rows, _ROWS_A_BATCH):
            for values in batch.slice(start, _ROWS_A_BATCH).to_pylist():
                number += 1
                yield Row(decoded(values), str(path), number)


def _reader_of_values(schema: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what reads a row of a table in which `datasets` wrote values of mixed kinds as JSON text, and said so.

    Of such a value text alone, and nothing, are read here. Any other stays the text that it is: that may be an answer,
    and chats, calls and tools are read from text as well.
    """
    told = (schema.metadata or {}).get(b"huggingface", b"")
    if b'"Json"' not in told:
        return dict
    kinds = json.loads(told)["info"]["features"]
    return lambda values: {name: _read_text(value, kinds.get(name)) for name, value in values.items()}


def _read_text(value: Any, kind: Any) -> Any:
    is_named = isinstance(kind, dict) and isinstance(kind.get("_type"), str)  # and not an object with such a key
    if is_named and kind["_type"] == "Json":
        return json.loads(value) if isinstance(value, str) and (value[:1] == '"' or value == "null") else value
    within = kind.get("feature") if is_named else kind[0] if isinstance(kind, list) else kind
    if isinstance(value, list):
        return [_read_text(item, within) for item in value]
    if isinstance(value, dict) and isinstance(within, dict):
        return {name: _read_text(item, within.get(name)) for name, item in value.items()}
    return value


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
}
_TEXT_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_COUNTERS: dict[str, Callable[[Path], int]] = {
    ".jsonl": _count_lines,
    ".ndjson": _count_lines,
    ".parquet": _count_parquet,
    ".arrow": _count_arrow,
}
_KINDS_IN_WORDS = {".parquet": "a Parquet", ".arrow": "an Arrow"}
SUFFIXES = tuple(_READERS)
COMPRESSED = tuple(_COMPRESSED)
