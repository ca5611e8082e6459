"""Labels of a batch belong to the position before them: the loss is the model's, and what goes with them moves."""

import pytest
import torch
from problems import PLACES, THRESHOLD, both, ours, planted_problem, selective_loss
from transformers import LlamaConfig, LlamaForCausalLM

from profit_sft import NLL, ProFit, selective_linear_cross_entropy
from profit_sft.objectives import Rho


def tiny_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, pad_token_id=0, **sizes))


def batch(rows, length):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(64, (rows, length), generator=generator)
    labels = input_ids.clone()
    labels[:, 1:3] = -100
    labels[-1, length // 2 :] = -100
    return input_ids, labels


@pytest.mark.parametrize("called", ["as documented", "shift=True", "shifted by hand", "rows shifted by hand", "flat"])
@pytest.mark.parametrize(("rows", "length"), [(3, 9), (1, 9), (4, 2)])
def test_plain_nll_is_the_models_own_loss_with_its_gradients(called, rows, length):
    model = tiny_llama()
    input_ids, labels = batch(rows, length)
    if length == 2:
        labels[:, 1] = input_ids[:, 1]
    model(input_ids=input_ids, labels=labels).loss.backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    own_loss = model(input_ids=input_ids, labels=labels).loss.item()
    model.zero_grad()

    hidden = model.model(input_ids=input_ids).last_hidden_state
    head = model.lm_head.weight
    if called == "as documented":
        result = selective_linear_cross_entropy(hidden, head, labels, objective=NLL())
    elif called == "shift=True":
        result = selective_linear_cross_entropy(hidden, head, labels, objective=NLL(), shift=True)
    elif called == "shifted by hand":
        moved = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        result = selective_linear_cross_entropy(hidden, head, moved, objective=NLL(), shift=False)
    elif called == "rows shifted by hand":
        result = selective_linear_cross_entropy(hidden[:, :-1], head, labels[:, 1:], objective=NLL(), shift=False)
    else:
        moved = hidden[:, :-1].reshape(-1, 16), head, labels[:, 1:].reshape(-1)
        result = selective_linear_cross_entropy(*moved, objective=NLL())
    assert result.loss.item() == pytest.approx(own_loss, rel=1e-6)
    assert result.nll.item() == pytest.approx(own_loss, rel=1e-6)
    result.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad - own[name]).norm() <= 1e-5 * own[name].norm() + 1e-9, name


@pytest.mark.parametrize("ignore_index", [-100, 0])
@pytest.mark.parametrize("case", ["profit", "reference", "ranking", "token_weights"])
@pytest.mark.parametrize("place", PLACES)
def test_what_belongs_to_a_token_moves_with_it(place, case, ignore_index):
    hidden, lm_head_weight, labels, _, reference = planted_problem(place)
    length = len(labels) // 4
    labels = torch.where(labels == -100, ignore_index, labels)[: 4 * length].view(4, length)
    hidden, reference = hidden[: 4 * length].view(4, length, -1), reference[: 4 * length].view(4, length)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) if case == "token_weights" else None
    objective = {"reference": ProFit(threshold=THRESHOLD, mask_source="reference"), "ranking": Rho(keep_share=0.4)}
    options = {
        "objective": objective.get(case, ProFit(threshold=THRESHOLD)),
        "ignore_index": ignore_index,
        "statistics": "ranks",
    }

    def run(states, targets, per_token, **more):
        states = states.clone().requires_grad_()
        result = selective_loss(
            place, states, lm_head_weight, targets, reference_log_probs=per_token[0], token_weights=per_token[1], **more
        )
        return result, torch.autograd.grad(result.loss, states)[0]

    # The labels of the batch, for the prediction made one position before.
    before = [None if value is None else value.roll(1, -1) for value in (labels, reference, weights)]
    before[0][:, 0] = 11  # nothing predicts the first token of a row
    found, gradient = run(hidden, before[0], before[1:], **options)
    wanted, expected = run(
        hidden[:, :-1].reshape(-1, hidden.shape[-1]),
        labels[:, :-1].reshape(-1),
        [None if value is None else value[:, :-1].reshape(-1) for value in (reference, weights)],
        **options,
    )
    assert found.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-6)
    assert wanted.kept_share > 0.1
    for name in ("log_probs", "token_weights", "entropy", "is_top1", "rank", "top1", "label_mask"):
        values = getattr(found, name)
        assert values.shape == labels.shape, name
        assert torch.equal(values[:, :-1].reshape(-1), getattr(wanted, name)), name
        assert not values[:, -1].any(), name
    assert found.num_labels == wanted.num_labels
    assert (gradient[:, :-1].reshape(expected.shape) - expected).norm() <= 1e-5 * expected.norm()
    assert not gradient[:, -1].any()


def test_each_label_beside_what_predicts_it_is_not_moved():
    problem = planted_problem()
    (flat, _), (loss, _, _) = both(problem, NLL(), place=PLACES[0].values[0])
    rows, _ = ours(
        (problem[0][None], problem[1], problem[2][None], None, problem[4][None]),
        NLL(),
        place=PLACES[0].values[0],
        shift=False,
    )
    assert flat.loss.item() == rows.loss.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("length", [0, 1])
def test_rows_too_short_to_predict_anything(length):
    hidden = torch.randn(2, length, 8, requires_grad=True)
    result = selective_linear_cross_entropy(
        hidden, torch.randn(9, 8), torch.ones(2, length, dtype=torch.long), objective=NLL()
    )
    result.loss.backward()
    assert result.loss.item() == result.num_labels == result.kept_share == result.nll == 0
    assert result.token_weights.shape == (2, length)


def test_rows_that_are_not_known_cannot_be_shifted():
    with pytest.raises(ValueError, match=r"shift=True needs rows, .* labels \(4,\) do not say where a sequence ends"):
        selective_linear_cross_entropy(
            torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(4, dtype=torch.long), objective=NLL(), shift=True
        )


def test_a_label_outside_the_vocabulary_is_named_where_it_lies():
    labels = torch.tensor([[0, 1], [99, 1]])  # the first of a row, which nothing predicts, is looked at as well
    with pytest.raises(ValueError, match=r"labels\[\(1, 0\)\] is 99"):
        selective_linear_cross_entropy(torch.zeros(2, 2, 3), torch.zeros(9, 3), labels, objective=NLL())
