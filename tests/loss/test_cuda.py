"""The table of the loss on a CUDA device, both backends, against the float64 oracle on the same rounded inputs.

Fresh memory holds NaN (conftest.py). In 16 bits the gradient of the logits is rounded to the operands' dtype before the
products, which the tolerance counts as one more rounding of every product.
"""

import pytest
import torch
from problems import HEADS, OBJECTIVES, THRESHOLD, assert_close, both, planted_problem, tolerance

from profit_sft import NLL, ProFit, selective_linear_cross_entropy
from profit_sft.objectives import DFT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.parametrize("backend", ["chunked", "triton"]),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def on_cuda(dtype=torch.float32, **options):
    return tuple(None if tensor is None else tensor.cuda() for tensor in planted_problem(dtype, **options))


def bound(dtype, problem):
    operands = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    return operands + tolerance(dtype, *problem[:2])


@DTYPES
@pytest.mark.parametrize("statistics", ["objective", "ranks"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective(backend, objective, statistics, dtype):
    problem = on_cuda(dtype)
    (result, gradients), (loss, exact, values) = both(
        problem, objective, backend=backend, statistics=statistics, chunk_size=64
    )
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(gradients, exact, bound(dtype, problem))
    label_mask = problem[2] != -100
    if values["weights"].unique().numel() <= 2:  # a mask
        assert torch.equal(result.weights[label_mask].double(), values["weights"])
    if statistics == "ranks":
        for name in ("log_probs", "entropy"):
            assert (getattr(result, name)[label_mask].double() - values[name]).abs().max() <= 3e-5, name
        logits = problem[0].double() @ problem[1].double().T
        own = logits.gather(-1, problem[2].clamp(min=0)[:, None])
        assert ((result.rank - 1 - (logits > own).sum(-1)).abs() <= 1)[label_mask].all()  # neighbors within rounding


@DTYPES
@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize("gradient_budget", [None, 0.01])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_budget_and_normalizer(backend, head, gradient_budget, normalize, dtype):
    options = HEADS[head]
    problem = on_cuda(dtype, falling=12.0, **options)
    (result, gradients), (loss, exact, _) = both(
        problem, DFT(), head=options, backend=backend, gradient_budget=gradient_budget, normalize=normalize
    )
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(gradients, exact, 0.1 if gradient_budget else bound(dtype, problem))
    assert (result.dropped_share > 0) == bool(gradient_budget)


@DTYPES
def test_autocast_signed_weights_and_other_ignore_index(backend, dtype):
    problem = on_cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        result = selective_linear_cross_entropy(
            *problem[:3], objective=ProFit(threshold=THRESHOLD), backend=backend, statistics="all"
        )
    rounded = tuple(tensor.to(dtype) for tensor in problem[:2])
    _, (loss, _, _) = both((*rounded, *problem[2:]), ProFit(threshold=THRESHOLD), backend=backend)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    problem = on_cuda(dtype)
    weights = torch.linspace(-1, 1, len(problem[2]), device="cuda")
    labels = torch.where(problem[2] == -100, -1, problem[2])
    problem = *problem[:2], labels, *problem[3:]
    (result, gradients), (loss, exact, _) = both(problem, NLL(), backend=backend, weights=weights, ignore_index=-1)
    assert_close(gradients, exact, bound(dtype, problem))


@pytest.mark.parametrize("case", ["no tokens", "all ignored", "all masked"])
@pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")
def test_nothing_to_train_is_an_attached_zero(backend, case):
    hidden, lm_head_weight, labels, _, _ = on_cuda()
    if case == "no tokens":
        hidden, labels = hidden[:0], labels[:0]
    elif case == "all ignored":
        labels = torch.full_like(labels, -100)
    objective = ProFit(threshold=0.5, mask_source="reference")
    unlikely = torch.full(labels.shape, -9.0, device="cuda")
    hidden, lm_head_weight = hidden.clone().requires_grad_(), lm_head_weight.requires_grad_()
    result = selective_linear_cross_entropy(
        hidden, lm_head_weight, labels, objective=objective, reference_log_probs=unlikely, backend=backend
    )
    result.loss.backward()
    assert result.loss.item() == 0
    assert (hidden.grad == 0).all()
    assert (lm_head_weight.grad == 0).all()


def test_frozen_parts_get_no_gradient(backend):
    for frozen in (0, 1):
        inputs = [tensor.clone().requires_grad_(index != frozen) for index, tensor in enumerate(on_cuda()[:2])]
        loss = selective_linear_cross_entropy(*inputs, on_cuda()[2], objective=NLL(), backend=backend).loss
        loss.backward()
        assert [tensor.grad is None for tensor in inputs] == [index == frozen for index in (0, 1)]
