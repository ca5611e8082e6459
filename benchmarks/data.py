"""Rows a second of preparation, ours against TRL's of the same rows.

    python benchmarks/data.py gsm8k_train.jsonl

One process each, interleaved, in seconds of this process' CPU, so that what else the machine does counts for neither,
and without threads, which would be to the favor of ours. TRL's gets its rows in memory and ours reads them from the
file, which is to the favor of TRL's. Both must come to the same tokens.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.files import package_versions
from profit_sft.models.pretrained import load_tokenizer


def main() -> None:
    """Measure short rows and long chats made of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="jsonl with question and answer, such as GSM8K's")
    parser.add_argument("--model_name_or_path", default="embedded")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=400)
    parser.add_argument("--chats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(args.model_name_or_path)
    with args.data.open(encoding="utf-8") as lines:
        exchanges = [json.loads(line) for line in lines]
    results = {
        "rows": compare([short(row) for row in exchanges[: args.rows]], tokenizer, args.rounds),
        f"chats of {args.turns} turns": compare(
            [chat(exchanges, first, args.turns) for first in range(args.chats)], tokenizer, args.rounds
        ),
    }
    print(f"{'what':24}{'ours, rows/s':>14}{'TRL, rows/s':>14}{'ratio':>8}")
    for name, found in results.items():
        print(f"{name:24}{found['ours']:14,.1f}{found['trl']:14,.1f}{found['ratio']:8.2f}")
    if args.json is not None:
        versions = package_versions(("torch", "transformers", "trl", "datasets", "tokenizers"))
        args.json.write_text(json.dumps({"results": results, "packages": versions}, indent=2) + "\n")


def short(row: dict[str, Any]) -> dict[str, Any]:
    """Return one question and answer as TRL trains the answer alone."""
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


def chat(exchanges: list[dict[str, Any]], first: int, turns: int) -> dict[str, Any]:
    """Return a chat of many turns."""
    messages = []
    for row in exchanges[first : first + turns // 2]:
        messages += [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    return {"messages": messages}


def compare(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, rounds: int) -> dict[str, Any]:
    """Return the median rows a CPU second of both, and of their ratio in a round."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        trainer, table = trl_trainer(rows[:1], tokenizer, folder), datasets.Dataset.from_list(rows)
        seconds: dict[str, list[float]] = {"ours": [], "trl": []}
        for number in range(rounds + 1):  # the first warms up
            datasets.config.HF_DATASETS_CACHE = Path(folder) / f"cache-{number}"
            start = time.process_time()
            ours = prepare_dataset(DataSettings(dataset_name=str(path), max_length=None), tokenizer).dataset
            middle = time.process_time()
            theirs = trainer._prepare_dataset(table, tokenizer, trainer.args, False, None, "train")
            end = time.process_time()
            if number:
                seconds["ours"].append(middle - start)
                seconds["trl"].append(end - middle)
        assert ours["input_ids"][:] == theirs["input_ids"][:], "not the same tokens"
    rates = {name: len(rows) / statistics.median(found) for name, found in seconds.items()}
    ratios = [trl / ours for ours, trl in zip(seconds["ours"], seconds["trl"], strict=True)]
    return {**rates, "ratio": statistics.median(ratios), "ratios": ratios, "tokens": sum(map(len, ours["input_ids"]))}


def trl_trainer(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, folder: str) -> SFTTrainer:
    """Return TRL's trainer of a model too small to matter, for its preparation of data."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    config = SFTConfig(folder, max_length=None, use_cpu=True, bf16=False, report_to="none")
    return SFTTrainer(model, config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)


if __name__ == "__main__":
    main()
