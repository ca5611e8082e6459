"""One whole training step (forward, backward, clipping, AdamW) against TRL's SFTTrainer on identical batches.

    python benchmarks/training_step.py --data gsm8k_train.jsonl

Both trainers hold the same model, SmolLM2-135M-Instruct in fp32, and get the same batches in turn, interleaved. Ratios
are the claim; milliseconds are context.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from loss import environment
from profit_sft import ProFitConfig, ProFitTrainer
from profit_sft.data import DataSettings, prepare_dataset
from profit_sft.models.embedded import embedded_model_folder

SETTINGS: dict[str, Any] = {
    "bf16": False,
    "use_cpu": not torch.cuda.is_available(),
    "gradient_checkpointing": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "learning_rate": 1e-6,
    "dataset_kwargs": {"skip_prepare_dataset": True},
}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "trl nll": None,
    "ours nll": {"objective": "nll"},
    "ours threshold 0.1": {"threshold": 0.1},
    "ours threshold 0.5": {"threshold": 0.5},
    "ours threshold 0.5, delta 0.3%": {"threshold": 0.5, "gradient_budget": 0.003},
}


def make_trainer(folder: Path, options: dict[str, Any] | None, dataset: Any, tokenizer: Any, batch_size: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = {**SETTINGS, "per_device_train_batch_size": batch_size, "output_dir": tempfile.mkdtemp()}
    config, trainer_class = (SFTConfig, SFTTrainer) if options is None else (ProFitConfig, ProFitTrainer)
    args = config(**settings, **(options or {}))
    trainer = trainer_class(model, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def step(trainer: Any, batch: dict[str, torch.Tensor]) -> float:
    start = time.perf_counter()
    labels = int((batch["labels"][:, 1:] != -100).sum())
    trainer.training_step(trainer.model, dict(batch), torch.tensor(labels))
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="question/answer rows (jsonl)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
    folder = embedded_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = args.batch_size * args.rounds
    dataset = prepare_dataset(DataSettings(dataset_name=str(args.data), max_samples=rows), tokenizer).dataset
    dataset = dataset.select_columns(["input_ids", "labels"])
    # One at a time in memory would time a cold optimizer; five models of 135M fit into 16 GiB.
    trainers = {name: make_trainer(folder, VARIANTS[name], dataset, tokenizer, args.batch_size) for name in args.only}
    collate = next(iter(trainers.values())).data_collator
    times: dict[str, list[float]] = {name: [] for name in trainers}
    batches = [
        collate([dataset[index] for index in range(start, start + args.batch_size)])
        for start in range(0, rows, args.batch_size)
    ]
    for trainer in trainers.values():
        step(trainer, batches[0])
    for batch in batches:
        for name, trainer in trainers.items():
            times[name].append(step(trainer, batch))
    print("| variant | median_ms | iqr_ms | speedup over trl nll |\n|---|---|---|---|")
    results = []
    for name, found in times.items():
        quartiles = statistics.quantiles(found, n=4)
        # Pairs on the same batch, so that its length does not count.
        speedup = statistics.median(base / own for base, own in zip(times[args.only[0]], found, strict=True))
        results.append({"variant": name, "median_ms": statistics.median(found), "speedup": speedup, "times_ms": found})
        print(f"| {name} | {statistics.median(found):.0f} | {quartiles[2] - quartiles[0]:.0f} | {speedup:.2f} |")
    if args.json is not None:
        args.json.write_text(json.dumps({"environment": environment(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
