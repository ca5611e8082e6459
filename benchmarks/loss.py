"""The selective loss against its peers: forward and backward, one run, same inputs, interleaved rounds.

    python benchmarks/loss.py                             planted inputs
    python benchmarks/loss.py --data gsm8k_train.jsonl    real hidden states of SmolLM2-135M-Instruct
    python benchmarks/loss.py --growth                    planted inputs, growing N and V
    python benchmarks/loss.py --device cuda --dtype bfloat16 --planted 8192,2560,151936    on a GPU (make bench-gpu)
    python benchmarks/loss.py --data gsm8k_train.jsonl --tokens 8192 --save real.npz    for --load elsewhere

The unit is ONE dense forward product `H @ W.T` in the dtype of the run. Errors are against float64; a variant outside
its bound prints the error and no speed. Peak memory is what a variant takes besides its inputs: on the CPU in a process
of its own for each variant, on a GPU as the allocator counts it.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from profit_sft import ProFit, selective_linear_cross_entropy

Variant = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def ours(gradient_budget: float | None) -> Variant:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
        objective = ProFit(threshold=threshold)
        result = selective_linear_cross_entropy(
            hidden, weight, labels, objective=objective, gradient_budget=gradient_budget
        )
        return result.loss

    return loss


def masked_mean(log_probs: Tensor, threshold: float) -> Tensor:
    mask = (log_probs.detach() >= math.log(threshold)).to(log_probs.dtype)
    return -(mask * log_probs).sum() / log_probs.numel()


def full_logits(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """The official code's formula: softmax of all logits, gather, mask."""
    logits = (hidden @ weight.T).float()
    return masked_mean(logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1), threshold)


def trl_head(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """TRL's fused head, the mask applied to its log-probabilities."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    found = _ChunkedLogProbFunction.apply(
        hidden, weight, None, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs",)
    )
    return masked_mean(found[0], threshold)


def liger(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Liger's fused linear cross-entropy: plain NLL, it has no mask by probability."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(weight, hidden, labels)


def cut_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Cut cross-entropy, the mask applied to its per-token losses. Without CUDA its form for torch.compile runs."""
    from cut_cross_entropy import linear_cross_entropy

    implementation = "cce" if hidden.is_cuda else "torch_compile"
    losses = linear_cross_entropy(hidden, weight, labels, reduction="none", impl=implementation)
    return masked_mean(-losses, threshold)


def torch_own(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Torch's own chunked loss (2.13), the mask applied to its per-token losses."""
    options = torch.nn.LinearCrossEntropyOptions()
    losses = torch.nn.functional.linear_cross_entropy(hidden, weight, labels, reduction="none", options=options)
    return masked_mean(-losses, threshold)


# name: (function, bound on the relative error of dH in fp32; None: not comparable, it computes another loss)
VARIANTS: dict[str, tuple[Variant, float | None]] = {
    "ours exact": (ours(None), 1e-4),
    "ours exact, all in fp32": (ours(0.0), 1e-4),
    "ours delta 0.3%": (ours(0.003), 1e-2),
    "ours delta 1%": (ours(0.01), 3e-2),
    "trl fused head": (trl_head, 0.5),
    "official formula, full logits": (full_logits, 0.5),
    "liger, plain nll": (liger, None),
    "cut-cross-entropy": (cut_cross_entropy, 0.5),
    "torch linear_cross_entropy": (torch_own, 0.5),
}
# One rounding of every gradient to bf16, and of the softmax before it.
BF16_BOUND = 1e-2


def planted(tokens: int, vocab_size: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with likely labels: hidden states lean toward their label's row, by different amounts.

    Random inputs would give every label a tiny p, mask everything, and flatter us.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab_size, width, generator=generator) / math.sqrt(width)
    # Byte-pair vocabularies are sorted by frequency; draw labels so.
    labels = (vocab_size ** torch.rand(tokens, generator=generator) - 1).long().clamp(0, vocab_size - 1)
    lean = 40 * torch.rand(tokens, 1, generator=generator)
    return torch.randn(tokens, width, generator=generator) + lean * weight[labels], weight, labels


def real(data_file: Path, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
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


def oracle(hidden: Tensor, weight: Tensor, labels: Tensor, threshold: float) -> tuple[float, Tensor, Tensor, float]:
    """Loss, dH and dW in float64, a chunk at a time, and the kept share."""
    tokens = hidden.shape[0]
    weight = weight.double()
    loss, kept = 0.0, 0
    d_hidden, d_weight = torch.zeros_like(hidden, dtype=torch.float64), torch.zeros_like(weight)
    for start in range(0, tokens, 256):
        rows = slice(start, start + 256)
        chunk = hidden[rows].double()
        log_probs = (chunk @ weight.T).log_softmax(-1)
        own = log_probs.gather(-1, labels[rows, None])
        mask = (own >= math.log(threshold)).double()
        loss -= float((mask * own).sum()) / tokens
        kept += int(mask.sum())
        gradient = log_probs.exp().scatter_add_(-1, labels[rows, None], -torch.ones_like(own)) * mask / tokens
        d_hidden[rows] = gradient @ weight
        d_weight += gradient.T @ chunk
    return loss, d_hidden, d_weight, kept / tokens


def once(function: Variant, inputs: tuple[Tensor, Tensor, Tensor], threshold: float) -> tuple[float, Tensor, Tensor]:
    hidden, weight, labels = inputs
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    hidden.grad = weight.grad = None
    loss = function(hidden, weight, labels, threshold)
    loss.backward()
    return loss.item(), hidden.grad, weight.grad


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
    once(VARIANTS[name][0], warm, threshold)  # imports and thread pools
    before, peak, done = resident_mib(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    once(VARIANTS[name][0], inputs, threshold)
    done.set()
    watcher.join()
    print(round(peak - before))


def compare(
    inputs: tuple[Tensor, Tensor, Tensor], threshold: float, rounds: int, names: list[str], *, memory: bool
) -> list[dict[str, object]]:
    """Check every variant against float64, then time those that pass, interleaved."""
    loss, d_hidden, d_weight, kept_share = oracle(*(tensor.detach() for tensor in inputs), threshold)
    rows: list[dict[str, object]] = []
    running: dict[str, Callable[[], object]] = {}
    for name in names:
        function, bound = VARIANTS[name]
        row: dict[str, object] = {"variant": name, "threshold": threshold, "kept_share": round(kept_share, 3)}
        rows.append(row)
        if bound is not None and inputs[0].dtype != torch.float32:
            bound = max(bound, BF16_BOUND)
        try:
            found = once(function, inputs, threshold)
            once(function, inputs, threshold)  # what is compiled or tuned on first use
        except (ImportError, RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
            row["not_run"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
            continue
        if bound is not None:
            row["rel_err_loss"] = abs(found[0] - loss) / abs(loss)
            row["rel_err_dH"] = float((found[1].double() - d_hidden).norm() / d_hidden.norm())
            row["rel_err_dW"] = float((found[2].double() - d_weight).norm() / d_weight.norm())
            if not row["rel_err_dH"] <= bound:
                row["not_run"] = f"dH error above {bound}"
                continue
        running[name] = lambda function=function: once(function, inputs, threshold)
    hidden, weight = (tensor.detach() for tensor in inputs[:2])
    running["unit"] = lambda: hidden @ weight.T
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, function in running.items():
            times[name].append(time_ms(function, hidden.device))
    unit = statistics.median(times["unit"])
    with tempfile.TemporaryDirectory() as folder:
        inputs_file = os.path.join(folder, "inputs.pt")
        if memory and not hidden.is_cuda:
            torch.save([tensor.detach() for tensor in inputs], inputs_file)
        for row in rows:
            name = str(row["variant"])
            if name in times:
                quartiles = statistics.quantiles(times[name], n=4)
                row["median_ms"] = round(statistics.median(times[name]), 2)
                row["iqr_ms"] = round(quartiles[2] - quartiles[0], 2)
                row["ratio_to_dense_gemm"] = round(statistics.median(times[name]) / unit, 2)
                if "trl fused head" in times:
                    row["ratio_to_trl"] = round(
                        statistics.median(times[name]) / statistics.median(times["trl fused head"]), 2
                    )
                if memory and hidden.is_cuda:
                    for tensor in inputs:
                        tensor.grad = None
                    row["peak_memory_mib"] = peak_memory_on_gpu_mib(running[name])
                elif memory:
                    row["peak_memory_mib"] = peak_memory_mib(inputs_file, name, threshold)
    rows.append({"variant": "unit: H @ W.T", "median_ms": round(unit, 2), "ratio_to_dense_gemm": 1.0})
    return rows


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


def render(title: str, rows: list[dict[str, object]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        cells = []
        for name in COLUMNS:
            value = row.get(name, "")
            cells.append(f"{value:.1e}" if name.startswith("rel_err") and isinstance(value, float) else str(value))
        if "not_run" in row:
            cells[2] = f"not run ({row['not_run']})"
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="question/answer rows (jsonl) to take real hidden states from")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--growth", action="store_true", help="planted inputs, growing N and V")
    parser.add_argument("--planted", nargs="+", metavar="N,D,V", help="planted inputs of these sizes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--save", type=Path, help="write the real inputs here and measure nothing")
    parser.add_argument("--load", type=Path, help="real inputs that --save wrote, the first --tokens of them")
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        measure_memory(args.inputs, args.memory_of, args.thresholds[0])
        return
    if args.save is not None:
        save(args.save, real(args.data, max(args.tokens)))
        return
    results = []
    for title, inputs in problems(args):
        placed = tuple(
            tensor.to(args.device, getattr(torch, args.dtype) if tensor.is_floating_point() else None).detach()
            for tensor in inputs
        )
        for threshold in args.thresholds:
            rows = compare(placed, threshold, args.rounds, args.only, memory=not args.no_memory)
            render(f"{title}, threshold {threshold}, {args.dtype}", rows)
            results.append({"problem": title, "threshold": threshold, "dtype": args.dtype, "rows": rows})
    if args.json is not None:
        args.json.write_text(json.dumps({"environment": environment(), "results": results}, indent=2) + "\n")


def problems(args: argparse.Namespace) -> list[tuple[str, tuple[Tensor, Tensor, Tensor]]]:
    """Return what to measure on, with titles."""
    if args.growth:
        return [(f"planted N={n} V={v} D=576", planted(n, v, 576)) for n, v in GROWTH]
    if args.planted:
        sizes = [tuple(int(size) for size in sizes.split(",")) for sizes in args.planted]
        return [(f"planted N={n} V={v} D={d}", planted(n, v, d)) for n, d, v in sizes]
    if args.data is not None or args.load is not None:
        hidden, weight, labels = load(args.load) if args.load is not None else real(args.data, max(args.tokens))
        return [(f"real N={n} V={weight.shape[0]} D=576", (hidden[:n], weight, labels[:n])) for n in args.tokens]
    return [(f"planted N={n} V=49152 D=576", planted(n, 49152, 576)) for n in args.tokens]


def save(path: Path, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Write real inputs in bf16, compressed: a tenth of the model they come from."""
    names = ("hidden", "weight", "labels")
    arrays = {
        name: (value.bfloat16().view(torch.int16) if value.is_floating_point() else value.int()).numpy()
        for name, value in zip(names, inputs, strict=True)
    }
    np.savez_compressed(path, **arrays)


def load(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Read what `save` wrote."""
    with np.load(path) as file:
        hidden, weight = (torch.from_numpy(file[name]).view(torch.bfloat16).float() for name in ("hidden", "weight"))
        return hidden, weight, torch.from_numpy(file["labels"]).long()


GROWTH = ((512, 49152), (1024, 49152), (4096, 49152), (1024, 12288), (1024, 151936))


def environment() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": " ".join(sys.argv),
        "commit": commit,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


if __name__ == "__main__":
    main()
