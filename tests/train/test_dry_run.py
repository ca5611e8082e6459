"""The mask that `--dry-run` looks at, against dense logits in float64; its report is in tests/cli/test_train.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from trl import ModelConfig

from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.models.pretrained import load_tokenizer
from profit_sft.objectives import TokenStats
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.dry_run import DryRunReport, SettingsReport, dry_run
from profit_sft.train.job import TrainJob
from tiny import save_tiny_chat_model


@pytest.fixture(scope="module")
def confident_folder(tmp_path_factory):
    """A tiny chat model whose predictions lie anywhere between sure and hopeless."""
    folder = save_tiny_chat_model(tmp_path_factory.mktemp("tiny"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight *= 30
    model.config.attention_dropout = 0.5  # in training mode every figure would be another
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = ({"question": f"What is {n} + 1?", "answer": f"It is {n + 1}. " * (1 + n % 4)} for n in range(12))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def dense_stats(folder, rows):
    """What an objective may look at of every label token, from the model's own logits in float64."""
    data = prepare_dataset(DataSettings(dataset_name=rows), load_tokenizer(folder)).dataset
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    found = []
    for row in data:
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(row["labels"][1:])
        log_probs, labels = log_probs[labels != -100], labels[labels != -100]
        likeliest = log_probs.topk(20).values.softmax(-1)
        topk_entropy = torch.special.entr(likeliest).sum(-1)
        found.append((labels, log_probs.gather(-1, labels[:, None])[:, 0], topk_entropy))
    labels, log_probs, topk_entropy = (torch.cat(parts) for parts in zip(*found, strict=True))
    return TokenStats(labels=labels, log_probs=log_probs, topk_entropy=topk_entropy)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("objective", "threshold"), [("nll", None), ("profit", 1e-4), ("dft", None), ("eaft", None)])
def test_figures_are_those_of_dense_logits(confident_folder, rows, tmp_path, objective, threshold, lora):
    config = ProFitConfig(
        output_dir=str(tmp_path / "run"), objective=objective, threshold=threshold, report_to=[], use_cpu=True
    )
    model_config = ModelConfig(model_name_or_path=confident_folder, use_peft=lora)
    found = dry_run(TrainJob(RunArguments(dataset_name=rows), config, model_config), progress=False)
    assert isinstance(found, DryRunReport)
    stats = dense_stats(confident_folder, rows)
    kept = config.make_objective().token_weights(stats) != 0
    assert objective != "profit" or 0.2 < kept.double().mean() < 0.8
    assert found.sample_rows == 12
    assert found.sample_label_tokens == len(kept)
    assert found.kept_share == kept.double().mean().item()
    assert found.nll == pytest.approx(-stats.log_probs.mean().item(), rel=1e-6)
    assert found.mean_p == pytest.approx(np.exp(stats.log_probs.numpy()).mean(), rel=1e-5)


def settings_only(tmp_path, model, rows, *, eval_strategy="no", eval_dataset_name=None):
    settings = {"report_to": [], "use_cpu": True, "global_batch_size": 32, "eval_strategy": eval_strategy}
    config = ProFitConfig(output_dir=str(tmp_path / "run"), **settings)
    run = RunArguments(dataset_name=rows, eval_dataset_name=eval_dataset_name)
    found = dry_run(TrainJob(run, config, ModelConfig(model_name_or_path=model)), progress=False)
    assert isinstance(found, SettingsReport)
    assert found.batch == "32 rows: 8 a device x 4 accumulated x 1 ranks"
    assert not (tmp_path / "run").exists()
    return found


def test_what_is_on_another_machine_is_said_and_the_settings_are_shown(tmp_path, tiny_folder, rows):
    found = settings_only(tmp_path, "nobody/no-such-model", "elsewhere.parquet")
    assert found.not_checked == [
        "rows, tokens, mask and memory: 'elsewhere.parquet' does not exist here.",
        "rows, tokens, mask and memory: the model 'nobody/no-such-model' is not here, and the hub cannot be reached.",
    ]
    assert found.memory_gib is None
    found = settings_only(tmp_path, tiny_folder, "elsewhere.parquet")
    assert found.not_checked == ["rows, tokens and mask: 'elsewhere.parquet' does not exist here."]
    assert found.memory_gib["weights"] > 0


def test_a_mistyped_file_is_told_from_one_elsewhere_by_its_neighbor(tmp_path, tiny_folder, rows):
    wrong = rows.replace("train.jsonl", "trian.jsonl")
    said = f"rows, tokens and mask: '{wrong}' does not exist here. Did you mean '{rows}'?"
    assert settings_only(tmp_path, tiny_folder, wrong).not_checked == [said]
    evaluated = settings_only(tmp_path, tiny_folder, rows, eval_strategy="epoch", eval_dataset_name=wrong)
    assert evaluated.not_checked == [said]


def test_a_model_larger_than_the_memory_here_is_not_loaded(tmp_path, tiny_folder, rows):
    folder = tmp_path / "vast"
    shutil.copytree(tiny_folder, folder)
    for file in Path(folder).glob("*.safetensors"):
        file.unlink()
    LlamaConfig(vocab_size=10**9, hidden_size=2**14, num_attention_heads=2, num_hidden_layers=1).save_pretrained(folder)
    found = settings_only(tmp_path, str(folder), rows)
    (line,) = found.not_checked
    assert found.memory_gib["weights"] > 120_000  # 2 x 2^14 x 10^9 numbers of four bytes, and its one layer
    assert line.startswith(f"rows, tokens and mask: the weights of '{folder}' take 12")
    assert "memory are free here" in line
