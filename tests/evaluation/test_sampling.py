"""Seeded sampling: the right distribution, and random numbers that belong to the sample."""

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from profit_sft.evaluation.hf_generator import SeededSampling
from profit_sft.evaluation.kept_answers import sample_seed

CPU = torch.device("cpu")


def sampler(seeds, *, temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=4, prompt_length=3):
    return SeededSampling(
        seeds,
        prompt_length=prompt_length,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        device=CPU,
    )


def drawn(processor, scores, step=0):
    prompts = torch.zeros(scores.shape[0], 3 + step, dtype=torch.int64)
    return processor(prompts, scores).argmax(-1).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(0.7, 0.8, 20), (1.0, 1.0, 0), (0.5, 1.0, 3), (1.5, 0.6, 0), (1.0, 0.05, 5)]
)
def test_tokens_have_the_probabilities_of_transformers_own_warpers(temperature, top_p, top_k):
    rows, vocab_size = 20_000, 50
    logits = 2 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(0))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(None, logits[None].clone()).softmax(-1)[0].double()
    settings = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    tokens = drawn(sampler(range(rows), **settings), logits.expand(rows, -1))
    shares = torch.bincount(torch.tensor(tokens), minlength=vocab_size).double() / rows
    assert (shares[expected == 0] == 0).all()
    error = (expected * (1 - expected) / rows).sqrt()
    assert ((shares - expected).abs() <= 4.5 * error + 1e-9).all()


def test_a_row_draws_the_same_in_every_batch_and_with_every_limit():
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(1))
    together = [drawn(sampler([7, 8, 9], max_new_tokens=4), logits, step) for step in range(4)]
    for row, seed in enumerate([7, 8, 9]):
        alone = sampler([seed], max_new_tokens=40)
        assert [drawn(alone, logits[row : row + 1], step)[0] for step in range(4)] == [step[row] for step in together]


def test_steps_and_seeds_draw_differently():
    logits = torch.zeros(64, 1000)
    processor = sampler(range(64), top_k=0, top_p=1.0)
    first, second = drawn(processor, logits, 0), drawn(processor, logits, 1)
    assert len(set(first)) > 50
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 4


def test_half_precision_logits_and_a_vocabulary_smaller_than_top_k():
    logits = torch.tensor([[0.0, 5.0, -5.0]], dtype=torch.bfloat16)
    assert drawn(sampler([0], top_p=0.5), logits) == [1]


def test_seeds_differ_by_every_part_and_stay_what_they_are():
    seeds = {
        sample_seed(seed, task, problem, sample)
        for seed in range(2)
        for task in ("gsm8k", "math500")
        for problem in range(12)
        for sample in range(12)
    }
    assert len(seeds) == 2 * 2 * 12 * 12
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Written down: a change would give the samples of unfinished evaluations other random numbers.
    assert sample_seed(0, "gsm8k", 3, 1) == 1146574732052981669
