"""The collapse probe on two ranks: both measure the same rows, and what one process measures."""

import json

import pytest

from distributed import probe
from distributed.launched import run_on_cpus


def run(out, ranks):
    run_on_cpus(probe.main, out, folder=out, ranks=ranks, ACCELERATE_USE_CPU="true")
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
