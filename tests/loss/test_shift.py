"""Which label belongs to which position: as a model lines them up, or as they come."""

import pytest
import torch

from profit_sft import NLL, ProFit, selective_linear_cross_entropy
from tiny import tiny_model


@pytest.fixture
def problem():
    """A tiny Llama's hidden states, its head, and labels as the model itself takes them."""
    model = tiny_model().eval()
    input_ids = torch.randint(2, 64, (3, 11), generator=torch.Generator().manual_seed(0))
    labels = input_ids.clone()
    labels[:, :2] = -100
    labels[1, 8:] = -100
    hidden = model.model(input_ids=input_ids).last_hidden_state.detach()
    return model, input_ids, labels, hidden


def gradients(hidden, model, labels, objective=None, **options):
    inputs = hidden.clone().requires_grad_(), model.lm_head.weight.detach().clone().requires_grad_()
    result = selective_linear_cross_entropy(*inputs, labels, objective=objective or NLL(), **options)
    return result, torch.autograd.grad(result.loss, inputs)


def test_sequences_are_lined_up_as_the_model_does(problem):
    model, input_ids, labels, hidden = problem
    own = model(input_ids=input_ids, labels=labels).loss
    result, found = gradients(hidden, model, labels)
    assert result.loss.item() == pytest.approx(own.item(), rel=1e-6)
    assert gradients(hidden, model, labels, shift=True)[0].loss == result.loss
    # As one flat batch, shifted by hand.
    ahead = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    flat, expected = gradients(hidden.reshape(-1, 16), model, ahead.reshape(-1))
    assert flat.loss.item() == pytest.approx(result.loss.item(), rel=1e-6)
    for left, right in zip(found, expected, strict=True):
        assert (left.reshape(right.shape) - right).norm() <= 1e-6 * right.norm()
    assert torch.equal(result.log_probs.reshape(-1), flat.log_probs)
    assert torch.equal(result.label_mask, ahead != -100)


def test_labels_that_are_lined_up_already_are_taken_as_they_are(problem):
    model, _, labels, hidden = problem
    ahead = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert gradients(hidden, model, ahead, shift=False)[0].loss == gradients(hidden, model, labels)[0].loss
    unshifted = gradients(hidden.reshape(-1, 16), model, labels.reshape(-1))[0].loss
    assert unshifted == gradients(hidden, model, labels, shift=False)[0].loss
    assert unshifted != gradients(hidden, model, labels)[0].loss


def test_what_comes_with_the_labels_is_shifted_with_them(problem):
    model, _, labels, hidden = problem
    likely = torch.zeros(labels.shape)
    likely[:, 5:] = -9.0
    objective = ProFit(threshold=0.1, mask_source="reference")
    result, _ = gradients(hidden, model, labels, objective, reference_log_probs=likely)
    assert torch.equal(result.weights != 0, result.label_mask & (torch.arange(11) < 4))
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))
    result, _ = gradients(hidden, model, labels, weights=weights)
    assert torch.equal(result.weights[:, :-1], weights[:, 1:] * result.label_mask[:, :-1])


@pytest.mark.parametrize("shape", [(0, 5), (2, 1)])
def test_sequences_without_a_next_token_have_no_label(shape):
    hidden, labels = torch.randn(*shape, 16).requires_grad_(), torch.ones(shape, dtype=torch.long)
    result = selective_linear_cross_entropy(hidden, torch.randn(64, 16), labels, objective=NLL())
    result.loss.backward()
    assert (result.loss.item(), int(result.num_labels)) == (0.0, 0)
    assert (result.kept_share.item(), result.nll.item()) == (0.0, 0.0)


def test_a_flat_batch_cannot_be_shifted():
    with pytest.raises(
        ValueError, match=r"shift=True needs hidden \(B, S, D\) to know where sequences end, got \(4, 3\)"
    ):
        selective_linear_cross_entropy(
            torch.zeros(4, 3), torch.zeros(9, 3), torch.tensor([0, 1, 2, 8]), objective=NLL(), shift=True
        )


def test_kept_share_and_plain_nll_are_on_the_result(problem):
    model, input_ids, labels, hidden = problem
    own = model(input_ids=input_ids, labels=labels).loss
    result, _ = gradients(hidden, model, labels, ProFit(threshold=1 / 64))
    assert result.kept_share.item() == pytest.approx(int(result.num_kept) / int(result.num_labels))
    assert 0 < result.kept_share < 1
    assert result.nll.item() == pytest.approx(own.item(), rel=1e-6)
    assert result.kept_share.dtype == result.nll.dtype == torch.float32
