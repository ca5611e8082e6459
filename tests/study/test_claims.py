"""Claims on a folder: one holder, whatever happens to it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from profit_sft.study import claims
from profit_sft.study.claims import attempts, current_holder, try_claim


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def rewrite(folder, number, **changes):
    path = folder / "claims" / f"{number:04d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_folder_has_one_holder_until_it_is_released(tmp_path):
    with try_claim(tmp_path) as claim:
        assert try_claim(tmp_path) is None
        holder = current_holder(tmp_path)
        assert (holder.host, holder.pid, holder.child_pid) == (socket.gethostname(), os.getpid(), None)
        claim.working(123)
        assert current_holder(tmp_path).child_pid == 123
    assert current_holder(tmp_path) is None
    assert try_claim(tmp_path).number == 2
    assert attempts(tmp_path) == 2


def test_many_at_once_get_one_claim(tmp_path):
    found = []
    barrier = threading.Barrier(16)

    def grab():
        barrier.wait()
        found.append(try_claim(tmp_path))

    threads = [threading.Thread(target=grab) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in found) == 1
    assert attempts(tmp_path) == 1


def test_whoever_comes_second_gets_nothing_however_late_it_looks(tmp_path, monkeypatch):
    look = claims._living_holder

    def look_and_be_overtaken(folder, number, stale_seconds):
        found = look(folder, number, stale_seconds)
        monkeypatch.setattr(claims, "_living_holder", look)
        assert try_claim(folder).number == 1  # the other process, between our look and our claim
        return found

    monkeypatch.setattr(claims, "_living_holder", look_and_be_overtaken)
    assert try_claim(tmp_path) is None


def test_a_dead_holder_on_this_machine_is_replaced_at_once_but_not_before_its_child(tmp_path):
    try_claim(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    rewrite(tmp_path, 1, pid=dead_pid(), child_pid=child.pid)
    assert try_claim(tmp_path) is None
    child.communicate(b"\n")
    assert try_claim(tmp_path).number == 2


def test_a_holder_elsewhere_is_given_up_when_its_heart_stops(tmp_path):
    try_claim(tmp_path)
    path = rewrite(tmp_path, 1, host="another-machine", pid=dead_pid())
    assert try_claim(tmp_path, stale_seconds=300) is None
    os.utime(path, (time.time() - 301, time.time() - 301))
    assert try_claim(tmp_path, stale_seconds=300).number == 2


def test_the_heart_beats_while_the_claim_is_held(tmp_path):
    claim = try_claim(tmp_path, heartbeat_seconds=0.01)
    path = tmp_path / "claims" / "0001.json"
    os.utime(path, (0, 0))
    with claim:
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert path.stat().st_mtime > 0


def test_whoever_was_taken_for_dead_loses_its_child(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with try_claim(tmp_path, heartbeat_seconds=0.01) as claim:
        claim.working(child.pid)
        path = tmp_path / "claims" / "0001.json"
        # Stale for an instant between two beats.
        while (other := try_claim(tmp_path, stale_seconds=-1)) is None:
            pass
        assert other.number == 2
        assert child.wait(timeout=30) < 0
        assert claim.lost
        assert path.exists()
    child.stdin.close()


def test_a_claim_that_is_not_yet_written_counts_as_held(tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "0001.json").touch()
    assert try_claim(tmp_path) is None


@pytest.mark.parametrize("name", ["0001.released", ".now.abc"])
def test_other_files_are_no_claims(tmp_path, name):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / name).touch()
    assert try_claim(tmp_path).number == 1
