"""A folder that cannot be made is refused before the work, and nothing is made."""

import os

import pytest

from profit_sft.errors import ConfigurationError
from profit_sft.files import check_output_file, check_output_folder, sole_use


def test_a_folder_that_is_there_or_can_be_made_is_fine(tmp_path, monkeypatch):
    check_output_folder(tmp_path)
    check_output_folder(tmp_path / "new" / "below")
    monkeypatch.chdir(tmp_path)
    check_output_folder("relative")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", [(), ("run",), ("a", "b")])
def test_a_file_in_the_way_is_named(tmp_path, below):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigurationError, match="scores_dir: '.*taken.*' cannot be a folder: '.*taken' is none"):
        check_output_folder(tmp_path.joinpath("taken", *below), "scores_dir")


def test_a_link_to_nowhere_is_in_the_way(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(ConfigurationError, match="link' is none"):
        check_output_folder(tmp_path / "link" / "run")


def test_what_else_lies_beside_a_file_to_be_written_is_not_looked_at(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_output_file(tmp_path / "page.html")
    with pytest.raises(ConfigurationError, match="pipe' is a pipe or a device, not a file. Name another file"):
        check_output_file(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="pipe' is a pipe or a device"):
        check_output_folder(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match="locked' may not be written to"):
        check_output_folder(tmp_path / "locked" / "run")


def test_a_folder_is_used_by_one_at_a_time(tmp_path):
    refused = pytest.raises(ConfigurationError, match="output_dir: another run is at work in '.*new'. Wait for it")
    with sole_use(tmp_path / "new", "run"), refused, sole_use(tmp_path / "new", "run"):
        pytest.fail("both are in")
    with sole_use(tmp_path / "new", "run"):
        pass


def test_a_folder_that_was_made_to_be_held_and_stays_empty_goes_again(tmp_path):
    for there in (tmp_path / "kept", tmp_path):
        (tmp_path / "kept").mkdir(exist_ok=True)
        with sole_use(there / "a" / "b", "run"):
            pass
        assert not (there / "a").exists()
    with sole_use(tmp_path / "kept" / "c", "run"):
        (tmp_path / "kept" / "c" / "result").touch()
    assert (tmp_path / "kept" / "c" / "result").exists()
