"""ProFit's loss against the one of its official code, restated, for every direction, normalizer and dtype."""

import math

import pytest
import torch
from problems import CPU, PLACES, planted_problem, selective_loss, skip_without_float64, tolerance
from torch.nn import functional

from profit_sft.objectives import make_objective

pytestmark = pytest.mark.parametrize("place", PLACES)

DIRECTIONS = [("higher", [0.1]), ("lower", [0.1]), ("middle", [0.02, 0.6]), ("random", [0.3])]


def official_loss(logits, labels, direction, prob_threshold, num_items_in_batch, masked=None):
    """Utaotao/ProFit, commit 92529ff, in other words: labels of masked tokens become -100.

    Its draw for `random` is given as `masked`, since no two programs draw alike.
    """
    p = logits.detach().softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    if direction == "higher":
        masked = p < prob_threshold[0]
    elif direction == "lower":
        masked = p > prob_threshold[0]
    elif direction == "middle":
        masked = (p < prob_threshold[0]) | (p > prob_threshold[1])
    kept_labels = labels.masked_fill(masked, -100)
    if num_items_in_batch is None:
        return functional.cross_entropy(logits, kept_labels, reduction="mean")
    return functional.cross_entropy(logits, kept_labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(("direction", "prob_threshold"), DIRECTIONS)
@pytest.mark.parametrize("normalizer", ["all labels of the step", "kept tokens"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_loss_mask_and_gradients_are_the_official_ones(place, direction, prob_threshold, normalizer, dtype):
    if dtype == torch.float64:
        skip_without_float64(place)
    hidden, lm_head_weight, labels, _, _ = planted_problem(place, dtype)
    hidden.requires_grad_()
    lm_head_weight.requires_grad_()
    objective = make_objective("profit", prob_threshold=prob_threshold, threshold_direction=direction)
    divided = {"num_items_in_batch": 500} if normalizer == "all labels of the step" else {"normalize": "kept"}
    torch.manual_seed(3)
    result = selective_loss(place, hidden, lm_head_weight, labels, objective=objective, **divided)
    found = torch.autograd.grad(result.loss, [hidden, lm_head_weight])

    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, lm_head_weight)]
    wanted_loss = official_loss(
        exact[0] @ exact[1].T,
        labels,
        direction,
        prob_threshold,
        divided.get("num_items_in_batch"),
        masked=result.token_weights == 0 if direction == "random" else None,
    )
    assert result.loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    bound = 1e-10 if dtype == torch.float64 else tolerance(dtype, hidden.detach(), lm_head_weight.detach(), place)
    for gradient, wanted in zip(found, torch.autograd.grad(wanted_loss, exact), strict=True):
        assert (gradient.double() - wanted).norm() <= bound * wanted.norm()


def test_the_official_random_masks_the_share_that_it_names(place):
    if place != CPU:
        pytest.skip("draws are the objective's, not the place's")
    objective = make_objective("profit", prob_threshold=[0.3], threshold_direction="random")
    labels = torch.randint(0, 11, (4000,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    result = selective_loss(place, torch.randn(4000, 5), torch.randn(11, 5), labels, objective=objective)
    assert math.isclose(result.kept_share.item(), 0.7, abs_tol=0.03)
