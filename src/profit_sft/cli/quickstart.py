"""`profit quickstart`: the main job on the embedded model, with figures before and after."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from profit_sft.cli.options import wrong_values_are_usage_errors
from profit_sft.cli.progress import quiet_libraries
from profit_sft.cli.train import print_result
from profit_sft.terminal import console

if TYPE_CHECKING:
    from profit_sft.quickstart import QuickstartReport


def quickstart_command(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where everything goes.")] = Path("runs/quickstart"),
    objective: Annotated[str, typer.Option("--objective", help="Token objective.")] = "profit",
    threshold: Annotated[float | None, typer.Option("--threshold", help="ProFit's threshold, a probability.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite_output_dir", help="Replace an earlier run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> int:
    """Train the embedded SmolLM2-135M-Instruct on generated problems: about five minutes on two cores, no hub."""
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
            report=messages.print,
        )
    if found.after is None:
        return print_result(found.run, as_json=as_json)
    if as_json:
        sys.stdout.write(json.dumps(as_dict(found)) + "\n")
    else:
        _print_table(found)
    return 0


def _print_table(found: "QuickstartReport") -> None:
    assert found.after is not None
    before, after = found.before, found.after
    table = Table(title=f"SmolLM2-135M-Instruct, {found.objective}, {found.run.global_step} steps")
    table.add_column("on held-out problems")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for label, name in (
        ("right answers", "accuracy"),
        ("kept share of core tokens (numbers, operators)", "kept_share_core"),
        ("kept share of style tokens (wording)", "kept_share_style"),
        ("kept share of all tokens", "kept_share"),
    ):
        table.add_row(label, f"{getattr(before, name):.0%}", f"{getattr(after, name):.0%}")
    table.add_row("plain NLL, nats a token", f"{before.nll:.2f}", f"{after.nll:.2f}")
    out = console(wrap=False)
    out.print(table)
    out.print(f"An answer before: {before.examples[0]!r}")
    out.print(f"An answer after:  {after.examples[0]!r}")
    out.print(
        "One seed and one small model: a look at how it works, not evidence that one objective is better.\n"
        f"Model, log and model card: {found.run.output_dir}   data: {found.train_file}   figures: {found.report_file}\n"
        f"The mask before and after, on every held-out problem; open it in a browser: {found.page}",
        soft_wrap=True,
    )
