"""On devices other than CPU and CUDA: no float64, and none of what is there for the CPU alone.

No such device is at hand, so the loss runs on the CPU and is told that it is elsewhere. The numbers are judged by the
oracle as everywhere; a float64 tensor, a thread and a buffer kept for the next call are errors.
"""

import multiprocessing

import pytest
import torch
from problems import HEADS, OBJECTIVES, assert_close, planted_problem, tolerance
from torch.utils._python_dispatch import TorchDispatchMode

from profit_sft import NLL, selective_linear_cross_entropy
from profit_sft.loss import call, chunked, head_gradients, largest_values, mixed_precision, row_blocks, selective
from profit_sft.loss.reference import reference_loss
from profit_sft.objectives import DFT


class NoFloat64(TorchDispatchMode):
    """Refuses to make a float64 tensor, as MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError(f"{function} made a float64 tensor of shape {tuple(tensor.shape)}")
        return made


def refused(*args, **kwargs):
    raise AssertionError("this is for the CPU alone")


@pytest.fixture
def elsewhere(monkeypatch):
    """Enter it around a call of the loss that is to think its tensors lie on a device without float64."""
    for module in (chunked, head_gradients, largest_values):
        monkeypatch.setattr(module, "accumulation_dtype", lambda device: call.accumulation_dtype(torch.device("mps")))
    for module in (chunked, head_gradients, largest_values, mixed_precision, selective):
        monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
    for name in ("in_blocks", "take_logits_memory", "give_back_logits_memory"):
        monkeypatch.setattr(chunked, name, refused)
    monkeypatch.setattr(head_gradients, "fp32_columns", refused)
    return NoFloat64()


def test_float64_is_known_where_it_is():
    assert [call.accumulation_dtype(torch.device(kind)) for kind in ("cpu", "cuda")] == [torch.float64] * 2
    assert {call.accumulation_dtype(torch.device(kind)) for kind in ("mps", "xpu", "hpu")} == {torch.float32}


def split(problem, objective, head=None, **options):
    """Return ours and the oracle's loss and gradients, as `both`, but with nothing of the oracle's under the mode."""
    hidden, lm_head_weight, labels, bias, reference = problem
    head = {name: value for name, value in (head or {}).items() if name != "bias"}
    given = [tensor for tensor in (hidden, lm_head_weight, bias) if tensor is not None]

    def inputs(dtype):
        made = [tensor.to(dtype or tensor.dtype, copy=True).requires_grad_() for tensor in given]
        return made, {"bias": made[2] if bias is not None else None, "objective": objective, **head}

    exact, exact_options = inputs(torch.float64)
    loss, _ = reference_loss(*exact[:2], labels, reference_log_probs=reference.double(), **exact_options)

    def run():
        ours, our_options = inputs(None)
        result = selective_linear_cross_entropy(
            *ours[:2], labels, reference_log_probs=reference, **our_options, **options
        )
        return result, torch.autograd.grad(result.loss, ours)

    return run, loss, torch.autograd.grad(loss, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("statistics", ["objective", "ranks"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_without_float64(elsewhere, objective, statistics, dtype):
    problem = planted_problem(dtype)
    run, loss, exact = split(problem, objective, statistics=statistics, chunk_size=64)
    with elsewhere:
        result, gradients = run()
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(gradients, exact, tolerance(dtype, *problem[:2]))


@pytest.mark.parametrize("gradient_budget", [None, 0.0, 0.01])
@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_and_budget_without_float64(elsewhere, head, normalize, gradient_budget):
    options = HEADS[head]
    problem = planted_problem(falling=12.0, **options)
    run, loss, exact = split(problem, NLL(), options, gradient_budget=gradient_budget, normalize=normalize)
    with elsewhere:
        result, gradients = run()
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(gradients, exact, 0.1 if gradient_budget else tolerance(torch.float32, *problem[:2]))
    assert (result.dropped_share > 0) == bool(gradient_budget)
    assert result.dropped_share <= (gradient_budget or 0.0) * (1 + 1e-4)


def test_the_mode_sees_float64_where_it_is_made(elsewhere, monkeypatch):
    monkeypatch.setattr(chunked, "accumulation_dtype", lambda device: torch.float64)
    run, *_ = split(planted_problem(), DFT())
    with elsewhere, pytest.raises(TypeError, match="made a float64 tensor"):
        run()


def _blocks_in_child(queue):
    seen = []
    row_blocks.in_blocks(seen.append, 8, rows_per_block=2)
    queue.put(len(seen))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        row_blocks.in_blocks(lambda part: None, 8, rows_per_block=2)
        assert row_blocks._pool is not None
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_blocks_in_child, args=(queue,))
        child.start()
        child.join(60)
        if child.is_alive():
            child.kill()
            pytest.fail("the child waits for threads that it does not have")
        assert queue.get() == 4
    finally:
        torch.set_num_threads(threads)
