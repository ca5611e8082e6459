"""`profit quickstart`: the main job on the embedded model, before and after, beside plain SFT."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from profit_sft.cli.options import flag, wrong_values_are_usage_errors
from profit_sft.cli.progress import quiet_libraries
from profit_sft.cli.train import print_result
from profit_sft.terminal import console

if TYPE_CHECKING:
    from profit_sft.quickstart import QuickstartReport, Standing


def quickstart_command(
    output_dir: Annotated[Path, flag("output_dir", "Where everything goes.")] = Path("runs/quickstart"),
    objective: Annotated[str, typer.Option("--objective", help="Token objective.")] = "profit",
    threshold: Annotated[float | None, typer.Option("--threshold", help="ProFit's threshold, a probability.")] = None,
    overwrite: Annotated[bool, flag("overwrite_output_dir", "Replace earlier runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> int:
    """Train the embedded SmolLM2-135M-Instruct on generated problems, also by plain SFT: five minutes on two cores."""
    from profit_sft.cli.training_bar import TrainingBar
    from profit_sft.quickstart import as_dict, run_quickstart

    quiet_libraries()
    messages = console(stderr=True)
    with wrong_values_are_usage_errors():
        found = run_quickstart(
            output_dir,
            objective=objective,
            threshold=threshold,
            overwrite=overwrite,
            callbacks=[TrainingBar()],
            say=messages.print,
        )
    if found.after is None:
        return print_result(found.run, as_json=as_json)
    if as_json:
        sys.stdout.write(json.dumps(as_dict(found)) + "\n")
    else:
        _print_table(found)
    return 0


def _print_table(found: "QuickstartReport") -> None:
    from profit_sft.quickstart import changed_answers

    standings = {"untrained": found.before, "plain SFT": found.plain_sft, found.run.output_dir.name: found.after}
    columns = {name: standing for name, standing in standings.items() if standing is not None}
    table = Table(title=f"SmolLM2-135M-Instruct, {found.objective}, {found.run.global_step} steps")
    table.add_column(f"on {len(found.problems)} held-out problems")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row("right answers", *(f"{standing.accuracy:.0%}" for standing in columns.values()))
    ends = (standing.accuracy_interval for standing in columns.values())
    table.add_row("  their 95% interval", *(f"{low:.0%} to {high:.0%}" for low, high in ends))
    table.add_row("plain NLL, nats a token", *(f"{standing.nll:.2f}" for standing in columns.values()))
    for label, name in (
        ("kept of core tokens (numbers, operators)", "kept_share_core"),
        ("kept of style tokens (wording)", "kept_share_style"),
        ("kept of all tokens", "kept_share"),
    ):
        table.add_row(label, *(f"{getattr(standing, name):.0%}" for standing in columns.values()))
    out = console(wrap=False)
    out.print(table)
    for kind, index in changed_answers(found):
        problem = found.problems[index]
        answers = Table.grid(padding=(0, 2))
        answers.add_row("question", problem.question)
        answers.add_row("expected", str(problem.final_answer))
        for name, standing in columns.items():
            answers.add_row(name, f"{standing.answers[index]}  [{'right' if standing.right[index] else 'wrong'}]")
        out.print(f"\nOne that {kind}:", style="bold")
        out.print(answers)
    if found.plain_sft is not None and found.after is not None:
        out.print(f"\n{_verdict(found.plain_sft, found.after, found.run.output_dir.name)}", soft_wrap=True)
    folder = found.run.output_dir
    out.print("\nWhat next:", style="bold")
    own = ["--config", f"{folder}/config.yaml", "--dataset_name", "YOUR.jsonl", "--output_dir", "runs/mine"]
    following = [
        ("the mask before and after, on every held-out problem: open in a browser", found.page),
        ("the curves of both runs: open in a browser", found.comparison),
        ("your own rows, with the labels marked", "profit data YOUR.jsonl --model embedded"),
        ("train on them with these settings", shlex.join(["profit", "train", *own])),
    ]
    for what, command in following:
        if command is not None:
            out.print(f"# {what}\n{command}", soft_wrap=True)
    out.print(f"Figures and all answers: {found.report_file}", soft_wrap=True)


def _verdict(plain: "Standing", after: "Standing", name: str) -> str:
    from profit_sft.study.statistics import in_words, paired_comparison, what_is_shown

    found = paired_comparison(after.right, plain.right)
    points = [f"{100 * value:+.0f}" for value in (found.difference, found.low, found.high)]
    shown = what_is_shown(found, found.p_value, None)
    words = in_words(shown, found, first=name, second="plain SFT", one_seed=True)
    return (
        f"Right answers, {name} less plain SFT: {points[0]} points ({points[1]} to {points[2]}); {words}. It is one "
        "seed and one small model, a look at how it works; `profit study` is what decides."
    )
