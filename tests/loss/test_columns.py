"""Products in two precisions against float64, and when they are used at all."""

import pytest
import torch
from problems import CPU, HEADS, THRESHOLD, assert_close, both, ours, planted_problem, tolerance

from profit_sft import NLL, ProFit, selective_linear_cross_entropy
from profit_sft.loss import columns as columns_of_loss
from profit_sft.loss.columns import TAIL_PER_BUDGET, TAIL_SHARE, _by_sorting, add_products, fp32_columns, largest_values
from profit_sft.objectives import ASFT


@pytest.fixture
def always_split(monkeypatch):
    """Split small products too, on any processor, and count how often that was done."""
    calls = []

    def counting(mass, *args, **kwargs):
        columns = fp32_columns(mass, *args, **kwargs)
        if columns is not None:
            calls.append(columns.numel() / mass.numel())
        return columns

    monkeypatch.setattr(columns_of_loss, "_SMALLEST_PRODUCT", 0)
    # Planted inputs have a flatter tail than real ones, where the real constants are tested (test_savings.py).
    monkeypatch.setattr(columns_of_loss, "TAIL_SHARE", 0.1)
    monkeypatch.setattr(columns_of_loss, "_LARGEST_FP32_SHARE", 0.9)
    monkeypatch.setattr("profit_sft.loss.head_gradients.fp32_columns", counting)
    # bf16 products exist on every processor, they are only slower where it has no instructions for them.
    monkeypatch.setattr("profit_sft.loss.head_gradients.multiplies_bf16_fast", lambda weight: True)
    return calls


def in_two_precisions_bound(values, problem, scale, tail_share):
    """Three roundings to bf16 of `tail_share` of `sum |G|`, each entry against a row of W or H."""
    weights, probs = values["token_weights"].abs(), values["log_probs"].exp()
    mass = (2 * weights * (1 - probs)).sum() / (problem[2] != -100).sum() * scale
    return [3 * 2**-9 * tail_share * mass * problem[i].double().norm(dim=-1).max() for i in (1, 0)]


@pytest.mark.pairs
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("objective", [NLL(), ProFit(threshold=THRESHOLD), ASFT()], ids=str)
@pytest.mark.parametrize("gradient_budget", [None, 0.02])
def test_gradients_stay_within_the_stated_bound(head, objective, gradient_budget, always_split):
    options = HEADS[head]
    problem = planted_problem(falling=12.0, **options)
    (result, gradients), (_, exact, values) = both(
        problem, objective, place=CPU, head=options, gradient_budget=gradient_budget, chunk_size=100
    )
    assert len(always_split) >= 2  # every chunk
    assert max(always_split) < 0.9
    assert (gradients[0].double() - exact[0]).norm() > 2e-6 * exact[0].norm()  # bf16 took part
    tail_share = max(columns_of_loss.TAIL_SHARE, TAIL_PER_BUDGET * (gradient_budget or 0.0))
    scale = options.get("logit_scale", 1.0)
    bounds = in_two_precisions_bound(values, problem, scale, tail_share + float(result.dropped_share) * 2**9 / 3)
    for found, wanted, bound in zip(gradients, exact, bounds, strict=False):
        error = (found.double() - wanted).norm(dim=-1).sum()
        assert error <= bound + tolerance(torch.float32, *problem[:2]) * wanted.norm(dim=-1).sum()


def test_a_frozen_part_gets_no_product(always_split):
    hidden, lm_head_weight, labels, _, _ = planted_problem()
    full = ours((hidden, lm_head_weight, labels, None, torch.zeros(labels.shape)), NLL(), place=CPU)[1]
    for wanted in (0, 1):
        inputs = [hidden.clone(), lm_head_weight.clone()]
        inputs[wanted].requires_grad_()
        loss = selective_linear_cross_entropy(*inputs, labels, objective=NLL()).loss
        (gradient,) = torch.autograd.grad(loss, inputs[wanted])
        assert torch.equal(gradient, full[wanted])


@pytest.mark.parametrize("head", HEADS)
def test_a_budget_of_zero_multiplies_everything_in_fp32_on_any_processor(head, always_split, monkeypatch):
    problem = planted_problem(falling=12.0, **HEADS[head])
    found = []
    for fast in (True, False):
        monkeypatch.setattr("profit_sft.loss.head_gradients.multiplies_bf16_fast", lambda weight, fast=fast: fast)
        (result, gradients), (_, exact, _) = both(problem, NLL(), place=CPU, head=HEADS[head], gradient_budget=0.0)
        assert_close(gradients, exact, tolerance(torch.float32, *problem[:2]))
        assert result.dropped_share == 0
        found.append(gradients)
    assert not always_split
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_rounded_columns_carry_at_most_their_share():
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(5000, generator=generator) ** 32
    columns = fp32_columns(mass, 2**30, gradient_budget=0.0)
    rest = mass.clone()
    rest[columns] = 0
    assert 0 < rest.sum() <= TAIL_SHARE * mass.sum()
    assert fp32_columns(mass, 2**30, gradient_budget=0.01).numel() < columns.numel()
    assert fp32_columns(mass, 1, gradient_budget=0.0) is None  # not worth the passes
    assert fp32_columns(torch.ones(5000), 2**30, gradient_budget=0.0) is None  # no tail
    assert fp32_columns(mass * float("nan"), 2**30, gradient_budget=0.0) is None  # and nothing to hide


@pytest.mark.parametrize("chosen", [False, True])
def test_products_add_to_what_is_there_in_both_precisions(chosen):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.rand(7, 9003, generator=generator)  # two more columns than there are in the vocabulary
    weight, hidden = torch.randn(9001, 5, generator=generator), torch.randn(7, 5, generator=generator)
    columns = torch.arange(0, 9001, 2) if chosen else None
    taken = gradient[:, :9001].double()
    if chosen:
        taken[:, 1::2] = 0
    inner = torch.tensor([0, 4095, 4096, 4500] if chosen else [0, 4095, 4096, 9000])
    d_hidden, d_weight = torch.ones(7, 5), torch.ones(9001, 5)
    expected = 1 + taken @ weight.double(), 1 + taken.T @ hidden.double()
    add_products(
        gradient.clone(),
        columns,
        inner,
        lm_head_weight=weight,
        hidden_states=hidden,
        d_hidden=d_hidden,
        d_weight=d_weight,
    )
    assert 1e-6 * expected[0].norm() < (d_hidden - expected[0]).norm() <= 2**-7 * expected[0].norm()
    assert 1e-6 * expected[1].norm() < (d_weight - expected[1]).norm() <= 2**-7 * expected[1].norm()
    exact_rows = inner if columns is None else columns[inner]
    assert (d_weight - expected[1])[exact_rows].abs().max() <= 1e-6  # fp32
    only_exact = torch.zeros(7, 5)
    add_products(
        gradient.clone(),
        columns,
        torch.arange(9001 if columns is None else columns.numel()),
        lm_head_weight=weight,
        hidden_states=hidden,
        d_hidden=only_exact,
        d_weight=None,
    )
    assert (only_exact - (expected[0] - 1)).norm() <= 1e-5 * expected[0].norm()


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
