"""The problems of a benchmark: from a folder of jsonl files, from the hub, or generated."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profit_sft.data.generated import generate_problems
from profit_sft.errors import DataError, DownloadError

Problem = Mapping[str, Any]
GENERATED_PROBLEMS = 400  # of the 420 there are


@dataclass(frozen=True, slots=True)
class Source:
    """Where a benchmark comes from.

    Attributes:
        columns: The columns a row must have.
        file: Name of its file in a data folder; None: it may not be copied, so it comes from the hub only.
        hub_name: Its name on the hub.
        hub_config: Its configuration there, or None.
        hub_split: Its split there.
    """

    columns: tuple[str, ...]
    file: str | None
    hub_name: str
    hub_config: str | None
    hub_split: str


SOURCES = {
    "gsm8k": Source(("question", "answer"), "gsm8k_test.jsonl", "openai/gsm8k", "main", "test"),
    "math500": Source(("problem", "answer"), "math500.jsonl", "HuggingFaceH4/MATH-500", None, "test"),
    "aime24": Source(("problem", "answer"), "aime24.jsonl", "HuggingFaceH4/aime_2024", None, "train"),
    "ifeval": Source(
        ("key", "prompt", "instruction_id_list", "kwargs"), "ifeval.jsonl", "google/IFEval", None, "train"
    ),
    "gpqa_diamond": Source(
        ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        None,
        "Idavidrein/gpqa",
        "gpqa_diamond",
        "train",
    ),
}


def load_problems(task: str, data_dir: Path | None) -> list[Problem]:
    """Load all problems of a task, in the order of its file or data set.

    Args:
        task: A key of `SOURCES`.
        data_dir: A folder with its file. None: the hub.

    Raises:
        DataError: The file is missing, or a row of it cannot be used.
        DownloadError: The hub cannot be reached, or does not give the data set out.
    """
    source = SOURCES[task]
    if data_dir is not None and source.file is not None:
        path = data_dir / source.file
        rows, place = _read_file(path, task), f"{path}, line"
    else:
        rows, place = _read_hub(source, task), f"{source.hub_name}, row"
    for number, row in enumerate(rows, start=1):
        missing = [column for column in source.columns if column not in row]
        if missing:
            raise DataError(
                f"{place} {number}: no column {missing[0]!r}. {task} needs {', '.join(source.columns)}; this row has "
                f"{', '.join(row)}."
            )
    if not rows:
        raise DataError(f"{place} 1: there is none, so {task} has no problems.")
    return rows


def _read_file(path: Path, task: str) -> list[Problem]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: rows may hold its other separators
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"data_dir: {task} needs {path}, which cannot be read ({reason}). Put the file there, leave {task} out, or "
            "leave out data_dir to load it from the hub."
        ) from None
    rows: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}.")
        rows.append(row)
    return rows


def _read_hub(source: Source, task: str) -> list[Problem]:
    from datasets import load_dataset

    try:
        data = load_dataset(source.hub_name, source.hub_config, split=source.hub_split)
    # Offline, unknown, gated, broken: the hub's client has a class of its own for each, without a common base.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(
            f"{task}: the data set {source.hub_name} could not be loaded from the hub ({reason}). "
            f"{_remedy(source, task)}"
        ) from None
    return list(data)


def _remedy(source: Source, task: str) -> str:
    if source.file is None:
        return (
            f"Its authors ask that it is not copied, so it comes from the hub only: accept its terms on "
            f"huggingface.co/datasets/{source.hub_name}, log in with `hf auth login`, and run where the hub can be "
            f"reached; or leave {task} out."
        )
    return f"Name a folder that holds {source.file} with --data_dir, or leave {task} out."


def generated_problems() -> list[Problem]:
    """Return the project's own held-out problems; the first 48 are the quickstart's."""
    problems = generate_problems(GENERATED_PROBLEMS, seed=1, split="test")
    return [{"question": problem.question, "answer": str(problem.final_answer)} for problem in problems]
