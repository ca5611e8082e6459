"""A model a command can be pointed at."""

import pytest

from tiny import save_tiny_chat_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Shared by the session: no test changes it."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("tiny"))
