"""One driver a study folder, whatever happens to it."""

import os
import socket
import subprocess
import sys

import pytest

from profit_sft.errors import ConfigurationError
from profit_sft.study.driver import sole_driver
from profit_sft.study.layout import StudyFolder

HOLD = """
import pathlib, sys
from profit_sft.study.driver import sole_driver
from profit_sft.study.layout import StudyFolder
with sole_driver(StudyFolder(pathlib.Path(sys.argv[1]))):
    print("held", flush=True)
    input()
"""


def start_driver(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_told_who_the_first_one_is(tmp_path):
    study = StudyFolder(tmp_path / "out")
    message = f"process {os.getpid()} on {socket.gethostname()} is running the study in '{study.path}'. Wait for it or"
    with sole_driver(study), pytest.raises(ConfigurationError, match=message), sole_driver(study):
        raise AssertionError
    with sole_driver(study):
        study.driver.unlink()  # as in the moment before it is written
        with pytest.raises(ConfigurationError, match="output_dir: another process is running"), sole_driver(study):
            raise AssertionError
    assert not study.driver.exists()


def test_another_process_is_seen_and_once_killed_forgotten(tmp_path):
    study = StudyFolder(tmp_path)
    process = start_driver(study.path)
    with pytest.raises(ConfigurationError, match=f"process {process.pid} on "), sole_driver(study):
        raise AssertionError
    process.kill()
    process.communicate()
    assert study.driver.exists()  # it could not take this away
    with sole_driver(study):
        assert str(os.getpid()) in study.driver.read_text()
