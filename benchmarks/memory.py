"""The memory a rank takes on the CPU under each engine, beside what `profit train --dry-run` estimates.

    python benchmarks/memory.py [--engines "one process" FSDP2 ...] [--rows_a_device N] [--json FILE]

A random Llama of 60M parameters, rows of 479 tokens, two optimizer steps; ranks are real processes on gloo. Measured is
the most anonymous memory of the first rank while it trains, less what it had before the command began.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LAUNCH = ("accelerate.commands.launch", "--num_processes=2", "--main_process_port=0", "--mixed_precision=no")
_DEEPSPEED = (*_LAUNCH, "--use_deepspeed", "--gradient_accumulation_steps=1")
# Large blocks go back to the system at once, so that what is held is what is used.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "DS_ACCELERATOR": "cpu",
}


@dataclass(frozen=True)
class Setup:
    """An engine as it is launched here, and as an accelerate configuration would name it.

    Attributes:
        launcher: Arguments of `python -m` before the script.
        planned: The configuration, or None for one process.
        flags: More flags of `profit train`.
    """

    launcher: tuple[str, ...] = ()
    planned: dict[str, object] | None = None
    flags: tuple[str, ...] = ()


def _fsdp2(*flags: str) -> Setup:
    return Setup(
        (*_LAUNCH, "--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP"),
        {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}},
        flags,
    )


def _zero(stage: int) -> Setup:
    init = ("--zero3_init_flag=true", "--zero3_save_16bit_model=true") if stage == 3 else ()
    return Setup(
        (*_DEEPSPEED, f"--zero_stage={stage}", *init),
        {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": stage}},
    )


SETUPS = {
    "one process": Setup(),
    "one process, no checkpointing": Setup(flags=("--gradient_checkpointing", "False")),
    "DDP": Setup(("torch.distributed.run", "--standalone", "--nproc_per_node=2"), {"distributed_type": "MULTI_GPU"}),
    "FSDP2": _fsdp2(),
    "FSDP2, two micro-batches": _fsdp2("--gradient_accumulation_steps", "2"),
    "FSDP2, two micro-batches, each exchanged": _fsdp2(
        *("--gradient_accumulation_steps", "2"),
        *("--accelerator_config", '{"gradient_accumulation_kwargs": {"sync_each_batch": true}}'),
    ),
    "ZeRO-2": _zero(2),
    "ZeRO-3": _zero(3),
}


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def rank(out: Path, arguments: Sequence[str]) -> int:
    """Train in this process, one of the ranks, and write what it took."""
    if "LOCAL_RANK" in os.environ:
        sys.path.insert(0, str(ROOT / "tests" / "distributed"))
        import cpu_engines

        cpu_engines.install()
    from profit_sft.cli.app import run_app
    from profit_sft.train import run

    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed  # noqa: F401
    before, most, training = _anonymous_bytes(), 0, True

    def watch() -> None:
        nonlocal most
        while training:
            most = max(most, _anonymous_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    trained = run.run_training

    def watched(*args, **kwargs):
        watcher.start()
        return trained(*args, **kwargs)

    run.run_training = watched
    status = run_app(arguments)
    training = False
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps({"gib": (most - before) / 2**30}), encoding="utf-8")
    return status


def make_inputs(folder: Path, rows_a_device: int) -> list[str]:
    """Write model and rows, and return the flags that name them."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tiny import chat_tokenizer

    tokenizer = chat_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    row = {"question": "What is 1+1?", "answer": ("It is four plus two. " * 200)[:1600]}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4 * rows_a_device, encoding="utf-8")
    return [
        *("train", "--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "rows.jsonl")),
        *("--per_device_train_batch_size", str(rows_a_device), "--threshold", "1e-9", "--use_cpu", "True"),
        *("--output_dir", str(folder / "run"), "--overwrite_output_dir", "True"),
    ]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return done.stdout


def _dry_run(flags: Sequence[str]) -> dict[str, Any]:
    """Say in this process, which trains nothing, what `profit train` would take."""
    from profit_sft.cli.app import run_app

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = run_app([*flags, "--dry-run", "--json"])
    if status != 0:
        sys.exit("the dry run failed")
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def compare(name: str, folder: Path, inputs: Sequence[str]) -> dict[str, object]:
    """Return what one setup was estimated and measured to take, in GiB."""
    setup, plan, out = SETUPS[name], folder / "plan.yaml", folder / "measured.json"
    flags = [*inputs, *setup.flags]
    planned = []
    if setup.planned is not None:
        plan.write_text(json.dumps({"num_processes": 2, "use_cpu": True, **setup.planned}), encoding="utf-8")
        planned = ["--accelerate_config", str(plan)]
    dry = _dry_run([*flags, *planned])
    short = ["--max_steps", "2", "--save_strategy", "no", "--probe_rows", "0"]
    launcher = ["-m", *setup.launcher] if setup.launcher else []
    _run([sys.executable, *launcher, __file__, "--rank", str(out), *flags, *short])
    measured = json.loads(out.read_text(encoding="utf-8"))["gib"]
    estimated = sum(dry["memory_gib"].values())
    return {"setup": name, "engine": dry["engine"], "estimated_gib": estimated, "measured_gib": measured}


def main() -> None:
    """Run the setups one after the other and print a line each."""
    if sys.argv[1:2] == ["--rank"]:
        sys.exit(rank(Path(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--rows_a_device", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        inputs = make_inputs(Path(name), arguments.rows_a_device)
        for engine in arguments.engines:
            found.append(compare(engine, Path(name), inputs))
            estimated, measured = found[-1]["estimated_gib"], found[-1]["measured_gib"]
            print(f"{engine:<42}{estimated:6.2f} GiB estimated {measured:6.2f} measured, x{estimated / measured:.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
