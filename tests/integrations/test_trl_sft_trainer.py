"""TRL's own SFTTrainer on a model with the selective head: never another loss without a word."""

import pytest
import torch
from trl import SFTConfig, SFTTrainer

from profit_sft.errors import LossBypassedError
from profit_sft.head import apply_profit, remove_profit
from profit_sft.objectives import ProFit
from tiny import tiny_dataset, tiny_model, tiny_tokenizer


def sft_trainer(folder, model, *, peft_config=None, compute_loss_func=None, **overrides):
    settings = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "max_steps": 1,
        "learning_rate": 0.1,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **overrides,
    }
    return SFTTrainer(
        model,
        SFTConfig(str(folder), **settings),
        train_dataset=tiny_dataset(8),
        eval_dataset=tiny_dataset(8, seed=5),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        compute_loss_func=compute_loss_func,
    )


def mean_nll(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def plain_nll(model, dataset):
    """Of every label token, densely in float64."""
    losses = []
    with torch.no_grad():
        for row in dataset:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
            labels = torch.tensor(row["labels"][1:])
            losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100])
    return torch.cat(losses).mean().item()


def lora():
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.filterwarnings("ignore:.* is deprecated .*removed in v2.0.0:FutureWarning")  # TRL's, of its own options
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_type": "dft"},
        {"label_smoothing_factor": 0.1},
        {"gradient_accumulation_steps": 2},
        {"peft_config": lora},
        {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: mean_nll(outputs.logits, labels)},
    ],
    ids=["nll", "dft", "label smoothing", "accumulation", "lora", "compute_loss_func"],
)
def test_its_first_step_is_refused_with_the_line_to_write(tmp_path, order, options):
    options = {name: value() if name == "peft_config" else value for name, value in options.items()}
    model = tiny_model()
    if order == "before":
        apply_profit(model, ProFit(threshold=1 / 64))
    trainer = sft_trainer(tmp_path, model, **options)
    if order == "after":
        apply_profit(trainer.model, ProFit(threshold=1 / 64))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    with pytest.raises(LossBypassedError, match="write ProFitTrainer and ProFitConfig for SFTTrainer and SFTConfig"):
        trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("order", ["before", "after"])
def test_its_evaluation_is_plain_nll(tmp_path, order):
    model = tiny_model()
    expected = plain_nll(model.eval(), tiny_dataset(8, seed=5))
    if order == "before":
        apply_profit(model, ProFit(threshold=1 / 64))
    trainer = sft_trainer(tmp_path, model)
    if order == "after":
        apply_profit(trainer.model, ProFit(threshold=1 / 64))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_it_trains_plain_nll_once_the_head_is_taken_off(tmp_path):
    model = remove_profit(apply_profit(tiny_model(), ProFit(threshold=1 / 64)))
    trainer = sft_trainer(tmp_path, model, per_device_train_batch_size=8)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(plain_nll(tiny_model().eval(), tiny_dataset(8)), rel=1e-5)
