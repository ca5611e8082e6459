"""A row with its place, and rows that are counted and read from anywhere without being held."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from profit_sft.errors import DataError


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


class RowSource:
    """Rows that can be counted and read, any number of times, from any of them on, without holding them all.

    Args:
        source: What it is called.
        read: Called with a number of rows to leave out, returns the others in order. To `close` what it returns closes
            the file.
        count: Returns their number; called once, when `len` is first asked for.
        identity: Text that changes when the rows do: path, size and time of a file, fingerprint of a data set.
    """

    def __init__(
        self, source: str, read: Callable[[int], Generator[Row]], *, count: Callable[[], int], identity: str
    ) -> None:
        self.source = source
        self.read = read
        self.identity = identity
        self._count = count
        self._counted: int | None = None

    def __len__(self) -> int:
        if self._counted is None:
            self._counted = self._count()
        return self._counted

    def __iter__(self) -> Iterator[Row]:
        return self.read(0)


def chained(source: str, parts: Sequence[RowSource]) -> RowSource:
    """Return the rows of all parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return RowSource(
        source,
        partial(_read_chained, parts),
        count=lambda: sum(map(len, parts)),
        identity="\n".join(part.identity for part in parts),
    )


def _read_chained(parts: Sequence[RowSource], start: int) -> Generator[Row]:
    for part in parts:
        if start and start >= len(part):
            start -= len(part)
            continue
        yield from part.read(start)
        start = 0


def selected(rows: RowSource, indices: Sequence[int], why: str) -> RowSource:
    """Return the rows with these indices, which must rise; `why` is what made the choice, for the identity."""
    return RowSource(
        rows.source,
        partial(_read_selected, rows, indices),
        count=lambda: len(indices),
        identity=f"{rows.identity}\n{why}",
    )


def _read_selected(rows: RowSource, indices: Sequence[int], start: int) -> Generator[Row]:
    place = None
    for index in islice(indices, start, None):
        if place is None:
            found, place = rows.read(index), index
        for _ in range(index - place):
            next(found)
        place = index + 1
        yield next(found)


def first(rows: RowSource, limit: int) -> RowSource:
    """Return the first rows, at most this many."""
    return RowSource(
        rows.source,
        lambda start: (row for row in islice(rows.read(start), max(0, limit - start))),
        count=lambda: min(len(rows), limit),
        identity=f"{rows.identity}\nfirst {limit}",
    )


def mapped(rows: RowSource, change: Callable[[Row], Row], why: str) -> RowSource:
    """Return the rows after a change of each; `why` is what it does, for the identity."""
    return RowSource(
        rows.source,
        lambda start: (change(row) for row in rows.read(start)),
        count=rows.__len__,
        identity=f"{rows.identity}\n{why}",
    )
