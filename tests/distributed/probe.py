"""The probe of a short run on one or two ranks, and of a model that FSDP2 shards. Run by test_probe.py."""

import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from profit_sft.head import apply_profit
from profit_sft.objectives import ProFit
from profit_sft.train.collapse_probe import measure
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer
from tiny import tiny_dataset, tiny_model, tiny_tokenizer

ROWS = 32
THRESHOLD = 1 / 64


def trained(world_size: int) -> list[dict[str, float]]:
    args = ProFitConfig(
        tempfile.mkdtemp(),
        per_device_train_batch_size=8 // world_size,
        max_steps=3,
        threshold=THRESHOLD,
        logging_steps=1,
        probe_measurements=3,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = ProFitTrainer(tiny_model(), args, train_dataset=tiny_dataset(ROWS), processing_class=tiny_tokenizer())
    trainer.train()
    return [
        {name: log[name] for name in ("step", "probe_nll", "probe_loss", "probe_rise_se") if name in log}
        for log in trainer.state.log_history
        if "probe_nll" in log
    ]


def sharded_nll(world_size: int) -> float:
    model = apply_profit(tiny_model(), ProFit(threshold=THRESHOLD))
    if world_size > 1:
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    row = tiny_dataset(1)[0]
    batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
    return -float(measure(model, batch).log_probs.sum())


def main(out: Path) -> None:
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    found = {"logs": trained(world_size), "sharded": sharded_nll(world_size)}
    (out / f"{world_size}-{rank}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()
