"""What is the Triton backend's alone; the table of the other files holds the rest."""

import subprocess
import sys

import pytest
import torch
from problems import HEADS, PLACES, Place, assert_close, both, ours, planted_problem, tolerance

from profit_sft import NLL, selective_linear_cross_entropy
from profit_sft.objectives import DFT

pytest.importorskip("triton", reason="the package triton is not installed")

TRITON_PLACES = [row for row in PLACES if row.values[0].backend == "triton"]


@pytest.mark.parametrize("place", TRITON_PLACES)
@pytest.mark.parametrize(("falling", "gradient_budget"), [(12.0, 0.05), (0.0, 0.003)])
@pytest.mark.parametrize("head", HEADS)
def test_the_budget_leaves_out_what_the_torch_backend_leaves_out(place, head, falling, gradient_budget):
    problem = planted_problem(place, falling=falling, **HEADS[head])
    shares = [
        ours(problem, DFT(), head=HEADS[head], place=where, gradient_budget=gradient_budget)[0].dropped_share
        for where in (place, Place("chunked", place.device))
    ]
    assert shares[0].item() == pytest.approx(shares[1].item(), rel=1e-3)
    assert (shares[0] > 0) == (falling > 0)


@pytest.mark.parametrize("place", TRITON_PLACES)
def test_a_block_of_the_vocabulary_that_is_ruled_out(place):
    hidden, lm_head_weight, labels, _, reference = planted_problem(place, sizes=(37, 33, 5003))
    labels = torch.where(labels == -100, labels, 4096 + labels % 900)
    bias = torch.zeros(len(lm_head_weight))
    bias[:4096] = -torch.inf  # all of the kernel's first block
    problem = hidden, lm_head_weight, labels, bias, reference
    (result, gradients), (loss, exact, _) = both(problem, DFT(), place=place, statistics="all")
    assert_close(gradients, exact, tolerance(torch.float32, hidden, lm_head_weight, place))
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_without_gpu_or_interpreter_it_is_refused_with_the_way_out():
    code = (
        "import torch; from profit_sft import NLL, selective_linear_cross_entropy as loss\n"
        "loss(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), objective=NLL(), backend='triton')"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (
        "backend='triton' runs on CUDA devices, got cpu. Use backend='chunked', or set TRITON_INTERPRET=1"
        in done.stderr
    )


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float32, torch.float64)], ids=str)
def test_float64_is_refused_and_not_rounded(dtypes):
    inputs = torch.zeros(1, 2, dtype=dtypes[0]), torch.zeros(3, 2, dtype=dtypes[1]), torch.tensor([0])
    with pytest.raises(ValueError, match="computes in fp32, and the inputs are float64. Use backend='chunked'"):
        selective_linear_cross_entropy(*inputs, objective=NLL(), backend="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_the_kernels_on_a_gpu_for_what_they_compute():
    from profit_sft.loss.chunked import ChunkedCall
    from profit_sft.loss.selective import _call_class
    from profit_sft.loss.triton_kernels import TritonCall

    for dtype, backend in ((torch.float32, TritonCall), (torch.bfloat16, TritonCall), (torch.float64, ChunkedCall)):
        operand = torch.zeros(1, device="cuda", dtype=dtype)
        assert _call_class("auto", operand, operand) is backend
