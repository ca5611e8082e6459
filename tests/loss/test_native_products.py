"""16-bit operands multiplied as they are, with fp32 sums, as on CUDA: here the CPU stands in for that product."""

import dataclasses

import pytest
import torch
from problems import (
    CPU,
    HEADS,
    OBJECTIVES,
    PLACES,
    assert_close,
    assert_within_budget,
    both,
    planted_problem,
    tolerance,
)

from profit_sft import NLL
from profit_sft.loss import chunked
from profit_sft.loss.head_gradients import HeadGradients
from profit_sft.objectives import DFT


@dataclasses.dataclass(frozen=True)
class NativePlace(type(CPU)):
    native = True


@pytest.fixture(params=[row for row in PLACES if row.values[0].device.type == "cpu"])
def place(request, monkeypatch):
    def matmul(self, left, right, out=None):
        made = left.to(right.dtype).float() @ right.float()
        return made if out is None else out.copy_(made)

    monkeypatch.setattr(chunked, "multiplies_16_bit_into_fp32", lambda device: True)
    monkeypatch.setattr(HeadGradients, "matmul", matmul)
    return NativePlace(**vars(request.param))


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_matches_the_oracle(place, objective, dtype):
    problem = planted_problem(place, dtype)
    (result, gradients), (loss, exact, _) = both(problem, objective, place=place, chunk_size=place.chunk_size)
    assert_close(gradients, exact, tolerance(dtype, *problem[:2], place))
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gradient_budget", [None, 0.01])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_matches_the_oracle_with_and_without_a_budget(place, head, gradient_budget, dtype):
    options = HEADS[head]
    problem = planted_problem(place, dtype, falling=12.0, **options)
    (result, gradients), (loss, exact, values) = both(
        problem, DFT(), place=place, head=options, chunk_size=place.chunk_size, gradient_budget=gradient_budget
    )
    bound = tolerance(dtype, *problem[:2], place)
    if gradient_budget is None:
        assert result.dropped_share == 0
        assert_close(gradients, exact, bound)
    else:
        assert 0 < result.dropped_share <= gradient_budget * (1 + 1e-4)
        scale = options.get("logit_scale", 1.0)
        assert_within_budget(problem, result, gradients[0], exact[0], values, logit_scale=scale, rounding=bound)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.pairs
@pytest.mark.parametrize("head", ["plain", "all"])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e4])
def test_fp16_keeps_the_gradients_of_small_and_large_weights(place, size, head):
    options = HEADS[head]
    problem = planted_problem(place, torch.float16, **options)
    weights = size * torch.rand(problem[2].shape, generator=torch.Generator().manual_seed(3))
    # What comes out is fp16, too: the normalizer brings the result back to where it has its digits.
    (_, gradients), (_, exact, _) = both(
        problem,
        NLL(),
        place=place,
        head=options,
        token_weights=weights,
        num_items_in_batch=torch.tensor(size),
        chunk_size=place.chunk_size,
    )
    assert_close(gradients, exact, tolerance(torch.float16, *problem[:2], place))
