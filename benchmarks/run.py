"""Whole runs side by side, as a user starts them: `profit train` and `trl sft`, `profit score`, `profit eval`.

    python benchmarks/run.py --data gsm8k_train.jsonl                       training, defaults and equal settings
    python benchmarks/run.py --data gsm8k_train.jsonl --settings equal --rows 32
    python benchmarks/run.py --data gsm8k_train.jsonl --what score          a forward loop, and lm-eval's loglikelihood
    python benchmarks/run.py --data gsm8k_test.jsonl --what eval --rows 16  a loop of model.generate

All on CPUs, and on all cores (OMP_NUM_THREADS). Each run is a process of its own with a cache of its own, rounds are
interleaved, and figures are medians over rounds; ratios are those within a round. Seconds come as wall time and, in
brackets, as CPU time (user and system) of a command with all that it launched, which tells more on a machine that does
something else. They are split by one and the same means on all sides (`phases/sitecustomize.py`):

    start   the interpreter, imports, settings and all else before the steps, such as the fingerprint of the weights
    model   `from_pretrained`
    data    reading and tokenizing (TRL: `load_dataset` and `SFTTrainer._prepare_dataset`; ours: `prepare_dataset`)
    steps   `Trainer.train` without the saving in it; of scoring and answering, that alone
    save    checkpoints, the model, reports, and the end of the process

Tokens a second are those of `steps`: in training all but padding, else those scored or generated. Memory is that of the
largest process. With equal settings dtype, checkpointing of activations, length, logging and saving are the same, our
probe, which TRL has not, is off, and the chat template writes nothing after an answer's end, where labels would differ.
Plain NLL must then come to the same tokens and the same loss (1e-3), or no figure is printed; so must all that score.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Nothing heavy is imported here: a process is born with the peak memory of the one that starts it.
from profit_sft.files import package_versions

PHASES = ("start", "model", "data", "steps", "save")
TOLERANCE = 1e-3  # relative, of a loss: the order of sums in fp32 differs, and AdamW amplifies it over the steps
MAX_BATCH_TOKENS = 2048  # of `profit score` on a CPU, padding included

TRL = (str(Path(sys.executable).with_name("trl")), "sft")
PROFIT = ("-m", "profit_sft.cli", "train")
TAU = ("--objective", "profit", "--threshold", "0.1")
TRAINERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trl nll": (TRL, ()),
    "profit nll": (PROFIT, ("--objective", "nll")),
    "trl dft": (TRL, ("--loss_type", "dft")),
    "profit dft": (PROFIT, ("--objective", "dft")),
    "profit tau 0.1": (PROFIT, TAU),
    "profit tau 0.1, padded": (PROFIT, (*TAU, "--skip_padding", "False")),
    "profit tau 0.1, bf16": (PROFIT, (*TAU, "--bf16", "True")),
    "trl nll, bf16": (TRL, ("--bf16", "True")),
}
EQUAL = (
    *("--dtype", "float32", "--bf16", "False", "--gradient_checkpointing", "False", "--max_length", "1024"),
    *("--logging_steps", "10", "--save_strategy", "no", "--seed", "42"),
)
EQUAL_OF_OURS = ("--probe_rows", "0")
# ChatML without a line break after an answer's end, which TRL would train as well, and ours does not.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- ('' if loop.first else '\\n') + '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PROMPT_OF_EVAL = "{question}\n\nThink step by step. Put your final answer in \\boxed{{}}."  # of the task gsm8k


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What was measured of one run.

    Attributes:
        phases: Wall and CPU seconds of each phase.
        peak_memory_mib: Of its largest process.
        tokens: Those that its speed is counted in.
        label_tokens: Those with a label.
        loss: Mean loss, nats a label token; None where it has none.
    """

    phases: dict[str, tuple[float, float]]
    peak_memory_mib: float
    tokens: int
    label_tokens: int
    loss: float | None

    @property
    def total(self) -> tuple[float, float]:
        """Wall and CPU seconds of the whole run."""
        return sum(wall for wall, _ in self.phases.values()), sum(cpu for _, cpu in self.phases.values())


def run_once(arguments: Sequence[str], folder: Path) -> Run:
    """Run Python with these arguments in a new process and measure it."""
    folder.mkdir()
    found_file = folder / "phases.json"
    start = time.monotonic()
    # The runs have working folders of their own.
    path = [str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent / "phases"), *path]),
        "PROFIT_PHASES_FILE": str(found_file),
        "PROFIT_PHASES_BENCHMARK": f"{os.getpid()} {start}",
        "HF_DATASETS_CACHE": str(folder / "cache"),  # so that nobody finds what an earlier run has prepared
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Its launcher would leave `trl sft` one thread, whatever the machine has.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
    }
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        child = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=stdout, stderr=stderr
        )
        _, status, usage = os.wait4(child.pid, 0)
        end = time.monotonic()
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0 or not found_file.exists():
        said = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"python {' '.join(arguments)} ended with {child.returncode}:\n{said[-4000:]}")
    found = json.loads(found_file.read_text(encoding="utf-8"))
    phases = {name: tuple(found["phases"].get(name, (0.0, 0.0))) for name in PHASES}
    rest = end - start - sum(wall for wall, _ in phases.values())
    rest_cpu = usage.ru_utime + usage.ru_stime - sum(cpu for _, cpu in phases.values())
    phases["save"] = phases["save"][0] + rest, phases["save"][1] + rest_cpu
    if "loss" not in found and "new_tokens" not in found:
        found |= printed_figures(folder / "stdout")
    return Run(
        phases=phases,
        peak_memory_mib=usage.ru_maxrss / 1024,
        tokens=found.get("tokens", found["label_tokens"]),
        label_tokens=found["label_tokens"],
        loss=found.get("loss"),
    )


def printed_figures(stdout: Path) -> dict[str, Any]:
    """Return the figures that `profit score` or `profit eval` has printed as JSON."""
    printed = json.loads(stdout.read_text(encoding="utf-8").splitlines()[-1])
    if "tasks" not in printed:
        return {"label_tokens": printed["label_tokens"], "loss": printed["mean_nll"]}
    (task,) = printed["tasks"]
    return {"label_tokens": round(task["mean_new_tokens"] * task["num_problems"])}


def in_rounds(commands: dict[str, Callable[[Path], list[str]]], rounds: int, folder: Path) -> dict[str, list[Run]]:
    """Run each command once a round, in turn. A command is given the folder of its run."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            where = folder / f"{name.replace(' ', '-')}-{number}"
            runs[name].append(run_once(command(where), where))
            wall, cpu = runs[name][-1].total
            print(f"round {number + 1}, {name}: {wall:.1f} s, {cpu:.1f} CPU s", file=sys.stderr)
            subprocess.run(["rm", "-rf", str(where)], check=True)  # half a gigabyte of weights
    return runs


def summarize(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Return the medians of each side, and of its ratios to the first side in the same round."""
    first = next(iter(runs.values()))
    rows = []
    for name, found in runs.items():
        row: dict[str, Any] = {"run": name}
        for index, unit in enumerate(("seconds", "cpu_seconds")):
            row[unit] = statistics.median(run.total[index] for run in found)
            row[f"{unit}_ratio"] = statistics.median(
                run.total[index] / base.total[index] for run, base in zip(found, first, strict=True)
            )
            for phase in PHASES:
                row[f"{phase}_{unit}"] = statistics.median(run.phases[phase][index] for run in found)
        row["tokens_per_second"] = statistics.median(run.tokens / run.phases["steps"][0] for run in found)
        row["tokens_per_cpu_second"] = statistics.median(run.tokens / run.phases["steps"][1] for run in found)
        row["steps_cpu_seconds_ratio"] = statistics.median(
            run.phases["steps"][1] / base.phases["steps"][1] for run, base in zip(found, first, strict=True)
        )
        row["peak_memory_mib"] = statistics.median(run.peak_memory_mib for run in found)
        row.update(tokens=found[0].tokens, label_tokens=found[0].label_tokens, loss=found[0].loss)
        row["rounds"] = [{"phases": run.phases, "loss": run.loss} for run in found]
        rows.append(row)
    return rows


def check_same(rows: Sequence[dict[str, Any]], names: Sequence[str], *, same_loss: Sequence[str]) -> None:
    """Leave without figures where sides did not compute with the same tokens, or came to another loss."""
    by_name = {row["run"]: row for row in rows}
    for what, wanted in (("tokens", names), ("label_tokens", names), ("loss", same_loss)):
        values = {name: by_name[name][what] for name in wanted if name in by_name}
        found = [value for value in values.values() if value is not None]
        tolerance = TOLERANCE if what == "loss" else 0.0
        if found and max(found) - min(found) > tolerance * max(found):
            raise SystemExit(f"not the same {what}, so not the same work: {values}")


def render(title: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = ("run", "seconds (CPU)", "ratio", *PHASES, "tokens/s (CPU)", "MiB", "label tokens", "loss")
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        loss = "" if row["loss"] is None else f"{row['loss']:.5f}"
        cells = [
            row["run"],
            f"{row['seconds']:.1f} ({row['cpu_seconds']:.1f})",
            f"{row['seconds_ratio']:.2f} ({row['cpu_seconds_ratio']:.2f})",
            *(f"{row[f'{phase}_seconds']:.1f} ({row[f'{phase}_cpu_seconds']:.1f})" for phase in PHASES),
            f"{row['tokens_per_second']:.0f} ({row['tokens_per_cpu_second']:.0f})",
            f"{row['peak_memory_mib']:.0f}",
            f"{row['label_tokens']:,}",
            loss,
        ]
        print(f"| {' | '.join(cells)} |")


def train(args: argparse.Namespace, folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Compare `trl sft` with `profit train`, by the defaults of each and with equal settings."""
    data = folder / "data"
    write_rows(args, data / "train.jsonl")
    common = (
        *("--model_name_or_path", args.model_name_or_path, "--dataset_name", str(data)),
        *("--use_cpu", "True"),  # TRL asks for it where it finds no accelerator
        *("--max_steps", str(args.rows // args.batch_size), "--per_device_train_batch_size", str(args.batch_size)),
    )
    template = folder / "template.jinja"
    template.write_text(CHAT_TEMPLATE, encoding="utf-8")
    results = []
    for settings in args.settings:

        def command(name: str, settings: str = settings) -> Callable[[Path], list[str]]:
            ours = EQUAL_OF_OURS if name.startswith("profit") else ()
            flags = (*EQUAL, *ours, "--chat_template_path", str(template)) if settings == "equal" else ()
            program, own = TRAINERS[name]
            return lambda where: [*program, *common, *flags, *own, "--output_dir", str(where / "run")]

        names = [name for name in TRAINERS if name in args.only]
        rows = summarize(in_rounds({name: command(name) for name in names}, args.rounds, folder))
        if settings == "equal":
            check_same(rows, names, same_loss=("trl nll", "profit nll"))
        results.append((f"train, {settings}", rows))
    return results


def score(args: argparse.Namespace, folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Compare `profit score` with a loop of forward passes and with lm-eval's `loglikelihood`."""
    data = folder / "data" / "train.jsonl"
    write_rows(args, data)
    child = (__file__, "--data", str(data), "--model_name_or_path", args.model_name_or_path, "--rows", str(args.rows))
    ours = ("-m", "profit_sft.cli", "score", str(data), "--model", args.model_name_or_path)
    commands: dict[str, Callable[[Path], list[str]]] = {
        "forward loop": lambda where: [*child, "--child", "score_loop"],
        "lm-eval loglikelihood": lambda where: [*child, "--child", "score_harness"],
        "profit score": lambda where: [*ours, "--json", "--out", str(where / "scored")],
    }
    rows = summarize(in_rounds(commands, args.rounds, folder))
    check_same(rows, list(commands), same_loss=list(commands))
    return [("score", rows)]


def answer(args: argparse.Namespace, folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Compare `profit eval` with a loop of `model.generate` over the same prompts."""
    data = folder / "data" / "gsm8k_test.jsonl"
    data.parent.mkdir()
    data.write_text("".join(first_lines(args.data, args.rows)), encoding="utf-8")
    sizes = ("--batch_size", str(args.batch_size), "--max_new_tokens", str(args.max_new_tokens))
    child = (__file__, "--data", str(data), "--model_name_or_path", args.model_name_or_path, *sizes)
    ours = ("-m", "profit_sft.cli", "eval", args.model_name_or_path, "--tasks", "gsm8k", "--data_dir", str(data.parent))
    commands: dict[str, Callable[[Path], list[str]]] = {
        "generate loop": lambda where: [*child, "--child", "eval_loop"],
        "profit eval": lambda where: [
            *(*ours, *sizes, "--greedy", "--dtype", "float32", "--json", "--output_dir", str(where / "eval"))
        ],
    }
    rows = summarize(in_rounds(commands, args.rounds, folder))
    check_same(rows, list(commands), same_loss=())
    return [("eval", rows)]


def first_lines(path: Path, count: int) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        found = [line for line, _ in zip(lines, range(count), strict=False)]
    if len(found) < count:
        raise SystemExit(f"{path} has {len(found)} rows, --rows is {count}.")
    return found


def write_rows(args: argparse.Namespace, path: Path) -> None:
    """Write the rows in the form in which TRL trains the answer alone, which is one of ours, too."""
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        for row in map(json.loads, first_lines(args.data, args.rows)):
            prompt = [{"role": "user", "content": row["question"]}]
            completion = [{"role": "assistant", "content": row["answer"]}]
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def loaded(args: argparse.Namespace) -> tuple[Any, Any]:
    """Load model and tokenizer as a user's script would."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    return AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.float32).eval(), tokenizer


def rendered(args: argparse.Namespace, tokenizer: Any) -> list[tuple[str, str]]:
    """Return the prompt and the rest of each row as the chat template writes them."""
    pairs = []
    for row in map(json.loads, first_lines(args.data, args.rows)):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        pairs.append((prompt, whole.removeprefix(prompt).rstrip("\n")))  # `profit` scores no line break after the end
    return pairs


def score_loop(args: argparse.Namespace) -> None:
    """Run the model on batches of like length and take the log-probabilities of the answers from its logits."""
    import torch
    from sitecustomize import clocks

    model, tokenizer = loaded(args)
    with clocks.timed("data"):
        rows = []
        for prompt, answer in rendered(args, tokenizer):
            prompt_ids, ids = (
                tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, prompt + answer)
            )
            rows.append((ids, len(prompt_ids)))
        rows.sort(key=lambda row: -len(row[0]))
    found, count = 0.0, 0
    with clocks.timed("steps"), torch.no_grad():
        while rows:
            size = max(1, MAX_BATCH_TOKENS // len(rows[0][0]))
            batch, rows = rows[:size], rows[size:]
            padded = tokenizer.pad({"input_ids": [ids for ids, _ in batch]}, padding_side="right", return_tensors="pt")
            log_probs = model(**padded).logits[:, :-1].log_softmax(-1)
            own = log_probs.gather(-1, padded["input_ids"][:, 1:, None]).squeeze(-1)
            for row, (ids, prompt_length) in zip(own, batch, strict=True):
                found -= row[prompt_length - 1 : len(ids) - 1].sum().item()
                count += len(ids) - prompt_length
    clocks.seen.update(label_tokens=count, loss=found / count)


def score_harness(args: argparse.Namespace) -> None:
    """Have lm-evaluation-harness score the answers as continuations of their prompts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from sitecustomize import clocks

    lm = HFLM(pretrained=args.model_name_or_path, dtype="float32", device="cpu", batch_size=8, add_bos_token=False)
    pairs = rendered(args, lm.tokenizer)
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    count = sum(len(lm.tok_encode(a + b)) - len(lm.tok_encode(a)) for a, b in pairs)
    clocks.seen.update(label_tokens=count, loss=-sum(log_prob for log_prob, _ in found) / count)


def eval_loop(args: argparse.Namespace) -> None:
    """Answer the problems greedily with `model.generate`, in batches of like length."""
    import torch
    from sitecustomize import clocks

    model, tokenizer = loaded(args)
    prompts = [PROMPT_OF_EVAL.format(**json.loads(line)) for line in args.data.read_text(encoding="utf-8").splitlines()]
    count = 0
    with clocks.timed("steps"), torch.no_grad():
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            for text in prompts
        ]
        texts.sort(key=lambda text: -len(tokenizer(text, add_special_tokens=False).input_ids))
        for first in range(0, len(texts), args.batch_size):
            batch = texts[first : first + args.batch_size]
            inputs = tokenizer(batch, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=args.max_new_tokens)
            for row in tokens[:, inputs["input_ids"].shape[1] :].tolist():
                ends = [place + 1 for place, token in enumerate(row) if token == tokenizer.eos_token_id]
                count += min(ends, default=len(row))
                tokenizer.decode(row, skip_special_tokens=True)
    clocks.seen.update(label_tokens=count, new_tokens=count)


COMPARISONS = {"train": train, "score": score, "eval": answer}
CHILDREN = {"score_loop": score_loop, "score_harness": score_harness, "eval_loop": eval_loop}


def embedded_model() -> str:
    """Return the folder of the embedded model, fetched and converted in a process of its own where it is not there."""
    code = "from profit_sft.models.embedded import embedded_model_folder as f; print(f())"
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": " ".join(sys.argv),
        "commit": commit,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "platform": platform.platform(),
        "packages": package_versions(("torch", "transformers", "trl", "datasets", "lm-eval")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="jsonl with question and answer, such as GSM8K's")
    parser.add_argument("--what", choices=list(COMPARISONS), default="train")
    parser.add_argument("--settings", nargs="+", choices=("defaults", "equal"), default=["defaults", "equal"])
    parser.add_argument("--only", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--model_name_or_path", help="a folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8, help="rows of a step, or answers generated together")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        CHILDREN[args.child](args)
        return
    args.data = args.data.resolve()  # the runs have working folders of their own
    args.model_name_or_path = args.model_name_or_path or embedded_model()
    with tempfile.TemporaryDirectory() as folder:
        results = COMPARISONS[args.what](args, Path(folder))
    for title, rows in results:
        render(f"{title}, {args.rows} rows, batches of {args.batch_size}, {args.rounds} rounds", rows)
    if args.json is not None:
        found = [{"what": title, "rows": rows} for title, rows in results]
        args.json.write_text(json.dumps({"environment": environment(), "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
