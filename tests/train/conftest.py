"""Runs of a tiny model, as `profit train` leaves them."""

import shutil

import pytest

from profit_sft.cli.app import run_app
from tiny import save_tiny_chat_model, write_questions


@pytest.fixture(scope="session")
def train_flags(tmp_path_factory):
    """A command with 16 rows, two a step, that saves every second step; the output folder and max_steps are missing."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = write_questions(folder / "rows.jsonl", 16, ragged=True)
    return [
        *("train", "--model_name_or_path", save_tiny_chat_model(folder / "model"), "--dataset_name", rows),
        *("--objective", "nll", "--learning_rate", "1e-3", "--per_device_train_batch_size", "2", "--use_cpu", "True"),
        *("--logging_steps", "3", "--save_strategy", "steps", "--save_steps", "2", "--gradient_checkpointing", "False"),
    ]


@pytest.fixture(scope="session")
def six_steps(train_flags, tmp_path_factory):
    """The folder of a finished run with checkpoints after steps 2, 4 and 6. No test changes it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_app([*train_flags, "--max_steps", "6", "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def stopped(six_steps, tmp_path):
    """That folder as a run leaves it that was killed after step 4."""
    folder = tmp_path / "run"
    shutil.copytree(six_steps, folder, ignore=shutil.ignore_patterns("checkpoint-6"))
    (folder / "model.safetensors").unlink()
    return folder
