"""The folder of an evaluation: finished samples, and which job they belong to.

output_dir/
  job.json              what decides the text of a sample; another job is refused by the name of what differs
  samples/<task>.jsonl  one line a sample: appended when it is answered, graded and sorted by problem once all are there
  results.json          the figures
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.evaluation.results import Record
from profit_sft.files import write_text

_FORMAT = 1
_JOB = "job.json"


class EvalFolder:
    """Open the folder for a job.

    Args:
        output_dir: The folder; it may be new, or hold the same job.
        job: What decides the text of every sample, by setting; plain values.
        tasks: What decides that of one task's samples besides, by task and setting. The folder may hold others.

    Raises:
        ConfigurationError: The folder holds samples of another job.
        DataError: Its job.json cannot be read.
    """

    def __init__(self, output_dir: Path, job: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
        self.output_dir = output_dir
        self._path = output_dir / _JOB
        there = _read_job(self._path)
        if not any((output_dir / "samples").glob("*.jsonl")):
            there = None  # nothing was answered, so no setting is tied to an answer
        elif there is None:
            raise ConfigurationError(
                f"output_dir: '{output_dir}' holds samples but no job.json, which says of what model. Choose another "
                "folder or delete it."
            )
        earlier = {} if there is None else there["tasks"]
        if there is not None:
            self._refuse_another(there["job"], job, "")
            for name in tasks.keys() & earlier.keys():
                self._refuse_another(earlier[name], tasks[name], f"{name}: ")
        self._content: dict[str, Any] = {"format": _FORMAT, "job": dict(job), "tasks": {**tasks, **earlier}}
        self._started = there is not None

    def _refuse_another(self, there: Mapping[str, Any], mine: Mapping[str, Any], prefix: str) -> None:
        found = [
            f"{prefix}{name} {there[name]!r}, not {value!r}"
            for name, value in mine.items()
            if name in there and there[name] != value  # a greedy job has no temperature to differ in
        ]
        if found:
            raise ConfigurationError(
                f"output_dir: '{self.output_dir}' holds samples of another evaluation: {'; '.join(found)}. Choose "
                "another folder, delete it, or give the settings it was started with."
            )

    def start(self, task: str, **values: Any) -> None:
        """Write job.json, so that the folder is this job's.

        Args:
            task: A task, of which there is an answer now.
            values: What follows from the job and is known only once its model is loaded.
        """
        noted = {**self._content["tasks"][task], **values}
        if not self._started or noted != self._content["tasks"][task]:
            self._content["tasks"][task] = noted
            write_text(self._path, json.dumps(self._content, indent=2) + "\n")
            self._started = True

    def noted(self, task: str, name: str) -> Any:
        """Return what was written down; None: nothing was."""
        return self._content["tasks"][task].get(name)

    def devices(self, tasks: Iterable[str]) -> str:
        """Name where the answers of tasks were made, whichever call made them."""
        return ", ".join(sorted({device for task in tasks for device in self.noted(task, "devices") or ()}))

    def samples(self, task: str) -> "SampleFile":
        """Return the samples of a task."""
        return SampleFile(self.output_dir / "samples" / f"{task}.jsonl")

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        write_text(self.output_dir / "results.json", json.dumps(results, indent=2) + "\n")


def _read_job(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        is_job = found != _FORMAT or all(isinstance(content[part], dict) for part in ("job", "tasks"))
    except (ValueError, KeyError, TypeError):
        is_job = False
    if not is_job:
        raise DataError(f"{path} is no job file of an evaluation. Choose another folder.")
    if found != _FORMAT:
        raise DataError(f"{path} has format {found}, this version reads {_FORMAT}. Choose another folder.")
    return content


class SampleFile:
    """Finished samples of one task. To read them changes nothing.

    Args:
        path: The file; there may be none yet. What a killed run left of a line at its end is no sample, and goes with
            the first sample that is added.
        remedy: What to do where it cannot be read, a sentence.

    Raises:
        DataError: A line that is not the last one cannot be read.
    """

    def __init__(self, path: Path, remedy: str = "Delete the line or the file.") -> None:
        self._path, self._remedy = path, remedy
        self._records: dict[tuple[int, int], Record] = {}
        content = path.read_bytes() if path.is_file() else b""
        *lines, self._begun_line = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line.decode())
                self._records[record["problem"], record["sample"]] = record
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}, line {number}: not a sample's record. {remedy}") from None

    def get(self, key: tuple[int, int]) -> Record | None:
        """Return a sample by the numbers of its problem and its own; None: it is not there."""
        return self._records.get(key)

    def is_complete(self, problems: int, samples: int) -> bool:
        """Say whether the first `samples` samples of the first `problems` problems are there and graded."""
        wanted = ((problem, sample) for problem in range(problems) for sample in range(samples))
        return all("correct" in self._records.get(key, {}) for key in wanted)

    def add(self, records: Iterable[Record]) -> None:
        """Append samples and hand them to the operating system, so that killing this process loses none of them."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._begun_line:
            os.truncate(self._path, self._path.stat().st_size - len(self._begun_line))
            self._begun_line = b""
        with self._path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._records[record["problem"], record["sample"]] = record

    def grade(self, grades: Mapping[tuple[int, int], Record], *, anew: bool = False) -> None:
        """Add grades to samples, and rewrite the file in the order of problems and samples.

        Args:
            grades: By problem and sample.
            anew: What graded the others before does no longer; they are to be graded again.
        """
        if anew:
            for record in self._records.values():
                record.pop("correct", None)
        for key, grade in grades.items():
            self._records[key] = {**self._records[key], **grade}
        lines = (json.dumps(self._records[key], ensure_ascii=False) for key in sorted(self._records))
        write_text(self._path, "".join(f"{line}\n" for line in lines))
        self._begun_line = b""

    def select(self, problems: int, samples: int) -> list[Record]:
        """Return the records of the first `problems` problems and their first `samples` samples, in order."""
        return [self._records[problem, sample] for problem in range(problems) for sample in range(samples)]

    def by_problem(self) -> list[list[Record]]:
        """Return the samples of each problem of a finished evaluation, in order.

        Raises:
            DataError: There is none, or the file ends within a line.
        """
        if self._begun_line or not self._records:
            what = "ends within a line" if self._begun_line else "holds no samples"
            raise DataError(f"{self._path} {what}. {self._remedy}")
        samples: dict[int, list[Record]] = {}
        for key in sorted(self._records):
            samples.setdefault(key[0], []).append(self._records[key])
        return list(samples.values())


def task_fingerprints(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what tells each task apart that was answered in a folder: its problems, how they are asked and graded.

    Raises:
        DataError: Its job.json cannot be read.
    """
    content = _read_job(output_dir / _JOB)
    tasks = {} if content is None else content["tasks"]
    names = ("fingerprint", "generation_kwargs", "grading")
    return {task: {name: noted[name] for name in names if name in noted} for task, noted in tasks.items()}


def unsolved_share(output_dir: Path, *, tries: int) -> float:
    """Return the share of problems of which none of the first `tries` samples is right, over all tasks in a folder.

    That is 1 - pass@k (Chen et al. 2021, arXiv 2107.03374) at k = `tries`. Problems of which no sample was judged are
    left out.

    Raises:
        DataError: There is no finished evaluation, or it has fewer samples a problem.
    """
    evaluate_again = f"Run profit eval with --samples {tries} into a folder of its own."
    found = []
    for path in sorted((output_dir / "samples").glob("*.jsonl")):
        for problem in SampleFile(path, evaluate_again).by_problem():
            graded = [sample["correct"] for sample in problem[:tries] if "correct" in sample]
            if len(graded) < tries:
                raise DataError(
                    f"{path}: problem {problem[0]['problem']} has {len(graded)} graded samples, {tries} are needed. "
                    f"{evaluate_again}"
                )
            if any(right is not None for right in graded):
                found.append(not any(graded))
    if not found:
        raise DataError(f"{output_dir} holds no answers of profit eval to problems. {evaluate_again}")
    return sum(found) / len(found)


def refuse_answers_of_another_model(output_dir: Path, model_name_or_path: str, model_fingerprint: str) -> None:
    """Raise DataError where the answers in the folder of an evaluation are known to be of another model.

    Also where its job.json, which tells that, cannot be read.
    """
    content = _read_job(output_dir / _JOB)
    job = {} if content is None else content["job"]
    if job.get("model_fingerprint") not in (None, model_fingerprint):
        raise DataError(
            f"{output_dir} has the answers of '{job.get('model')}', which is not the model of the scores, "
            f"'{model_name_or_path}'. Run profit eval on that model: what counts is what it can do before training."
        )
