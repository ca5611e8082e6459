"""`profit eval`: answer benchmarks with a model and say how sure the figures are."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from profit_sft.cli.options import AllowMissingWeights, flag, wrong_values_are_usage_errors
from profit_sft.cli.progress import ProgressDisplay, quiet_libraries
from profit_sft.errors import require_extra
from profit_sft.interrupts import signals_handled
from profit_sft.terminal import HarmlessConsole, console

if TYPE_CHECKING:
    from profit_sft.evaluation import EvalReport
    from profit_sft.evaluation.results import TaskResult
    from profit_sft.evaluation.statistics import Estimate

_FURTHER = {"prompt_loose": "loose", "instruction_strict": "instruction", "instruction_loose": "same, loose"}


def eval_command(
    model_name_or_path: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub name, folder (LoRA, too), embedded, or a server's name for it.")
    ],
    tasks: Annotated[
        str, flag("tasks", "gsm8k, math500, aime24, ifeval, gpqa_diamond, generated, gsm8k_paper ..., with commas.")
    ],
    output_dir: Annotated[Path, flag("output_dir", "Answers and figures; an unfinished one is gone on with.")] = Path(
        "eval-output"
    ),
    data_dir: Annotated[
        Path | None, flag("data_dir", "Folder with gsm8k_test.jsonl, ... (default: from the hub).")
    ] = None,
    greedy: Annotated[bool, flag("greedy", "The likeliest token each time, one sample.")] = False,
    samples: Annotated[int | None, flag("samples", "Samples a problem (default: 8, the paper's; 1 if greedy).")] = None,
    temperature: Annotated[float, flag("temperature", "Logits are divided by it.")] = 0.7,
    top_p: Annotated[float, flag("top_p", "Nucleus, a probability; 1: all tokens.")] = 0.8,
    top_k: Annotated[int, flag("top_k", "Likeliest tokens kept; 0: all.")] = 20,
    max_new_tokens: Annotated[
        int | None, flag("max_new_tokens", "Tokens of the longest answer (default: 8192; generated: 128).")
    ] = None,
    batch_size: Annotated[int, flag("batch_size", "Answers generated together, or asked a server for.")] = 16,
    limit: Annotated[int | None, flag("limit", "Only the first N problems of each task.")] = None,
    seed: Annotated[int, flag("seed", "Of the sampling.")] = 0,
    allow_missing_weights: AllowMissingWeights = False,
    dtype: Annotated[str, flag("dtype", "float32, bfloat16, float16, or auto: the checkpoint's own.")] = "auto",
    system_prompt: Annotated[str | None, flag("system_prompt", "System message before every problem.")] = None,
    preset: Annotated[
        str | None, flag("preset", "paper: its decoding for the model's family, its samples and limits.")
    ] = None,
    confirm_run_unsafe_code: Annotated[
        bool, flag("confirm_run_unsafe_code", "Run the code that the model writes (humaneval_paper).")
    ] = False,
    no_chat_template: Annotated[bool, flag("no_chat_template", "Plain prompts, for a base model.")] = False,
    engine: Annotated[
        str, flag("engine", "What generates, as lm-eval's --model: hf, vllm, local-completions ...")
    ] = "hf",
    engine_args: Annotated[str, flag("engine_args", "Its arguments, as lm-eval's --model_args: name=value, ...")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> int:
    """Answer benchmarks with a model; the paper's five, its decoding, and a standard error over problems."""
    require_extra("eval", wanted_by="profit eval")  # it brings all of it, so it is the one to name
    from lm_eval.utils import simple_parse_args_string

    from profit_sft.evaluation import EvalSettings, evaluate
    from profit_sft.train.model_card import add_benchmarks

    quiet_libraries()
    with wrong_values_are_usage_errors():
        settings = EvalSettings(
            model_name_or_path=model_name_or_path,
            tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
            output_dir=output_dir,
            data_dir=data_dir,
            greedy=greedy,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            limit=limit,
            seed=seed,
            allow_missing_weights=allow_missing_weights,
            dtype=dtype,
            system_prompt=system_prompt,
            preset=preset,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
            apply_chat_template=not no_chat_template,
            engine=engine,
            engine_args=simple_parse_args_string(engine_args),
        )
    messages = console(stderr=True)
    interrupts: list[int] = []

    def interrupt(number: int) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    with ProgressDisplay(messages, line="{task}: {done} of {total} answers") as display:

        def progress(*counts: Any, **more: Any) -> None:
            if interrupts:  # raised while Python finalized an object, say, which swallows it
                raise KeyboardInterrupt
            display.update(*counts, **more)

        try:
            with signals_handled(interrupt, signal.SIGINT):
                found = evaluate(settings, report=messages.print, progress=progress)
        except KeyboardInterrupt:
            display.stop()
            messages.print(
                f"Interrupted; {sum(display.done.values())} finished answers are kept in {settings.output_dir}. "
                "The same command goes on."
            )
            return 130
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict()) + "\n")
    else:
        _print_table(found)
    card = Path(found.model_name_or_path) / "README.md"
    if add_benchmarks(card, {result.task: _for_the_card(result, found.settings) for result in found.tasks}):
        messages.print(f"Added to the model card: {card}", markup=False)
    return 0


def _for_the_card(result: "TaskResult", settings: Any) -> str:
    mean, interval = _shares(result.accuracy)
    count = f"{result.num_problems} problems x {result.samples_per_problem}"
    return f"{mean} right (95% interval {interval}), {count}, {_decoding(settings)}"


def _print_table(found: "EvalReport") -> None:
    table = Table(title=f"{found.model_name_or_path}, {_decoding(found.settings)}")
    table.add_column("task", overflow="fold", min_width=12)
    # 80 characters wide with all cells full; the longest names take two lines.
    for column in ("avg@k", "95%\ninterval", "problems\nx k", "cut\noff", "no\nanswer", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in found.tasks:
        table.add_row(
            result.task,
            *_shares(result.accuracy),
            f"{result.num_problems} x {result.samples_per_problem}",
            f"{result.truncated_share:.1%}",
            f"{result.no_answer_share:.1%}",
            "" if result.mean_new_tokens is None else f"{result.mean_new_tokens:.0f}",
        )
        for metric in result.metrics:
            if metric.name in _FURTHER:
                table.add_row(f"  {_FURTHER[metric.name]}", *_shares(metric), *[""] * 4)
    out = console(wrap=False)
    out.print(table)
    if any(result.by_budget for result in found.tasks):
        _print_budgets(found, out)
    out.print(
        "avg@k: share of right samples, k a problem. 95% interval: in %, over problems, the independent units.\n"
        "cut off: at the limit of new tokens. no answer: none found, counted as wrong. tokens: mean length.\n"
        f"Every sample: {found.output_dir}/samples   figures: {found.output_dir}/results.json   {found.seconds:.0f} s",
        soft_wrap=True,
    )


def _print_budgets(found: "EvalReport", out: HarmlessConsole) -> None:
    table = Table(title="By token budget: the same answers, cut to so many tokens")
    table.add_column("task", overflow="fold", min_width=12)
    for column in ("tokens", "avg@k", "95%\ninterval", "cut\noff"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in found.tasks:
        for row in result.by_budget:
            table.add_row(result.task, str(row.budget), *_shares(row.accuracy), f"{row.truncated_share:.1%}")
    out.print(table)


def _shares(metric: "Estimate") -> tuple[str, str]:
    return f"{metric.mean:.1%}", f"{100 * metric.low:.1f} to {100 * metric.high:.1f}"


def _decoding(settings: Any) -> str:
    if settings["greedy"]:
        return "greedy"
    return f"temperature {settings['temperature']}, top-p {settings['top_p']}, top-k {settings['top_k']}"
