"""The Triton backend against the float64 oracle: on a GPU, or on the CPU in Triton's interpreter on small shapes."""

import subprocess
import sys

import pytest
import torch
from problems import HEADS, OBJECTIVES, THRESHOLD, assert_close, both, planted_problem, tolerance

from profit_sft import NLL, ProFit, selective_linear_cross_entropy
from profit_sft.objectives import DFT

pytest.importorskip("triton", reason="the package triton is not installed")

SIZES = (37, 33, 2311)  # no block divides them; just large enough to be screened
DEVICES = [torch.device("cuda" if torch.cuda.is_available() else "cpu")]


def small(**options):
    problem = planted_problem(**{"sizes": SIZES, **options})
    return tuple(None if tensor is None else tensor.to(DEVICES[0]) for tensor in problem)


def check(problem, objective, bound=None, **options):
    (result, gradients), (loss, exact, values) = both(problem, objective, backend="triton", **options)
    assert_close(gradients, exact, bound or tolerance(torch.float32, *problem[:2]))
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    return result, values


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_matches_the_oracle(objective):
    check(small(), objective, chunk_size=20)


@pytest.mark.parametrize("gradient_budget", [0.0, 0.01])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_matches_the_oracle_with_and_without_a_budget(head, gradient_budget):
    options = HEADS[head]
    problem = small(falling=12.0, **options)
    bound = None if gradient_budget == 0 else 0.1
    result, _ = check(problem, DFT(), bound, head=options, gradient_budget=gradient_budget)
    assert (result.dropped_share > 0) == (gradient_budget > 0)
    assert result.dropped_share <= gradient_budget * (1 + 1e-4)


@pytest.mark.parametrize(("falling", "gradient_budget"), [(12.0, 0.05), (0.0, 0.003)])
def test_the_budget_leaves_out_what_the_torch_backend_leaves_out(falling, gradient_budget):
    for head, options in HEADS.items():
        problem = small(falling=falling, **options)
        shares = [
            both(problem, DFT(), head=options, backend=backend, gradient_budget=gradient_budget)[0][0].dropped_share
            for backend in ("triton", "chunked")
        ]
        assert shares[0].item() == pytest.approx(shares[1].item(), rel=1e-3), head
        assert (shares[0] > 0) == (falling > 0), head


@pytest.mark.parametrize("head", ["plain", "all"])
def test_all_statistics_match_the_oracle(head):
    options = HEADS[head]
    problem = small(**options)
    result, values = check(problem, ProFit(threshold=THRESHOLD), head=options, statistics="all")
    label_mask = problem[2] != -100
    for name in ("log_probs", "entropy"):
        assert (getattr(result, name)[label_mask].double() - values[name]).abs().max() <= 3e-5, name


@pytest.mark.parametrize("options", [{"normalize": "kept"}, {"num_items": 100}], ids=str)
def test_normalizers_and_known_weights(options):
    problem = small()
    check(problem, ProFit(threshold=THRESHOLD), **options)
    weights = torch.rand(problem[2].shape, device=problem[2].device)
    weights[::2] = 0
    check(problem, NLL(), weights=weights, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_operands_match_the_oracle_on_the_rounded_inputs(dtype):
    problem = small(dtype=dtype)
    # On a GPU the gradient itself is rounded to the operands' dtype before the products.
    check(problem, ProFit(threshold=THRESHOLD), 4 * torch.finfo(dtype).eps)


def test_a_block_of_the_vocabulary_that_is_ruled_out():
    hidden, lm_head_weight, labels, _, reference = small(sizes=(37, 33, 5003))
    labels = torch.where(labels == -100, labels, 4096 + labels % 900)
    bias = torch.zeros(len(lm_head_weight), device=hidden.device)
    bias[:4096] = -torch.inf  # all of the kernel's first block
    check((hidden, lm_head_weight, labels, bias, reference), DFT(), statistics="all")


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen):
    hidden, lm_head_weight, labels, _, _ = small()
    (lm_head_weight if frozen == "hidden" else hidden).requires_grad_()
    objective = ProFit(threshold=THRESHOLD)
    selective_linear_cross_entropy(
        hidden, lm_head_weight, labels, objective=objective, backend="triton"
    ).loss.backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (lm_head_weight.grad is None) == (frozen == "weight")


@pytest.mark.parametrize("case", ["no tokens", "all ignored", "all masked"])
@pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")
def test_nothing_to_train_is_an_attached_zero(case):
    hidden, lm_head_weight, labels, _, _ = small()
    if case == "no tokens":
        hidden, labels = hidden[:0], labels[:0]
    elif case == "all ignored":
        labels = torch.full_like(labels, -100)
    hidden, lm_head_weight = hidden.clone().requires_grad_(), lm_head_weight.requires_grad_()
    result = selective_linear_cross_entropy(
        hidden, lm_head_weight, labels, objective=ProFit(threshold=1.0), backend="triton", statistics="all"
    )
    result.loss.backward()
    assert result.loss.item() == 0
    assert (hidden.grad == 0).all()
    assert (lm_head_weight.grad == 0).all()


def test_without_gpu_or_interpreter_it_is_refused_with_the_way_out():
    code = (
        "import torch; from profit_sft import NLL, selective_linear_cross_entropy as loss\n"
        "loss(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), objective=NLL(), backend='triton')"
    )
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (
        "backend='triton' runs on CUDA devices, got cpu. Use backend='chunked', or set TRITON_INTERPRET=1"
        in done.stderr
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_the_kernels_on_a_gpu():
    from profit_sft.loss.selective import _run_class
    from profit_sft.loss.triton_kernels import TritonRun

    assert _run_class("auto", torch.zeros(1, device="cuda")) is TritonRun
