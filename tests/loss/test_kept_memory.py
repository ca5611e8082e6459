"""The memory that calls of the loss share leaves no trace of one call in the next."""

import threading

import pytest
import torch
from problems import planted_problem

from profit_sft import NLL, ProFit, selective_linear_cross_entropy
from profit_sft.loss import devices


def loss_and_gradient(problem, threshold=None):
    hidden, lm_head_weight, labels = (tensor.clone() for tensor in problem[:3])
    hidden.requires_grad_()
    objective = NLL() if threshold is None else ProFit(threshold=threshold)
    loss = selective_linear_cross_entropy(hidden, lm_head_weight, labels, objective=objective, chunk_size=50).loss
    return torch.cat([loss.detach()[None], torch.autograd.grad(loss, hidden)[0].flatten()])


@pytest.mark.parametrize("threshold", [None, 0.1])  # with a threshold the memory is filled in parts
def test_a_call_is_the_same_after_any_other(threshold):
    problem = planted_problem()
    hidden, lm_head_weight, labels, *_ = problem
    alone = loss_and_gradient(problem, threshold)
    (kept,) = devices._kept
    assert torch.equal(loss_and_gradient(problem, threshold), alone)
    assert devices._kept[0] is kept
    others = {
        "NaN everywhere": (torch.full_like(hidden, float("nan")), lm_head_weight, labels),
        "another vocabulary": (hidden, lm_head_weight[:100], labels.clamp(max=99)),
        "another dtype": (hidden.double(), lm_head_weight.double(), labels),
        "more tokens": (hidden.repeat(2, 1), lm_head_weight, labels.repeat(2)),
    }
    for name, other in others.items():
        loss_and_gradient(other)
        assert torch.equal(loss_and_gradient(problem, threshold), alone), name


def test_a_call_in_inference_mode_leaves_memory_to_train_with():
    problem = planted_problem()
    hidden, lm_head_weight, labels, *_ = problem
    with torch.inference_mode():
        selective_linear_cross_entropy(hidden, lm_head_weight, labels, objective=NLL())
    loss_and_gradient(problem)


def test_a_call_that_fails_keeps_nothing_and_the_next_is_right(monkeypatch):
    problem = planted_problem()
    alone = loss_and_gradient(problem)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="interrupted"):
        patched.setattr(
            "profit_sft.loss.chunked.in_blocks", lambda *args, **kwargs: raise_(RuntimeError("interrupted"))
        )
        loss_and_gradient(problem)
    assert not devices._kept
    assert torch.equal(loss_and_gradient(problem), alone)


def raise_(error):
    raise error


def test_threads_do_not_share_memory():
    problems = [planted_problem(seed=seed) for seed in range(4)]
    alone = [loss_and_gradient(problem) for problem in problems]
    different = []

    def repeat(index):
        for _ in range(5):
            if not torch.equal(loss_and_gradient(problems[index]), alone[index]):
                different.append(index)

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different
