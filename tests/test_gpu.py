"""The loss, the head and one trainer step on a CUDA device: make test-gpu. Here the real 16-bit products run."""

import copy
import math

import pytest
import torch

from profit_sft import NLL, ProFit, apply_profit, selective_linear_cross_entropy
from profit_sft.head import label_statistics
from profit_sft.objectives import DFT
from profit_sft.scores.loop import label_examples, score_labels
from tiny import tiny_dataset, tiny_model, tiny_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BATCH = {"input_ids": [[3, 9, 27, 17, 51, 25], [5, 25, 61, 49, 53, 9]], "labels": [[-100, -100, 27, 17, 51, 25]] * 2}


def batch():
    return {name: torch.tensor(values, device="cuda") for name, values in BATCH.items()}


def dense(model, inputs, threshold):
    """The masked loss from dense fp32 logits of the model's own forward, and the gradients of its parameters."""
    model.zero_grad()
    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].float()
    labels = inputs["labels"][:, 1:]
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100]
    kept = log_probs.detach() >= math.log(threshold)
    assert 0 < kept.float().mean() < 1
    (-(log_probs * kept).sum() / len(log_probs)).backward()
    return {name: parameter.grad.float().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)], ids=str)
def test_the_head_on_a_small_model_has_the_gradients_of_dense_logits(dtype, bound, backend):
    model = tiny_model().cuda().to(dtype).train()
    seen = label_statistics(model, **batch()).log_probs
    threshold = math.exp(seen[seen != 0].float().median().item() - 1e-3)
    expected = dense(copy.deepcopy(model).float(), batch(), threshold)
    apply_profit(model, ProFit(threshold=threshold), backend=backend, chunk_size=3)
    model(**batch()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == dtype
        assert (parameter.grad.float() - expected[name]).norm() <= bound * expected[name].norm(), name


def test_the_loop_over_label_tokens_finds_what_it_finds_on_the_cpu():
    model, rows = tiny_model(), tiny_dataset()
    examples = label_examples(rows[:])
    wanted = score_labels(model, examples, objective=DFT())
    for found, on_cpu in zip(score_labels(model.cuda(), examples, objective=DFT()), wanted, strict=True):
        assert abs(found.log_probs - on_cpu.log_probs).max() < 1e-5
        assert abs(found.token_weights - on_cpu.token_weights).max() < 1e-5


# torch's, while it looks for what it resumes with
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_inside_a_compiled_model():
    model = tiny_model().cuda().train()
    expected = apply_profit(copy.deepcopy(model), DFT())(**batch()).loss
    compiled = torch.compile(apply_profit(model, DFT()), backend="aot_eager")
    loss = compiled(**batch()).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_offsets_beyond_two_to_the_31(backend):
    # One chunk of more than 2^31 logits; what the last row says is compared with that row alone.
    tokens, vocab_size = 17_000, 131_072
    generator = torch.Generator("cuda").manual_seed(0)
    lm_head_weight = torch.randn(vocab_size, 16, device="cuda", generator=generator, dtype=torch.bfloat16)
    labels = torch.randint(vocab_size, (tokens,), device="cuda", generator=generator)
    hidden = lm_head_weight[labels].clone().requires_grad_()
    result = selective_linear_cross_entropy(
        hidden, lm_head_weight, labels, objective=NLL(), statistics="all", chunk_size=tokens, backend=backend
    )
    result.loss.backward()
    last = slice(tokens - 5, tokens)
    logits = (hidden[last].detach().double() @ lm_head_weight.double().T).requires_grad_()
    exact = torch.nn.functional.cross_entropy(logits, labels[last], reduction="none")
    (gradient,) = torch.autograd.grad(exact.sum(), logits)
    assert (result.log_probs[last].double() + exact).abs().max() <= 1e-4
    expected = gradient @ lm_head_weight.double() / tokens
    assert (hidden.grad[last].double() - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("bf16", [False, True])
def test_one_step_of_the_trainer(tmp_path, bf16):
    from profit_sft import ProFitConfig, ProFitTrainer

    config = ProFitConfig(
        str(tmp_path),
        threshold=1 / 64,
        normalize="kept",
        max_steps=1,
        logging_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        bf16=bf16,
        report_to=[],
        save_strategy="no",
    )
    model = tiny_model()
    before = copy.deepcopy(model)
    trainer = ProFitTrainer(model, config, train_dataset=tiny_dataset(8), processing_class=tiny_tokenizer())
    assert trainer.model.device.type == "cuda"
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    total, kept, labels = 0.0, 0, 0
    with torch.no_grad():
        for row in tiny_dataset(8):
            log_probs = before(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double().log_softmax(-1)
            targets = torch.tensor(row["labels"][1:])
            own = log_probs[targets != -100].gather(-1, targets[targets != -100][:, None])
            mask = own >= math.log(1 / 64)
            total, kept, labels = total - own[mask].sum().item(), kept + int(mask.sum()), labels + len(own)
    assert log["kept_share"] == pytest.approx(kept / labels, abs=0.05 if bf16 else 1e-6)
    assert log["loss"] == pytest.approx(total / kept, rel=0.1 if bf16 else 1e-4)
    assert any(
        (found.cpu() != old).any() for found, old in zip(trainer.model.parameters(), before.parameters(), strict=True)
    )
