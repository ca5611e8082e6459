"""What runs where: float64 and waiting on accelerators, the CPU's tricks on CPUs, the threads after a fork."""

import os
import signal
import subprocess
import sys

import fake_accelerator
import pytest
import torch
from problems import CPU, HEADS, OBJECTIVES, PLACES, THRESHOLD, beside, both, planted_problem, selective_loss

from profit_sft import NLL, ProFit, selective_linear_cross_entropy
from profit_sft.loss import chunked, columns, head_gradients
from profit_sft.loss.devices import accumulation_dtype, default_chunk_size, multiplies_16_bit_into_fp32

ACCELERATORS = [row for row in PLACES if row.values[0].device == fake_accelerator.DEVICE]
OTHERS = [torch.device(name) for name in ("mps", "xpu", "privateuseone", "hpu", "xla", "meta")]


@pytest.mark.parametrize("place", ACCELERATORS)
def test_the_fake_device_is_as_strict_as_a_real_one(place, accelerator):
    there = torch.ones(3).to(place.device)
    for make in (lambda: there.double(), lambda: there.sum(dtype=torch.float64), lambda: there.new_zeros(2).double()):
        with pytest.raises(TypeError, match="no float64"):
            make()
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(3, dtype=torch.float64, device=place.device)
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    assert not accelerator.waits[1:]  # the first is the copy above
    assert there.sum().item() == 3
    assert (2 * there).cpu().tolist() == [2, 2, 2]
    assert len(accelerator.waits) == 3


@pytest.mark.pairs
@pytest.mark.parametrize("place", ACCELERATORS)
@pytest.mark.parametrize("statistics", ["objective", "ranks"])
@pytest.mark.parametrize("gradient_budget", [None, 0.0, 0.01])
@pytest.mark.parametrize("head", HEADS)
def test_no_float64_and_no_trick_of_the_cpu_off_the_cpu(place, head, gradient_budget, statistics, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a trick of the CPU, off the CPU")

    for module, name in (
        (chunked, "in_blocks"),
        (chunked, "take_logits_memory"),
        (head_gradients, "add_products"),
    ):
        monkeypatch.setattr(module, name, refused)
    hidden, lm_head_weight, labels, bias, reference = planted_problem(place, falling=12.0, **HEADS[head])
    inputs = [tensor.requires_grad_() for tensor in (hidden, lm_head_weight, bias) if tensor is not None]
    options = {name: value for name, value in HEADS[head].items() if name != "bias"}
    for objective in OBJECTIVES:
        loss = selective_loss(
            place,
            *inputs[:2],
            labels,
            objective=objective,
            bias=bias,
            gradient_budget=gradient_budget,
            statistics=statistics,
            chunk_size=place.chunk_size,
            **beside(objective, reference),
            **options,
        ).loss
        assert all(gradient.norm() > 0 for gradient in torch.autograd.grad(loss, inputs))


def test_the_tricks_are_the_ones_a_cpu_takes(monkeypatch):
    taken = set()

    def noting(module, name):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: (taken.add(name), own(*args, **kwargs))[1])

    noting(chunked, "in_blocks")
    noting(chunked, "take_logits_memory")
    both(planted_problem(), NLL(), place=CPU)
    assert taken == {"in_blocks", "take_logits_memory"}


@pytest.mark.parametrize("device", OTHERS, ids=str)
def test_a_device_that_is_neither_cpu_nor_cuda_is_taken_for_neither(device):
    assert accumulation_dtype(device) is torch.float32
    assert not multiplies_16_bit_into_fp32(device)
    assert default_chunk_size(device, 151_936) * 151_936 * 4 <= 2**29
    assert default_chunk_size(device, 32_000) > default_chunk_size(torch.device("cpu"), 32_000)
    assert head_gradients.multiplies_bf16_fast(torch.zeros(1, device="meta")) is False


def test_devices_with_float64_add_up_in_it():
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert accumulation_dtype(device) is torch.float64
    assert multiplies_16_bit_into_fp32(torch.device("cuda"))
    assert not multiplies_16_bit_into_fp32(torch.device("cpu"))


def test_columns_are_chosen_without_float64_as_with_it():
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0)) ** 8
    allowed = 0.003 * values.sum()
    wanted, left_out = columns.largest_values(values, allowed.double())
    with fake_accelerator.Accelerator():
        places, found = columns.largest_values(values.to(fake_accelerator.DEVICE), allowed.to(fake_accelerator.DEVICE))
        assert places.device == found.device == fake_accelerator.DEVICE
        assert torch.equal(places.cpu(), wanted)
        assert found.item() == pytest.approx(left_out.item(), rel=1e-6)


def test_without_float64_the_loss_of_many_chunks_is_as_precise_as_its_terms(monkeypatch):
    monkeypatch.setattr(chunked, "accumulation_dtype", lambda device: torch.float32)
    hidden, lm_head_weight, labels, _, _ = planted_problem(sizes=(50, 8, 64))
    count = 4000  # chunks of one token, all alike: a running sum rounds each of them the same way
    with torch.no_grad():
        result = selective_loss(
            CPU,
            hidden[20].expand(count, -1),
            lm_head_weight,
            labels[20].expand(count),
            objective=NLL(),
            chunk_size=1,
        )
    exact = -result.log_probs.double().mean()
    assert abs(result.loss.double() - exact) <= 3 * 2**-23 * exact


@pytest.mark.parametrize("place", ACCELERATORS)
@pytest.mark.parametrize("gradient_budget", [None, 0.01])
@pytest.mark.parametrize("case", ["all known", "some masked", "screened"])
def test_the_host_waits_as_often_as_the_documentation_says(place, accelerator, case, gradient_budget, monkeypatch):
    problem = planted_problem(place, falling=12.0)
    inputs = [tensor.to(place.device).requires_grad_() for tensor in problem[:2]]
    labels = problem[2].to(place.device)
    chunks, groups = [], []
    run_chunk, screen = chunked.ChunkedCall._chunk, chunked.ChunkedCall._may_be_kept
    monkeypatch.setattr(chunked.ChunkedCall, "_chunk", lambda *args: (chunks.append(1), run_chunk(*args))[1])
    monkeypatch.setattr(chunked.ChunkedCall, "_may_be_kept", lambda *args: (groups.append(1), screen(*args))[1])
    monkeypatch.setattr(chunked, "_PILOT_TOKENS", 10)
    accelerator.waits.clear()
    result = selective_linear_cross_entropy(
        *inputs,
        labels,
        objective=NLL() if case == "all known" else ProFit(threshold=THRESHOLD),
        statistics="all" if case == "some masked" else "objective",
        gradient_budget=gradient_budget,
        chunk_size=10,
    )
    # Three a call; one for weights that are known; three for the prefix (seen as three groups) and one a group.
    assert bool(groups) == (case == "screened")
    assert len(chunks) > 2
    fixed = 3 + (case == "all known") + len(groups)
    assert fixed + len(chunks) <= len(accelerator.waits) <= fixed + (3 if gradient_budget is None else 7) * len(chunks)
    accelerator.waits.clear()
    result.loss.backward()
    assert not accelerator.waits


_AFTER_A_FORK = """
import os, sys, torch
from profit_sft.loss.devices import in_blocks

torch.set_num_threads(3)
def fill(part):
    done[part] = [True] * len(done[part])

done = [False] * 10
in_blocks(fill, 10, rows_per_block=1)
child = os.fork()
if child == 0:
    done = [False] * 10
    in_blocks(fill, 10, rows_per_block=1)
    os._exit(0 if all(done) else 3)
_, status = os.waitpid(child, 0)
done = [False] * 10
in_blocks(fill, 10, rows_per_block=1)
sys.exit(os.waitstatus_to_exitcode(status) if all(done) else 4)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_makes_threads_of_its_own():
    # As a data loader's workers are forked. A child that waits for its parent's threads never ends.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _AFTER_A_FORK]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        assert running.wait(timeout=60) == 0
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
