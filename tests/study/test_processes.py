"""Children of a study stop when asked, and die with their parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import profit_sft
from profit_sft.study.processes import Interrupted, StopRequest, log_tail, run_child, wait_for_earlier_child

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def wait_for(text, log):
    deadline = time.monotonic() + 60
    while not (log.exists() and text in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert text in log.read_text()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that a child can run by name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(profit_sft.__file__).parents[1])]))

    def write(source):
        (tmp_path / "made_module.py").write_text(source)
        return "made_module"

    return write


def test_output_and_status_come_back(module, tmp_path):
    pids = []
    name = module("import os, sys; print(sys.argv[1:], os.environ['GIVEN']); sys.exit(3)")
    log = tmp_path / "a" / "log"
    status = run_child([name, "x", "--y"], log, stop=StopRequest(), started=pids.append, environment={"GIVEN": "yes"})
    assert status == 3
    assert log_tail(log) == "    ['x', '--y'] yes"
    assert len(pids) == 1


def test_a_users_mistake_is_one_line(module, tmp_path):
    name = module("from profit_sft.errors import DataError\nraise DataError('row 7 is empty')")
    assert run_child([name], tmp_path / "log", stop=StopRequest()) == 1
    assert log_tail(tmp_path / "log") == "    error: row 7 is empty"


def test_a_stop_is_passed_on_and_the_second_one_kills(module, tmp_path):
    stop, log = StopRequest(), tmp_path / "log"

    def ask():
        wait_for("ready", log)
        stop.ask(signal.SIGINT)
        wait_for("asked", log)
        stop.ask(signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Interrupted):
        run_child([module(STUBBORN)], log, stop=stop)
    asking.join()
    assert stop.signal_number == signal.SIGINT


def test_a_child_gets_sigterm_when_its_parent_is_killed(module, tmp_path):
    source = STUBBORN.replace(
        'lambda *_: print("asked", flush=True)', "lambda *_: (print('asked', flush=True), exit())"
    )
    name, log = module(source), tmp_path / "log"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys\n"
            "from profit_sft.study.processes import StopRequest, run_child\n"
            "run_child([sys.argv[1]], pathlib.Path(sys.argv[2]), stop=StopRequest(), started=lambda pid: "
            "print(pid, flush=True))",
            name,
            str(log),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    wait_for("ready", log)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for("asked", log)
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):  # gone
        while time.monotonic() < deadline:
            os.kill(child, 0)
            time.sleep(0.02)


def test_the_next_child_waits_for_one_that_outlives_its_parent(module, tmp_path):
    source = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
    name, log, saved = module(source), tmp_path / "cell" / "log", tmp_path / "saved"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys\n"
            "from profit_sft.study.processes import StopRequest, run_child\n"
            "run_child([sys.argv[1], sys.argv[3]], pathlib.Path(sys.argv[2]), stop=StopRequest())",
            name,
            str(log),
            str(saved),
        ]
    )
    wait_for("ready", log)
    stop = StopRequest()
    asking = threading.Timer(0.5, stop.ask)
    asking.start()
    with pytest.raises(Interrupted):  # the first child is still at work
        wait_for_earlier_child(log.parent, stop=stop)
    parent.kill()
    parent.wait()
    assert not saved.exists()
    wait_for_earlier_child(log.parent, stop=StopRequest())
    assert saved.read_text() == "saved"
    (tmp_path / "made_module.py").write_text("print('next')")
    assert run_child([name], log, stop=StopRequest()) == 0
    assert "next" in log.read_text()
