"""Which rows a run trains and is evaluated on, and what settings mean: a source or a mixture, less what is held out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from profit_sft.data.formats import detect_format
from profit_sft.data.row import Row, RowSource, chained, first, mapped, selected
from profit_sft.data.rows import evaluation_split, has_splits, load_rows
from profit_sft.data.settings import TEST_SPLIT, DataOptions, DataSettings, MixturePart
from profit_sft.errors import ConfigurationError, DataError
from profit_sft.files import read_yaml

_OF_TRL = ("max_length", "truncation_mode", "dataset_num_proc", "dataset_text_field")
_HELD_OUT_SEED = 42  # one for all runs, so that scores, training and evaluation agree about who is held out


def data_to_train(asked: Mapping[str, Any]) -> DataSettings:
    """Return how `profit train` reads its training data.

    Args:
        asked: Its settings by name; one that is not there has its default.

    Raises:
        ConfigurationError: One is out of range.
        DataError: See `mixture_parts`.
    """
    parts = mixture_parts(asked["datasets"]) if asked.get("datasets") else None
    return _settings(
        asked,
        dataset_name=f"mixture of {', '.join(part.path for part in parts)}"
        if parts
        else asked["dataset_name"] or "DATA",
        datasets=parts,
        dataset_split=asked.get("dataset_train_split", "train"),
    )


def data_to_evaluate(asked: Mapping[str, Any], name: str) -> DataSettings:
    """Return how it reads evaluation data of that name. A file has neither configurations nor splits."""
    return _settings(
        asked,
        dataset_name=name,
        dataset_config=asked.get("dataset_config") if has_splits(name) else None,
        dataset_split=evaluation_split(name, asked.get("dataset_test_split", TEST_SPLIT)),
        test_split_size=None,
    )


def _settings(asked: Mapping[str, Any], **source: Any) -> DataSettings:
    shared = (*(entry.name for entry in fields(DataOptions)), *_OF_TRL)
    try:
        return DataSettings(**{name: asked[name] for name in shared if name in asked} | source)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from None


def open_source(settings: DataSettings, *, streaming: bool = False) -> RowSource:
    """Find the rows to read. Those after `max_samples` are left out before any is held out.

    Args:
        settings: Where they are, and which of them are read.
        streaming: Count nothing and download nothing before it is asked for.

    Raises:
        DataError: A source cannot be used, or nothing would be left of it.
    """
    parts = settings.datasets or _parts_of_file(settings.dataset_name)
    if parts:
        if settings.dataset_config is not None or settings.dataset_split != "train":
            name = settings.dataset_config or settings.dataset_split
            raise DataError(
                f"'{settings.dataset_name}' is a mixture, of which '{name}' names nothing as a whole. Write name and "
                "split into its parts."
            )
        rows = _mixture(settings.dataset_name, parts, streaming=streaming)
    else:
        rows = load_rows(
            settings.dataset_name, name=settings.dataset_config, split=settings.dataset_split, streaming=streaming
        )
    if settings.max_samples is not None:
        rows = first(rows, settings.max_samples)
    if settings.test_split_size is not None:
        rows = _split(rows, settings.test_split_size, held_out=settings.held_out)
    if settings.dataset_text_field != "text":
        field = settings.dataset_text_field
        rows = mapped(rows, partial(_with_text, field, is_one_of_several=bool(parts)), f"text in {field}")
    return rows


def mixture_parts(given: Sequence[Any]) -> tuple[MixturePart, ...]:
    """Return the parts of a mixture that are given as in TRL's `datasets`: a path each, or a mapping.

    Raises:
        DataError: One is neither, or has an unknown key, or no path.
    """
    parts = []
    for position, part in enumerate(given, start=1):
        part = {"path": part} if isinstance(part, str) else part
        try:
            parts.append(part if isinstance(part, MixturePart) else MixturePart(**part))
        except TypeError:
            known = ", ".join(MixturePart.__dataclass_fields__)
            raise DataError(
                f"datasets: number {position} is {part!r}. It must have a path, and may have of these: {known}."
            ) from None
    if len({part.fraction is None for part in parts}) > 1:
        raise DataError("datasets: some have a fraction and some have none. Give it to all or to none.")
    bad = next((part for part in parts if part.fraction is not None and not 0 < part.fraction < math.inf), None)
    if bad is not None:
        raise DataError(f"datasets: '{bad.path}' has the fraction {bad.fraction}. It must be more than 0.")
    return tuple(parts)


def _parts_of_file(name: str) -> tuple[MixturePart, ...] | None:
    path = Path(name).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return None
    given = read_yaml(path)[0].get("datasets")
    if not isinstance(given, list) or not given:
        raise DataError(f"'{name}' has no list 'datasets' of what to mix. Add one, or name data.")
    return mixture_parts(given)


def _mixture(name: str, parts: Sequence[MixturePart], *, streaming: bool) -> RowSource:
    opened = [_open_part(part, streaming=streaming) for part in parts]
    if parts[0].fraction is not None:
        if streaming:
            raise DataError("datasets: a fraction needs the number of all rows, so it cannot be streamed.")
        total = sum(part.fraction or 0 for part in parts)
        shares = [(part.fraction or 0) / total for part in parts]
        size = min(len(rows) / share for rows, share in zip(opened, shares, strict=True))
        opened = [first(rows, round(share * size)) for rows, share in zip(opened, shares, strict=True)]
    return chained(name, opened)


def _open_part(part: MixturePart, *, streaming: bool) -> RowSource:
    rows = load_rows(
        part.path,
        name=part.name,
        split=part.split,
        data_dir=part.data_dir,
        data_files=part.data_files,
        streaming=streaming,
    )
    if part.columns is None:
        return rows
    return mapped(rows, partial(_with_columns, tuple(part.columns)), f"columns {part.columns}")


def _with_columns(columns: Sequence[str], row: Row) -> Row:
    return Row({name: row.values[name] for name in columns if name in row.values}, row.file, row.number, row.problem)


def _with_text(column: str, row: Row, *, is_one_of_several: bool) -> Row:
    rest = {name: value for name, value in row.values.items() if name not in ("text", column)}
    if column in row.values:
        return replace(row, values={**rest, "text": row.values[column]})
    # In a mixture other rows may be chats, of which no text is read.
    is_chat = detect_format(rest) is not None
    if row.problem is not None:
        return row
    if is_one_of_several and is_chat:
        return replace(row, values=rest)
    columns = ", ".join(map(repr, row.values)) or "none"
    return replace(row, problem=f"has no column '{column}' (--dataset_text_field); its columns are {columns}.")


def _split(rows: RowSource, size: float, *, held_out: bool) -> RowSource:
    count = len(rows)
    wanted = int(size) if size >= 1 else math.ceil(size * count)
    if wanted >= count:
        raise DataError(
            f"'{rows.source}' has {count} rows, of which test_split_size={size} holds out {wanted}, so none is left to "
            "train on. Make it smaller."
        )
    is_held_out = np.zeros(count, dtype=bool)
    is_held_out[np.random.default_rng(_HELD_OUT_SEED).permutation(count)[:wanted]] = True
    indices = np.flatnonzero(is_held_out == held_out)
    return selected(rows, indices, f"{wanted} rows held out, {held_out}")  # type: ignore[arg-type]  # it is a sequence
