"""Prescreen and gradient budget: what may be left out, what must not change, and what is said about it."""

import json
import math

import pytest
import torch
from problems import BACKENDS, HEADS, THRESHOLD, assert_close, both, planted_problem, tolerance

from profit_sft import ProFit, selective_linear_cross_entropy
from profit_sft.loss import chunked
from profit_sft.objectives import DFT

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("threshold", [0.1, 0.6])
def test_prescreen_changes_neither_mask_nor_gradients(backend, head, threshold, monkeypatch):
    options = HEADS[head]
    problem = planted_problem(**options)
    (screened, found), (_, exact, values) = both(problem, ProFit(threshold=threshold), head=options, backend=backend)
    label_mask = problem[2] != -100
    assert screened.log_probs[label_mask].isnan().double().mean() > 0.1  # it did screen
    assert torch.equal(screened.weights[label_mask].double(), values["weights"])
    assert_close(found, exact, tolerance(torch.float32, *problem[:2]))
    monkeypatch.setattr(chunked, "_MIN_SCREENED_VOCABULARY", 10**9)
    (whole, gradients), _ = both(problem, ProFit(threshold=threshold), head=options, backend=backend)
    assert not whole.log_probs.isnan().any()
    assert torch.equal(whole.weights, screened.weights)
    assert_close(gradients, exact, tolerance(torch.float32, *problem[:2]))


@pytest.mark.parametrize("chunk_size", [50, 257])
@pytest.mark.parametrize("order", ["as they come", "unlikely first", "likely first"])
def test_many_groups_are_screened_whatever_the_first_tokens_are_like(backend, order, chunk_size, monkeypatch):
    hidden, lm_head_weight, labels, bias, reference = planted_problem(sizes=(900, 127, 5003), bias=True)
    if order != "as they come":
        logits = hidden @ lm_head_weight.T + bias
        log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None]).squeeze(1)
        places = log_probs.argsort(descending=order == "likely first")
        hidden, labels = hidden[places], labels[places]
    problem = hidden, lm_head_weight, labels, bias, reference
    sizes = []
    run_chunk = chunked.ChunkedRun._chunk

    def counted(run, tokens, *args):
        sizes.append(tokens.numel())
        run_chunk(run, tokens, *args)

    monkeypatch.setattr(chunked.ChunkedRun, "_chunk", counted)
    objective = ProFit(threshold=THRESHOLD)
    (result, gradients), (loss, exact, values) = both(problem, objective, backend=backend, chunk_size=chunk_size)
    assert torch.equal(result.weights[labels != -100].double(), values["weights"])
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close(gradients, exact, tolerance(torch.float32, hidden, lm_head_weight))
    assert min(sizes[:-1]) > 0.8 * min(chunk_size, 256)  # no chunk of a few tokens but the last


def test_prescreened_tokens_are_reported_as_not_computed_and_are_all_masked(backend):
    problem = planted_problem()
    (result, _), (_, _, values) = both(problem, ProFit(threshold=THRESHOLD), backend=backend)
    label_mask = problem[2] != -100
    unknown = result.log_probs[label_mask].isnan()
    assert (values["log_probs"][unknown] < math.log(THRESHOLD)).all()
    assert not unknown[values["weights"] != 0].any()


def test_prescreen_switches_itself_off_where_it_does_not_pay(backend):
    # Every label is nearly certain, so nothing is masked and nothing could be saved.
    _, lm_head_weight, labels, _, _ = planted_problem()
    counted = labels != -100
    sure = 100 * torch.nn.functional.normalize(lm_head_weight[labels.clamp(min=0)])
    result = selective_linear_cross_entropy(
        sure[counted], lm_head_weight, labels[counted], objective=ProFit(threshold=THRESHOLD), backend=backend
    )
    assert not result.log_probs.isnan().any()


def test_objectives_without_a_floor_measure_every_token(backend):
    problem = planted_problem()
    for objective in (DFT(), ProFit(threshold=THRESHOLD, direction="lower")):
        (result, _), _ = both(problem, objective, backend=backend)
        assert not result.log_probs.isnan().any()


@pytest.mark.parametrize("gradient_budget", [0.003, 0.01, 0.2])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("objective", [ProFit(threshold=THRESHOLD), DFT()], ids=str)
def test_budget_leaves_out_at_most_its_share_and_keeps_the_stated_bound(backend, gradient_budget, head, objective):
    options = HEADS[head]
    problem = planted_problem(falling=12.0, **options)
    (result, gradients), (loss, exact, values) = both(
        problem, objective, head=options, backend=backend, gradient_budget=gradient_budget, chunk_size=100
    )
    assert 0 < result.dropped_share <= gradient_budget * (1 + 1e-4)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    # sum |G| <= 2 w (1 - p) * scale * slope, with slope <= 1
    mass = (2 * values["weights"] * (1 - values["log_probs"].exp())).sum() / (problem[2] != -100).sum()
    mass = mass * options.get("logit_scale", 1.0)
    largest_row = problem[1].double().norm(dim=-1).max()
    error = (gradients[0].double() - exact[0]).norm(dim=-1).sum()
    slack = 1e-5 * exact[0].norm(dim=-1).sum()
    assert error <= float(result.dropped_share) * mass * largest_row + slack


def test_budget_leaves_out_nothing_when_it_is_zero(backend):
    problem = planted_problem()
    (result, _), _ = both(problem, ProFit(threshold=THRESHOLD), backend=backend)
    assert result.dropped_share == 0


@pytest.mark.parametrize("head", HEADS)
def test_budget_leaves_out_nothing_where_nearly_every_column_is_needed(backend, head):
    options = HEADS[head]
    problem = planted_problem(**options)  # flat: 99.7% of the gradient lies in 97% of the columns
    found = [
        both(problem, DFT(), head=options, backend=backend, gradient_budget=budget, chunk_size=100)[0]
        for budget in (0.0, 0.003)
    ]
    assert found[1][0].dropped_share == 0
    for exact, budgeted in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(exact, budgeted)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("threshold", [0.5, 0.1])
def test_on_real_hidden_states_the_errors_are_those_promised(
    backend, threshold, smollm2_model, smollm2_tokenizer, shared_data
):
    """SmolLM2 on GSM8K answers: exact within 1e-4 of fp64, a budget of 0.3% within 1% on dH, and the stated bound."""
    model = smollm2_model()
    states, labels = [], []
    with (shared_data / "gsm8k_train.jsonl").open() as lines, torch.no_grad():
        for line, _ in zip(lines, range(3), strict=False):
            row = json.loads(line)
            ids = smollm2_tokenizer(row["question"] + "\n" + row["answer"])["input_ids"]
            states.append(model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, :-1])
            labels.append(torch.tensor(ids[1:]))
    hidden, labels = torch.cat(states), torch.cat(labels)
    weight = model.lm_head.weight.detach()
    problem = hidden, weight, labels, None, torch.zeros(len(labels))
    (result, gradients), (_, exact, values) = both(problem, ProFit(threshold=threshold), backend=backend)
    assert 0.2 < values["weights"].mean() < 0.9
    assert torch.equal(result.weights.double(), values["weights"])
    assert_close(gradients, exact, 2e-5)
    (result, gradients), _ = both(problem, ProFit(threshold=threshold), backend=backend, gradient_budget=0.003)
    assert 0.002 < result.dropped_share <= 0.003
    assert_close(gradients, exact, 1e-2)
    mass = (2 * values["weights"] * (1 - values["log_probs"].exp())).sum() / len(labels)
    error = (gradients[0].double() - exact[0]).norm(dim=-1).sum()
    assert error <= float(result.dropped_share) * mass * weight.double().norm(dim=-1).max()
