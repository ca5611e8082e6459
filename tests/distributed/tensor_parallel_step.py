"""One optimizer step under tensor parallelism, or in one process. Run by test_trainer_tensor_parallel.py."""

import os
import tempfile

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM

from distributed.one_step import CaptureGradients
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer
from tiny import tiny_dataset, tiny_tokenizer

ROWS = 8
THRESHOLD = 1 / 64


def step(folder: str, normalize: str) -> dict[str, torch.Tensor]:
    parallel = "WORLD_SIZE" in os.environ
    args = ProFitConfig(
        tempfile.mkdtemp(),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=ROWS // 2,
        max_steps=1,
        max_grad_norm=0.0,
        threshold=THRESHOLD,
        normalize=normalize,
        logging_steps=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    if parallel:
        args.device  # noqa: B018  # starts the processes' group
        # accelerate leaves a model that is split by tensors alone on accelerators only, and wraps it in DDP on CPUs.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    capture = CaptureGradients()
    trainer = ProFitTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **({"tp_plan": "auto"} if parallel else {})),
        args,
        train_dataset=tiny_dataset(ROWS),
        processing_class=tiny_tokenizer(),
        callbacks=[capture],
    )
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    split = {name for name, parameter in trainer.model.named_parameters() if hasattr(parameter, "full_tensor")}
    assert bool(split) == parallel
    found = {name: value.full_tensor() if name in split else value for name, value in capture.found.items()}
    for name in ("loss", "kept_share", "nll", "num_tokens"):
        found[f"log/{name}"] = torch.tensor(float(log[name]))
    return found


def main(folder: str, out: str) -> None:
    found = {normalize: step(folder, normalize) for normalize in ("all", "kept")}
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(found, out)
