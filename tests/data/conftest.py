"""Tokenizers and file writers of the data tests."""

import json

import pytest

from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.data.tokenize import IGNORE_INDEX
from tiny import FORGETFUL, chat_tokenizer


@pytest.fixture
def tokenizer():
    return chat_tokenizer()


@pytest.fixture
def forgetful_tokenizer(tokenizer):
    tokenizer.chat_template = FORGETFUL
    return tokenizer


@pytest.fixture
def write(tmp_path):
    """Write rows as a jsonl file, `train.jsonl` unless told otherwise, and return its path."""

    def write_rows(*rows, name="train.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


@pytest.fixture
def prepare():
    return lambda tokenizer, source, **settings: prepare_dataset(
        DataSettings(dataset_name=str(source), **settings), tokenizer
    )


@pytest.fixture
def trained_text():
    return lambda tokenizer, labels: tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
