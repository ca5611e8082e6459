"""From a data source to a tokenized data set on disk, made once, with a report of what became of every row."""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, Features
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from profit_sft.data.blocks import SCHEMA, BlockPreparer, RowCounts, SkippedRow, Tally, prepare_rows, read_tally
from profit_sft.data.row import RowSource
from profit_sft.data.settings import DataSettings
from profit_sft.data.sources import open_source
from profit_sft.errors import ConfigurationError, DataError
from profit_sft.files import package_versions, write_text

_BLOCK_ROWS = 128  # of 20,000 tokens each they are 20 MB
_OPTIONAL = {"has_kinds": "token_kinds", "has_weights": "token_weights"}  # of a tally, and the columns they speak of
_REPORT = "report.json"  # written last: a folder without one is unfinished


@dataclass(kw_only=True)
class DataReport(RowCounts):
    """What became of the rows of a data set.

    Attributes:
        dataset_name: As given.
        fingerprint: SHA-256 of all input_ids and labels in order; of a stream, of how it is read.
        tokenizer_fingerprint: SHA-256 of vocabulary and chat template.
    """

    dataset_name: str
    fingerprint: str
    tokenizer_fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """A data set with `input_ids`, `labels`, `row` (1-based, in the source), and more if rows bring it.

    That is `token_kinds` for spans of an answer, and `token_weights` for weights other than 0 and 1 of a turn or row.
    """

    dataset: Dataset
    report: DataReport


def prepare_dataset(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, progress: bool = False) -> PreparedData:
    """Read, convert, tokenize and label every row, unless that was done before.

    What was made lies in the cache of `datasets`, in a folder named after everything it depends on, and is mapped into
    memory. Of several processes that ask for the same, such as the ranks of a run, the first makes it; the others wait.

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
    rows = open_source(settings)
    tokenizer_is = tokenizer_fingerprint(tokenizer)  # once: it writes out the vocabulary
    key = _key(settings, tokenizer, tokenizer_is, rows)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "profit_sft" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / _REPORT).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                _prepare(settings, tokenizer, tokenizer_is, rows, folder, progress=progress)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return _load(folder)


def stream_dataset(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Prepare rows while they are trained on; nothing is counted, and nothing is kept.

    Args:
        settings: What to read.
        tokenizer: A fast tokenizer.

    Returns:
        An `IterableDataset` with `input_ids` and `labels`, and a report without counts. Reading it raises DataError at
        a bad row, unless bad rows are skipped.

    Raises:
        DataError: The source cannot be used, or has no row that can.
    """
    _require_fast(tokenizer)
    rows = open_source(settings, streaming=True)
    features = Features.from_arrow_schema(pyarrow.schema([SCHEMA.field("input_ids"), SCHEMA.field("labels")]))
    if next(_streamed(rows, settings, tokenizer), None) is None:
        raise DataError(f"'{settings.dataset_name}': none of its rows can be used.")
    arguments = {"rows": rows, "settings": settings, "tokenizer": tokenizer}
    dataset = datasets.IterableDataset.from_generator(_streamed, features=features, gen_kwargs=arguments)
    tally = Tally(dataset_format="streamed", notes=["streamed, so that nothing is counted"])
    # Its rows are not known. Another version of what prepares them does not make it another stream, unlike with `_key`.
    told = json.dumps(_deciding(settings), sort_keys=True, default=str)
    fingerprint = hashlib.sha256(told.encode()).hexdigest()
    report = _report(tally, settings, tokenizer_fingerprint(tokenizer), fingerprint=fingerprint)
    return PreparedData(dataset=dataset, report=report)


def _streamed(
    rows: RowSource, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, list[int]]]:
    limit = settings.max_length
    for row, examples in prepare_rows(rows, settings, tokenizer):
        for example in () if isinstance(examples, DataError) else examples:
            if example.token_weights is not None:
                raise row.error("has weights other than 0 and 1, which a stream does not carry. Leave --streaming out.")
            if limit is None or len(example.input_ids) <= limit or not settings.drop_long_rows:
                yield {"input_ids": example.input_ids[:limit], "labels": example.labels[:limit]}


def _deciding(settings: DataSettings) -> dict[str, Any]:
    """Return the settings without the one that does not change what is prepared."""
    return {**dataclasses.asdict(settings), "dataset_num_proc": None}


def _key(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, tokenizer_is: str, rows: RowSource) -> str:
    """Return a name for what is prepared: it changes with the rows, the settings, the tokenizer and the code."""
    content = {
        "settings": _deciding(settings),
        "tokenizer": [tokenizer_is, tokenizer.special_tokens_map],
        "rows": rows.identity,
        "code": _code_fingerprint(),
        # TRL's for its training templates.
        "packages": package_versions(("transformers", "tokenizers", "jinja2", "trl")),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:40]


@cache
def _code_fingerprint() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _prepare(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_is: str,
    rows: RowSource,
    folder: Path,
    *,
    progress: bool,
) -> None:
    processes = settings.dataset_num_proc or 1
    block_rows = max(1, min(_BLOCK_ROWS, -(-len(rows) // processes)))
    starts = range(0, len(rows), block_rows)
    with _bars(shown=progress and sys.stderr.isatty()):
        made = Dataset.from_dict({"start": list(starts)}).map(
            BlockPreparer(rows, settings, tokenizer, block_rows=block_rows, folder=folder),
            batched=True,
            batch_size=1,
            remove_columns=["start"],
            features=Features.from_arrow_schema(SCHEMA),
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(folder / "examples.arrow"),
            new_fingerprint=folder.name,
            load_from_cache_file=False,
            desc="tokenizing rows",
        )
    tally = read_tally(folder)
    if tally.rows_used == 0:
        raise _nothing_used(settings, tally)
    report = _report(tally, settings, tokenizer_is, fingerprint=_fingerprint(made.data.table))
    kept = {**dataclasses.asdict(report), **{name: getattr(tally, name) for name in _OPTIONAL}}
    write_text(folder / _REPORT, json.dumps(kept, indent=2) + "\n")


def _report(tally: Tally, settings: DataSettings, tokenizer_is: str, *, fingerprint: str) -> DataReport:
    return DataReport(
        **{entry.name: getattr(tally, entry.name) for entry in dataclasses.fields(RowCounts)},
        dataset_name=settings.dataset_name,
        fingerprint=fingerprint,
        tokenizer_fingerprint=tokenizer_is,
    )


def _nothing_used(settings: DataSettings, tally: Tally) -> DataError:
    why = f"All are longer than max_length={settings.max_length}."
    if tally.skipped:
        why = f"The first: {tally.skipped[0].reason}"
    elif tally.rows_of_no_weight:
        why = f"{tally.rows_of_no_weight} have the weight 0."
    return DataError(f"'{settings.dataset_name}': none of its {tally.rows_read} rows can be used. {why}")


def _load(folder: Path) -> PreparedData:
    kept = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
    absent = [column for name, column in _OPTIONAL.items() if not kept.pop(name)]
    report = DataReport(**{**kept, "skipped": [SkippedRow(**row) for row in kept["skipped"]]})
    dataset = datasets.concatenate_datasets([Dataset.from_file(str(file)) for file in sorted(folder.glob("*.arrow"))])
    return PreparedData(dataset=dataset.remove_columns(absent), report=report)


def _fingerprint(table: pyarrow.Table) -> str:
    digest = hashlib.sha256()
    for batch in table.to_batches():
        offsets = batch["input_ids"].offsets.to_numpy()
        # In 64 bits, as ever: scores are stored beside this value.
        ids, labels = (batch[name].flatten().to_numpy().astype(np.int64) for name in ("input_ids", "labels"))
        for start, stop in zip(offsets[:-1] - offsets[0], offsets[1:] - offsets[0], strict=True):
            digest.update(np.int64(stop - start).tobytes())
            digest.update(ids[start:stop])
            digest.update(labels[start:stop])
    return digest.hexdigest()


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Show the bars of `datasets`, or show none, whatever the process does otherwise."""
    before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


def check_tokens_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: PreparedData) -> None:
    """Refuse token ids that the model's embedding has not got: on a GPU they end in an assertion of the device.

    Of streamed data nothing is known before it is read.

    Raises:
        ConfigurationError: Names the token, and what to do.
    """
    if isinstance(data.dataset, datasets.IterableDataset):
        return
    embedding: Any = model.get_input_embeddings()
    column = data.dataset.data.table["input_ids"]
    largest = max(int(pyarrow.compute.max(chunk.flatten()).as_py() or 0) for chunk in column.chunks)
    if largest >= embedding.num_embeddings:
        raise ConfigurationError(
            f"'{data.report.dataset_name}' has token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), but the "
            f"model's embedding has only {embedding.num_embeddings} rows. The tokenizer is not this model's, or tokens "
            "were added to it: resize the model's embedding to the tokenizer and save both."
        )


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
    backend, template = tokenizer.backend_tokenizer.to_str(), json.dumps(tokenizer.chat_template)
    return _tokenizer_fingerprint(backend, template, bool(tokenizer.split_special_tokens))


@lru_cache(maxsize=4)  # a large vocabulary takes a second
def _tokenizer_fingerprint(backend: str, chat_template: str, split_special_tokens: bool) -> str:
    # Padding and truncation are set by the last call, and have no part in what a row's tokens are.
    content = {name: value for name, value in json.loads(backend).items() if name not in ("padding", "truncation")}
    content["chat_template"] = json.loads(chat_template)
    if split_special_tokens:  # seldom, and what is stored beside the fingerprint of all others stays usable
        content["split_special_tokens"] = True
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
