"""The columns that are kept carry all but what is allowed, and hardly one of them could go."""

import pytest
import torch

from profit_sft.loss.largest_values import _by_sorting, largest_values

# What a GPU does, with and without deterministic algorithms, and what runs here.
WAYS = [largest_values, _by_sorting]


@pytest.fixture(params=[False, True], ids=["", "deterministic"], autouse=True)
def deterministic(request):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("allowed_share", [0.0, 1e-6, 0.003, 0.2, 1.0])
@pytest.mark.parametrize("power", [1, 8, 40])  # the larger, the longer the tail: down to 1e-200, that is 0
@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_out_is_allowed_and_one_more_would_not_be(way, allowed_share, power):
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0)) ** power
    allowed = allowed_share * values.sum(dtype=torch.float64)
    places, left_out = way(values, allowed)
    rest = values.double().clone()
    rest[places] = 0
    assert left_out == pytest.approx(rest.sum().item(), rel=1e-12)
    assert left_out <= allowed
    assert torch.equal(places, places.sort().values)
    if places.numel():
        smallest = values[places].min()
        assert values[places].double().sum() + left_out == pytest.approx(values.double().sum().item())
        undecided = (values >= smallest) & (values <= smallest * 1.005)
        assert left_out + values[undecided].double().sum() >= min(allowed, values.double().sum()) * (1 - 1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_to_choose_from_and_nothing_to_hide(way):
    none_allowed = torch.zeros((), dtype=torch.float64)
    infinite = torch.full((7,), float("inf"))
    places, left_out = way(torch.zeros(7), none_allowed)
    assert (places.numel(), left_out) == (7 if way is largest_values else 1, 0)
    for values in (torch.full((7,), float("nan")), infinite - infinite):  # a NaN of either sign
        places, left_out = way(values, none_allowed)
        assert places.numel() == 7
        assert left_out == 0


def test_zeros_of_either_sign_go_first_and_infinity_stays():
    values = torch.tensor([-0.0, 2.0, 0.0, float("inf"), -0.0])
    places, left_out = largest_values(values, torch.zeros((), dtype=torch.float64))
    assert places.tolist() == [1, 3]
    assert left_out == 0
    places, left_out = largest_values(values, torch.full((), float("inf"), dtype=torch.float64))
    assert places.tolist() == [3]
    assert left_out == 2
