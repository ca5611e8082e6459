"""The score store: what a frozen model thinks of every label token of a data set, in Parquet shards.

folder/
  scores.json          the manifest (`ScoreManifest`), written last: where it is, the scores are complete
  progress.json        the job (`ScoreJob`) while it is unfinished, so that another run goes on or refuses another job
  tokenizer/           the tokenizer, so that the folder can be read without the model
  shard-00000.parquet  `shard_rows` examples in data order, one row each, see `ScoredExample`; then shard-00001, ...

Every file appears complete or not at all. Shards hold the columns `example`, `row` (int64), `input_ids`, `positions`,
`top1`, `rank` (lists of int32), `log_probs`, `entropy` (lists of float32), `token_kinds` (lists of int8, or null), and
`likeliest` (int32) and `likeliest_log_probs` (float16): for each label token in turn as many as the manifest says, or
null for none. Format 1 lacks these two.
"""

import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.files import atomic_path, check_regular_files, package_versions, write_text
from profit_sft.scores.loop import LabelScores

FORMAT = 2
_READ_FORMATS = (1, 2)
_MANIFEST, _PROGRESS, _TOKENIZER = "scores.json", "progress.json", "tokenizer"
_PACKAGES = ("profit-sft", "torch", "transformers")
_PER_TOKEN = {
    "positions": pyarrow.int32(),
    "log_probs": pyarrow.float32(),
    "entropy": pyarrow.float32(),
    "top1": pyarrow.int32(),
    "rank": pyarrow.int32(),
    "token_kinds": pyarrow.int8(),
}
# Several a token, one token's after the other's. Half precision gives p to three digits in half the bytes.
_LIKELIEST = {"likeliest": pyarrow.int32(), "likeliest_log_probs": pyarrow.float16()}
_SCHEMA = pyarrow.schema(
    {
        "example": pyarrow.int64(),
        "row": pyarrow.int64(),
        "input_ids": pyarrow.list_(pyarrow.int32()),
        **{name: pyarrow.list_(kind) for name, kind in {**_PER_TOKEN, **_LIKELIEST}.items()},
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredExample(LabelScores):
    """One example, with what the model thinks of its `T` label tokens.

    Attributes:
        example: Index in the prepared data set, from 0.
        row: Number of the row in the source file, from 1.
        input_ids: `(S,)`, int32. All tokens.
        positions: `(T,)`, int32. Indices into `input_ids` of the label tokens, each at least 1.
        token_kinds: `(T,)`, int8, one of `data.tokenize.TOKEN_KINDS`, or None where rows carry no `answer_spans`.

    Raises:
        ValueError: Lengths differ, or a position lies outside the example.
    """

    example: int
    row: int
    input_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    token_kinds: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name in _PER_TOKEN if (value := getattr(self, name)) is not None}
        lengths |= {name: len(value) for name in _LIKELIEST if (value := getattr(self, name)) is not None}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"example {self.example}: per-token values must be equally long, got {lengths}.")
        if len(self.positions) and not (self.positions.min() >= 1 and self.positions.max() < len(self.input_ids)):
            raise ValueError(
                f"example {self.example}: positions must lie in [1, {len(self.input_ids)}), got "
                f"{self.positions.min()} to {self.positions.max()}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreJob:
    """What is being scored, by which model and how.

    Attributes:
        format: Version of the store.
        model_name_or_path: The frozen model, as given.
        model_fingerprint: What makes it the same model, see `profit_sft.models.fingerprint.model_fingerprint`.
        data: `profit_sft.data.prepare.DataReport` as a dict: fingerprints of tokens and tokenizer, and counts.
        data_settings: `profit_sft.data.settings.DataSettings` as a dict.
        dtype: The model's dtype.
        engine: What ran it: `hf`, transformers.
        shard_rows: Examples in every shard but the last.
        has_token_kinds: True if rows carry `answer_spans`.
        likeliest: How many of the likeliest tokens are kept with each label token.
    """

    format: int = FORMAT
    model_name_or_path: str
    model_fingerprint: str
    data: Mapping[str, Any]
    data_settings: Mapping[str, Any]
    dtype: str
    engine: str
    shard_rows: int
    has_token_kinds: bool
    likeliest: int = 0

    @property
    def num_examples(self) -> int:
        """Examples of the data set."""
        return int(self.data["rows_used"])

    @property
    def num_label_tokens(self) -> int:
        """Label tokens of all examples."""
        return int(self.data["label_tokens"])

    @property
    def num_shards(self) -> int:
        """Shards of the finished store."""
        return math.ceil(self.num_examples / self.shard_rows)

    def shard_range(self, shard: int) -> range:
        """Return the examples of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_examples))

    def difference(self, other: "ScoreJob") -> str | None:
        """Say in words in what `other` is another job (this one's value first), or return None.

        The same model or file under another name is the same job: fingerprints decide, settings explain.
        """
        found = [
            name
            for name in ("dtype", "engine", "shard_rows", "likeliest")
            if getattr(self, name) != getattr(other, name)
        ]
        parts = [f"{name} {getattr(self, name)!r}, not {getattr(other, name)!r}" for name in found]
        if self.model_fingerprint != other.model_fingerprint:
            mine, theirs = self.model_name_or_path, other.model_name_or_path
            parts.insert(0, f"model {mine!r}, not {theirs!r}" if mine != theirs else f"model {mine!r} as it was then")
        if self.has_token_kinds != other.has_token_kinds:
            parts.append(f"{'with' if self.has_token_kinds else 'without'} answer_spans")
        parts += data_differences(self.data, self.data_settings, other.data, other.data_settings)
        return "; ".join(parts) or None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreManifest(ScoreJob):
    """A finished job.

    Attributes:
        mean_nll: Mean of `-log p` over all label tokens, nats.
        versions: Of the packages that decide about the numbers; None: not installed.
    """

    mean_nll: float
    versions: Mapping[str, str | None]


def as_stored(value: Any) -> dict[str, Any]:
    """Return a `DataReport` or `DataSettings` as a manifest's JSON gives it back, to be compared with one."""
    stored: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(value)))
    return stored


def data_differences(
    report: Mapping[str, Any],
    settings: Mapping[str, Any],
    other_report: Mapping[str, Any],
    other_settings: Mapping[str, Any],
) -> list[str]:
    """Say in words in what two prepared data sets differ; empty if their tokens, labels and tokenizers are the same.

    Args:
        report: A `DataReport` as a dict.
        settings: Its `DataSettings` as a dict.
        other_report: The same of the other data set, whose values are named second.
        other_settings: The same of the other data set.
    """
    parts = []
    if report["tokenizer_fingerprint"] != other_report["tokenizer_fingerprint"]:
        parts.append("another tokenizer or chat template")
    if report["fingerprint"] == other_report["fingerprint"]:
        return parts
    settings_that_differ = [
        f"{name} {value!r}, not {other_settings.get(name)!r}"
        for name, value in settings.items()
        if value != other_settings.get(name) and name not in ("skip_bad_rows", "dataset_num_proc")
    ]
    counts = [
        f"{report[name]} {words}, not {other_report[name]}"
        for name, words in (("rows_used", "rows"), ("label_tokens", "label tokens"))
        if report[name] != other_report[name]
    ]
    return parts + settings_that_differ + counts or ["other tokens or labels of as many rows"]


class ScoreWriter:
    """Write a store shard by shard, in any order, from any number of processes. One of them starts and finishes it.

    Args:
        folder: The store.
        job: What is written there.

    Raises:
        ConfigurationError: The folder holds the scores, or the progress, of another job; says what differs.
        DataError: A manifest there cannot be read.
    """

    def __init__(self, folder: str | Path, job: ScoreJob) -> None:
        self.folder = Path(folder)
        self.job = job
        there = _read_job(self.folder)
        if there is None and any(self.folder.glob("shard-*.parquet")):
            raise ConfigurationError(
                f"output_dir: '{folder}' holds shards, but neither {_PROGRESS} nor {_MANIFEST}, which say of what. "
                "Choose another folder or delete it."
            )
        difference = None if there is None else there.difference(job)
        if difference is not None:
            raise ConfigurationError(
                f"output_dir: '{folder}' holds the scores of another job: {difference}. Choose another folder, delete "
                "it, or give the settings it was started with."
            )

    def start(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make the folder, unless an earlier run has."""
        if self.is_finished or (self.folder / _PROGRESS).is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tokenizer.", dir=self.folder) as temporary:
            tokenizer.save_pretrained(Path(temporary) / _TOKENIZER)
            shutil.rmtree(self.folder / _TOKENIZER, ignore_errors=True)
            (Path(temporary) / _TOKENIZER).rename(self.folder / _TOKENIZER)  # whole, or not there
        write_text(self.folder / _PROGRESS, json.dumps(dataclasses.asdict(self.job), indent=2) + "\n")

    @property
    def is_finished(self) -> bool:
        """True once the manifest is there."""
        return (self.folder / _MANIFEST).is_file()

    def missing_shards(self) -> list[int]:
        """Return the numbers of the shards that are not there yet; one that a crash left torn is not there."""
        return [shard for shard in range(self.job.num_shards) if not self._is_whole(shard)]

    def _is_whole(self, shard: int) -> bool:
        try:
            metadata = pyarrow.parquet.read_metadata(shard_path(self.folder, shard))
        except (OSError, pyarrow.ArrowException):
            return False
        return bool(metadata.num_rows == len(self.job.shard_range(shard)))

    def write_shard(self, shard: int, examples: Sequence[ScoredExample]) -> None:
        """Write one shard, completely or not at all.

        Args:
            shard: Its number.
            examples: Its examples in data order.

        Raises:
            ValueError: These are not the examples of that shard.
        """
        expected = self.job.shard_range(shard)
        if [example.example for example in examples] != list(expected):
            raise ValueError(f"shard {shard} must hold examples {expected.start} to {expected.stop - 1} in order.")
        columns = {name: [_flat(getattr(example, name)) for example in examples] for name in _SCHEMA.names}
        with atomic_path(shard_path(self.folder, shard)) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(columns, schema=_SCHEMA), temporary, compression="zstd")

    def finish(self) -> "ScoreSet":
        """Write the manifest and return the store. Every shard must be there.

        Raises:
            DataError: A shard is missing, or does not hold what it should.
        """
        if not self.is_finished:
            fields = {entry.name: getattr(self.job, entry.name) for entry in dataclasses.fields(self.job)}
            manifest = ScoreManifest(**fields, mean_nll=math.nan, versions=package_versions(_PACKAGES))
            log_probs = ScoreSet(self.folder, manifest).column("log_probs")
            if len(log_probs) != self.job.num_label_tokens:
                raise DataError(
                    f"'{self.folder}' holds {len(log_probs)} label tokens where the data has "
                    f"{self.job.num_label_tokens}. Delete it and score again."
                )
            manifest = dataclasses.replace(manifest, mean_nll=-float(log_probs.mean(dtype=np.float64)))
            write_text(self.folder / _MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")
        (self.folder / _PROGRESS).unlink(missing_ok=True)
        for left_by_a_kill in self.folder.glob(".*.tmp"):
            left_by_a_kill.unlink(missing_ok=True)
        return load_scores(self.folder)


class ScoreSet:
    """A finished store. Reads one shard at a time.

    Args:
        folder: The store.
        manifest: Its manifest. `load_scores` reads it.

    Raises:
        DataError: A shard is missing.
    """

    def __init__(self, folder: str | Path, manifest: ScoreManifest) -> None:
        self.folder = Path(folder)
        self.manifest = manifest
        for shard in range(manifest.num_shards):
            if not shard_path(self.folder, shard).is_file():
                raise DataError(
                    f"'{self.folder}' lacks {shard_path(self.folder, shard).name}. Copy the folder again, or delete it "
                    "and score again."
                )

    def __len__(self) -> int:
        return self.manifest.num_examples

    def __iter__(self) -> Iterator[ScoredExample]:
        for shard in range(self.manifest.num_shards):
            yield from _examples(self._read(shard))

    @property
    def has_kinds(self) -> bool:
        """True if label tokens are known to be core or style."""
        return self.manifest.has_token_kinds

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer the data was prepared with, chat template included."""
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder / _TOKENIZER)
        return tokenizer

    def column(self, name: str) -> NDArray[Any]:
        """Return one value of every label token, all examples concatenated in data order.

        Args:
            name: `log_probs`, `entropy`, `rank`, `top1`, `token_kinds`, `positions`, or `token_ids` (the labels).

        Raises:
            ValueError: There is no such column.
            DataError: `token_kinds` of data without spans.
        """
        if name == "token_ids":
            return np.concatenate([example.input_ids[example.positions] for example in self])
        if name not in _PER_TOKEN:
            raise ValueError(f"column must be one of {', '.join(_PER_TOKEN)} or token_ids, got {name!r}.")
        if name == "token_kinds" and not self.has_kinds:
            raise DataError(
                f"'{self.folder}': the data has no 'answer_spans', so no token is known to be core or style. Add that "
                "column to the data and score again."
            )
        parts = [self._read(shard, columns=[name]) for shard in range(self.manifest.num_shards)]
        return np.concatenate([part.column(name).combine_chunks().flatten().to_numpy() for part in parts])

    def _read(self, shard: int, columns: list[str] | None = None) -> Any:
        path = shard_path(self.folder, shard)
        try:
            table = pyarrow.parquet.read_table(path, columns=columns)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"'{path}' cannot be read ({error}). Delete the folder and score again.") from None
        expected = len(self.manifest.shard_range(shard))
        if table.num_rows != expected:
            raise DataError(f"'{path}' has {table.num_rows} rows, not {expected}. Delete the folder and score again.")
        return table


def shard_path(folder: Path, shard: int) -> Path:
    """Return where a shard lies."""
    return folder / f"shard-{shard:05d}.parquet"


def load_scores(folder: str | Path) -> ScoreSet:
    """Open a finished store.

    Args:
        folder: What `profit score --out` wrote.

    Raises:
        DataError: There is no store, it is unfinished, or of another format; names the fix.
    """
    folder = Path(folder)
    check_regular_files(folder)
    manifest = _read_job(folder)
    if manifest is None:
        raise DataError(
            f"'{folder}' holds no scores (it has no {_MANIFEST}). Make them: profit score DATA --model M --out {folder}"
        )
    if not isinstance(manifest, ScoreManifest):
        shards = len(list(folder.glob("shard-*.parquet")))
        raise DataError(
            f"'{folder}' is unfinished: {shards} of {manifest.num_shards} shards are there. Run the `profit score` "
            "command that began it once more; it goes on where it stopped."
        )
    return ScoreSet(folder, manifest)


def _read_job(folder: Path) -> ScoreJob | None:
    """Return the finished job there, or the unfinished one, or None."""
    for name, kind in ((_MANIFEST, ScoreManifest), (_PROGRESS, ScoreJob)):
        path = folder / name
        if path.is_file():
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
                if fields["format"] not in _READ_FORMATS:
                    raise DataError(
                        f"'{path}' has format {fields['format']!r}; this version reads {FORMAT}. Score again, or use "
                        "the version of profit-sft that wrote it."
                    )
                return kind(**fields)
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"'{path}' is no score manifest ({error!r}). Delete it and score again.") from None
    return None


def _examples(table: Any) -> Iterator[ScoredExample]:
    scalars = {name: table.column(name).to_pylist() for name in ("example", "row")}
    lists = {name: _split(table.column(name)) for name in table.column_names if name not in scalars}
    for index in range(table.num_rows):
        values = {name: column[index] for name, column in lists.items()}
        for name in _LIKELIEST:
            if values.get(name) is not None:
                count = len(values["positions"])
                values[name] = values[name].reshape(count, len(values[name]) // max(count, 1))
        yield ScoredExample(example=scalars["example"][index], row=scalars["row"][index], **values)


def _flat(value: Any) -> Any:
    return value.reshape(-1) if isinstance(value, np.ndarray) else value


def _split(column: Any) -> list[Any]:
    """Turn a column of lists into arrays, which share one buffer; null becomes None."""
    array = column.combine_chunks()
    offsets, values = array.offsets.to_numpy(), array.values.to_numpy()
    null = array.is_null().to_numpy(zero_copy_only=False)
    return [None if null[index] else values[offsets[index] : offsets[index + 1]] for index in range(len(array))]
