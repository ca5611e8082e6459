"""A model and data a command can be pointed at."""

import json

import pytest

from tiny import save_tiny_chat_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Shared by the session: no test changes it."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [{"question": f"What is {n}+1?", "answer": f"It is {n + 1}."} for n in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)
