"""Prescreen and gradient budget: what may be left out, what must not change, and what is said about it."""

import math

import pytest
import torch
from problems import (
    HEADS,
    PLACES,
    THRESHOLD,
    assert_close,
    assert_within_budget,
    both,
    ours,
    planted_problem,
    selective_loss,
    tolerance,
)

from profit_sft import ProFit
from profit_sft.loss import chunked
from profit_sft.objectives import DFT

pytestmark = pytest.mark.parametrize("place", PLACES)


@pytest.mark.pairs
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("threshold", [0.1, 0.4])
def test_prescreen_changes_neither_mask_nor_gradients(place, head, threshold, monkeypatch):
    options = HEADS[head]
    problem = planted_problem(place, **options)
    (screened, found), (_, exact, values) = both(problem, ProFit(threshold=threshold), head=options, place=place)
    label_mask = problem[2] != -100
    assert screened.log_probs[label_mask].isnan().double().mean() > 0.1  # it did screen
    assert torch.equal(screened.token_weights[label_mask].double(), values["token_weights"])
    assert_close(found, exact, tolerance(torch.float32, *problem[:2], place))
    monkeypatch.setattr(chunked, "_MIN_SCREENED_VOCABULARY", 10**9)
    whole, gradients = ours(problem, ProFit(threshold=threshold), head=options, place=place)
    assert not whole.log_probs.isnan().any()
    assert torch.equal(whole.token_weights, screened.token_weights)
    assert_close(gradients, exact, tolerance(torch.float32, *problem[:2], place))


@pytest.mark.pairs
@pytest.mark.parametrize("chunks", ["several", "one"])
@pytest.mark.parametrize("order", ["as they come", "unlikely first", "likely first"])
def test_many_groups_are_screened_whatever_the_first_tokens_are_like(place, order, chunks, monkeypatch):
    tokens, width, vocab_size = place.sizes
    chunk_size = tokens if chunks == "one" else place.chunk_size
    # As many groups for few tokens as for many.
    monkeypatch.setattr(chunked, "_PILOT_TOKENS", tokens)
    monkeypatch.setattr(chunked, "_CPU_SCREENED_TOKENS", tokens)
    hidden, lm_head_weight, labels, bias, reference = planted_problem(
        place, sizes=(3 * tokens, width, vocab_size), bias=True
    )
    if order != "as they come":
        logits = hidden @ lm_head_weight.T + bias
        log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None]).squeeze(1)
        places = log_probs.argsort(descending=order == "likely first")
        hidden, labels = hidden[places], labels[places]
    problem = hidden, lm_head_weight, labels, bias, reference
    sizes = []
    run_chunk = chunked.ChunkedCall._chunk

    def counted(run, tokens, *args):
        sizes.append(tokens.numel())
        run_chunk(run, tokens, *args)

    monkeypatch.setattr(chunked.ChunkedCall, "_chunk", counted)
    objective = ProFit(threshold=THRESHOLD)
    (result, gradients), (loss, exact, values) = both(problem, objective, place=place, chunk_size=chunk_size)
    assert torch.equal(result.token_weights[labels != -100].double(), values["token_weights"])
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close(gradients, exact, tolerance(torch.float32, hidden, lm_head_weight, place))
    assert min(sizes[:-1]) > 0.8 * min(chunk_size, 256)  # no chunk of a few tokens but the last


def test_prescreened_tokens_are_reported_as_not_computed_and_are_all_masked(place):
    problem = planted_problem(place)
    (result, _), (_, _, values) = both(problem, ProFit(threshold=THRESHOLD), place=place)
    label_mask = problem[2] != -100
    unknown = result.log_probs[label_mask].isnan()
    assert (values["log_probs"][unknown] < math.log(THRESHOLD)).all()
    assert not unknown[values["token_weights"] != 0].any()


def test_prescreen_switches_itself_off_where_it_does_not_pay(place):
    # Every label is nearly certain, so nothing is masked and nothing could be saved.
    _, lm_head_weight, labels, _, _ = planted_problem(place)
    counted = labels != -100
    sure = 100 * torch.nn.functional.normalize(lm_head_weight[labels.clamp(min=0)])
    objective = ProFit(threshold=THRESHOLD)
    result = selective_loss(place, sure[counted], lm_head_weight, labels[counted], objective=objective)
    assert not result.log_probs.isnan().any()


def test_objectives_without_a_floor_measure_every_token(place):
    problem = planted_problem(place)
    for objective in (DFT(), ProFit(threshold=THRESHOLD, direction="lower")):
        result, _ = ours(problem, objective, place=place)
        assert not result.log_probs.isnan().any()


@pytest.mark.pairs
@pytest.mark.parametrize("gradient_budget", [0.003, 0.01, 0.2])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("objective", [ProFit(threshold=THRESHOLD), DFT()], ids=str)
def test_budget_leaves_out_at_most_its_share_and_keeps_the_stated_bound(place, gradient_budget, head, objective):
    options = HEADS[head]
    problem = planted_problem(place, falling=12.0, **options)
    (result, gradients), (loss, exact, values) = both(
        problem, objective, head=options, place=place, gradient_budget=gradient_budget, chunk_size=place.chunk_size
    )
    assert 0 < result.dropped_share <= gradient_budget * (1 + 1e-4)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    scale = options.get("logit_scale", 1.0)
    assert_within_budget(problem, result, gradients[0], exact[0], values, logit_scale=scale)


def test_budget_leaves_out_nothing_when_it_is_zero(place):
    problem = planted_problem(place)
    result, _ = ours(problem, ProFit(threshold=THRESHOLD), place=place)
    assert result.dropped_share == 0


@pytest.mark.parametrize("head", HEADS)
def test_budget_leaves_out_nothing_where_nearly_every_column_is_needed(place, head):
    options = HEADS[head]
    problem = planted_problem(place, **options)  # flat: 99.7% of the gradient lies in 97% of the columns
    found = [
        ours(problem, DFT(), head=options, place=place, gradient_budget=budget, chunk_size=place.chunk_size)
        for budget in (0.0, 0.003)
    ]
    assert found[1][0].dropped_share == 0
    for exact, budgeted in zip(found[0][1], found[1][1], strict=True):
        # On CUDA sums by index are added up in no fixed order.
        assert (exact - budgeted).norm() <= (1e-6 if place.device.type == "cuda" else 0.0) * exact.norm()
