"""Tokenizers of the data tests."""

import pytest

from tiny import FORGETFUL, chat_tokenizer


@pytest.fixture
def tokenizer():
    return chat_tokenizer()


@pytest.fixture
def forgetful_tokenizer(tokenizer):
    tokenizer.chat_template = FORGETFUL
    return tokenizer
