"""Ranks that share a model's tensors are given the same rows, which count once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny import tiny_model

SCRIPT = Path(__file__).resolve().parents[1] / "distributed" / "tensor_parallel_step.py"


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """{ranks: {normalizer: gradients and logged figures}}, from real processes."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    tiny_model().save_pretrained(folder / "model")
    found = {}
    for ranks in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, str(SCRIPT), str(folder / "model"), str(folder / f"{ranks}.pt")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found[ranks] = torch.load(folder / f"{ranks}.pt")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["all", "kept"])
def test_gradients_and_figures_are_those_of_one_process(steps, normalize):
    whole, split = steps[1][normalize], steps[2][normalize]
    assert whole.keys() == split.keys()
    for name, expected in whole.items():
        assert (split[name] - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.slow
def test_the_normalizers_differ_by_the_kept_share(steps):
    all_labels, kept = (steps[2][normalize]["log/loss"].item() for normalize in ("all", "kept"))
    share = steps[2]["all"]["log/kept_share"].item()
    assert 0.2 < share < 0.8
    assert kept * share == pytest.approx(all_labels, rel=1e-5)
