"""Find the rows that a name means: a file, a folder's split, a saved data set, or one of the hub."""

import difflib
import itertools
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from profit_sft.data.row import Row, RowSource, chained, selected
from profit_sft.data.row_files import COMPRESSED, SUFFIXES, kind_of, open_file
from profit_sft.data.settings import TEST_SPLIT
from profit_sft.errors import DataError, first_line

# A name that ends so means a file, not a hub data set ('nobody/data-v1.5' has a suffix too).
_FILE_SUFFIXES = (*SUFFIXES, *COMPRESSED, ".txt", ".xlsx", ".zst", ".zip", ".yaml", ".yml", ".pkl")
_SAVED_SPLITS, _SAVED_ALONE = "dataset_dict.json", "state.json"  # what save_to_disk writes of several, and of one
DataFiles = str | Sequence[str] | Mapping[str, str]


def load_rows(
    source: str,
    *,
    name: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    data_files: DataFiles | None = None,
    streaming: bool = False,
) -> RowSource:
    """Find the rows of a file, a folder, a data set that `save_to_disk` wrote, or one of the hub.

    Which files of a folder or hub data set belong to a split is settled by the rules of `datasets`: its README, or
    else names such as `train.jsonl`, `data/test-00000-of-00002.parquet` or `validation/rows.csv`; where no name says
    so, all are of the split `train`.

    A line of a jsonl file or a record of a csv file that cannot be read is yielded with its `problem`, so that the
    caller may leave it out; the rest is raised here.

    Args:
        source: A file, a folder, or a hub name. A file is one split, whatever its name.
        name: Configuration of a folder or hub data set.
        split: Split of a folder or hub data set, or a part of one, as `train[:1000]`.
        data_dir: Folder inside a folder or hub data set.
        data_files: Files of it, in place of those of the split rules; also with `json`, `csv`, `parquet` or `arrow` as
            the source.
        streaming: Read nothing before it is asked for: files are not counted, hub data sets are not downloaded.

    Raises:
        DataError: The source does not exist, is empty, of an unknown kind, or a file of which a configuration or
            another split than `train` is asked; the message says what to do.
    """
    path = Path(source).expanduser()
    if data_files is not None and f".{source}" in (*SUFFIXES, ".text"):
        rows = _split_of(source, _files(Path(), data_files), split)
    elif path.is_dir():
        rows = _folder(path / (data_dir or ""), name, split, data_files)
    elif path.exists():
        if name is not None or split != "train":
            what = f"the configuration '{name}'" if name is not None else f"the split '{split}'"
            raise DataError(
                f"'{source}' is a file, in which nothing is named {what}. Leave that out (max_samples takes the first "
                "rows), or name a folder or a hub data set."
            )
        rows = open_file(path)
    elif means_a_file(source):
        raise DataError(
            f"'{source}' does not exist.{near_name(source)} Check the path: a {', '.join(SUFFIXES)} file or a folder "
            "of them. A hub data set is named like 'openai/gsm8k'."
        )
    else:
        files = {"data_dir": data_dir, "data_files": data_files}
        rows = _loaded(source, name, split, {key: value for key, value in files.items() if value}, streaming=streaming)
    if not streaming and len(rows) == 0:
        raise DataError(f"'{source}' has no rows. Name a file or split with at least one.")
    return rows


def means_a_file(source: str) -> bool:
    """Hub names are 'name' or 'owner/name'; anything that looks otherwise was meant as a path."""
    looks_like_a_path = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    return looks_like_a_path or source.lower().endswith(_FILE_SUFFIXES)


def near_name(source: str) -> str:
    """Return the question whether a file of much the same name was meant, where its folder has one, or nothing."""
    path = Path(source).expanduser()
    try:
        there = sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):  # ValueError: a name with a null character
        return ""
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.85)
    return f" Did you mean '{Path(source).with_name(near[0])}'?" if near else ""


def has_splits(source: str) -> bool:
    """Whether a source is a folder or a hub data set; a file, or a data set saved alone, is one split, of no name."""
    path = Path(source).expanduser()
    if path.is_dir():
        return not (path / _SAVED_ALONE).is_file()
    return not (path.exists() or means_a_file(source))


def evaluation_split(source: str, asked: str) -> str:
    """Return the split of a source to evaluate on: what is asked, or all of what has none where that is `test`."""
    return asked if asked != TEST_SPLIT or has_splits(source) else "train"


def _folder(folder: Path, name: str | None, split: str, data_files: DataFiles | None) -> RowSource:
    if (folder / _SAVED_SPLITS).is_file() or (folder / _SAVED_ALONE).is_file():
        import datasets

        if name is not None or data_files is not None:
            what = f"data_files {data_files!r}" if name is None else f"configuration '{name}'"
            raise DataError(f"'{folder}' is a data set that save_to_disk wrote, which has no {what}. Leave it out.")
        saved = datasets.load_from_disk(folder)
        parts = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return _split_of(str(folder), {str(key): [part] for key, part in parts.items()}, split)
    if not folder.is_dir():
        raise DataError(f"folder '{folder}' does not exist. Check --data_dir.")
    files = _files(folder, data_files, name)
    if not files:  # images, text, archives: `datasets` knows how to read them, if not where each row stands
        return _loaded(str(folder), name, split, {"data_files": data_files} if data_files else {}, streaming=False)
    return _split_of(str(folder), files, split)


def _files(folder: Path, data_files: DataFiles | None, name: str | None = None) -> dict[str, list[Path]]:
    """Return a folder's files by split, as `datasets` would: what is asked for, what its README says, or by names."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns

    try:
        patterns: Any = data_files or _patterns_of_readme(folder, name)
        patterns = sanitize_patterns(patterns) if patterns else get_data_patterns(str(folder))
        found = DataFilesDict.from_patterns(patterns, base_path=str(folder.absolute()))
    except (FileNotFoundError, EmptyDatasetError, ValueError) as error:
        raise _no_files(folder, data_files, error) from None
    if not any(found.values()):
        raise _no_files(folder, data_files, "nothing matches")
    by_split = {str(split): [Path(file) for file in files] for split, files in found.items()}
    read = {split: [file for file in files if kind_of(file) in SUFFIXES] for split, files in by_split.items()}
    return {split: files for split, files in read.items() if files}


def _no_files(folder: Path, data_files: DataFiles | None, why: object) -> DataError:
    asked = f"folder '{folder}'" if data_files is None else f"data_files {data_files!r}"
    return DataError(f"{asked}: no data file is there ({why}). Name a {', '.join(SUFFIXES)} file, or another folder.")


def _patterns_of_readme(folder: Path, name: str | None) -> Any:
    """Return the `data_files` that the folder's README names for a configuration, or None where it names none."""
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    readme = folder / "README.md"
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(readme).data) if readme.is_file() else {}
    configs = {key: value for key, value in configs.items() if "data_files" in value}
    if not configs:
        if name is not None:
            raise DataError(f"folder '{folder}' has no configuration '{name}': no README names any. Leave it out.")
        return None
    default = next((key for key, value in configs.items() if value.get("default")), None)
    wanted = name or default or ("default" if "default" in configs else None)
    if wanted is None and len(configs) == 1:
        (wanted,) = configs
    if wanted not in configs:
        raise DataError(
            f"folder '{folder}' has the configurations {', '.join(configs)}"
            + ("" if name is None else f", and none is '{name}'")
            + ". Name one with --dataset_config."
        )
    return configs[wanted]["data_files"]


def _split_of(source: str, by_split: Mapping[str, Sequence[Any]], split: str) -> RowSource:
    """Return one split's rows, or a part of one or several: `train[:10%]`, `train+test`."""
    from datasets import ReadInstruction

    def opened(name: str) -> RowSource:
        parts = by_split[name]
        return chained(source, [open_file(part) if isinstance(part, Path) else _table(part, source) for part in parts])

    if split in by_split:
        return opened(split)
    try:
        instruction = ReadInstruction.from_spec(split)
        names = [name for name in by_split if name in split]
        lengths = {name: len(opened(name)) for name in names}
        parts = [(part.splitname, part.from_ or 0, part.to) for part in instruction.to_absolute(lengths)]
    except (ValueError, AssertionError):
        raise DataError(
            f"'{source}' has no split '{split}'; it has {', '.join(by_split)}. Name one of them, or a file."
        ) from None
    return chained(
        source,
        [
            selected(opened(name), range(start, lengths[name] if stop is None else stop), f"{name}[{start}:{stop}]")
            for name, start, stop in parts
        ],
    )


def _loaded(source: str, name: str | None, split: str, files: Mapping[str, Any], *, streaming: bool) -> RowSource:
    import datasets

    try:
        dataset = datasets.load_dataset(source, name=name, split=split, streaming=streaming, **files)
    except Exception as error:  # the hub client raises many kinds, offline most of all
        raise DataError(
            f"'{source}' is no local file, and could not be loaded from the hub, split '{split}' ({first_line(error)})."
            " Check the name, --dataset_config and the split, or name a local file."
        ) from error
    return _table(dataset, source)


def _table(dataset: Any, source: str) -> RowSource:
    """Return the rows of a `Dataset`, or of an `IterableDataset`, which cannot be counted."""
    identity = getattr(dataset, "_fingerprint", "")
    return RowSource(source, partial(_table_rows, dataset, source), count=lambda: len(dataset), identity=identity)


def _table_rows(dataset: Any, source: str, start: int) -> Generator[Row]:
    rest = dataset.skip(start) if start else dataset
    for number, values in zip(itertools.count(start + 1), rest):
        yield Row(values, source, number)
