"""One optimizer step of mixtures of experts, by TRL's trainer and by ours. Run by test_trainer_moe.py."""

import os
import tempfile
import warnings
from itertools import product
from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import SFTConfig, SFTTrainer

from campaign import WHOLE, meeting
from distributed.one_step import CaptureGradients
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer
from tiny import VOCAB_SIZE, tiny_dataset, tiny_tokenizer

ROWS = 8
ACCUMULATION_STEPS = (1, 2, 4)
COEFFICIENTS = (None, 0.7)  # None: the model's own, 0.2
# TRL's trainer, and what ours is given in its place.
KINDS = {
    "trl": None,
    "nll": {"objective": "nll"},
    "everything": {"threshold": 0.0},
    "some": {"threshold": 1 / VOCAB_SIZE},
}
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def qwen3_moe():
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, intermediate_size=32, moe_intermediate_size=24, num_experts=4, head_dim=8)
    )


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=24, num_local_experts=4))


FAMILIES = {"qwen3_moe": qwen3_moe, "mixtral": mixtral}
CASES = [
    {"family": family, "steps": steps, "coefficient": coefficient}
    for family, steps, coefficient in product(FAMILIES, ACCUMULATION_STEPS, COEFFICIENTS)
]
if not WHOLE:
    CASES = [CASES[index] for index in meeting(CASES)]


def step(family, kind, steps, coefficient):
    """Return the gradients that the optimizer sees, by name, and the logged figures."""
    capture = CaptureGradients()
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": ROWS // (steps * int(os.environ.get("WORLD_SIZE", "1"))),
        "gradient_accumulation_steps": steps,
        "router_aux_loss_coef": coefficient,
        "max_steps": 1,
        "max_grad_norm": 1e9,  # so that the norm is logged and nothing clipped
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    ours = KINDS[kind]
    trainer_class, args = (
        (SFTTrainer, SFTConfig(**settings)) if ours is None else (ProFitTrainer, ProFitConfig(**settings, **ours))
    )
    trainer = trainer_class(
        FAMILIES[family](),
        args,
        train_dataset=tiny_dataset(ROWS),
        processing_class=tiny_tokenizer(),
        callbacks=[capture],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a micro-batch without kept tokens warns, and is meant to be there
        trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    found = {name.removeprefix("module."): gradient for name, gradient in capture.found.items()}
    for name in ("loss", "grad_norm", "aux_loss"):
        found[f"log/{name}"] = torch.tensor(log.get(name, 0.0), dtype=torch.float64)
    return found


def main(out: Path) -> None:
    """Take each case's step, and the same without the auxiliary loss."""
    for case, kind in product(CASES, KINDS):
        for coefficient in (case["coefficient"], 0.0):
            if kind == "everything" and coefficient == 0.0:
                continue  # compared with TRL's as it is alone
            family, steps = case["family"], case["steps"]
            found = step(family, kind, steps, coefficient)
            if int(os.environ.get("RANK", "0")) == 0:
                torch.save(found, out / f"{family}-{kind}-{steps}-{coefficient}.pt")
