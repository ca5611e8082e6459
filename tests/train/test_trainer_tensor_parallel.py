"""Ranks that share a model's tensors are given the same rows, which count once."""

import pytest
import torch

from distributed import tensor_parallel_step
from distributed.launched import run_on_cpus
from tiny import tiny_model


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """{ranks: {normalizer: gradients and logged figures}}, from real processes."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    tiny_model().save_pretrained(folder / "model")
    found = {}
    for ranks in (1, 2):
        out = folder / f"{ranks}.pt"
        run_on_cpus(tensor_parallel_step.main, str(folder / "model"), str(out), folder=folder / str(ranks), ranks=ranks)
        found[ranks] = torch.load(out)
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
