"""The command line of `profit train`: TRL's parser over the settings of run, trainer and model."""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from trl import ModelConfig, TrlParser

from profit_sft.cli.options import SHORT_FORMS, underscored
from profit_sft.cli.train_help import OF_THE_COMMAND, help_all
from profit_sft.errors import ConfigurationError, brief
from profit_sft.files import read_yaml
from profit_sft.ranges import check_values
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.job import TrainJob

_OF_THE_OBJECTIVE = ("threshold", "threshold_direction", "objective_kwargs")
_DEFAULT_OBJECTIVE = next(entry.default for entry in dataclasses.fields(ProFitConfig) if entry.name == "objective")


# What flags of `trl sft` and the libraries under it were called before.
_FORMER = {
    "group_by_length": "train_sampling_strategy group_by_length",
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "dataset_split": "dataset_train_split",
}
_OF_THE_COMMAND = {f"--{underscored(flag.split()[0][2:])}": flag for flag in OF_THE_COMMAND}
_SHORT_FORMS = {short: f"--{names[0]}" for short, names in SHORT_FORMS.items()}


class Parser(TrlParser):
    """TRL's parser with errors of one line instead of four hundred flags of usage.

    Attributes:
        objective: The objective that the command line names, or None.
    """

    objective: str | None = None

    def set_defaults_with_config(self, **settings: Any) -> list[str]:
        """Take a file's settings; where the command line names another objective, not those that the file's had."""
        if self.objective not in (None, settings.get("objective", _DEFAULT_OBJECTIVE)):
            settings = {name: value for name, value in settings.items() if name not in _OF_THE_OBJECTIVE}
        found: list[str] = super().set_defaults_with_config(**settings)
        return found

    def error(self, message: str) -> NoReturn:
        """Raise ConfigurationError, where argparse would leave the process."""
        message = re.sub(r"(argument --\w+)/--[\w-]+", r"\1", message)  # its other spelling
        message = message.replace("invalid Any value", "takes a list in a file of --config, each with a path, not")
        raise ConfigurationError(f"{brief(message).rstrip('.')}. See profit train --help-all.")


def make_parser() -> Parser:
    """Return the parser of every flag that has a value, with the defaults that are not TRL's."""
    # An abbreviation would mean another flag once a library adds one that begins alike.
    parser = Parser((RunArguments, ProFitConfig, ModelConfig), prog="profit train", add_help=False, allow_abbrev=False)
    # TRL's flag for it goes with a default of True.
    off = {"action": "store_false", "dest": "gradient_checkpointing", "default": None}
    parser.add_argument("--no_gradient_checkpointing", **off)
    parser.set_defaults(output_dir="profit-output", report_to="none")
    return parser


def parse(arguments: Sequence[str]) -> tuple[TrainJob, bool, bool]:
    """Parse the command line of `profit train`.

    Args:
        arguments: Flags after `profit train`, with or without `--config FILE`.

    Returns:
        The job, whether to dry-run, and whether to print JSON.

    Raises:
        ConfigurationError: A flag or key is unknown (the message names the nearest one) or has a bad value.
    """
    arguments = [word for argument in arguments for word in _words(normalized(argument))]
    parser = make_parser()
    switches = {name: name in arguments for name in ("--dry_run", "--json", "--help_all")}
    arguments = [argument for argument in arguments if argument not in switches]
    if switches["--help_all"]:
        sys.stdout.write(help_all(parser))
        raise SystemExit(0)
    file = _named(arguments).config
    lines: dict[str, int] = {}
    if file is not None:
        _, root = read_yaml(file)  # TRL's parser, which reads it again, would take anything
        lines = {key.value: key.start_mark.line + 1 for key, _ in root.value if f"--{key.value}" not in arguments}
    parser.objective = _named(arguments).objective
    try:
        run, config, model_config, unknown = parser.parse_args_and_config(
            args=list(arguments), return_remaining_strings=True, fail_with_unknown_args=False
        )
        check_values(model_config)  # the others have been looked at where they were made
        # TRL makes a pattern of a list of one, and PEFT holds it against whole names, which `q_proj` is none of.
        if re.fullmatch(r"[\w.]+", str(model_config.lora_target_modules or "")):
            model_config.lora_target_modules = [str(model_config.lora_target_modules)]
    except (ValueError, TypeError, ConfigurationError) as error:
        raise ConfigurationError(_place(str(error), file, lines) + str(error)) from None
    except IndexError:
        raise ConfigurationError("--config needs a file. Example: --config recipes/qwen3-0.6b-profit.yaml") from None
    if unknown:
        if not unknown[0].startswith("--"):
            hint = "See profit train --help." if unknown[0].startswith("-") else "Data is named by --dataset_name."
            raise ConfigurationError(f"{unknown[0]!r} belongs to no flag. {hint}")
        wrong = unknown[0].partition("=")[0]
        name = wrong.removeprefix("--")
        known = [option for action in parser._actions for option in action.option_strings if "-" not in option[2:]]
        longer = [option for option in known if option.startswith(wrong)]
        near = longer if len(longer) == 1 else difflib.get_close_matches(wrong, known, n=1, cutoff=0.75)
        place = _place(name, file, lines)
        meant = _FORMER.get(name) or _SHORT_FORMS.get(wrong, "").removeprefix("--")
        hint = f" Did you mean {near[0]}?" if near else " See profit train --help-all."
        if meant:
            hint = f" In YAML write {meant.replace(' ', ': ')}." if place else f" Write --{meant}."
        elif wrong in _OF_THE_COMMAND:
            hint = f" It goes on the command line, once, as {_OF_THE_COMMAND[wrong]}."
        elif near == [f"--{underscored(name)}"]:  # only in a file: on the command line hyphens have become underscores
            hint = f" In YAML write {near[0][2:]}."
        raise ConfigurationError(f"{place}unknown setting {unknown[0]}.{hint}")
    return TrainJob(run, config, model_config), switches["--dry_run"], switches["--json"]


def _place(message: str, file: str | None, lines: Mapping[str, int]) -> str:
    """Return where in the file the setting stands that a message names first, or nothing where it is in none.

    Args:
        message: About a setting.
        file: Of `--config`.
        lines: Of its settings, those left out that the command line gives.
    """
    named = next((word for word in re.findall(r"[\w-]+", message) if word.removeprefix("--") in lines), None)
    return "" if named is None else f"'{file}', line {lines[named.removeprefix('--')]}: "


def normalized(argument: str) -> str:
    """Take `--dry-run` for `--dry_run`, as TRL takes both, and short forms for their flags, without touching values."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = f"--{underscored(name[2:])}"
    return _SHORT_FORMS.get(name, name) + equals + value


def _words(argument: str) -> list[str]:
    """Return `--config=FILE` as the two words that TRL's parser looks for."""
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def names_a_launch(arguments: Sequence[str]) -> bool:
    """Say whether flags or file name an accelerate_config, before they are parsed; mistakes are for the parser."""
    try:
        named = _named([normalized(argument) for argument in arguments])
        settings = read_yaml(named.config)[0] if named.config else {}
    except ConfigurationError:
        return False
    return bool(named.accelerate_config or settings.get("accelerate_config"))


def _named(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what is looked at before the command line is parsed; mistakes are for the parser to tell."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--accelerate_config", "--objective"):
        early.add_argument(name, nargs="?")
    return early.parse_known_args(arguments)[0]
