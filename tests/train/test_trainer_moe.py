"""Mixtures of experts: their auxiliary loss has the part in a step that it has in TRL's own."""

import pytest
import torch
from trl.trainer import utils as trl_utils

from distributed import moe_step
from distributed.launched import run_on_cpus

pytestmark = pytest.mark.skipif(
    not hasattr(trl_utils, "add_fused_lm_head"),
    reason="this TRL multiplies the auxiliary loss by ranks and micro-batches",
)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def steps(request, tmp_path_factory):
    """{(family, kind, micro-batches, coefficient): gradients and logged figures}, from real processes."""
    folder = tmp_path_factory.mktemp("moe")
    run_on_cpus(moe_step.main, folder, folder=folder, ranks=request.param, ACCELERATE_USE_CPU="true")
    return {tuple(file.stem.split("-")): torch.load(file) for file in folder.glob("*.pt")}


CASES = [(case["family"], str(case["steps"]), str(case["coefficient"])) for case in moe_step.CASES]


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nll", "everything"])
@pytest.mark.parametrize(("family", "accumulation", "coefficient"), CASES)
def test_loss_norm_and_gradients_are_those_of_trl(steps, family, accumulation, coefficient, kind):
    found, expected = (steps[family, name, accumulation, coefficient] for name in (kind, "trl"))
    assert found.keys() == expected.keys()
    assert expected["log/aux_loss"] > 1  # balanced routing has 1
    for name, value in expected.items():
        assert relative(found[name], value) <= 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize(("family", "accumulation", "coefficient"), CASES)
def test_a_mask_leaves_the_auxiliary_part_alone(steps, family, accumulation, coefficient):
    def auxiliary_part(kind):
        whole, tokens = (steps[family, kind, accumulation, value] for value in (coefficient, "0.0"))
        return {name: whole[name] - tokens[name] for name in whole if not name.startswith("log/")} | {
            "loss": whole["log/loss"] - tokens["log/loss"]
        }

    found, expected = auxiliary_part("some"), auxiliary_part("trl")
    whole = steps[family, "some", accumulation, coefficient]
    assert expected["loss"] > 0.1
    assert any("gate" in name and value.norm() > 0 for name, value in expected.items())
    for name, value in expected.items():
        size = whole[name if name in whole else f"log/{name}"].norm()
        assert (found[name] - value).norm() <= 1e-5 * size, name
    masked, everything = (steps[family, kind, accumulation, "0.0"]["log/loss"] for kind in ("some", "nll"))
    assert 0.2 < masked / everything < 0.8
