"""`profit train`: YAML and flags in, one training run out."""

import argparse
import difflib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from trl import ModelConfig, TrlParser

from profit_sft.cli.launch import follow_launch, is_launched, is_launched_here, launch
from profit_sft.cli.progress import ProgressBar, quiet_libraries
from profit_sft.cli.ranks import works_here
from profit_sft.data import LISTED_ROWS
from profit_sft.errors import ConfigurationError
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.dry_run import DryRunReport, dry_run
from profit_sft.train.run import RunResult, check_before_launch, run_training

_ON_CPU = ("--use_cpu", "True")


class _Parser(TrlParser):
    """TRL's parser with errors of one line instead of four hundred flags of usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}. See profit train --help.")


def parse(arguments: Sequence[str]) -> tuple[RunArguments, ProFitConfig, ModelConfig, bool, bool]:
    """Parse the command line of `profit train`.

    Args:
        arguments: Flags after `profit train`, with or without `--config FILE`.

    Returns:
        Run, trainer and model settings, whether to dry-run, and whether to print JSON.

    Raises:
        ConfigurationError: A flag or key is unknown (the message names the nearest one) or has a bad value.
    """
    arguments = [_normalized(argument) for argument in arguments]
    parser = _Parser((RunArguments, ProFitConfig, ModelConfig), prog="profit train", add_help=False)
    parser.set_defaults(output_dir="profit-output", report_to="none")
    switches = {name: name in arguments for name in ("--dry_run", "--json", "--help_all")}
    arguments = [argument for argument in arguments if argument not in switches]
    if switches["--help_all"]:
        parser.print_help()
        raise SystemExit(0)
    try:
        run, config, model_config, unknown = parser.parse_args_and_config(
            args=list(arguments), return_remaining_strings=True, fail_with_unknown_args=False
        )
    except UnicodeDecodeError:
        raise ConfigurationError("the file of --config is not UTF-8. Convert it first.") from None
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config cannot be read: {error}") from None
    except IndexError:
        raise ConfigurationError("--config needs a file. Example: --config recipes/qwen3-0.6b-profit.yaml") from None
    if unknown:
        if not unknown[0].startswith("--"):
            raise ConfigurationError(f"{unknown[0]!r} belongs to no flag. Data is named by --dataset_name.")
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]}?" if near else " See profit train --help-all."
        if near == unknown[:1]:  # only in a file: on the command line hyphens have become underscores
            hint = f" In YAML write {near[0][2:].replace('-', '_')}."
        raise ConfigurationError(f"unknown setting {unknown[0]}.{hint}")
    return run, config, model_config, switches["--dry_run"], switches["--json"]


def _normalized(argument: str) -> str:
    """Take `--dry-run` for `--dry_run`, as TRL takes both, without touching values."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value


def train_command(arguments: Sequence[str]) -> int:
    """Run `profit train` and return its exit status."""
    quiet_libraries()
    dry = "--dry_run" in map(_normalized, arguments)
    if dry and not works_here("train --dry-run"):
        return 0
    follow_launch()
    environment = dict(os.environ)
    launches = not dry and not is_launched() and _names_a_launch(arguments)
    # What only launches leaves the accelerators to what it launches; a dry run can do without.
    on_cpu = launches or (dry and not torch.accelerator.is_available())
    run, config, model_config, only_dry, as_json = parse([*arguments, *(_ON_CPU if on_cpu else ())])
    config.disable_tqdm = True
    if launches:
        check_before_launch(run, config, model_config)
        return launch(run, arguments, environment)
    if only_dry:
        report = dry_run(run, config, model_config)
        print_dry_run(report, as_json=as_json)
        return 0
    callbacks: list[TrainerCallback] = [ProgressBar()]
    result = run_training(run, config, model_config, callbacks=callbacks, report=print_facts)
    status = 0 if config.process_index != 0 else print_result(result, as_json=as_json)  # one rank speaks for all
    if is_launched_here():
        return 0  # what was launched has ended well; `launch` knows of the stop
    return status if result.stopped_by is None else 130


def _names_a_launch(arguments: Sequence[str]) -> bool:
    """Say whether flags or file name an accelerate_config, before they are parsed; mistakes are for the parser."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--config")
    given.add_argument("--accelerate_config")
    try:
        known, _ = given.parse_known_args([_normalized(argument) for argument in arguments])
        settings = yaml.safe_load(Path(known.config).read_text(encoding="utf-8")) if known.config else {}
    except (argparse.ArgumentError, SystemExit, OSError, ValueError, yaml.YAMLError):
        return False
    return bool(known.accelerate_config or (isinstance(settings, dict) and settings.get("accelerate_config")))


def print_facts(facts: Mapping[str, str]) -> None:
    """Print what a run has on stderr, a line a fact."""
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    for name, value in facts.items():
        messages.print(f"{name:<11}{value}", markup=False)


def print_result(result: RunResult, *, as_json: bool) -> int:
    """Say how the run ended and how to go on; return the exit status."""
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    if as_json:
        figures = {"output_dir": str(result.output_dir), "step": result.global_step, "last_log": result.last_log}
        sys.stdout.write(json.dumps(figures) + "\n")
    if result.stopped_by is not None:
        name = signal.Signals(result.stopped_by).name
        messages.print(
            f"Stopped by {name} after step {result.global_step}; the checkpoint is saved. Go on with"
            + (", under the same launcher" if "WORLD_SIZE" in os.environ and not is_launched_here() else "")
            + f":\n  profit train --config {result.output_dir}/config.yaml --resume_from_checkpoint latest",
            markup=False,
        )
        return 130
    minutes, seconds = divmod(round(result.train_runtime_seconds), 60)
    messages.print(
        f"Trained {result.global_step} steps in {minutes} min {seconds} s. Model, metrics.jsonl and model card: "
        f"{result.output_dir}",
        markup=False,
    )
    if result.data["rows_skipped"]:
        messages.print(
            f"{result.data['rows_skipped']} bad rows were left out; {result.output_dir}/data.json lists the first "
            f"{LISTED_ROWS}.",
            markup=False,
        )
    if not as_json and result.last_log is not None:
        sys.stdout.write(json.dumps(result.last_log) + "\n")
    return 0


def print_dry_run(report: DryRunReport, *, as_json: bool) -> None:
    """Print the report on stdout, as tables or JSON."""
    import dataclasses

    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(report)) + "\n")
        return
    out = Console(highlight=False)
    out.print("[bold]Resolved configuration[/]")
    out.print(report.config, markup=False)
    data: dict[str, Any] = report.data
    rows = [
        ("rows used / read / skipped", f"{data['rows_used']} / {data['rows_read']} / {data['rows_skipped']}"),
        ("format", data["dataset_format"]),
        ("tokens, of them label tokens", f"{data['total_tokens']:,}, {data['label_tokens']:,}"),
        ("longest row, rows truncated", f"{data['longest']}, {data['rows_truncated']}"),
        ("optimizer steps", f"{report.optimizer_steps:,}"),
        ("parameters, of them trained", f"{report.parameters:,}, {report.trainable_parameters:,}"),
        ("sample", f"{report.sample_rows} rows, {report.sample_label_tokens} label tokens"),
        ("kept share on the sample", f"{report.kept_share:.1%}"),
        ("mean p, plain NLL on the sample", f"{report.mean_p:.3f}, {report.nll:.3f} nats"),
    ]
    rows.append(("engine", report.engine))
    rows += [(f"memory of a device: {name}", f"{size:.2f} GiB") for name, size in report.memory_gib.items() if size]
    rows.append(("memory of a device: sum, an estimate", f"{sum(report.memory_gib.values()):.2f} GiB"))
    table = Table(title="Dry run", show_header=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)
