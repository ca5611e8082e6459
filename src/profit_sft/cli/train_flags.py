"""The command line of `profit train`: TRL's parser over the settings of run, trainer and model."""

import argparse
import difflib
import itertools
from collections.abc import Sequence
from typing import NoReturn

from trl import ModelConfig, TrlParser

from profit_sft.errors import ConfigurationError, brief
from profit_sft.files import read_yaml
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.ranges import check_values


class Parser(TrlParser):
    """TRL's parser with errors of one line instead of four hundred flags of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigurationError, where argparse would leave the process."""
        raise ConfigurationError(f"{brief(message)}. See profit train --help.")


def parse(arguments: Sequence[str]) -> tuple[RunArguments, ProFitConfig, ModelConfig, bool, bool]:
    """Parse the command line of `profit train`.

    Args:
        arguments: Flags after `profit train`, with or without `--config FILE`.

    Returns:
        Run, trainer and model settings, whether to dry-run, and whether to print JSON.

    Raises:
        ConfigurationError: A flag or key is unknown (the message names the nearest one) or has a bad value.
    """
    arguments = [normalized(argument) for argument in arguments]
    parser = Parser((RunArguments, ProFitConfig, ModelConfig), prog="profit train", add_help=False)
    parser.set_defaults(output_dir="profit-output", report_to="none")
    switches = {name: name in arguments for name in ("--dry_run", "--json", "--help_all")}
    arguments = [argument for argument in arguments if argument not in switches]
    if switches["--help_all"]:
        parser.print_help()
        raise SystemExit(0)
    for flag, path in itertools.pairwise(arguments):
        if flag == "--config":
            read_yaml(path)  # TRL's parser, which reads it again, would take anything
    try:
        run, config, model_config, unknown = parser.parse_args_and_config(
            args=list(arguments), return_remaining_strings=True, fail_with_unknown_args=False
        )
        for settings in (run, model_config):  # the trainer's have been looked at where they were made
            check_values(settings)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from None
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


def normalized(argument: str) -> str:
    """Take `--dry-run` for `--dry_run`, as TRL takes both, without touching values."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value


def names_a_launch(arguments: Sequence[str]) -> bool:
    """Say whether flags or file name an accelerate_config, before they are parsed; mistakes are for the parser."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--config")
    given.add_argument("--accelerate_config")
    try:
        known, _ = given.parse_known_args([normalized(argument) for argument in arguments])
        settings = read_yaml(known.config)[0] if known.config else {}
    except (argparse.ArgumentError, SystemExit, ConfigurationError):
        return False
    return bool(known.accelerate_config or settings.get("accelerate_config"))
