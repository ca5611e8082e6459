"""One whole training step (forward, backward, clipping, AdamW) against TRL's SFTTrainer on identical batches.

    python benchmarks/training_step.py --data gsm8k_train.jsonl
    python benchmarks/training_step.py --device cuda --dtype bfloat16 --model_name_or_path Qwen/Qwen3-0.6B    on a GPU

Both trainers hold the same model, by default SmolLM2-135M-Instruct in fp32, and get the same batches in turn,
interleaved. Ratios are the claim; milliseconds are context. Without --data the rows are generated problems.
"""

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from loss import environment, time_ms
from profit_sft import ProFitConfig, ProFitTrainer
from profit_sft.data.generated import generate_problems, write_jsonl
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.models.embedded import embedded_model_folder

SETTINGS: dict[str, Any] = {
    "bf16": False,
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


def make_trainer(args: argparse.Namespace, options: dict[str, Any] | None, dataset: Any, tokenizer: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=getattr(torch, args.dtype))
    settings = {**SETTINGS, "use_cpu": args.device == "cpu", "per_device_train_batch_size": args.batch_size}
    settings["output_dir"] = tempfile.mkdtemp()
    config, trainer_class = (SFTConfig, SFTTrainer) if options is None else (ProFitConfig, ProFitTrainer)
    made = config(**settings, **(options or {}))
    trainer = trainer_class(model, made, train_dataset=dataset, processing_class=tokenizer)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def step(trainer: Any, batch: dict[str, torch.Tensor]) -> None:
    labels = int((batch["labels"][:, 1:] != -100).sum())
    trainer.training_step(trainer.model, dict(batch), torch.tensor(labels))
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="question/answer rows (jsonl); default: generated problems")
    parser.add_argument("--model_name_or_path", help="default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the parameters")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="batches, two at least")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args(arguments)
    args.model_name_or_path = args.model_name_or_path or embedded_model_folder()
    return args


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the steps, print the table, and return the figures."""
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    rows = args.batch_size * args.rounds
    with tempfile.TemporaryDirectory() as folder:
        data = args.data
        if data is None:
            data = Path(folder) / "generated.jsonl"
            write_jsonl(generate_problems(rows, seed=0), data)
        dataset = prepare_dataset(DataSettings(dataset_name=str(data), max_samples=rows), tokenizer).dataset
    dataset = dataset.select_columns(["input_ids", "labels"])
    # One at a time in memory would time a cold optimizer; five models of 135M fit into 16 GiB.
    trainers = {name: make_trainer(args, VARIANTS[name], dataset, tokenizer) for name in args.only}
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
            times[name].append(
                time_ms(lambda trainer=trainer, batch=batch: step(trainer, batch), torch.device(args.device))
            )
    print(f"### one training step, {args.dtype}\n")
    print(f"| variant | median_ms | iqr_ms | speedup over {args.only[0]} |\n|---|---|---|---|")
    results = []
    for name, found in times.items():
        quartiles = statistics.quantiles(found, n=4)
        # Pairs on the same batch, so that its length does not count.
        speedup = statistics.median(base / own for base, own in zip(times[args.only[0]], found, strict=True))
        results.append({"variant": name, "median_ms": statistics.median(found), "speedup": speedup, "times_ms": found})
        print(f"| {name} | {statistics.median(found):.0f} | {quartiles[2] - quartiles[0]:.0f} | {speedup:.2f} |")
    return results


def main() -> None:
    args = parse()
    results = measure(args)
    if args.json is not None:
        args.json.write_text(json.dumps({"environment": environment(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
