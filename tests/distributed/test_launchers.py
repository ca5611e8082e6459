"""Commands under a launcher, in real processes on CPUs: one run, one voice, and an end when a rank dies."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from distributed.launched import TORCHRUN, environment, train_and_part
from forks import run_ranks
from profit_sft.cli.app import run_app
from tiny import save_tiny_chat_model

pytestmark = pytest.mark.slow


@pytest.fixture
def train(tmp_path):
    """Flags of a short run in `tmp_path / "run"`."""
    rows = tmp_path / "rows.jsonl"
    lines = [{"question": f"What is {n}+1?", "answer": f"It is {n + 1}."} for n in range(16)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        *("train", "--model_name_or_path", save_tiny_chat_model(tmp_path / "model"), "--dataset_name", str(rows)),
        *("--output_dir", str(tmp_path / "run"), "--objective", "nll", "--per_device_train_batch_size", "2"),
        *("--logging_steps", "1", "--gradient_checkpointing", "False", "--max_steps", "3"),
    ]


def test_processes_on_cpus_train_one_model_one_of_them_speaks_and_they_part(train, tmp_path):
    statuses, printed = run_ranks(train_and_part, train, folder=tmp_path / "printed")
    assert statuses == [0, 0], printed[-4000:]
    assert "batch      4 rows: 2 a device x 1 accumulated x 2 ranks" in printed
    assert "device     cpu, 2 ranks, DDP" in printed
    assert printed.count("model      ") == printed.count("Trained 3 steps") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["world_size"] == 2


def left(run: Path, text: str) -> None:
    """Leave what an earlier run would: so many checkpoints that ranks deleting them at once would meet."""
    run.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl"):
        (run / name).write_text(text)
    for step in range(60):
        for file in range(20):
            (run / f"checkpoint-{step}").mkdir(exist_ok=True)
            (run / f"checkpoint-{step}" / f"{file}.bin").write_text(text)


def test_overwriting_is_done_by_one_rank_and_completely(train, tmp_path):
    run = tmp_path / "run"
    left(run, "old")
    (run / "notes.txt").write_text("mine")
    statuses, printed = run_ranks(
        run_app, [*train, "--overwrite_output_dir", "True", "--use_peft"], folder=tmp_path / "printed"
    )
    assert statuses == [0, 0], printed[-4000:]
    assert (run / "adapter_model.safetensors").is_file()
    assert not (run / "model.safetensors").exists()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    assert (run / "notes.txt").read_text() == "mine"


def wait_for_logs(process: subprocess.Popen[str], metrics: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count('"loss"') >= count):
        assert process.poll() is None, "the run ended before it trained"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in children.stdout.split()]


def test_a_rank_that_dies_ends_the_run_with_an_error_and_no_old_model_is_left(train, tmp_path):
    run = tmp_path / "run"
    left(run, "old")
    train[train.index("--max_steps") + 1] = "100000"
    command = [*TORCHRUN, "-m", "profit_sft.cli", *train, "--overwrite_output_dir", "True", "--save_strategy", "no"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_for_logs(process, run / "metrics.jsonl", 3)
        ranks = ranks_of(process)
        os.kill(ranks[1], signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode not in (0, 130)
    assert "Trained" not in err
    assert len(ranks) == 2
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "data.json", "metrics.jsonl", ".lock"),
        *("run.json", "rows.json", "report.html"),
    }


def test_an_evaluation_is_done_by_one_process(train, tmp_path):
    model = train[train.index("--model_name_or_path") + 1]
    flags = ["--tasks", "generated", "--limit", "4", "--greedy", "--max_new_tokens", "4"]
    words = ["eval", model, *flags, "--output_dir", str(tmp_path / "together")]
    statuses, printed = run_ranks(run_app, words, folder=tmp_path / "printed")
    assert statuses == [0, 0], printed[-4000:]
    assert printed.count("profit eval uses one process: of the 2 that were launched, 1 have nothing to do.") == 1
    assert run_app(["eval", model, *flags, "--output_dir", str(tmp_path / "alone")]) == 0
    answers = [(tmp_path / name / "samples" / "generated.jsonl").read_text() for name in ("together", "alone")]
    together, alone = ([{**json.loads(line), "seconds": None} for line in text.splitlines()] for text in answers)
    assert len(together) == 4
    assert together == alone


def test_an_engine_that_would_be_left_out_is_refused(train, tmp_path):
    for flags, message in (
        (["--use_cpu", "True"], "FSDP was asked for, but accelerate uses it on several accelerators only"),
        ([], "a launcher started 2 processes, but this one sees no other"),
    ):
        environment = {**os.environ, "ACCELERATE_USE_FSDP": "true"}
        statuses, printed = run_ranks(run_app, [*train, *flags], folder=tmp_path / "printed", environment=environment)
        assert 2 in statuses, printed[-4000:]
        assert message in printed
    assert not (tmp_path / "run").exists()
