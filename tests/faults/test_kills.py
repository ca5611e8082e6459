"""Processes that are killed at random moments, and go on: what they leave in the end is what nobody disturbed.

Half of the kills of a training run are inside a save. A kill counts where the process was still at work. The processes
are forked from one that has imported everything, which takes longer than most of what is killed; a study starts its
own, as always.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from injection import TALLY

from campaign import WHOLE
from forks import Process, start
from profit_sft.scores.store import load_scores
from profit_sft.study.layout import StudyFolder

pytestmark = pytest.mark.slow
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DEADLINE_SECONDS = 600  # of one process, on a busy machine
LONGEST_SAVE_SECONDS = 0.04  # of the tiny model


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that can be killed.

    Attributes:
        words: After `profit`, of a folder; `again` after what happened to an earlier attempt.
        again: Those that go on.
        progress: How far it has come, from 0 to `total`. Asked often.
        total: Where it ends.
        result: What must be the same in the end.
        kills: How often in a whole campaign, and in a sample.
    """

    words: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    progress: Callable[[Path], int]
    total: int
    result: Callable[[Path], Any]
    kills: tuple[int, int]


def lines_of(path: Path) -> list[dict[str, Any]]:
    found = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in found if line.endswith("}")]


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def train_job(model: str, rows: str) -> Job:
    def words(folder: Path) -> list[str]:
        return [
            *("train", "--model_name_or_path", model, "--dataset_name", rows, "--output_dir", str(folder)),
            *("--max_steps", "30", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2"),
            *("--logging_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "True", "--probe_rows", "0"),
            *("--threshold", "0.0034", "--learning_rate", "1e-3"),
        ]

    def again(folder: Path) -> list[str]:
        if any(folder.glob("checkpoint-*")):
            return [*words(folder), "--resume_from_checkpoint", "latest"]
        return [*words(folder), "--overwrite_output_dir", "True"]

    def result(folder: Path) -> Any:
        if not (folder / "model.safetensors").exists():
            return None
        steps = [line["step"] for line in lines_of(folder / "metrics.jsonl") if "loss" in line]
        return steps, (folder / "model.safetensors").read_bytes()

    return Job(
        words=words,
        again=again,
        progress=lambda folder: count_lines(folder / "metrics.jsonl"),
        total=30,
        result=result,
        kills=(100, 2),
    )


def score_job(model: str, rows: str) -> Job:
    def words(folder: Path) -> list[str]:
        return ["score", rows, "--model", model, "--out", str(folder), "--shard-rows", "1", "--max-batch-tokens", "64"]

    return Job(
        words=words,
        again=words,
        progress=lambda folder: len(list(folder.glob("shard-*.parquet"))),
        total=8,
        result=lambda folder: load_scores(folder).column("log_probs").tobytes(),
        kills=(20, 1),
    )


def eval_job(model: str, rows: str) -> Job:
    def words(folder: Path) -> list[str]:
        decoding = ("--samples", "4", "--max_new_tokens", "48", "--batch_size", "2", "--limit", "8")
        return ["eval", model, "--tasks", "generated", "--output_dir", str(folder), *decoding]

    def result(folder: Path) -> Any:
        samples = lines_of(folder / "samples" / "generated.jsonl")
        return [(sample["problem"], sample["sample"], sample["correct"], sample["answer"]) for sample in samples]

    return Job(
        words=words,
        again=words,
        progress=lambda folder: count_lines(folder / "samples" / "generated.jsonl"),
        total=32,
        result=result,
        kills=(20, 1),
    )


def study_job(model: str, rows: str) -> Job:
    def words(folder: Path) -> list[str]:
        content = {
            "model_name_or_path": model,
            "dataset_name": rows,
            "heldout_dataset_name": rows,
            "train": {"max_steps": 20, "save_strategy": "steps", "save_steps": 4, "use_cpu": True, "logging_steps": 1},
            "cells": [{"objective": "nll"}],
        }
        file = folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(content))
        return ["study", str(file), "--output_dir", str(folder)]

    def result(folder: Path) -> Any:
        summary = json.loads(StudyFolder(folder).cell("nll-s0").finished.read_text())
        return summary["training"], summary["heldout"]

    return Job(
        words=words,
        again=words,
        progress=lambda folder: count_lines(StudyFolder(folder).cell("nll-s0").run / "metrics.jsonl"),
        total=20,
        result=result,
        kills=(20, 0),
    )


JOBS = {"train": train_job, "score": score_job, "eval": eval_job, "study": study_job}


def kill_at(process: Process, moment: Callable[[], bool], number: int, *, twice: bool) -> tuple[bool, int | None]:
    """Send a signal as soon as it is the moment; return whether there was somebody to get it, and how it ended."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while process.is_alive() and not moment() and time.monotonic() < deadline:
        time.sleep(0.004)
    was_at_work = process.is_alive()
    for again in range(1 + twice):
        if again:
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
    process.join(DEADLINE_SECONDS)
    if process.is_alive():
        process.kill()
        return was_at_work, None
    return was_at_work, process.exitcode


def killed_wrong(status: int | None, number: int, err: str, *, twice: bool) -> str | None:
    """Return what is wrong about the end of a process that got a signal, None if nothing."""
    if status is None:
        return f"hung after signal {number}"
    if status == 0 or number == signal.SIGKILL or (twice and status < 0):
        return None
    # A handler is there from the start of the work on; before it Python ends by the signal.
    if status not in (130, -number):
        return f"status {status} after signal {number}: {err[-300:]}"
    return f"traceback: {err[-300:]}" if "Traceback" in err and "KeyboardInterrupt" not in err else None


def is_saving(folder: Path) -> bool:
    saving = folder / ".saving"
    return saving.is_dir() and any(saving.iterdir())


# A study, which takes the longest, is killed by tests/study/test_real_study.py besides.
@pytest.mark.parametrize("name", [name for name in JOBS if WHOLE or name != "study"])
def test_killed_at_random_it_goes_on_and_ends_as_if_nobody_had(name, tiny_folder, rows, tmp_path):
    job, random, log = JOBS[name](tiny_folder, rows), Random(name), tmp_path / "stderr"
    undisturbed = tmp_path / "undisturbed"
    done = start(job.words(undisturbed), log)
    done.join(DEADLINE_SECONDS)
    assert done.exitcode == 0, log.read_text()[-2000:]
    wanted, kills, attempt = job.result(undisturbed), 0, 0
    shutil.rmtree(undisturbed)
    wanted_kills = job.kills[0 if WHOLE else 1]
    defects = []
    while kills < wanted_kills:
        attempt += 1
        folder = tmp_path / f"killed {attempt}"
        words = job.words(folder)
        for _ in range(6):  # kills of one piece of work, before it may come to its end
            number, twice, inside_a_save = random.choice(SIGNALS), random.random() < 0.25, name == "train" and kills % 2
            begin = min(job.progress(folder), job.total)
            at = random.randint(begin, (begin + job.total) // 2)  # or nearly all kills would be near the end
            wait = random.random() * LONGEST_SAVE_SECONDS

            def moment(folder=folder, at=at, wait=wait, inside_a_save=inside_a_save) -> bool:
                if job.progress(folder) < at - (2 if inside_a_save else 0):
                    return False
                if inside_a_save and not is_saving(folder):
                    return False
                time.sleep(wait)  # anywhere in the save, or in the step
                return not inside_a_save or is_saving(folder)

            was_at_work, status = kill_at(start(words, log), moment, number, twice=twice)
            words = job.again(folder)
            if not was_at_work:
                break
            kills += 1
            defect = killed_wrong(status, number, log.read_text(), twice=twice)
            where = " inside a save" if inside_a_save else ""
            TALLY.note(f"kills of {name}{where}", f"{number.name} at {at}", defect)
            defects += [defect] if defect else []
            if kills >= wanted_kills:
                break
        if name != "train" or job.result(folder) is None:  # a finished run refuses to be begun again
            end = start(words, log)
            end.join(DEADLINE_SECONDS)
            defect = None if end.exitcode == 0 else f"did not go on: {log.read_text()[-500:]}"
        else:
            defect = None
        defect = defect or (None if job.result(folder) == wanted else "ended in another result")
        TALLY.note(f"{name} after kills", str(attempt), defect)
        defects += [f"attempt {attempt}: {defect}"] if defect else []
        if defect is None:
            shutil.rmtree(folder)
    assert not defects, defects
