"""Whatever a table of a GPU needs, in one command: make bench-gpu.

    python benchmarks/gpu.py --json bench-gpu.json
    python benchmarks/gpu.py --device cpu --planted 64,32,512 --rounds 2    to see what it prints, on a CPU

The loss in bf16 at the heads of real models, with peak memory and errors, then one training step: tables to paste into
docs/results/loss.md. What the device has no room for is named.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import loss
import training_step

# N, D, V: heads of 4B and 8B models of Qwen's vocabulary, and SmolLM2's small one.
SIZES = ("8192,2560,151936", "16384,4096,151936", "8192,576,49152")


def main() -> None:
    """Measure, print, and write the figures as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", nargs="+", metavar="N,D,V", default=SIZES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(loss.VARIANTS), default=list(loss.VARIANTS))
    parser.add_argument(
        "--model_name_or_path", help="of the training step; default: the embedded SmolLM2-135M-Instruct"
    )
    parser.add_argument("--json", type=Path, required=True, help="write every figure here")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no CUDA device; --device cpu only shows what is printed")
    figures: dict[str, Any] = {"environment": loss.environment()}
    print(", ".join(f"{name} {value}" for name, value in figures["environment"].items() if name != "packages"))
    print(", ".join(f"{name} {value}" for name, value in figures["environment"]["packages"].items()), flush=True)
    common = ["--device", args.device, "--dtype", "bfloat16", "--rounds", str(args.rounds)]
    of_loss = ["--thresholds", "0.5", "--planted", *args.planted, "--only", *args.only]
    figures["loss"] = loss.measure(loss.parse([*common, *of_loss]))
    args.json.write_text(json.dumps(figures, indent=2) + "\n")
    model = ["--model_name_or_path", args.model_name_or_path] if args.model_name_or_path else []
    figures["training_step"] = training_step.measure(training_step.parse([*common, *model]))
    args.json.write_text(json.dumps(figures, indent=2) + "\n")
    failed = loss.failures(figures["loss"])
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
