"""The collapse probe on two ranks: both measure the same rows, and what one process measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("probe.py")


def run(out, ranks):
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(out)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_does(tmp_path):
    (alone,) = run(tmp_path, 1)
    first, second = run(tmp_path, 2)
    assert first == second
    assert [log["step"] for log in first["logs"]] == [0, 1, 2, 3]
    for found, expected in zip(first["logs"], alone["logs"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert first["sharded"] == pytest.approx(alone["sharded"], rel=1e-5)
