"""One driver a study folder, whatever happens to it."""

import os
import socket
import subprocess
import sys

import pytest

from profit_sft.errors import ConfigurationError
from profit_sft.study.layout import StudyFolder

HOLD = """
import pathlib, sys
from profit_sft.study.layout import StudyFolder
with StudyFolder(pathlib.Path(sys.argv[1])).driven():
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
    with study.driven(), pytest.raises(ConfigurationError, match=message), study.driven():
        raise AssertionError
    with study.driven():
        study.driver.unlink()  # as in the moment before it is written
        with pytest.raises(ConfigurationError, match="output_dir: another process is running"), study.driven():
            raise AssertionError
    assert not study.driver.exists()


def test_another_process_is_seen_and_once_killed_forgotten(tmp_path):
    study = StudyFolder(tmp_path)
    process = start_driver(study.path)
    with pytest.raises(ConfigurationError, match=f"process {process.pid} on "), study.driven():
        raise AssertionError
    process.kill()
    process.communicate()
    assert study.driver.exists()  # it could not take this away
    with study.driven():
        assert str(os.getpid()) in study.driver.read_text()
