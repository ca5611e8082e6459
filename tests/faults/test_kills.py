"""Processes that are killed at random moments, and go on: what they leave in the end is what nobody disturbed.

Half of the kills of a training run are inside a save: as soon as another checkpoint, or what becomes one, is there.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from injection import TALLY

from profit_sft.scores.store import load_scores
from profit_sft.study.layout import StudyFolder

pytestmark = pytest.mark.slow
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WHOLE_CAMPAIGN = os.environ.get("PROFIT_FAULTS") == "all"
DEADLINE_SECONDS = 600  # of one process, on a busy machine


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that can be killed.

    Attributes:
        words: After `profit`, of a folder; `again` after what happened to an earlier attempt.
        again: Those that go on.
        progress: How far it has come, from 0 to `total`.
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


def train_job(model: str, rows: str) -> Job:
    def words(folder: Path) -> list[str]:
        return [
            *("train", "--model_name_or_path", model, "--dataset_name", rows, "--output_dir", str(folder)),
            *("--max_steps", "40", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2"),
            *("--logging_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "True", "--probe_rows", "0"),
            *("--threshold", "0.0034", "--learning_rate", "1e-3"),
        ]

    def again(folder: Path) -> list[str]:
        if any(folder.glob("checkpoint-*")):
            return [*words(folder), "--resume_from_checkpoint", "latest"]
        return [*words(folder), "--overwrite_output_dir", "True"]

    def result(folder: Path) -> Any:
        steps = [line["step"] for line in lines_of(folder / "metrics.jsonl") if "loss" in line]
        return steps, (folder / "model.safetensors").read_bytes()

    return Job(
        words=words,
        again=again,
        progress=lambda folder: len(lines_of(folder / "metrics.jsonl")),
        total=40,
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
        progress=lambda folder: len(lines_of(folder / "samples" / "generated.jsonl")),
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
        progress=lambda folder: len(lines_of(StudyFolder(folder).cell("nll-s0").run / "metrics.jsonl")),
        total=20,
        result=result,
        kills=(20, 1),
    )


JOBS = {"train": train_job, "score": score_job, "eval": eval_job, "study": study_job}


def start(words: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "profit_sft.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_at(process: "subprocess.Popen[str]", moment: Callable[[], bool], number: int, *, twice: bool) -> str | None:
    """Send a signal as soon as it is the moment, or again; return what is wrong about the end."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while process.poll() is None and not moment():
        if time.monotonic() > deadline:
            process.kill()
            return "hung"
        time.sleep(0.002)
    process.send_signal(number)
    if twice:
        time.sleep(0.05)
        process.send_signal(number)
    try:
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"hung after signal {number}"
    if process.returncode == 0 or number == signal.SIGKILL or (twice and process.returncode < 0):
        return None
    # A handler is there from the start of the work on; before it Python ends by the signal.
    if process.returncode not in (130, -number):
        return f"status {process.returncode} after signal {number}: {err[-300:]}"
    return f"traceback: {err[-300:]}" if "Traceback" in err and "KeyboardInterrupt" not in err else None


def checkpoints(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "checkpoint" in path.name or path.name.startswith(".")}


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_random_it_goes_on_and_ends_as_if_nobody_had(name, tiny_folder, rows, tmp_path):
    job = JOBS[name](tiny_folder, rows)
    undisturbed = tmp_path / "undisturbed"
    done = subprocess.run(
        [sys.executable, "-m", "profit_sft.cli", *job.words(undisturbed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wanted, random, kills, attempt = job.result(undisturbed), Random(0), 0, 0
    defects = []
    while kills < job.kills[0 if WHOLE_CAMPAIGN else 1]:
        attempt += 1
        folder = tmp_path / f"killed {attempt}"
        words = job.words(folder)
        for _ in range(6):  # kills of one piece of work, before it may come to its end
            process, number, before = start(words), random.choice(SIGNALS), checkpoints(folder)
            at = random.randint(job.progress(folder), job.total)
            inside_a_save = name == "train" and kills % 2 == 0
            moment = (
                (lambda folder=folder, before=before: bool(checkpoints(folder) - before))
                if inside_a_save
                else (lambda folder=folder, at=at: job.progress(folder) >= at)
            )
            defect = kill_at(process, moment, number, twice=random.random() < 0.25)
            kills += 1
            TALLY.note(f"kills of {name}", f"{number.name} at {at}", defect)
            defects += [defect] if defect else []
            words = job.again(folder)
            if kills >= job.kills[0 if WHOLE_CAMPAIGN else 1]:
                break
        process = start(words)
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
        taken = "holds an earlier run" in err and job.progress(folder) >= job.total  # it had come to its end
        if process.returncode != 0 and not taken:
            defect = f"did not go on: {err[-500:]}"
        else:
            defect = None if job.result(folder) == wanted else "ended in another result"
        TALLY.note(f"{name} after kills", str(attempt), defect)
        defects += [defect] if defect else []
    assert not defects, defects
