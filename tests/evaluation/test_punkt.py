"""NLTK's sentence data: found, or fetched by NLTK, or refused with what to do."""

import pytest

from profit_sft.errors import DownloadError
from profit_sft.evaluation.tasks.ifeval import ensure_punkt


def test_sentences_are_split_as_by_nltks_own_data(punkt):
    import nltk

    assert nltk.sent_tokenize("Dr. Smith saw the U.S. flag. It waved.") == ["Dr. Smith saw the U.S. flag.", "It waved."]


def test_where_nothing_can_be_fetched_the_message_says_what_to_do(monkeypatch, capfd):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    nltk.data.clear_cache()
    monkeypatch.setattr(nltk.downloader._downloader, "_url", "http://127.0.0.1:9/index.xml")  # nobody listens there
    monkeypatch.setattr(nltk.downloader._downloader, "_index", None)
    said = []
    with pytest.raises(DownloadError, match=r"cannot fetch it.*nltk\.downloader punkt_tab.*NLTK_DATA"):
        ensure_punkt(say=said.append)
    assert said == ["fetching NLTK's sentence data for ifeval (4 MB), once"]


def test_data_that_is_there_is_not_fetched(punkt):
    ensure_punkt(say=pytest.fail)
