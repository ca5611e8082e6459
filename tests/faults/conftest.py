"""A tiny model and rows to damage, and the campaign's table at the end."""

import json

import pytest
from injection import TALLY

from tiny import save_tiny_chat_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Shared by the session: no test changes it."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"question": f"What is {n}+1?", "answer": f"It is {n + 1}."} for n in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def train(tiny_folder, rows, tmp_path):
    """The words of a `profit train` that takes a second."""
    return [
        "train",
        *("--model_name_or_path", tiny_folder),
        *("--dataset_name", rows),
        *("--output_dir", str(tmp_path / "out" / "run")),
        *("--max_steps", "2"),
        *("--save_strategy", "no"),
        *("--probe_rows", "0"),
        *("--use_cpu", "True"),
    ]


def pytest_terminal_summary(terminalreporter):
    if TALLY.injected:
        terminalreporter.section("faults")
        for line in TALLY.lines():
            terminalreporter.write_line(line)
