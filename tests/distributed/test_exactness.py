"""One step over k micro-batches on r ranks gives the gradient of one big batch, for both normalizers."""

import pytest
import torch
import transformers

from distributed import one_step
from distributed.launched import run_on_cpus


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """{(normalize, k, r): gradients and logged figures}, from real processes."""
    root = tmp_path_factory.mktemp("exactness")
    found = {}
    for ranks in (1, 2):
        folder = root / str(ranks)
        run_on_cpus(one_step.main, folder, folder=folder, ranks=ranks, ACCELERATE_USE_CPU="true")
        for file in folder.glob("*.pt"):
            normalize, steps = file.stem.split("-")
            found[normalize, int(steps), ranks] = torch.load(file)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize(("steps", "ranks"), [(2, 1), (4, 1), (1, 2), (2, 2), (4, 2)])
def test_gradient_and_figures_equal_those_of_one_big_batch(gradients, normalize, steps, ranks):
    whole, split = gradients[normalize, 1, 1], gradients[normalize, steps, ranks]
    for name, expected in whole.items():
        assert (split[name] - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.slow
def test_the_normalizers_differ_by_exactly_the_kept_share(gradients):
    all_labels, kept_only = gradients["all", 2, 2], gradients["kept", 2, 2]
    kept_share = all_labels["log/kept_share"]
    assert 0.05 < kept_share < 0.95
    for name, gradient in all_labels.items():
        if not name.startswith("log/"):
            assert (kept_only[name] * kept_share - gradient).norm() <= 1e-5 * gradient.norm(), name
    # transformers 4 logs the loss with four decimals.
    rounding = 5e-5 if transformers.__version__.startswith("4.") else 0.0
    expected = all_labels["log/loss"].item()
    assert kept_only["log/loss"] * kept_share == pytest.approx(expected, rel=1e-5, abs=rounding)
