"""Options that several commands spell alike, and those that are made of the fields of settings, such as the data's."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, get_args

import typer
from typer.models import ArgumentInfo

from profit_sft.data.settings import DataSettings
from profit_sft.errors import ConfigurationError

GivenData = dict[str, Any]  # fields of `DataSettings`, those that were given

# What every command that has one of these flags takes for it as well.
SHORT_FORMS = {"--model": ("model_name_or_path",), "--data": ("dataset_name",), "--out": ("output_dir", "output_file")}


def flag(name: str, help: str, *more_spellings: str) -> Any:
    """Return typer's option of this name, and of its short form where it has one. Hyphens do for underscores.

    Args:
        name: With underscores, as in TRL.
        help: Says the unit, and the default where typer cannot.
        more_spellings: Others, of this option alone.
    """
    short = [spelling for spelling, names in SHORT_FORMS.items() if name in names]
    return typer.Option(*short, *more_spellings, f"--{name}", help=help)


def underscored(name: str) -> str:
    """Return a flag's name as it is declared, whichever of hyphens and underscores it was typed with."""
    return name.replace("-", "_")


ChatTemplatePath = Annotated[str | None, flag("chat_template_path", "Jinja file, or a model to take it from.")]
AllowMissingWeights = Annotated[
    bool, flag("allow_missing_weights", "Load a model whose files lack weights, or hold others.")
]
DAY_OF_TRAINING = "the model's in training, else 2024-07-26"  # of chats, where `template_date` is not given


def takes_data_options(**defaults: object) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Put the data options in the place of a command's parameter `data`, a `GivenData`; see `takes_settings`."""
    return takes_settings(DataSettings, "data", **defaults)


def takes_settings(
    settings: type, parameter: str, **defaults: object
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Put the fields of a settings class that have a help text in the place of one of a command's parameters.

    What was not given is left to the settings' defaults.

    Args:
        settings: A dataclass.
        parameter: Gets a dict of the fields that were given.
        defaults: What the command takes for an option that was not given, where that is not the settings' default. It
            is told in the help text; to take it is left to the command.
    """
    options = [_parameter(entry, defaults) for entry in dataclasses.fields(settings) if "help" in entry.metadata]

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def run(**arguments: Any) -> int:
            found = given({option.name: arguments.pop(option.name) for option in options})
            return command(**arguments, **{parameter: found})

        parameters = [
            option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for own in inspect.signature(command).parameters.values()
            for option in (options if own.name == parameter else [own])
        ]
        return _with_parameters(run, parameters)

    return decorate


def _parameter(entry: "dataclasses.Field[Any]", defaults: Mapping[str, object]) -> inspect.Parameter:
    assert entry.default is not True, f"{entry.name}: a switch that is on would need a flag that turns it off"
    help = entry.metadata["help"]
    default = defaults.get(entry.name, entry.default)
    if default is not None and default is not False and "(default:" not in help:
        help = f"{help.removesuffix('.')} (default: {default})."
    return _optional(entry.name, entry.type, flag(entry.name, help))  # also a switch may not have been given


def takes_arguments_as_flags(command: Callable[..., int]) -> Callable[..., int]:
    """Let an argument whose name has a short form be given by its flag, too: `DATA` as `--dataset_name DATA`."""
    parameters: list[inspect.Parameter] = []
    shown: dict[str, str] = {}  # the argument's name, and what the help text calls it
    for own in inspect.signature(command).parameters.values():
        kind, *about = get_args(own.annotation) or (own.annotation,)
        argument = next((entry for entry in about if isinstance(entry, ArgumentInfo)), None)
        if argument is None or not any(own.name in names for names in SHORT_FORMS.values()):
            parameters.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        shown[own.name] = str(argument.metavar)
        as_flag = flag(own.name, f"The same as {argument.metavar}.")
        parameters += [_optional(own.name, kind, argument), _optional(_as_flag(own.name), kind, as_flag)]
    if not shown:
        return command

    @functools.wraps(command)
    def run(**options: Any) -> int:
        for name, metavar in shown.items():
            values = [value for value in (options[name], options.pop(_as_flag(name))) if value is not None]
            if len(values) != 1:
                short = next(spelling for spelling, names in SHORT_FORMS.items() if name in names)
                raise ConfigurationError(
                    f"{metavar} is there twice, {values[0]!r} and {values[1]!r}. Leave one out."
                    if values
                    else f"{metavar} is missing. Write it alone or as {short} {metavar}."
                )
            options[name] = values[0]
        return command(**options)

    return _with_parameters(run, parameters)


def _as_flag(name: str) -> str:
    return f"{name}_flag"


def _optional(name: str, kind: Any, declared: Any) -> inspect.Parameter:
    """Return a parameter that is None where it was not given, as typer reads it."""
    annotation = Annotated[kind | None, declared]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_parameters(run: Callable[..., int], parameters: list[inspect.Parameter]) -> Callable[..., int]:
    """Give a function the parameters that typer is to read: in one place their order, in the other their types."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # not in typeshed
    run.__annotations__ = {option.name: option.annotation for option in parameters} | {"return": int}
    return run


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options that were not given, so that the library's defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def wrong_values_are_usage_errors() -> Iterator[None]:
    """Turn the `ValueError` or `TypeError` of settings that refuse a value into a `ConfigurationError`."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from None
