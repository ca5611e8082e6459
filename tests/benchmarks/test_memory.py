"""The estimate of a dry run against the memory that real processes take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is Linux's")
def test_one_process_and_two_that_share_take_what_the_dry_run_says(tmp_path):
    file = tmp_path / "memory.json"
    engines = ("one process", "FSDP2")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", str(file), "--engines", *engines], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    alone, shared = json.loads(file.read_text())
    assert (alone["setup"], shared["engine"]) == ("one process", "2 ranks, FSDP2")
    for found in (alone, shared):
        assert found["estimated_gib"] == pytest.approx(found["measured_gib"], rel=0.25), found["setup"]
    # What is shared shows in both: an estimate of one process, given for two, would be off by more than that.
    assert shared["measured_gib"] < 0.75 * alone["measured_gib"]
    assert shared["estimated_gib"] < 0.75 * alone["estimated_gib"]
