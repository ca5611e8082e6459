"""The sums of dH and dW by themselves, with 16-bit operands as a GPU has them."""

import pytest
import torch

from profit_sft.loss.head_gradients import HeadGradients


@pytest.mark.parametrize("signs", ["positive", "negative", "mixed"])
def test_the_budget_counts_magnitudes_whatever_the_signs_of_the_weights(signs, monkeypatch):
    # A CPU has no 16-bit product with fp32 output; in its place the same operands, multiplied in fp32.
    monkeypatch.setattr(HeadGradients, "matmul", lambda self, left, right: left.float() @ right.float())
    generator = torch.Generator().manual_seed(0)
    tokens, width, vocab_size, budget = 40, 16, 3000, 0.1
    hidden = torch.randn(tokens, width, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator).bfloat16().requires_grad_()
    sums = HeadGradients(
        hidden,
        weight,
        None,
        rows=torch.arange(tokens),
        hidden_operand=hidden.detach(),
        weight_operand=weight.detach(),
        dtype=torch.float32,
        gradient_budget=budget,
    )
    targets = torch.randint(vocab_size, (tokens,), generator=generator)
    exps = torch.exp(3 * torch.randn(tokens, vocab_size, generator=generator))
    totals = exps.sum(-1)
    factors = torch.rand(tokens, generator=generator) / totals
    if signs != "positive":
        factors = -factors
    if signs == "mixed":
        factors[::2] *= -1
    exps[torch.arange(tokens), targets] -= totals
    gradient = exps * factors[:, None]
    sums.add_scaled_rows(exps.clone(), torch.arange(tokens), targets, factors)
    d_hidden, d_weight, _ = sums.finished(torch.ones(()))

    used = d_weight.abs().sum(-1) > 0  # columns that were left out have no row of dW
    left_out = gradient[:, ~used].abs().sum() / gradient.abs().sum()
    assert 0.5 * budget < left_out <= budget
    assert sums.dropped_share().item() == pytest.approx(left_out.item(), rel=1e-3)
    expected = gradient[:, used] @ weight.detach().float()[used]
    assert (d_hidden.float() - expected).norm() <= 0.02 * expected.norm()
