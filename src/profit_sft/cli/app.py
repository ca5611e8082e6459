"""The typer application: which commands there are, their flags in a shell, and what becomes of their errors."""

import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from profit_sft.cli.advise import advise_command
from profit_sft.cli.chat import chat_command
from profit_sft.cli.data import data_command
from profit_sft.cli.eval import eval_command
from profit_sft.cli.inspect import inspect_command
from profit_sft.cli.merge import merge_command
from profit_sft.cli.options import SHORT_FORMS, takes_arguments_as_flags, underscored
from profit_sft.cli.other_trainers import llamafactory_command, plugin_command
from profit_sft.cli.quickstart import quickstart_command
from profit_sft.cli.runs import report_command, watch_command
from profit_sft.cli.score import score_command
from profit_sft.cli.study import study_command
from profit_sft.cli.train import train_command
from profit_sft.cli.train_help import first_help, flags_to_complete
from profit_sft.errors import ConfigurationError, brief, explained, missing_extra
from profit_sft.ranks import works_here
from profit_sft.terminal import console

app = typer.Typer(
    name="profit",
    help="Fine-tune language models on the tokens that matter, and see which those are.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"token_normalize_func": underscored},
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


class CompletedCommand(TyperCommand):
    """A command as a shell's completion sees it."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the flags that begin so; for a value nothing, for which a shell offers files."""
        if not incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        offered: dict[str, Any] = {item.value: item for item in super().shell_complete(ctx, "-")}
        item = type(next(iter(offered.values())))  # of click, or of the copy of it that typer brings, by its version
        if self.name == "train":
            offered = {flag: item(flag) for flag in flags_to_complete()} | offered
        return [entry for flag, entry in offered.items() if underscored(flag).startswith(underscored(incomplete))]


def _add(name: str, command: Callable[..., int], *, example: str, one_process: bool = True, **settings: Any) -> None:
    """Register a command.

    Args:
        name: What it is called on the command line.
        command: Its parameters are the options, its docstring is the help text; it returns the exit status.
        example: A line to paste.
        one_process: Whether it knows nothing of ranks; it then runs on the first.
        settings: Further ones of `typer.Typer.command`.
    """
    command = takes_arguments_as_flags(command)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if one_process and not works_here(name):
            raise typer.Exit(0)
        raise typer.Exit(_exit_status(lambda: command(**options)))

    app.command(name, cls=CompletedCommand, epilog=f"Example: {example}", **settings)(run)


def _exit_status(command: Callable[[], int]) -> int:
    """Run a command; turn what a user can mend into one message and an exit status."""
    try:
        try:
            return command()
        except ModuleNotFoundError as error:
            raise missing_extra(error.name, wanted_by="this command") or error from error
    except KeyboardInterrupt:
        _report("interrupted")
        return 130
    except BrokenPipeError:  # whoever read the output has enough of it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        told = explained(error)
        if told is None:
            raise
        _report(told)
        return 2 if isinstance(told, ConfigurationError) else 1


def _report(message: object) -> None:
    errors = console(stderr=True)
    errors.print("error:", style="bold red", end=" ")
    errors.print(brief(str(message), 4000))  # a value of the user's may be a megabyte


_add(
    "train",
    train_command,
    example="profit train --model Qwen/Qwen3-0.6B --data train.jsonl --out run",
    one_process=False,
    help=first_help(),
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
_add("data", data_command, example="profit data train.jsonl --model Qwen/Qwen3-0.6B")
_add("score", score_command, example="profit score train.jsonl --model Qwen/Qwen3-0.6B --out scored", one_process=False)
_add(
    "inspect",
    inspect_command,
    example="profit inspect --dataset_name train.jsonl --model_name_or_path runs/x/checkpoint-10 "
    "--compare_to runs/x/checkpoint-30",
)
_add("report", report_command, example="profit report runs/first runs/plain --output_file comparison.html")
_add("watch", watch_command, example="profit watch runs/first")
_add("chat", chat_command, example="profit chat runs/first")
_add("merge", merge_command, example="profit merge runs/lora --out runs/merged")
_add("quickstart", quickstart_command, example="profit quickstart --output_dir runs/quickstart")
_add("eval", eval_command, example="profit eval runs/first --tasks gsm8k,math500 --output_dir runs/first/eval")
_add(
    "study",
    study_command,
    example="profit study recipes/studies/one-to-many.yaml --output_dir runs/one-to-many --dry-run",
)
_add("advise", advise_command, example="profit advise --data train.jsonl --model Qwen/Qwen3-0.6B --threshold 0.1")
_add(
    "llamafactory",
    llamafactory_command,
    example="profit llamafactory train config.yaml prob_threshold=0.1",
    one_process=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
_add("plugin", plugin_command, example="swift sft --external_plugins $(profit plugin ms-swift) --callbacks profit ...")


def run_app(arguments: Sequence[str]) -> int:
    """Run `profit` with these arguments and return its exit status.

    Args:
        arguments: The command line after the program's name.

    Returns:
        0 done, 1 failed, 2 usage, 130 interrupted.
    """
    empty = _empty_name(arguments)
    if empty is not None:
        _report(f"{empty} is empty. Name a {'file' if 'file' in empty else 'folder'}, or leave it out.")
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a sign that the terminal's encoding lacks is no failure
    try:
        # By default typer prints its errors in a frame, as they are, and leaves the process.
        status = app(args=list(arguments), prog_name="profit", standalone_mode=False)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        # Of click, or of the copy of it that typer brings: which one depends on its version.
        if type(error).__name__ == "Abort":  # Ctrl-C before a command has begun, or as it ends
            _report("interrupted")
            return 130
        if not hasattr(error, "format_message"):
            raise
        return _usage(error, list(arguments))
    return status if isinstance(status, int) else 0


def _empty_name(arguments: Sequence[str]) -> str | None:
    """Return the flag of an output that is given "", as an unset variable of a shell: as a path that is this folder."""
    outputs = {underscored(name) for name in ("--out", *(f"--{name}" for name in SHORT_FORMS["--out"]))}
    return next((name for name, value in _words(arguments) if underscored(name) in outputs and value == ""), None)


def _words(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each word with its value if it is a flag: what is behind its equals sign, or the next word, if any."""
    for word, following in zip_longest(arguments, arguments[1:]):
        name, equals, value = word.partition("=")
        yield name, value if equals else following


def _usage(error: Any, arguments: list[str]) -> int:
    """Tell of a command line that typer cannot read."""
    context = error.ctx
    if not error.format_message() or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    said = error.format_message().rstrip(".")
    given: dict[str, str] = {}
    for name, value in _words(arguments):
        given.setdefault(underscored(name), value or "")
    option = next((name for name in map(underscored, re.findall(r"--[\w-]+", said)) if name in given), None)
    if option is not None and said.startswith("Invalid value"):  # which not every message of this kind names
        said += f", got {given[option]!r}" if given[option] not in said else ""
    end = "" if said.endswith("?") else "."
    _report(f"{said}{end} See {context.command_path if context else 'profit'} --help.")
    return 2
