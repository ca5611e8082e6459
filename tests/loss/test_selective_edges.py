"""Edges of the loss: p at the threshold, first and last label, objectives of one's own, 16-bit and mixed inputs."""

import math
from types import SimpleNamespace

import pytest
import torch
from problems import (
    HEADS,
    PLACES,
    THRESHOLD,
    assert_close,
    both,
    oracle,
    ours,
    planted_problem,
    selective_loss,
    tolerance,
)
from torch.nn import functional

from profit_sft import NLL, Objective, ProFit
from profit_sft.objectives import DFT, EAFT

pytestmark = pytest.mark.parametrize("place", PLACES)


def test_fresh_buffers_hold_nan_in_these_tests(place):
    zeros = torch.zeros(3, device=place.device)
    for made in (torch.empty(3, device=place.device), torch.empty_like(zeros), zeros.new_empty(3)):
        assert made.device.type == place.device.type
        assert made.isnan().all()
    assert torch.empty(3, dtype=torch.long, device=place.device).dtype == torch.long


@pytest.mark.parametrize(
    ("objective", "kept"),
    [
        (ProFit(threshold=0.5), 2),
        (ProFit(threshold=0.5, direction="lower"), 2),
        (ProFit(threshold=0.49, direction="lower"), 0),
        (ProFit(threshold=0.25, upper_threshold=0.5, direction="middle"), 2),
        (ProFit(threshold=0.5, upper_threshold=0.75, direction="middle"), 2),
        (ProFit(threshold=0.25, upper_threshold=0.49, direction="middle"), 0),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")
def test_bounds_are_inclusive(place, objective, kept):
    # Two tokens in the vocabulary with equal logits: p is 1/2 to the last bit.
    result = selective_loss(place, torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0, 1]), objective=objective)
    assert result.num_kept == kept


@pytest.mark.parametrize("likely_tokens", [2, 64])
@pytest.mark.parametrize("head", [{}, {"logit_scale": 0.5, "final_logit_softcapping": 90.0}], ids=str)
def test_probability_equal_to_the_threshold_survives_a_prescreen(place, likely_tokens, head):
    # The first rows of a large vocabulary share all the mass evenly; what is drawn from the rest is masked early.
    lm_head_weight = torch.full((place.sizes[2], 1), -400.0)
    lm_head_weight[:likely_tokens] = 0.0
    labels = torch.cat([torch.arange(likely_tokens), torch.full((3 * likely_tokens,), 2000)])
    objective = ProFit(threshold=1 / likely_tokens)
    result = selective_loss(place, torch.ones(len(labels), 1), lm_head_weight, labels, objective=objective, **head)
    assert torch.equal(result.token_weights, (labels < likely_tokens).float())


@pytest.mark.parametrize("head", HEADS)
def test_mask_is_the_oracles_at_thresholds_on_both_sides_of_a_tokens_probability(place, head):
    options = HEADS[head]
    problem = planted_problem(place, **options)
    counted = problem[2] != -100
    _, _, values = oracle(problem, NLL(), head=options)
    ordered = values["log_probs"].sort().values
    gap = 1e-3
    hidden, lm_head_weight, labels, bias, _ = problem
    head_options = {name: value for name, value in options.items() if name != "bias"}
    lonely = ordered[1:-1][(ordered[1:-1] - ordered[:-2] > 2 * gap) & (ordered[2:] - ordered[1:-1] > 2 * gap)]
    for log_prob in lonely[:: max(1, len(lonely) // 5)].tolist():
        for side in (-gap, gap):
            threshold = math.exp(log_prob + side)
            objective = ProFit(threshold=threshold)
            options = {"objective": objective, "bias": bias, **head_options}
            result = selective_loss(place, hidden, lm_head_weight, labels, **options)
            assert torch.equal(result.token_weights[counted] != 0, values["log_probs"] >= math.log(threshold))


@pytest.mark.parametrize("likely", [True, False])
@pytest.mark.parametrize("end", ["first", "last"])
def test_first_and_last_token_of_the_vocabulary_are_labels_like_any_other(place, end, likely):
    label = 0 if end == "first" else place.sizes[2] - 1
    hidden, lm_head_weight, labels, _, reference = planted_problem(place)
    if likely:
        hidden[20:23] += 10 * lm_head_weight[label]
    labels[20:23] = label
    problem = hidden, lm_head_weight, labels, None, reference
    (result, gradients), (loss, exact, values) = both(problem, ProFit(threshold=THRESHOLD), place=place)
    assert (result.token_weights[20:23] == float(likely)).all()
    assert torch.equal(result.token_weights[labels != -100].double(), values["token_weights"])
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(gradients, exact, tolerance(torch.float32, hidden, lm_head_weight, place))
    if not likely:  # the row of a label that is nearly certain is nearly zero, and 1 - p has few digits left
        (_, gradients), (_, exact, _) = both(problem, NLL(), place=place)
        bound = tolerance(torch.float32, hidden, lm_head_weight, place)
        assert_close((gradients[1][label],), (exact[1][label],), bound)


@pytest.mark.parametrize("objective", [ProFit(threshold=THRESHOLD), DFT()], ids=str)
def test_half_precision_gradients_are_right_once_scaled(place, objective):
    # fp16 loses gradients below 6e-8, hence the scale that mixed-precision training uses as well.
    problem = planted_problem(place, torch.float16)
    _, exact, _ = oracle(problem, objective)
    inputs = [tensor.clone().requires_grad_() for tensor in problem[:2]]
    result = selective_loss(place, *inputs, problem[2], objective=objective)
    (result.loss * 1024).backward()
    found = [tensor.grad.double() / 1024 for tensor in inputs]
    assert_close(found, exact, tolerance(torch.float16, *problem[:2], place))


@pytest.mark.parametrize(
    ("hidden_dtype", "weight_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_operands_of_two_dtypes_keep_their_own(place, hidden_dtype, weight_dtype):
    hidden, lm_head_weight, *rest = planted_problem(place)
    problem = hidden.to(hidden_dtype), lm_head_weight.to(weight_dtype), *rest
    (result, gradients), (loss, exact, _) = both(problem, NLL(), place=place)
    assert [gradient.dtype for gradient in gradients] == [hidden_dtype, weight_dtype]
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, exact, strict=True):
        assert_close((gradient,), (wanted,), tolerance(gradient.dtype, *problem[:2], place))


def test_any_object_with_the_attributes_is_an_objective_and_gets_what_it_needs(place):
    problem = planted_problem(place)
    seen = []

    def token_weights(stats):
        seen.append((stats.log_probs, stats.topk_entropy))
        return stats.entropy / 10

    unsure = SimpleNamespace(
        needs=frozenset({"entropy"}), elementwise=True, probability_floor=0.0, token_weights=token_weights
    )
    assert isinstance(unsure, Objective)
    (result, gradients), (_, exact, values) = both(problem, unsure, place=place, chunk_size=place.chunk_size)
    label_mask = problem[2] != -100
    assert (result.entropy[label_mask].double() - values["entropy"]).abs().max() <= 3e-5
    assert (result.token_weights[label_mask].double() - values["token_weights"]).abs().max() <= 3e-6
    assert result.is_top1 is None
    assert_close(gradients, exact, tolerance(torch.float32, *problem[:2], place))


def test_a_random_mask_follows_its_generator_and_costs_nothing_for_what_it_drops(place):
    problem = planted_problem(place)
    results = []
    for _ in range(2):
        objective = ProFit(direction="random", rate=0.4, generator=torch.Generator().manual_seed(3))
        result, gradients = ours(problem, objective, place=place)
        results.append(result)
    assert torch.equal(results[0].token_weights, results[1].token_weights)
    assert 0.25 < results[0].kept_share < 0.55
    dropped = (problem[2] != -100) & (results[0].token_weights == 0)
    assert results[0].log_probs[dropped].isnan().all()
    assert (gradients[0][results[0].token_weights == 0] == 0).all()
    # Given as known weights, the same mask gives the same gradients.
    _, expected = ours(problem, NLL(), place=place, token_weights=result.token_weights)
    for found, wanted in zip(gradients, expected, strict=True):
        assert (found - wanted).norm() <= 1e-6 * wanted.norm()


def test_negative_weights_push_away(place):
    problem = planted_problem(place)
    weights = torch.full(problem[2].shape, -0.5)
    (result, gradients), (loss, exact, _) = both(
        problem, NLL(), place=place, token_weights=weights, chunk_size=place.chunk_size
    )
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert result.loss < 0
    assert result.num_kept == result.num_labels
    assert_close(gradients, exact, tolerance(torch.float32, *problem[:2], place))


@pytest.mark.parametrize("gradient_budget", [0.0, 0.003])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, under Triton's interpreter
def test_an_infinite_hidden_state_is_seen_as_nan(place, value, gradient_budget):
    # Large enough that on some processors part of the gradient is multiplied in bf16.
    count, vocab_size = (300, 32768) if place.backend == "chunked" else (8, 2311)
    hidden, lm_head_weight = torch.randn(count, 64), torch.randn(vocab_size, 64)
    hidden[3, 0] = value
    result = selective_loss(
        place,
        hidden.requires_grad_(),
        lm_head_weight.requires_grad_(),
        torch.arange(count),
        objective=NLL(),
        gradient_budget=gradient_budget,
    )
    result.loss.backward()
    assert result.loss.isnan()
    assert hidden.grad[3].isnan().any()


def test_fewer_tokens_that_can_be_than_the_entropy_looks_at(place):
    # EAFT looks at the 20 likeliest; here 16 of 24 are not ruled out.
    hidden, lm_head_weight, labels, _, reference = planted_problem(place)
    lm_head_weight, labels = lm_head_weight[:24], labels.clamp(max=15)
    bias = torch.zeros(24)
    bias[16:] = -math.inf
    possible = hidden, lm_head_weight[:16], labels, None, reference
    problem = hidden, lm_head_weight, labels, bias, reference
    (result, gradients), (loss, exact, _) = both(problem, EAFT(alpha=0.5), place=place)
    fewer, _, _ = oracle(possible, EAFT(alpha=0.5))
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert loss.item() == pytest.approx(fewer.item(), rel=1e-9)
    assert_close(gradients[:2], exact[:2], tolerance(torch.float32, hidden, lm_head_weight, place))


def test_a_label_the_bias_rules_out_is_masked_without_harm(place):
    # Padded vocabularies carry a bias of -inf: log p of such a label is -inf, its weight 0, their product not NaN.
    hidden, lm_head_weight = torch.eye(4), 4 * torch.eye(6)[:, :4]
    bias = torch.zeros(6)
    bias[5] = -math.inf
    inputs = [tensor.requires_grad_() for tensor in (hidden, lm_head_weight)]
    labels = torch.tensor([0, 1, 2, 5])
    result = selective_loss(place, *inputs, labels, objective=ProFit(threshold=0.5), bias=bias)
    result.loss.backward()
    kept = functional.cross_entropy((hidden @ lm_head_weight.T + bias)[:3], torch.arange(3), reduction="sum")
    assert result.log_probs[3] == -math.inf
    assert result.loss.item() == pytest.approx(kept.item() / 4, rel=1e-5)
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
    assert (hidden.grad[3] == 0).all()


def test_calls_add_up_in_grad_as_any_loss_does(place):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    lm_head_weight.requires_grad_()
    for _ in range(2):
        selective_loss(place, hidden, lm_head_weight, labels, objective=ProFit(threshold=THRESHOLD)).loss.backward()
    twice, lm_head_weight.grad = lm_head_weight.grad, None
    loss = selective_loss(place, hidden, lm_head_weight, labels, objective=ProFit(threshold=THRESHOLD)).loss
    (once,) = torch.autograd.grad(loss, lm_head_weight)
    assert (twice - 2 * once).norm() <= 1e-6 * once.norm()


def test_inputs_are_left_as_they_were(place):
    problem = planted_problem(place, bias=True)
    before = [tensor.clone() for tensor in problem]
    for objective in (ProFit(threshold=THRESHOLD), DFT()):
        both(problem, objective, head=HEADS["all"], place=place)
    for tensor, copy in zip(problem, before, strict=True):
        assert torch.equal(tensor, copy)


def test_nothing_requires_a_gradient_then_neither_does_the_loss(place):
    hidden, lm_head_weight, labels, _, _ = planted_problem(place)
    result = selective_loss(place, hidden, lm_head_weight, labels, objective=NLL())
    assert not result.loss.requires_grad


@pytest.mark.parametrize("objective", [ProFit(threshold=THRESHOLD), DFT()], ids=str)
def test_kept_share_and_plain_nll_are_on_the_result(place, objective):
    problem = planted_problem(place)
    label_mask = problem[2] != -100
    (result, _), (_, _, values) = both(problem, objective, place=place, statistics="all")
    for share in (result.kept_share, result.nll):
        assert share.shape == ()
        assert share.dtype == torch.float32
        assert not share.requires_grad
    assert result.kept_share.item() == pytest.approx((values["token_weights"] != 0).double().mean().item(), rel=1e-6)
    assert result.nll.item() == pytest.approx(-values["log_probs"].mean().item(), rel=1e-6)
    quick, _ = ours(problem, objective, place=place)
    assert quick.kept_share == result.kept_share
    screened = bool(quick.log_probs[label_mask].isnan().any())
    assert screened == (objective == ProFit(threshold=THRESHOLD))
    assert bool(quick.nll.isnan()) == screened  # no guess where not every log p was computed


def test_without_labels_nothing_is_kept_and_nll_is_zero(place):
    result = selective_loss(place, torch.randn(3, 8), torch.randn(30, 8), torch.full((3,), -100), objective=NLL())
    assert result.kept_share == result.nll == 0
