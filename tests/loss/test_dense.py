"""The loss from logits and the weights from log-probabilities, for every objective, against the float64 oracle."""

import re

import pytest
import torch
from problems import OBJECTIVES, THRESHOLD, assert_close, planted_problem

from profit_sft import EAFT, NLL, Power, ProFit, Rho, selective_cross_entropy, token_weights
from profit_sft.loss.reference import reference_loss
from profit_sft.objectives import TokenStats

SIZES = (97, 33, 403)
FROM_LOG_PROBS = [entry for entry in OBJECTIVES if entry.needs <= {"log_probs", "reference_log_probs"}]
WEIGHTS = torch.rand(SIZES[0], generator=torch.Generator().manual_seed(3), dtype=torch.float64).round(decimals=1)


def problem_of_logits(dtype):
    hidden, lm_head_weight, labels, _, reference = planted_problem(dtype=torch.float64, sizes=SIZES)
    return (hidden @ lm_head_weight.T).to(dtype), labels, reference


def oracle(logits, labels, objective, **options):
    """Loss, its gradient and per-token values in float64: the logits stand for hidden states under an identity head."""
    exact = logits.detach().double().requires_grad_()
    head = torch.eye(logits.shape[-1], dtype=torch.float64)
    loss, values = reference_loss(exact, head, labels, objective=objective, **options)
    return loss.item(), torch.autograd.grad(loss, exact), values


def bound(dtype, logits):
    """One rounding to the stored dtype, and fp32 arithmetic on the logits, once in p and once in a weight made of p."""
    if dtype == torch.float64:
        return 1e-12
    rounding = 0.5 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    return rounding + 2 * 4 * torch.finfo(torch.float32).eps * logits.abs().max().item()


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": 1000}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_loss_from_logits_matches_the_oracle(objective, dtype, options):
    logits, labels, reference = problem_of_logits(dtype)
    options = {"reference_log_probs": reference.double(), **options}
    if "token_weights" in objective.needs:
        options["token_weights"] = WEIGHTS
    loss, gradient, values = oracle(logits, labels, objective, **options)
    found = selective_cross_entropy(logits.requires_grad_(), labels, objective, **options)
    assert found.loss.item() == pytest.approx(loss, rel=1e-12 if dtype == torch.float64 else 1e-5)
    assert_close(torch.autograd.grad(found.loss, [logits]), gradient, bound(dtype, logits.detach()))
    label_mask = labels != -100
    assert torch.equal(found.label_mask, label_mask)
    for name in ("log_probs", "token_weights"):
        measured = getattr(found, name)
        assert (measured[label_mask].double() - values[name]).abs().max() <= 1e-4 * values[name].abs().max()
        assert (measured[~label_mask] == 0).all()
    if values["token_weights"].unique().numel() <= 2:  # a mask
        assert torch.equal(found.token_weights[label_mask].double(), values["token_weights"])
    assert (found.num_labels, found.num_kept) == (label_mask.sum(), (found.token_weights != 0).sum())


def test_known_weights_take_the_objectives_place():
    logits, labels, _ = problem_of_logits(torch.float64)
    loss, gradient, _ = oracle(logits, labels, NLL(), token_weights=WEIGHTS)
    found = selective_cross_entropy(logits.requires_grad_(), labels, NLL(), token_weights=WEIGHTS)
    assert found.loss.item() == pytest.approx(loss, rel=1e-12)
    assert_close(torch.autograd.grad(found.loss, [logits]), gradient, 1e-12)


@pytest.mark.parametrize("objective", [NLL(), ProFit(threshold=THRESHOLD), Power(k=0.5)], ids=str)
def test_dividing_by_the_kept_tokens_matches_the_oracle(objective):
    logits, labels, _ = problem_of_logits(torch.float64)
    loss, gradient, _ = oracle(logits, labels, objective, normalize="kept")
    found = selective_cross_entropy(logits.requires_grad_(), labels, objective, normalize="kept")
    assert found.loss.item() == pytest.approx(loss, rel=1e-12)
    assert_close(torch.autograd.grad(found.loss, [logits]), gradient, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", FROM_LOG_PROBS, ids=str)
def test_weights_from_log_probs_give_the_oracles_loss_and_gradient(objective, dtype):
    logits, labels, reference = problem_of_logits(torch.float64)
    logits.requires_grad_()
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)
    label_mask = labels != -100
    found = token_weights(
        log_probs.to(dtype), label_mask, objective, labels=labels, reference_log_probs=reference.double()
    )
    assert not found.requires_grad
    assert (found[~label_mask] == 0).all()
    loss, gradient, values = oracle(logits, labels, objective, reference_log_probs=reference.double())
    # Rounding to bf16 moves log p, and with it a smooth weight, and a mask where p is within that of its bound.
    if dtype == torch.bfloat16:
        assert (found[label_mask].double() - values["token_weights"]).abs().mean() < 0.02
        return
    taken = -(found * log_probs).sum() / label_mask.sum()
    assert taken.item() == pytest.approx(loss, rel=1e-12 if dtype == torch.float64 else 1e-5)
    assert_close(torch.autograd.grad(taken, [logits]), gradient, 1e-12 if dtype == torch.float64 else 1e-5)


def test_rows_are_shifted_as_a_models_logits_are():
    logits, labels, _ = problem_of_logits(torch.float32)
    rows, their_labels = logits[:96].view(4, 24, -1), labels[:96].view(4, 24)
    flat = their_labels.roll(-1, dims=1)
    flat[:, -1] = -100
    objective = ProFit(threshold=THRESHOLD)
    shifted = selective_cross_entropy(rows, their_labels, objective)
    beside = selective_cross_entropy(rows.flatten(0, 1), flat.flatten(), objective)
    assert torch.equal(shifted.loss, beside.loss)
    assert torch.equal(shifted.token_weights.flatten(), beside.token_weights)
    assert torch.equal(selective_cross_entropy(rows, flat, objective, shift=False).loss, beside.loss)


def test_with_every_token_kept_it_is_cross_entropy():
    logits, labels, _ = problem_of_logits(torch.float32)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    for objective in (NLL(), ProFit(threshold=0.0)):
        torch.testing.assert_close(selective_cross_entropy(logits, labels, objective).loss, expected)


@pytest.mark.parametrize("rows", [0, 1, 97], ids=["no token", "one token", "all ignored"])
def test_without_labels_the_loss_is_a_zero_that_is_attached(rows):
    logits = problem_of_logits(torch.float32)[0][:rows].requires_grad_()
    found = selective_cross_entropy(logits, torch.full((rows,), -100), ProFit())
    found.loss.backward()
    assert found.loss == 0
    assert (logits.grad == 0).all()
    assert token_weights(torch.zeros(rows), torch.zeros(rows), ProFit()).tolist() == [0.0] * rows


def test_a_batch_of_which_nothing_is_kept_says_so_and_gives_exact_zeros():
    logits = torch.zeros(3, 64)
    logits[1, 5] = -torch.inf  # log p is -inf, and teaches nothing
    logits.requires_grad_()
    with pytest.warns(UserWarning, match=r"weight 0, so it teaches nothing; the largest p seen is 0.0156"):
        found = selective_cross_entropy(logits, torch.tensor([1, 5, 2]), ProFit(threshold=0.5))
    found.loss.backward()
    assert found.loss == 0
    assert (logits.grad == 0).all()


def test_what_is_ignored_is_not_looked_at():
    log_probs = torch.tensor([float("nan"), -0.1, 5.0])
    assert token_weights(log_probs, torch.tensor([0, 1, 0]), ProFit(threshold=0.5)).tolist() == [0.0, 1.0, 0.0]


class OfLabels:
    """An objective of one's own that reads the labels."""

    needs = frozenset()
    elementwise = True
    probability_floor = 0.0

    def token_weights(self, stats: TokenStats):
        return (stats.labels == 7).float()


def test_an_objective_of_ones_own_reads_the_labels():
    log_probs, labels = -torch.ones(2, 2), torch.tensor([[7, 1], [7, 7]])
    label_mask = torch.tensor([[True, True], [False, True]])
    assert token_weights(log_probs, label_mask, OfLabels(), labels=labels).tolist() == [[1, 0], [0, 1]]
    assert token_weights(log_probs, label_mask, OfLabels()).sum() == 0


ONES = torch.ones(3, dtype=torch.bool)
LOG_PROBS = -torch.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: token_weights(LOG_PROBS, ONES, EAFT()),
            ValueError,
            "needs topk_entropy, which the log",
        ),
        (lambda: token_weights(LOG_PROBS, ONES, Rho()), ValueError, "Pass reference_log_probs"),
        (
            lambda: token_weights(LOG_PROBS, ONES[:2], NLL()),
            ValueError,
            "label_mask must have the shape of log_probs (3,)",
        ),
        (lambda: token_weights(-LOG_PROBS, ONES, NLL()), ValueError, "log_probs must be at most 0, got 1: pass log p"),
        (lambda: token_weights(LOG_PROBS.exp(), ONES, NLL()), ValueError, "must be at most 0, got 0.368"),
        (lambda: token_weights(LOG_PROBS, ONES, "profit"), TypeError, "objective must be an Objective such as"),
        (
            lambda: selective_cross_entropy(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long), NLL()),
            ValueError,
            "logits (3, 4) and labels (2,) do not line up",
        ),
        (
            lambda: selective_cross_entropy(torch.zeros(2, 4), torch.tensor([1, 4]), NLL()),
            ValueError,
            "labels[1] is 4, outside the vocabulary [0, 4)",
        ),
        (
            lambda: selective_cross_entropy(torch.zeros(2, 4), torch.tensor([1.0, 2.0]), NLL()),
            TypeError,
            "labels must be int64, got torch.float32",
        ),
        (
            lambda: selective_cross_entropy(
                torch.zeros(2, 4), torch.tensor([1, 2]), NLL(), normalize="kept", num_items_in_batch=2
            ),
            ValueError,
            "leave num_items_in_batch out",
        ),
        (
            lambda: selective_cross_entropy(torch.zeros(2, 4), torch.tensor([1, 2]), Rho()),
            ValueError,
            "Pass reference_log_probs",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
