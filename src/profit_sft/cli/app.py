"""The typer application: one function a command, and what becomes of their errors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from profit_sft.errors import ConfigurationError, ProFitError

app = typer.Typer(
    name="profit",
    help="Fine-tune language models on the tokens that matter, and see which those are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_TRAIN_HELP = """Fine-tune a causal language model with a token-level objective.

Takes every flag of TRL's `trl sft`, spelled the same, and these:

[bold]--config[/] FILE  YAML with any of the flags; flags on the command line win

[bold]--model_name_or_path[/] NAME  hub name, folder, or `embedded` (default: SmolLM2-135M-Instruct, no hub needed)

[bold]--dataset_name[/] NAME  jsonl, json, parquet or csv file, folder, or hub name

[bold]--output_dir[/] FOLDER  the run folder (default: profit-output)

[bold]--objective[/] NAME  nll, profit, dft, eaft, power, focal, asft or rho (default: profit)

[bold]--threshold[/] P  ProFit's threshold, a probability (default: 0.1)

[bold]--threshold_direction[/] WORD  higher, lower, middle or random (default: higher)

[bold]--normalize[/] WORD  divide by all label tokens, or by the kept ones: all or kept (default: all)

[bold]--skip-bad-rows[/]  count and list rows that cannot be used, instead of stopping at the first

[bold]--resume_from_checkpoint[/] latest  go on with an interrupted run

[bold]--dry-run[/]  print settings, token counts, kept share on a sample and estimated memory; train nothing

[bold]--help-all[/]  every flag with its default
"""


@app.command(
    "train",
    help=_TRAIN_HELP,
    epilog="Example: profit train --dataset_name train.jsonl --threshold 0.1 --output_dir runs/first",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(context: typer.Context) -> None:
    """Hand the arguments to TRL's parser, which knows every flag."""

    def run() -> int:
        from profit_sft.cli.train import train_command

        return train_command(list(context.args))

    raise typer.Exit(_guarded(run))


@app.command(
    "quickstart",
    epilog="Example: profit quickstart --output_dir runs/quickstart",
)
def quickstart(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Where everything goes.")] = Path("runs/quickstart"),
    objective: Annotated[str, typer.Option("--objective", help="Token objective.")] = "profit",
    threshold: Annotated[float | None, typer.Option("--threshold", help="ProFit's threshold, a probability.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite_output_dir", help="Replace an earlier run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train the embedded SmolLM2-135M-Instruct on generated problems: about five minutes on two cores, no hub."""

    def run() -> int:
        from profit_sft.cli.quickstart import quickstart_command

        return quickstart_command(
            output_dir, objective=objective, threshold=threshold, overwrite=overwrite, as_json=as_json
        )

    raise typer.Exit(_guarded(run))


def _version_callback(wanted: bool) -> None:
    if wanted:
        from profit_sft import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version_callback, is_eager=True)] = False,
) -> None:
    pass


def _guarded(command: Callable[[], int]) -> int:
    """Run a command; turn what a user can mend into one message and an exit status."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def report(message: object) -> None:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(str(message), markup=False)

    try:
        return command()
    except KeyboardInterrupt:
        report("interrupted")
        return 130
    except ConfigurationError as error:
        report(error)
        return 2
    except ProFitError as error:
        report(error)
        return 1


def run_app(arguments: Sequence[str]) -> int:
    """Run `profit` with these arguments and return its exit status.

    Args:
        arguments: The command line after the program's name.

    Returns:
        0 done, 1 failed, 2 usage, 130 interrupted.
    """
    try:
        app(args=list(arguments), prog_name="profit")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0
