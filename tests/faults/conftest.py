"""A tiny model and rows to damage, and the campaign's table at the end."""

import pytest
from injection import TALLY

from tiny import write_questions


@pytest.fixture
def rows(tmp_path):
    return write_questions(tmp_path / "rows.jsonl", 8)


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
