"""Are core tokens likely and style tokens unlikely? SmolLM2-135M-Instruct before training, after SFT and after ProFit.

    python benchmarks/hypothesis.py --seeds 0 1 2 --gsm8k_file gsm8k_test.jsonl --gsm8k_train_file gsm8k_train.jsonl

Generated problems: each seed draws training and held-out problems, and trains on the former as the quickstart does,
with plain NLL and with ProFit. GSM8K answers are marked by form (benchmarks/gsm8k_spans.py) and scored under the
untrained model, under those trained on generated problems with the first seed, and, given a training file, under models
trained on such answers. Everything lies in the output folder; a second call goes on where the first one stopped, and
may name more seeds. Figures go to results.json there, tables to stdout.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gsm8k_spans import marked_row
from loss import environment
from profit_sft import quickstart
from profit_sft.cli.progress import quiet_libraries
from profit_sft.data.generated import SYSTEM_PROMPT, generate_problems, write_jsonl
from profit_sft.data.settings import DataSettings
from profit_sft.data.tokenize import TOKEN_KINDS
from profit_sft.files import write_text
from profit_sft.mask.advice import final_answer_mask
from profit_sft.mask.kinds import KindComparison, compare_scores
from profit_sft.mask.tokens import kept_mask, label_tokens
from profit_sft.models.embedded import embedded_model_folder
from profit_sft.scores.score import score_dataset
from profit_sft.scores.settings import ScoreSettings
from profit_sft.scores.store import ScoreSet

THRESHOLD = 0.1
TRAINED = {
    "after SFT": ["--objective", "nll"],
    "after ProFit": ["--objective", "profit", "--threshold", str(THRESHOLD)],
}


def make_data(folder: Path, seed: int, held_out_rows: int) -> dict[str, Path]:
    """Write the problems of a seed; seed 0 has the quickstart's."""
    files = {}
    for name, rows, split_seed, split in (
        ("training", quickstart.TRAIN_ROWS, seed, "train"),
        ("held-out", held_out_rows, seed + 1, "test"),
    ):
        files[name] = folder / f"{name}.jsonl"
        if not files[name].is_file():
            problems = generate_problems(rows, seed=split_seed, split=split)
            write_jsonl(problems, files[name], system_prompt=SYSTEM_PROMPT)
    return files


def train(data_file: Path, output_dir: Path, objective: list[str], seed: int, *, max_length: int = 256) -> Path:
    """Train as the quickstart does, in a process of its own, unless that has been done."""
    if not (output_dir / "model.safetensors").is_file():
        flags = {
            "model_name_or_path": "embedded",
            "dataset_name": data_file,
            "output_dir": output_dir,
            "learning_rate": quickstart.LEARNING_RATE,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "num_train_epochs": 1,
            "per_device_train_batch_size": quickstart.BATCH_SIZE,
            "max_length": max_length,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 5,
            "seed": seed,
        }
        command = [sys.executable, "-m", "profit_sft.cli", "train", *objective]
        for name, value in flags.items():
            command += [f"--{name}", str(value)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return output_dir


def compare(model: Path, data_file: Path, scores_dir: Path) -> dict[str, Any]:
    """Score a file under a model, unless that has been done, and compare its core and style tokens."""
    settings = ScoreSettings(
        model_name_or_path=str(model),
        data=DataSettings(dataset_name=str(data_file), max_length=None),
        output_dir=scores_dir,
    )
    scores = score_dataset(settings, say=lambda line: print(line, file=sys.stderr))
    return {
        "scores": scores,
        "rows": len(scores),
        "label_tokens": scores.manifest.num_label_tokens,
        "nll": scores.manifest.mean_nll,
        "comparison": compare_scores(scores),
    }


def on_generated(output_dir: Path, seeds: list[int], held_out_rows: int) -> Iterator[dict[str, Any]]:
    """Yield the comparisons on generated problems, seed by seed."""
    for seed in seeds:
        folder = output_dir / f"seed-{seed}"
        files = make_data(folder, seed, held_out_rows)
        models = {"untrained": embedded_model_folder()}
        for name, objective in TRAINED.items():
            models[name] = train(files["training"], folder / slug(name), objective, seed)
        for name, model in models.items():
            for split, file in files.items():
                found = compare(model, file, folder / f"scores-{slug(name)}-{split}")
                yield {"data": f"generated, {split}", "model": name, "seed": seed, **found}


def on_gsm8k(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the comparisons on the first rows of a GSM8K file."""
    folder, seed = args.output_dir, args.seeds[0]
    for notes, variant in ((True, "notes kept"), (False, "notes stripped")):
        models = {"untrained": embedded_model_folder()}
        models |= {f"{name} on generated": folder / f"seed-{seed}" / slug(name) for name in TRAINED}
        if args.gsm8k_train_file is not None:
            file = folder / f"gsm8k-train-{slug(variant)}.jsonl"
            mark(args.gsm8k_train_file, file, args.gsm8k_rows, notes=notes)
            for name, objective in TRAINED.items():
                place = folder / f"{slug(name)}-gsm8k-{slug(variant)}"
                models[f"{name} on GSM8K"] = train(file, place, objective, seed, max_length=512)
        file = folder / f"gsm8k-{slug(variant)}.jsonl"
        mark(args.gsm8k_file, file, args.gsm8k_rows, notes=notes)
        for name, model in models.items():
            found = compare(model, file, folder / f"scores-{slug(name)}-{slug(variant)}")
            yield {"data": f"GSM8K, {variant}", "model": name, "seed": seed, **found}


def mark(source: Path, target: Path, rows: int, *, notes: bool) -> None:
    """Write the first rows of a GSM8K file with their spans."""
    read = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:rows]]
    write_text(target, "".join(json.dumps(marked_row(row, notes=notes)) + "\n" for row in read))


def by_group(scores: ScoreSet) -> list[dict[str, Any]]:
    """Return what each group of tokens, by kind and by the form of its text, is like."""
    log_probs, kinds, token_ids = (scores.column(name) for name in ("log_probs", "token_kinds", "token_ids"))
    tokenizer = scores.tokenizer()
    texts = tokenizer.batch_decode([[token] for token in token_ids.tolist()])
    names = np.where(
        final_answer_mask(label_tokens(scores), tokenizer), "final number", [form_of(text) for text in texts]
    )
    found = []
    for kind in ("core", "style"):
        for name in sorted(set(names)):
            chosen = (kinds == TOKEN_KINDS[kind]) & (names == name)
            if chosen.any():
                kept_share = float(kept_mask(log_probs[chosen], THRESHOLD).mean())
                median_p = float(np.exp(np.median(log_probs[chosen])))
                group = {"kind": kind, "group": name, "tokens": int(chosen.sum()), "median_p": median_p}
                found.append({**group, "kept_share": kept_share})
    return found


def form_of(text: str) -> str:
    text = text.strip()
    if not text:
        return "white space"
    if text.endswith("<<") or text.startswith(">>"):
        return "note opened" if text.endswith("<<") else "note closed"
    if text.isdigit() or text.isalpha():
        return "digits" if text.isdigit() else "letters"
    return "operators" if set(text) <= set("+-*/=()") else "other signs"


def slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def render(result: dict[str, Any]) -> str:
    """Return one line of the table."""
    found: KindComparison = result["comparison"]
    at_threshold = next(row for row in found.kept if row.threshold == THRESHOLD)
    within = found.within_examples
    low, high = found.auc_interval or (float("nan"), float("nan"))
    cells = [
        result["data"],
        result["model"],
        result["seed"],
        f"{found.core.tokens:,} / {found.style.tokens:,}",
        f"{found.core.median_p:.2f} / {found.style.median_p:.2f}",
        f"{at_threshold.core_kept_share:.0%} / {at_threshold.style_kept_share:.0%}",
        f"{found.auc:.3f} ({low:.3f} to {high:.3f})",
        f"{found.rank_biserial:+.2f}",
        "-" if found.cohens_d is None else f"{found.cohens_d:+.2f}",
        "-" if within is None else f"{within.mean_auc:.3f}",
        f"{result['nll']:.2f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


COLUMNS = (
    "data",
    "model",
    "seed",
    "tokens core / style",
    "median p",
    f"kept at {THRESHOLD}",
    "AUC (95% interval)",
    "rank-biserial",
    "Cohen's d",
    "AUC within examples",
    "NLL",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/hypothesis"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--held_out_rows", type=int, default=240)
    parser.add_argument("--gsm8k_file", type=Path, help="question/answer rows (jsonl) with calculator notes")
    parser.add_argument("--gsm8k_train_file", type=Path, help="such rows to train on")
    parser.add_argument("--gsm8k_rows", type=int, default=200, help="of each of the two files")
    args = parser.parse_args()
    quiet_libraries()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    results = []
    todo = [on_generated(args.output_dir, args.seeds, args.held_out_rows)]
    if args.gsm8k_file is not None:
        todo.append(on_gsm8k(args))
    for stage in todo:
        for result in stage:
            print(render(result), flush=True)
            scores = result.pop("scores")
            results.append({**result, "comparison": dataclasses.asdict(result["comparison"])})
            if stage is not todo[0] and result["model"] == "untrained":
                results[-1]["groups"] = by_group(scores)
    report = {"environment": environment(), "results": results}
    write_text(args.output_dir / "results.json", json.dumps(report, indent=2) + "\n")
    print("\n| data | kind | tokens | how many | median p | kept |\n|---|---|---|---|---|---|")
    for result in results:
        for group in result.get("groups", []):
            cells = (result["data"], group["kind"], group["group"], f"{group['tokens']:,}", f"{group['median_p']:.3f}")
            print(f"| {' | '.join(cells)} | {group['kept_share']:.0%} |")


if __name__ == "__main__":
    main()
