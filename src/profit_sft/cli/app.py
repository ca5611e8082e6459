"""The typer application: which commands there are, and what becomes of their errors."""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from profit_sft.cli.advise import advise_command
from profit_sft.cli.data import data_command
from profit_sft.cli.eval import eval_command
from profit_sft.cli.inspect import inspect_command
from profit_sft.cli.llamafactory import llamafactory_command
from profit_sft.cli.plugin import plugin_command
from profit_sft.cli.quickstart import quickstart_command
from profit_sft.cli.ranks import works_here
from profit_sft.cli.score import score_command
from profit_sft.cli.study import study_command
from profit_sft.cli.train import HELP, train_command
from profit_sft.errors import ConfigurationError, ProFitError, missing_extra

app = typer.Typer(
    name="profit",
    help="Fine-tune language models on the tokens that matter, and see which those are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


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


def _add(name: str, command: Callable[..., int], *, example: str, one_process: bool = True, **settings: Any) -> None:
    """Register a command.

    Args:
        name: What it is called on the command line.
        command: Its parameters are the options, its docstring is the help text; it returns the exit status.
        example: A line to paste.
        one_process: Whether it knows nothing of ranks; it then runs on the first.
        settings: Further ones of `typer.Typer.command`.
    """

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if one_process and not works_here(name):
            raise typer.Exit(0)
        raise typer.Exit(_exit_status(lambda: command(**options)))

    app.command(name, epilog=f"Example: {example}", **settings)(run)


def _exit_status(command: Callable[[], int]) -> int:
    """Run a command; turn what a user can mend into one message and an exit status."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def report(message: object) -> None:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(str(message), markup=False)

    try:
        try:
            return command()
        except ModuleNotFoundError as error:
            raise missing_extra(error.name, wanted_by="this command") or error from error
    except KeyboardInterrupt:
        report("interrupted")
        return 130
    except ConfigurationError as error:
        report(error)
        return 2
    except ProFitError as error:
        report(error)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        report(f"'{error.filename}': {error.strerror}")
        return 1


_add(
    "train",
    train_command,
    example="profit train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name train.jsonl --output_dir run",
    one_process=False,
    help=HELP,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
_add(
    "data",
    data_command,
    example="profit data train.jsonl --model Qwen/Qwen3-0.6B",
)
_add(
    "score",
    score_command,
    example="profit score train.jsonl --model Qwen/Qwen3-0.6B --out scored",
    one_process=False,
)
_add(
    "inspect",
    inspect_command,
    example="profit inspect --dataset_name train.jsonl --model_name_or_path runs/x/checkpoint-10 "
    "--compare_to runs/x/checkpoint-30",
)
_add("quickstart", quickstart_command, example="profit quickstart --output_dir runs/quickstart")
_add(
    "eval",
    eval_command,
    example="profit eval runs/first --tasks gsm8k,math500 --output_dir runs/first/eval",
)
_add(
    "study",
    study_command,
    example="profit study recipes/studies/one-to-many.yaml --output_dir runs/one-to-many --dry-run",
)
_add(
    "advise",
    advise_command,
    example="profit advise --dataset_name train.jsonl --model_name_or_path Qwen/Qwen3-0.6B --threshold 0.1",
)
_add(
    "llamafactory",
    llamafactory_command,
    example="profit llamafactory train config.yaml prob_threshold=0.1",
    one_process=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
_add(
    "plugin",
    plugin_command,
    example="swift sft --external_plugins $(profit plugin ms-swift) --callbacks profit ...",
)


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
