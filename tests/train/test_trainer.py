"""ProFitConfig and ProFitTrainer; exactness over ranks is in tests/distributed."""

import contextlib
import copy
import json
import math

import pytest
import torch
import transformers
from trl import SFTConfig

from profit_sft.train import memory
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer, refuse_split_sequences
from tiny import tiny_dataset, tiny_model, tiny_tokenizer

# transformers 4 logs the loss with four decimals.
LOGGED_LOSS_ROUNDING = 5e-5 if transformers.__version__.startswith("4.") else 0.0


def config(tmp_path, **overrides):
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 0.05,
        "threshold": 1 / 64,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **overrides,
    }
    return ProFitConfig(str(tmp_path / "run"), **settings)


def trainer(tmp_path, *, model=None, eval_dataset=None, **overrides):
    return ProFitTrainer(
        tiny_model() if model is None else model,
        config(tmp_path, **overrides),
        train_dataset=tiny_dataset(16),
        eval_dataset=eval_dataset,
        processing_class=tiny_tokenizer(),
    )


def per_label_values(model, dataset):
    """Log-probabilities and entropies of every label token, computed densely in float64."""
    log_probs, entropies, correct = [], [], []
    with torch.no_grad():
        for row in dataset:
            dense = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double().log_softmax(-1)
            labels = torch.tensor(row["labels"][1:])
            dense, labels = dense[labels != -100], labels[labels != -100]
            log_probs.append(dense.gather(-1, labels[:, None])[:, 0])
            entropies.append(-(dense.exp() * dense).sum(-1))
            correct.append(dense.argmax(-1) == labels)
    return torch.cat(log_probs), torch.cat(entropies), torch.cat(correct)


def test_logged_figures_are_those_of_the_batch(tmp_path):
    model = tiny_model()
    run = trainer(tmp_path, model=model, max_steps=1, per_device_train_batch_size=16, learning_rate=0.0)
    run.train()
    log = next(entry for entry in run.state.log_history if "loss" in entry)
    log_probs, entropies, correct = per_label_values(model.eval(), tiny_dataset(16))
    kept = log_probs >= math.log(1 / 64)
    assert 0.2 < kept.double().mean() < 0.8
    expected = {
        "loss": -log_probs[kept].sum() / len(log_probs),
        "kept_share": kept.double().mean(),
        "mean_p_kept": log_probs[kept].exp().mean(),
        "mean_p_masked": log_probs[~kept].exp().mean(),
        "nll": -log_probs.mean(),
        "entropy": entropies.mean(),
        "mean_token_accuracy": correct.double().mean(),
    }
    for name, value in expected.items():
        rounding = LOGGED_LOSS_ROUNDING if name == "loss" else 0.0
        assert log[name] == pytest.approx(value.item(), rel=4e-6, abs=rounding), name
    assert log["num_tokens"] == sum(len(row["input_ids"]) for row in tiny_dataset(16))
    assert log["tokens_per_second"] > 0


def tokens_and_calls(run):
    """Train, and return the loss, and how many tokens each call of the first layer's MLP had."""
    seen = []
    run.model.model.layers[0].mlp.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[:2].numel()) if module.training else None
    )
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry], seen


def test_a_step_runs_no_padding_and_comes_to_the_same(tmp_path):
    lengths = sorted(len(row["input_ids"]) for row in tiny_dataset(16))
    assert lengths[0] < lengths[-1]
    settings = {"per_device_train_batch_size": 16, "max_steps": 3, "probe_rows": 0}
    losses, tokens = tokens_and_calls(trainer(tmp_path, **settings))
    padded_losses, padded_tokens = tokens_and_calls(trainer(tmp_path, skip_padding=False, **settings))
    assert tokens == [sum(lengths) - 16] * 3  # the last token of a row predicts nothing
    assert padded_tokens == [16 * lengths[-1]] * 3
    assert losses == pytest.approx(padded_losses, rel=1e-5)


def test_noise_that_goes_by_the_length_of_rows_keeps_them_padded(tmp_path):
    settings = {"per_device_train_batch_size": 16, "max_steps": 1, "probe_rows": 0}
    _, tokens = tokens_and_calls(trainer(tmp_path, neftune_noise_alpha=5.0, **settings))
    assert tokens == [16 * max(len(row["input_ids"]) for row in tiny_dataset(16))]


@pytest.mark.parametrize("free_gib", [8.0, 1e-6])
def test_activations_are_computed_again_only_where_they_may_not_fit(tmp_path, monkeypatch, free_gib):
    monkeypatch.setattr(memory, "free_memory_gib", lambda device: free_gib)
    run = trainer(tmp_path, gradient_checkpointing=None, max_steps=2, probe_rows=0)
    _, tokens = tokens_and_calls(run)
    assert len(tokens) == (2 if free_gib == 8.0 else 4)


def test_gradient_budget_reaches_the_loss_and_what_it_drops_is_logged(tmp_path):
    run = trainer(tmp_path, max_steps=2, gradient_budget=0.2)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert all(0.05 < log["dropped_share"] <= 0.2 for log in logs)
    exact = trainer(tmp_path / "exact", max_steps=2)
    exact.train()
    assert all("dropped_share" not in entry for entry in exact.state.log_history)


def test_figures_are_absent_from_steps_that_are_not_logged(tmp_path):
    run = trainer(tmp_path, logging_steps=2)
    asked = []
    compute_loss = run.compute_loss

    def recording(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        asked.append(run._head.statistics)
        return loss

    run.compute_loss = recording
    run.train()
    assert asked == ["objective", "all", "objective", "all"]


def test_evaluation_loss_is_plain_nll_of_every_label(tmp_path):
    dataset = tiny_dataset(8, seed=5)
    run = trainer(tmp_path, eval_dataset=dataset, per_device_eval_batch_size=8)
    log_probs, _, _ = per_label_values(run.model.eval(), dataset)
    assert run.evaluate()["eval_loss"] == pytest.approx(-log_probs.mean().item(), rel=1e-5)


@pytest.mark.parametrize("normalize", ["all", "kept"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, normalize):
    settings = {
        "normalize": normalize,
        "threshold_direction": "random",
        "objective_kwargs": {"rate": 0.5},
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
    }
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    interrupted = trainer(tmp_path / "interrupted", **settings)
    interrupted.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-4"))
    for (name, expected), found in zip(whole.model.named_parameters(), interrupted.model.parameters(), strict=True):
        assert torch.equal(found, expected), name
    last = [log[-2] for log in (whole.state.log_history, interrupted.state.log_history)]
    for name in ("loss", "nll", "kept_share"):
        assert last[0][name] == last[1][name], name


@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory.")], ids=["Ctrl-C", "memory"])
def test_a_step_that_begins_anew_forgets_the_micro_batches_before_it(tmp_path, error, normalize):
    model = tiny_model()
    start = copy.deepcopy(model).double()
    run = trainer(
        tmp_path,
        model=model,
        max_steps=1,
        gradient_accumulation_steps=4,
        normalize=normalize,
        auto_find_batch_size=True,
    )
    batches, gradients = [], {}
    compute_loss, clip = run.compute_loss, run.accelerator.clip_grad_norm_

    def failing_once(model, inputs, *args, **kwargs):
        batches.append({name: inputs[name] for name in ("input_ids", "labels")})
        loss = compute_loss(model, inputs, *args, **kwargs)
        if len(batches) == 2:
            raise error
        return loss

    def noting(*args, **kwargs):
        gradients.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        return clip(*args, **kwargs)

    run.compute_loss, run.accelerator.clip_grad_norm_ = failing_once, noting
    with contextlib.suppress(KeyboardInterrupt):
        run.train()
    if not gradients:
        run.train()
    found = []
    for batch in batches[2:]:
        labels = batch["labels"][:, 1:]
        dense = start(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)[labels != -100]
        found.append(dense.gather(-1, labels[labels != -100][:, None])[:, 0])
    log_probs = torch.cat(found)
    kept = log_probs >= math.log(1 / 64)
    assert 0.2 < kept.double().mean() < 0.8
    loss = -log_probs[kept].sum() / (len(kept) if normalize == "all" else kept.sum())
    loss.backward()
    log = next(entry for entry in run.state.log_history if "loss" in entry)
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-5, abs=LOGGED_LOSS_ROUNDING)
    assert log["kept_share"] == pytest.approx(kept.double().mean().item())
    for name, parameter in start.named_parameters():
        assert (gradients[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_metrics_file_has_each_step_once_after_a_resume(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer(tmp_path, **settings).train()
    trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_checkpoint_loads_in_plain_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    run = trainer(tmp_path, max_steps=1)
    run.train()
    run.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for found, expected in zip(loaded.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_model_card_names_objective_threshold_and_data(tmp_path):
    run = trainer(tmp_path, max_steps=1, threshold=0.0125)
    run.train()
    run.create_model_card(dataset_name="train.jsonl")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "ProFit(threshold=0.0125)" in card
    assert "train.jsonl" in card
    assert "kept_share" in card


@pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")  # it collapses all the way
def test_collapse_is_warned_of_by_name(tmp_path):
    run = trainer(tmp_path, max_steps=8, threshold=1 / 64, learning_rate=0.2)
    with pytest.warns(UserWarning, match="collapse: plain NLL of the reference rose"):
        run.train()


def test_a_run_whose_nll_falls_too_is_not_warned_of(tmp_path):
    trainer(tmp_path, max_steps=8, objective="nll", threshold=None).train()


def test_telemetry_is_sent_only_when_asked_for(tmp_path, monkeypatch):
    import trl.trainer.base_trainer as base

    if not hasattr(base, "send_telemetry"):
        pytest.skip("this TRL sends none")
    sent = []
    monkeypatch.setattr(base, "send_telemetry", lambda **kwargs: sent.append(kwargs))
    monkeypatch.delenv("CI", raising=False)
    trainer(tmp_path)
    assert sent == []
    trainer(tmp_path, trl_telemetry=True)
    assert len(sent) == 1


def test_lora_trains_only_the_adapter(tmp_path):
    from peft import LoraConfig

    run = ProFitTrainer(
        tiny_model(),
        config(tmp_path, objective="dft", threshold=None),
        train_dataset=tiny_dataset(16),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    frozen = run.model.get_base_model().lm_head.weight.clone()
    before = {name: value.clone() for name, value in run.model.named_parameters() if "lora_B" in name}
    run.train()
    assert torch.equal(run.model.get_base_model().lm_head.weight, frozen)
    assert all(not torch.equal(value, dict(run.model.named_parameters())[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be a probability in \[0, 1\], got 1.5"),
        ({"objective": "profitt"}, "no objective is named 'profitt'. Known: nll, profit"),
        ({"objective_kwargs": "{alpha: 1}"}, "objective_kwargs is not JSON"),
        ({"normalize": "some"}, "normalize must be 'all' or 'kept', got 'some'"),
        ({"normalize": "kept", "average_tokens_across_devices": False}, "leave average_tokens_across_devices on"),
        ({"loss_type": "dft"}, "write objective='dft' instead"),
        ({"gradient_budget": 1.0}, r"gradient_budget must be a share in \[0, 1\), got 1.0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor changes the loss"),
        ({"probe_rows": 8}, "probe_rows must be 0 for no probe, or at least 16, got 8"),
        ({"probe_measurements": 0}, "probe_measurements must be at least 1, got 0. For none, set probe_rows to 0"),
    ],
)
def test_wrong_settings_are_refused_before_a_model_is_loaded(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


def test_a_field_the_objective_lacks_is_refused_with_those_it_has(tmp_path):
    with pytest.raises(TypeError, match="objective 'eaft' has no field 'threshold'"):
        config(tmp_path, objective="eaft")


def test_several_gpus_in_one_process_are_refused(tmp_path):
    args = config(tmp_path)
    args._n_gpu = 2  # as where two are visible and no launcher was used
    with pytest.raises(ValueError, match="DataParallel.*CUDA_VISIBLE_DEVICES"):
        ProFitTrainer(tiny_model(), args, train_dataset=tiny_dataset(), processing_class=tiny_tokenizer())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sp_size", {"sp_backend": "deepspeed", "sp_size": 2}), ("cp_size", {"cp_size": 2})],
)
def test_sequences_split_over_ranks_are_refused(name, settings):
    parallelism_config = pytest.importorskip("accelerate.parallelism_config")
    if not hasattr(parallelism_config.ParallelismConfig, name):
        pytest.skip(f"this accelerate has no {name}")
    refuse_split_sequences(None)
    refuse_split_sequences(parallelism_config.ParallelismConfig(tp_size=2))
    with pytest.raises(ValueError, match=rf"{name}=2: under .* parallelism .* Set {name} to 1"):
        refuse_split_sequences(parallelism_config.ParallelismConfig(**settings))


def test_arguments_the_trainer_cannot_honor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func would replace the objective"):
        ProFitTrainer(
            tiny_model(),
            config(tmp_path),
            train_dataset=tiny_dataset(),
            processing_class=tiny_tokenizer(),
            compute_loss_func=lambda *args, **kwargs: None,
        )
    plain = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    with pytest.raises(TypeError, match="args must be a ProFitConfig, got SFTConfig"):
        ProFitTrainer(
            tiny_model(),
            plain,
            train_dataset=tiny_dataset(),
            processing_class=tiny_tokenizer(),
        )
