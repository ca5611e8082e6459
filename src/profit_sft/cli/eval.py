"""`profit eval`: answer benchmarks with a model and say how sure the figures are."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from profit_sft.cli.options import flag, takes_settings, wrong_values_are_usage_errors
from profit_sft.cli.progress import ProgressDisplay, quiet_libraries
from profit_sft.errors import require_extra
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.interrupts import signals_handled
from profit_sft.terminal import HarmlessConsole, console

if TYPE_CHECKING:
    from profit_sft.evaluation.results import EvalReport, TaskResult
    from profit_sft.evaluation.statistics import Estimate

_FURTHER = {"prompt_loose": "loose", "instruction_strict": "instruction", "instruction_loose": "same, loose"}


@takes_settings(EvalSettings, "given_settings")
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
    *,
    given_settings: dict[str, Any],
    no_chat_template: Annotated[bool, flag("no_chat_template", "Plain prompts, for a base model.")] = False,
    engine_args: Annotated[str, flag("engine_args", "Its arguments, as lm-eval's --model_args: name=value, ...")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> int:
    """Answer benchmarks with a model; the paper's five, its decoding, and a standard error over problems."""
    require_extra("eval", wanted_by="profit eval")  # it brings all of it, so it is the one to name
    from lm_eval.utils import simple_parse_args_string

    from profit_sft.evaluation.runner import evaluate
    from profit_sft.train.model_card import add_benchmarks

    quiet_libraries()
    with wrong_values_are_usage_errors():
        settings = EvalSettings(
            model_name_or_path=model_name_or_path,
            tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
            output_dir=output_dir,
            apply_chat_template=not no_chat_template,
            engine_args=simple_parse_args_string(engine_args),
            **given_settings,
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
                found = evaluate(settings, say=messages.print, progress=progress)
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
