"""What `ProFitTrainer` logs is what was minimized and computed with, over steps, checkpoints and devices."""

import math

import pytest
import torch
import transformers
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode

from profit_sft.loss import selective_linear_cross_entropy
from profit_sft.objectives import ProFit
from profit_sft.train.config import ProFitConfig
from profit_sft.train.metrics import StepMetrics
from profit_sft.train.trainer import ProFitTrainer
from tiny import tiny_dataset, tiny_model, tiny_tokenizer

THRESHOLD = 1 / 64


class Recording(ProFitTrainer):
    """Keeps the micro-batches it trains on."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), {name: value.clone() for name, value in inputs.items()}]
        return super().compute_loss(model, inputs, *args, **kwargs)


def trained(folder, *, resume=None, model=None, **overrides):
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 0.0,
        "threshold": THRESHOLD,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **overrides,
    }
    trainer = Recording(
        tiny_model() if model is None else model,
        ProFitConfig(str(folder), **settings),
        train_dataset=tiny_dataset(16),
        processing_class=tiny_tokenizer(),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def kept_loss(model, batches):
    """Plain NLL of the kept label tokens of one optimizer step, densely in float64."""
    log_probs = []
    for batch in batches:
        with torch.no_grad():
            dense = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        values = dense.double().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        log_probs.append(values[labels != -100])
    values = torch.cat(log_probs)
    kept = values >= math.log(THRESHOLD)
    assert 0.2 < kept.double().mean() < 0.8
    return -values[kept].mean().item(), kept.double().mean().item()


def test_kept_loss_is_the_mean_of_what_the_steps_have_minimized(tmp_path):
    run = trained(tmp_path, normalize="kept", logging_steps=2)
    model = tiny_model().eval()
    found = [kept_loss(model, run.seen[first : first + 2]) for first in range(0, 8, 2)]
    losses, shares = zip(*found, strict=True)
    assert max(shares) - min(shares) > 0.05
    logs = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    rounding = 5e-5 if transformers.__version__.startswith("4.") else 0.0
    assert logs == pytest.approx([(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2], rel=1e-5, abs=rounding)
    assert run.state.log_history[-1]["train_loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_tokens_are_counted_on_when_a_run_is_resumed(tmp_path, logging_steps):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "logging_steps": logging_steps}
    whole = trained(tmp_path / "whole", **settings)
    resumed = trained(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-4"), **settings)
    assert len(resumed.seen) == 4
    logged = [[log["num_tokens"] for log in run.state.log_history if "loss" in log] for run in (whole, resumed)]
    assert logged[0] == logged[1]
    assert logged[0][-1] == sum(int(batch["attention_mask"].sum()) for batch in whole.seen)


def test_micro_batches_are_weighted_by_their_labels_whatever_the_model_says_of_its_own_loss(tmp_path):
    def gradient(steps, **attributes):
        model = tiny_model()
        for name, value in attributes.items():
            setattr(model, name, value)
        found = {}

        class Capture(Recording):
            def training_step(self, *args, **kwargs):
                loss = super().training_step(*args, **kwargs)
                found.update({name: p.grad.clone() for name, p in self.model.named_parameters()})
                return loss

        args = ProFitConfig(
            str(tmp_path),
            per_device_train_batch_size=16 // steps,
            gradient_accumulation_steps=steps,
            max_steps=1,
            threshold=THRESHOLD,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        Capture(model, args, train_dataset=tiny_dataset(16), processing_class=tiny_tokenizer()).train()
        return found

    # As the multimodal families of transformers have it, whose own forward does not read the number of labels.
    whole, split = gradient(1), gradient(8, accepts_loss_kwargs=False)
    for name, expected in whole.items():
        assert (split[name] - expected).norm() <= 1e-5 * expected.norm(), name


def selective(tokens=40, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, matrix = torch.randn(tokens, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels = torch.randint(0, 30, (tokens,), generator=generator)
    return selective_linear_cross_entropy(
        hidden, matrix, labels, objective=ProFit(threshold=1 / 30), statistics="all", chunk_size=16
    )


class NoFloat64(TorchDispatchMode):
    """A device that has none, as Apple's."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), function
        return out


def test_measuring_does_without_float64():
    results = [selective(seed=seed) for seed in range(3)]
    metrics = StepMetrics()
    with NoFloat64():
        for result in results:
            metrics.add(result, tokens=torch.tensor(50), aux_loss=None, measure=True)
        found, tokens = metrics.means(metrics.as_tensor(torch.device("cpu")))
    assert tokens == 150
    log_probs = torch.cat([result.log_probs for result in results]).double()
    kept = torch.cat([result.token_weights != 0 for result in results])
    assert found["nll"] == pytest.approx(-log_probs.mean().item(), rel=1e-6)
    assert found["kept_share"] == kept.double().mean().item()
    assert found["mean_p_kept"] == pytest.approx(log_probs[kept].exp().mean().item(), rel=1e-6)
    assert found["mean_p_masked"] == pytest.approx(log_probs[~kept].exp().mean().item(), rel=1e-6)
    with pytest.raises(AssertionError), NoFloat64():
        torch.zeros(1, dtype=torch.float64)


def test_counts_are_exact_beyond_what_fp32_can_hold():
    metrics, expected = StepMetrics(), 0
    result = selective()
    for index in range(500):
        tokens = 2**23 + 2 * index + 1
        metrics.add(result, tokens=torch.tensor(tokens), aux_loss=None, measure=False)
        expected += tokens
    assert expected > 2**31
    _, tokens = metrics.means(metrics.as_tensor(torch.device("cpu")))
    assert tokens == expected


def test_ranks_that_are_given_the_same_batch_count_its_tokens_once():
    metrics = StepMetrics()
    metrics.add(selective(), tokens=torch.tensor(62), aux_loss=None, measure=False)
    rank = metrics.as_tensor(torch.device("cpu"))
    _, tokens = metrics.means(torch.cat([rank, rank]), copies=2)
    assert tokens == 62


@pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")
@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize("settings", [{"threshold": THRESHOLD}, {"threshold": 1.0}], ids=["no label", "nothing kept"])
def test_a_step_with_nothing_to_learn_changes_nothing(tmp_path, normalize, settings):
    rows = [{**row, "labels": [-100] * len(row["labels"])} for row in tiny_dataset(16)]
    labeled = settings["threshold"] == 1.0
    args = ProFitConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.1,
        logging_steps=1,
        normalize=normalize,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    dataset = tiny_dataset(16) if labeled else Dataset.from_list(rows)
    run = ProFitTrainer(tiny_model(), args, train_dataset=dataset, processing_class=tiny_tokenizer())
    run.train()
    log = next(entry for entry in run.state.log_history if "loss" in entry)
    assert log["loss"] == log["grad_norm"] == 0.0
    assert log.get("kept_share") == (0.0 if labeled else None)
    for found, expected in zip(run.model.parameters(), tiny_model().parameters(), strict=True):
        assert torch.equal(found, expected)
