"""The errors that the documentation promises, on hidden states of a real model."""

import json

import pytest
import torch
from problems import PLACES, N, assert_close, assert_within_budget, both, selective_loss

from profit_sft import ProFit


@pytest.fixture(scope="module")
def problem(smollm2_model, smollm2_tokenizer, shared_data):
    model = smollm2_model()
    states, labels = [], []
    with (shared_data / "gsm8k_train.jsonl").open() as lines, torch.no_grad():
        for line, _ in zip(lines, range(3), strict=False):
            row = json.loads(line)
            ids = smollm2_tokenizer(row["question"] + "\n" + row["answer"])["input_ids"]
            states.append(model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, :-1])
            labels.append(torch.tensor(ids[1:]))
    hidden, labels = torch.cat(states), torch.cat(labels)
    return hidden, model.lm_head.weight.detach(), labels, None, torch.zeros(len(labels))


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("place", [row for row in PLACES if row.values[0].sizes[0] == N])  # others would take minutes
@pytest.mark.parametrize("threshold", [0.5, 0.1])
def test_on_real_hidden_states_the_errors_are_those_promised(place, threshold, problem):
    """SmolLM2 on GSM8K answers: exact within 1e-4 of fp64, a budget of 0.3% within 1% on dH, and the stated bound."""
    hidden, weight, labels, *_ = problem
    (result, gradients), (_, exact, values) = both(problem, ProFit(threshold=threshold), place=place)
    assert 0.2 < values["token_weights"].mean() < 0.9
    assert torch.equal(result.token_weights.double(), values["token_weights"])
    assert_close(gradients, exact, 2e-5)
    inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    result = selective_loss(place, *inputs, labels, objective=ProFit(threshold=threshold), gradient_budget=0.003)
    gradients = torch.autograd.grad(result.loss, inputs)
    assert 0.002 < result.dropped_share <= 0.003
    assert_close(gradients, exact, 1e-2)
    assert_within_budget(problem, result, gradients[0], exact[0], values, rounding=0.0)
