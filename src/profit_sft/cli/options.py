"""Options that several commands spell alike, and the data options, which are made of the fields of `DataSettings`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from profit_sft.data.settings import DataSettings
from profit_sft.errors import ConfigurationError

GivenData = dict[str, Any]  # fields of `DataSettings`, those that were given


def flag(name: str, help: str, *more_spellings: str) -> Any:
    """Return typer's option of this name, which hyphens spell as well.

    Args:
        name: With underscores, as in TRL.
        help: Says the unit, and the default where typer cannot.
        more_spellings: Such as `--out`.
    """
    return typer.Option(*more_spellings, *dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), help=help)


DataToScore = Annotated[str | None, flag("dataset_name", "Data to score first, in place of SCORES.")]
ModelToScoreWith = Annotated[str | None, flag("model_name_or_path", "Model to score with: hub name, folder, embedded.")]
ChatTemplatePath = Annotated[str | None, flag("chat_template_path", "Jinja file, or a model to take it from.")]
AllowMissingWeights = Annotated[
    bool, flag("allow_missing_weights", "Load a model whose files lack weights, or hold others.")
]
DAY_OF_TRAINING = "the model's in training, else 2024-07-26"  # of chats, where `template_date` is not given
ScoresDir = Annotated[Path | None, flag("scores_dir", "Keep the scores there (default: thrown away).")]


def takes_data_options(**defaults: object) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Put the data options in the place of a command's parameter `data`, a `GivenData`.

    They are the fields of `DataSettings` that have a help text. What was not given is left to the settings' defaults.

    Args:
        defaults: What the command takes for an option that was not given, where that is not the settings' default. It
            is told in the help text; to take it is left to the command.
    """
    options = [_parameter(entry, defaults) for entry in dataclasses.fields(DataSettings) if "help" in entry.metadata]

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def run(**arguments: Any) -> int:
            data = given({option.name: arguments.pop(option.name) for option in options})
            return command(**arguments, data=data)

        signature = inspect.signature(command)
        parameters = [
            option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for own in signature.parameters.values()
            for option in (options if own.name == "data" else [own])
        ]
        # What typer reads: one for the parameters, the other for their types.
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # not in typeshed
        run.__annotations__ = {option.name: option.annotation for option in parameters} | {"return": int}
        return run

    return decorate


def _parameter(entry: "dataclasses.Field[Any]", defaults: Mapping[str, object]) -> inspect.Parameter:
    assert entry.default is not True, f"{entry.name}: a switch that is on would need a flag that turns it off"
    help = entry.metadata["help"]
    default = defaults.get(entry.name, entry.default)
    if default not in (None, False):
        help = f"{help.removesuffix('.')} (default: {default})."
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,  # also of a switch: not given
        annotation=Annotated[entry.type | None, flag(entry.name, help)],  # type: ignore[operator]  # a type, no text
    )


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
