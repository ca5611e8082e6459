"""The estimate of a dry run against the memory that real processes take."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import memory as benchmark


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is Linux's")
def test_one_process_and_two_that_share_take_what_the_dry_run_says(tmp_path, monkeypatch):
    file = tmp_path / "memory.json"
    engines = ("one process", "FSDP2")
    # With more rows the steps take minutes, and the share of activations in what is compared hardly grows.
    words = ["memory.py", "--json", str(file), "--rows_a_device", "1", "--engines", *engines]
    monkeypatch.setattr(sys, "argv", words)
    benchmark.main()
    alone, shared = json.loads(file.read_text())
    assert (alone["setup"], shared["engine"]) == ("one process", "2 ranks, FSDP2")
    for found in (alone, shared):
        assert found["estimated_gib"] == pytest.approx(found["measured_gib"], rel=0.25), found["setup"]
    # What is shared shows in both: an estimate of one process, given for two, would be off by more than that.
    assert shared["measured_gib"] < 0.75 * alone["measured_gib"]
    assert shared["estimated_gib"] < 0.75 * alone["estimated_gib"]
