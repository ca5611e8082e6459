"""The loop over label tokens against dense logits in float64, for every objective, dtype and size of a batch."""

import copy

import numpy as np
import pytest
import torch
from problems import OBJECTIVES

from profit_sft import NLL, ProFit, apply_profit, remove_profit
from profit_sft.head import selective_head
from profit_sft.objectives import Rho, TokenStats
from profit_sft.scores.loop import LabelExample, batches_by_length, label_examples, score_in_batches, score_labels
from tiny import VOCAB_SIZE, tiny_dataset, tiny_model


def confident_model(dtype=torch.float32):
    """A tiny model whose predictions lie anywhere between sure and hopeless, rounded to `dtype`."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight *= 30
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def examples():
    """Nine of unequal length with likely and unlikely labels, one with a gap, two at the ends of the vocabulary."""
    rows, model, random = tiny_dataset(9).to_list(), confident_model(), torch.Generator().manual_seed(0)
    for row in rows:
        for place in range(2, len(row["input_ids"])):
            if torch.rand((), generator=random) < 0.6:
                with torch.no_grad():
                    p = model(input_ids=torch.tensor([row["input_ids"][:place]])).logits[0, -1].softmax(-1)
                row["input_ids"][place] = row["labels"][place] = int(torch.multinomial(p, 1, generator=random))
    rows[0]["labels"][3] = -100
    rows[1]["input_ids"][-1] = rows[1]["labels"][-1] = VOCAB_SIZE - 1
    rows[2]["input_ids"][-1] = rows[2]["labels"][-1] = 0
    columns = {name: [row[name] for row in rows] for name in ("input_ids", "labels")}
    reference = [torch.rand(len(ids), generator=random).pow(4).log().tolist() for ids in columns["input_ids"]]
    weights = [[2.0 * (value > -1.0) for value in row] for row in reference]
    return label_examples({**columns, "reference_log_probs": reference, "token_weights": weights})


def dense_stats(model, example):
    """What an objective may look at, from the model's own logits in float64, and all log-probabilities `(T, V)`."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=torch.tensor(example.input_ids[None].astype(np.int64))).logits
    log_probs = logits[0, example.positions - 1].log_softmax(-1)
    labels = torch.tensor(example.input_ids[example.positions].astype(np.int64))
    likeliest = log_probs.topk(20).values.softmax(-1)
    stats = TokenStats(
        labels=labels,
        log_probs=log_probs.gather(-1, labels[:, None])[:, 0],
        entropy=torch.special.entr(log_probs.exp()).sum(-1),
        topk_entropy=torch.special.entr(likeliest).sum(-1),
        collision=log_probs.exp().square().sum(-1),
        token_weights=torch.tensor(example.token_weights).double(),
        reference_log_probs=torch.tensor(example.reference_log_probs).double(),
    )
    return stats, log_probs


@pytest.mark.parametrize("max_batch_tokens", [1, 30, None])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_scores_and_weights_are_those_of_dense_logits(examples, objective, max_batch_tokens):
    model = confident_model()
    found = score_labels(model, examples, objective=objective, likeliest=3, max_batch_tokens=max_batch_tokens)
    # Sums of 16 fp32 products at logits up to about 30, and what a power or a quotient makes of that.
    bound = 2e-5
    for example, scores in zip(examples, found, strict=True):
        stats, log_probs = dense_stats(model, example)
        np.testing.assert_allclose(scores.log_probs, stats.log_probs.numpy(), rtol=0, atol=bound)
        np.testing.assert_allclose(scores.entropy, stats.entropy.numpy(), rtol=0, atol=bound)
        assert scores.likeliest.tolist() == log_probs.topk(3).indices.tolist()
        np.testing.assert_allclose(scores.likeliest_log_probs, log_probs.topk(3).values.numpy(), rtol=0, atol=bound)
        assert scores.top1.tolist() == log_probs.argmax(-1).tolist()
        assert scores.rank.tolist() == (1 + (log_probs > stats.log_probs[:, None]).sum(-1)).tolist()
        weights = objective.token_weights(stats).double().numpy()
        np.testing.assert_allclose(scores.token_weights, weights, rtol=0, atol=bound)
        assert ((scores.token_weights != 0) == (weights != 0)).all()
    kept = np.concatenate([scores.token_weights for scores in found]) != 0
    assert kept.all() or 0.1 < kept.mean() < 0.9
    assert {array.dtype for array in (found[0].log_probs, found[0].entropy, found[0].token_weights)} == {
        np.dtype(np.float32)
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_in_sixteen_bits_has_fp32_logits(examples, dtype):
    model = confident_model(dtype)
    errors, rounded = [], []
    # One at a time, or the hidden states would differ by a last bit of theirs.
    for example, scores in zip(examples, score_labels(model, examples, max_batch_tokens=1), strict=True):
        with torch.no_grad():
            input_ids = torch.tensor(example.input_ids[None].astype(np.int64))
            hidden = model.model(input_ids=input_ids).last_hidden_state[0, example.positions - 1]
        labels = torch.tensor(example.input_ids[example.positions].astype(np.int64))[:, None]
        logits = hidden.double() @ model.lm_head.weight.detach().double().T
        wanted = logits.log_softmax(-1).gather(-1, labels)[:, 0].numpy()
        errors.append(np.abs(scores.log_probs - wanted).max())
        rounded.append(
            np.abs(logits.to(dtype).double().log_softmax(-1).gather(-1, labels)[:, 0].numpy() - wanted).max()
        )
    # One example at a time the hidden states are rounded elsewhere than in a batch, by a last bit; never the logits.
    assert np.median(errors) < 0.2 * np.median(rounded)


def test_no_weight_depends_on_what_else_is_scored(examples):
    model, objective = confident_model(), Rho(keep_share=0.4)
    together = score_labels(model, examples, objective=objective, max_batch_tokens=1000)
    alone = [score_labels(model, [example], objective=objective)[0] for example in examples]
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_array_equal(first.token_weights, second.token_weights)


@pytest.mark.parametrize("has_head", [False, True])
def test_the_model_is_as_it_was(examples, has_head):
    model = confident_model().train()
    model.model.layers[0].eval()
    model.config.attention_dropout = 0.5  # in training mode nothing would come out twice alike
    if has_head:
        apply_profit(model, ProFit(threshold=0.3), chunk_size=5)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (score_labels(model, examples, objective=NLL()) for _ in range(2))
    np.testing.assert_array_equal(
        np.concatenate([found.log_probs for found in first]), np.concatenate([found.log_probs for found in second])
    )
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    if has_head:
        assert selective_head(model).objective == ProFit(threshold=0.3)
        remove_profit(model)
    assert "forward" not in vars(model)


def test_batches_come_longest_first_and_know_their_examples(examples):
    lengths = [len(example.input_ids) for example in examples]
    batches = list(score_in_batches(confident_model(), examples, max_batch_tokens=30))
    assert [list(batch) for batch in batches] == list(batches_by_length(lengths, 30))
    assert [len(found.rank) for batch in batches for found in batch.values()] == [
        len(examples[index].positions) for batch in batches for index in batch
    ]


def test_little_to_score():
    model = confident_model()
    assert score_labels(model, []) == []
    without_labels = LabelExample(input_ids=np.array([3, 4], np.int32), positions=np.zeros(0, np.int32))
    assert score_labels(model, [without_labels])[0].log_probs.size == 0


def test_a_batch_of_which_nothing_is_kept_is_no_reason_to_warn(examples):
    found = score_labels(confident_model(), examples, objective=ProFit(threshold=1.0))
    assert not any(scores.token_weights.any() for scores in found)


def test_an_objective_that_lacks_its_reference_says_so(examples):
    bare = [LabelExample(input_ids=example.input_ids, positions=example.positions) for example in examples]
    with pytest.raises(ValueError, match="Pass reference_log_probs, one per position, from a frozen reference model"):
        score_labels(confident_model(), bare, objective=ProFit(mask_source="reference"))


def test_what_rows_say_of_every_token_is_kept_of_labels():
    rows = {"input_ids": [[5, 6, 7, 8]], "labels": [[5, -100, 7, 8]], "token_kinds": [[1, 2, 0, 1]]}
    (example,) = label_examples(rows)
    assert example.positions.tolist() == [2, 3]
    assert example.token_kinds.tolist() == [0, 1]
    assert example.reference_log_probs is None


@pytest.mark.parametrize("lengths", [[], [5], [3, 1, 4, 1, 5, 9, 2, 6], [7] * 9])
@pytest.mark.parametrize("max_batch_tokens", [1, 8, 20, 1000])
def test_batches_hold_every_example_once_and_keep_to_the_budget(lengths, max_batch_tokens):
    batches = list(batches_by_length(lengths, max_batch_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= max_batch_tokens
