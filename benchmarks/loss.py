"""The selective loss against its peers: forward and backward, one run, same inputs, interleaved rounds.

    python benchmarks/loss.py                             planted inputs
    python benchmarks/loss.py --data gsm8k_train.jsonl    real hidden states of SmolLM2-135M-Instruct
    python benchmarks/loss.py --growth --picture FILE.svg planted inputs, growing N and V, and a picture of it
    python benchmarks/loss.py --device cuda --dtype bfloat16 --planted 8192,2560,151936    on a GPU (or make bench-gpu)
    python benchmarks/loss.py --data gsm8k_train.jsonl --tokens 8192 --save real.npz    for --load elsewhere

The unit is ONE dense forward product `H @ W.T` in the dtype of the run. Loss and gradients are held against those of
the same objective in float64. What is outside its bound, not installed, or not made for the device is named with the
reason and has no figures. Peak memory is what a variant takes besides its inputs: on the CPU in a process of its own,
on a GPU as the allocator counts it.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import growth
from losses import VARIANTS, Kind, Variant
from profit_sft.files import package_versions

Inputs = tuple[Tensor, Tensor, Tensor]  # hidden states (N, D), head (V, D), labels (N,)
Row = dict[str, Any]


def planted(tokens: int, vocab_size: int, width: int, seed: int = 0) -> Inputs:
    """Inputs with likely labels: hidden states lean toward their label's row, by different amounts.

    Random inputs would give every label a tiny p, mask everything, and flatter us.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab_size, width, generator=generator) / math.sqrt(width)
    # Byte-pair vocabularies are sorted by frequency; draw labels so.
    labels = (vocab_size ** torch.rand(tokens, generator=generator) - 1).long().clamp(0, vocab_size - 1)
    lean = 40 * torch.rand(tokens, 1, generator=generator)
    return torch.randn(tokens, width, generator=generator) + lean * weight[labels], weight, labels


def real(data_file: Path, tokens: int) -> Inputs:
    """Hidden states of SmolLM2 at the answers of question/answer rows, in its chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from profit_sft.models.embedded import embedded_model_folder

    folder = embedded_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    states, labels, found = [], [], 0
    with data_file.open(encoding="utf-8") as lines, torch.no_grad():
        for line in lines:
            row = json.loads(line)
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["question"]}], add_generation_prompt=True, tokenize=False
            )
            prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
            answer_ids = tokenizer(row["answer"] + tokenizer.eos_token, add_special_tokens=False).input_ids
            hidden = model.model(input_ids=torch.tensor([prompt_ids + answer_ids])).last_hidden_state[0]
            states.append(hidden[len(prompt_ids) - 1 : -1])
            labels.append(torch.tensor(answer_ids))
            found += len(answer_ids)
            if found >= tokens:
                break
    return torch.cat(states)[:tokens], model.lm_head.weight.detach().clone(), torch.cat(labels)[:tokens]


def oracle(kind: Kind, inputs: Inputs, threshold: float) -> tuple[float, Tensor, Tensor, float]:
    """Loss, dH and dW of an objective in float64, a chunk at a time, and the share of tokens with a weight."""
    hidden, weight, labels = inputs
    tokens, vocab_size = hidden.shape[0], weight.shape[0]
    weight = weight.double()
    loss, kept = 0.0, 0
    d_hidden, d_weight = torch.zeros_like(hidden, dtype=torch.float64), torch.zeros_like(weight)
    chunk_size = max(16, min(256, 2**24 // vocab_size))
    for start in range(0, tokens, chunk_size):
        rows = slice(start, start + chunk_size)
        chunk = hidden[rows].double()
        log_probs = (chunk @ weight.T).log_softmax(-1)
        own = log_probs.gather(-1, labels[rows, None])
        weights = {"mask": (own >= math.log(threshold)).double(), "nll": torch.ones_like(own), "dft": own.exp()}[kind]
        loss -= float((weights * own).sum()) / tokens
        kept += int((weights > 0).sum())
        gradient = log_probs.exp_().scatter_add_(-1, labels[rows, None], -torch.ones_like(own)).mul_(weights / tokens)
        d_hidden[rows] = gradient @ weight
        d_weight.addmm_(gradient.T, chunk)
    return loss, d_hidden, d_weight, kept / tokens


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over that of the exact one, a part at a time: the head's gradient in float64 is large."""
    parts = zip(found.split(4096), exact.split(4096), strict=True)
    squared = sum(float((part.double() - wanted).square().sum()) for part, wanted in parts)
    return math.sqrt(squared) / float(exact.norm())


def once(variant: Variant, inputs: Inputs, threshold: float) -> tuple[float, Tensor, Tensor]:
    hidden, weight, labels = inputs
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    hidden.grad = weight.grad = None
    loss = variant.function(hidden, weight, labels, threshold)
    loss.backward()
    return loss.item(), hidden.grad, weight.grad


LARGEST_PRODUCT = 2**32


def dense_product(hidden: Tensor, weight: Tensor) -> None:
    """The unit; what would take more than `LARGEST_PRODUCT` bytes is made in parts."""
    for part in hidden.split(max(1, LARGEST_PRODUCT // (weight.shape[0] * weight.element_size()))):
        part @ weight.T


def peak_memory_mib(inputs_file: str, name: str, threshold: float) -> float | None:
    """Growth of the resident memory while the variant runs once, in a process of its own, sampled every 2 ms."""
    command = [sys.executable, __file__, "--memory_of", name, "--inputs", inputs_file, "--thresholds", str(threshold)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None


def resident_mib() -> float:
    """Memory the process holds now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_memory_on_gpu_mib(run: Callable[[], object]) -> float:
    """Growth of the allocated memory while the variant runs once, its gradients included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)


def time_ms(function: Callable[[], object], device: torch.device) -> float:
    """Run once; on a GPU by its own clock, with nothing else in the queue."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start_event.record()
    function()
    end_event.record()
    torch.cuda.synchronize()
    return float(start_event.elapsed_time(end_event))


def measure_memory(inputs_file: str, name: str, threshold: float) -> None:
    inputs = tuple(torch.load(inputs_file))
    warm = planted(16, 4096, 32)
    once(VARIANTS[name], warm, threshold)  # imports and thread pools
    before, done = resident_mib(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    once(VARIANTS[name], inputs, threshold)
    done.set()
    watcher.join()
    print(round(peak - before))


def check(inputs: Inputs, threshold: float, kind: Kind, rows: Mapping[str, Row]) -> None:
    """Run the variants of an objective, and put into their rows the errors, or why they get no other figures."""
    exact = oracle(kind, tuple(tensor.detach() for tensor in inputs), threshold)
    for name, row in rows.items():
        variant = VARIANTS[name]
        if variant.needs_cuda and not inputs[0].is_cuda:
            row["not_run"] = "needs a CUDA device"
            continue
        try:
            loss, d_hidden, d_weight = once(variant, inputs, threshold)
        except ModuleNotFoundError as error:
            row["not_run"] = f"{error.name} is not installed: pip install {variant.package}"
            continue
        except Exception as error:  # whatever a peer's kernels raise; of ours, `failures` tells
            said = str(error).strip().splitlines()
            row["not_run"] = f"{type(error).__name__}: {said[0][:120] if said else ''}"
            continue
        row["kept_share"] = round(exact[3], 3)
        row["rel_err_loss"] = abs(loss - exact[0]) / abs(exact[0])
        row["rel_err_dH"], row["rel_err_dW"] = relative_error(d_hidden, exact[1]), relative_error(d_weight, exact[2])
        bound = variant.bounds[inputs[0].dtype != torch.float32]
        off = [name for name in ("rel_err_loss", "rel_err_dH", "rel_err_dW") if not row[name] <= bound]
        if off:
            row["not_run"] = f"{off[0]} is {row[off[0]]:.1e}, above {bound}"


def compare(
    inputs: Inputs,
    threshold: float,
    *,
    rounds: int,
    names: Sequence[str],
    memory: bool = True,
    left_out: Mapping[str, str] | None = None,
) -> list[Row]:
    """Check every variant against float64, then time those that pass, interleaved.

    Args:
        inputs: On the device and in the dtype to measure.
        threshold: Of the mask, a probability.
        rounds: How often each is timed, two at least.
        names: Of `VARIANTS`.
        memory: Take the peak memory, too.
        left_out: Variants that are not to be run, with the reason.

    Returns:
        A row a variant, and the unit's. What has no figures has the reason as `not_run` or `left_out`.
    """
    rows: dict[str, Row] = {name: {"variant": name, "threshold": threshold} for name in names}
    for name, reason in (left_out or {}).items():
        rows[name]["left_out"] = reason
    for kind in KINDS:
        wanted = {name: row for name, row in rows.items() if VARIANTS[name].kind == kind and "left_out" not in row}
        if wanted:
            check(inputs, threshold, kind, wanted)
    running: dict[str, Callable[[], object]] = {
        name: lambda name=name: once(VARIANTS[name], inputs, threshold)
        for name, row in rows.items()
        if not {"left_out", "not_run"} & row.keys()
    }
    plain = tuple(tensor.detach() for tensor in inputs)
    times: dict[str, list[float]] = {name: [] for name in [*running, UNIT]}
    for _ in range(rounds):
        for name, function in running.items():
            times[name].append(time_ms(function, plain[0].device))
        times[UNIT].append(time_ms(lambda: dense_product(*plain[:2]), plain[0].device))
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name in running:
        row, quartiles = rows[name], statistics.quantiles(times[name], n=4)
        row |= {"median_ms": round(medians[name], 2), "iqr_ms": round(quartiles[2] - quartiles[0], 2)}
        row["ratio_to_dense_gemm"] = round(medians[name] / medians[UNIT], 2)
        if KINDS[VARIANTS[name].kind] in medians:
            row["ratio_to_trl"] = round(medians[name] / medians[KINDS[VARIANTS[name].kind]], 2)
        if memory and plain[0].is_cuda:
            for tensor in inputs:
                tensor.grad = None
            row["peak_memory_mib"] = peak_memory_on_gpu_mib(running[name])
    if memory and not plain[0].is_cuda:
        with tempfile.TemporaryDirectory() as folder:
            inputs_file = os.path.join(folder, "inputs.pt")
            torch.save(list(plain), inputs_file)
            for name in running:
                rows[name]["peak_memory_mib"] = peak_memory_mib(inputs_file, name, threshold)
    return [*rows.values(), {"variant": UNIT, "median_ms": round(medians[UNIT], 2), "ratio_to_dense_gemm": 1.0}]


UNIT = "unit: H @ W.T"
# TRL's row of each objective, to which the others of it are a ratio.
KINDS: dict[Kind, str] = {"mask": "trl fused head", "nll": "trl fused head, nll", "dft": "trl fused head, dft"}
COLUMNS = (
    "variant",
    "kept_share",
    "median_ms",
    "iqr_ms",
    "ratio_to_trl",
    "ratio_to_dense_gemm",
    "peak_memory_mib",
    "rel_err_loss",
    "rel_err_dH",
    "rel_err_dW",
)


def render(title: str, rows: Sequence[Row]) -> str:
    """Return the table in Markdown, and a line for each variant that is not in it."""
    lines = [f"### {title}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    missing = []
    for row in rows:
        reason = row.get("not_run") or row.get("left_out")
        if reason is not None:
            missing.append(f"- {'not run' if 'not_run' in row else 'left out'}: {row['variant']} ({reason})")
            continue
        cells = []
        for name in COLUMNS:
            value = row.get(name, "")
            cells.append(f"{value:.1e}" if name.startswith("rel_err") and isinstance(value, float) else str(value))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", *missing] if missing else []), ""])


def failures(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which of this library's own variants did not run, or not within their bounds."""
    rows = (row for result in results for row in result["rows"] if "not_run" in row)
    return [f"{row['variant']}: {row['not_run']}" for row in rows if VARIANTS[row["variant"]].package is None]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare on each problem, print each table when it stands, and return the figures."""
    results: list[dict[str, Any]] = []
    names = args.only or list(growth.SHOWN if args.growth else VARIANTS)
    for title, inputs in problems(args):
        hidden, weight, labels = inputs
        dtype = getattr(torch, args.dtype)
        placed = hidden.to(args.device, dtype).detach(), weight.to(args.device, dtype).detach(), labels.to(args.device)
        sizes = {"tokens": hidden.shape[0], "width": hidden.shape[1], "vocab_size": weight.shape[0]}
        for threshold in args.thresholds:
            # Without a threshold once is enough.
            wanted = [name for name in names if threshold == args.thresholds[0] or VARIANTS[name].kind == "mask"]
            rows = compare(
                placed,
                threshold,
                rounds=args.rounds,
                names=wanted,
                memory=not args.no_memory,
                left_out=growth.too_large(
                    sizes, [one for one in results if one["threshold"] == threshold], args.limit_s, args.limit_gib
                ),
            )
            shape = f"N={hidden.shape[0]} V={weight.shape[0]} D={hidden.shape[1]}"
            print(render(f"{title} {shape}, threshold {threshold}, {args.dtype}", rows), flush=True)
            results.append({"problem": title, **sizes, "dtype": args.dtype, "threshold": threshold, "rows": rows})
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="question/answer rows (jsonl) to take real hidden states from")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.1])
    parser.add_argument("--rounds", type=int, default=7, help="two at least")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="default: all; of --growth, those it draws")
    parser.add_argument("--planted", nargs="+", metavar="N,D,V", help="planted inputs of these sizes")
    parser.add_argument("--growth", action="store_true", help="planted inputs, growing N and V; or those of --planted")
    parser.add_argument("--picture", type=Path, help="draw the growth into this SVG")
    parser.add_argument("--limit_s", type=float, default=60, help="a run that would take longer is left out")
    parser.add_argument("--limit_gib", type=float, help="and one that would take more; default: 6 on the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--save", type=Path, help="write the real inputs here and measure nothing")
    parser.add_argument("--load", type=Path, help="real inputs that --save wrote, the first --tokens of them")
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.limit_gib is None:  # a GPU without room says so; a CPU's process is killed
        args.limit_gib = 6 if args.device == "cpu" else math.inf
    return args


def main() -> None:
    args = parse()
    if args.memory_of:
        measure_memory(args.inputs, args.memory_of, args.thresholds[0])
        return
    if args.save is not None:
        save(args.save, real(args.data, max(args.tokens)))
        return
    results = measure(args)
    if args.json is not None:
        args.json.write_text(json.dumps({"environment": environment(), "results": results}, indent=2) + "\n")
    if args.picture is not None:
        args.picture.write_text(growth.picture(results), encoding="utf-8")
    failed = failures(results)
    if failed:
        sys.exit("\n".join(failed))


def problems(args: argparse.Namespace) -> Iterator[tuple[str, Inputs]]:
    """Yield what to measure on, with what it is."""
    if args.planted or args.growth:
        given = [tuple(int(size) for size in sizes.split(",")) for sizes in args.planted or ()]
        for tokens, width, vocab_size in given or growth.SIZES:
            yield "planted", planted(tokens, vocab_size, width)
    elif args.data is not None or args.load is not None:
        hidden, weight, labels = load(args.load) if args.load is not None else real(args.data, max(args.tokens))
        for tokens in args.tokens:
            yield "real", (hidden[:tokens], weight, labels[:tokens])
    else:
        for tokens in args.tokens:
            yield "planted", planted(tokens, 49_152, 576)


def save(path: Path, inputs: Inputs) -> None:
    """Write real inputs in bf16, compressed: a tenth of the model they come from."""
    names = ("hidden", "weight", "labels")
    arrays = {
        name: (value.bfloat16().view(torch.int16) if value.is_floating_point() else value.int()).numpy()
        for name, value in zip(names, inputs, strict=True)
    }
    np.savez_compressed(path, **arrays)


def load(path: Path) -> Inputs:
    """Read what `save` wrote."""
    with np.load(path) as file:
        hidden, weight = (torch.from_numpy(file[name]).view(torch.bfloat16).float() for name in ("hidden", "weight"))
        return hidden, weight, torch.from_numpy(file["labels"]).long()


def environment() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    packages = {variant.package for variant in VARIANTS.values()}
    return {
        "command": " ".join(sys.argv),
        "commit": commit,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": package_versions(sorted({"profit-sft", "triton", *packages} - {None, "torch"})),
    }


if __name__ == "__main__":
    main()
