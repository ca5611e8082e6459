"""A model and data a command can be pointed at."""

import pytest

from tiny import write_questions


@pytest.fixture
def rows(tmp_path):
    return write_questions(tmp_path / "train.jsonl", 6)
