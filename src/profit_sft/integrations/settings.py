"""What a trainer's configuration says about the objective, in that trainer's spelling: one reading for all of them."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from profit_sft.errors import ConfigurationError
from profit_sft.head_forward import SelectiveHead
from profit_sft.objectives import FROM_THE_BATCH, Objective, make_objective

# Beside `objective` and `objective_kwargs`; what is none of these is a field of the objective.
_HEAD_OPTIONS = ("gradient_budget", "statistics", "skip_padding", "chunk_size", "backend")
_PREFIX = "PROFIT_"
# Of this package's other parts.
_NOT_SETTINGS = {"PROFIT_LAUNCHED", "PROFIT_CACHE", "PROFIT_EMBEDDED_MODEL"}


class Settings(NamedTuple):
    """The objective, and the options of `apply_profit` that were given."""

    objective: Objective
    options: dict[str, Any]

    def __str__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"ProFit trains {self.objective}{options}."


def read_settings(given: Mapping[str, Any], *, place: str) -> Settings:
    """Build the objective from what a configuration says.

    Args:
        given: `objective` (default `profit`), `objective_kwargs` (a mapping, or one as JSON), `normalize` (only `all`),
            `gradient_budget`, `statistics`, `skip_padding`, `chunk_size`, `backend`; anything else is a field of the
            objective, in our spelling or another tool's (`prob_threshold`, `threshold_direction`). None is not given.
        place: Where it stands, for messages.

    Raises:
        ConfigurationError: A name or a value that cannot be used, or that would not be exact in another trainer.
    """
    found = {name: value for name, value in given.items() if value is not None}
    asked = found.pop("normalize", None)
    options = {name: found.pop(name) for name in _HEAD_OPTIONS if name in found}
    name, more = found.pop("objective", "profit"), found.pop("objective_kwargs", {})
    try:
        more = json.loads(more) if isinstance(more, str) else dict(more)
        repeated = sorted(found.keys() & more.keys())
        if repeated:
            raise ValueError(f"{repeated[0]} is given twice, once in objective_kwargs.")
        objective = make_objective(name, **found, **more)
        SelectiveHead(objective=objective, **options)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{place}: {error}") from error
    normalize = asked or getattr(objective, "normalize", "all")
    if normalize != "all":
        raise ConfigurationError(
            f"{place}: normalize {normalize!r} is exact in ProFitTrainer alone, since the kept tokens of a step are "
            "known only after its last micro-batch. Say 'all' to divide by the labels, or train with profit train."
        )
    beside = sorted(objective.needs.intersection(FROM_THE_BATCH))
    if beside:
        raise ConfigurationError(
            f"{place}: {objective} needs {', '.join(beside)} beside the labels, which this trainer does not hand over. "
            "Train with profit train, or take another objective."
        )
    return Settings(objective, options)


def read_environment(*, place: str) -> Settings:
    """Build the objective from `PROFIT_OBJECTIVE`, `PROFIT_THRESHOLD` and so on.

    A name that is none, such as `PROFIT_TRESHOLD`, is refused rather than left unread.
    """
    given = {}
    for name, text in os.environ.items():
        if name.startswith(_PREFIX) and name not in _NOT_SETTINGS and text:
            given[name.removeprefix(_PREFIX).lower()] = value_of(text)
    return read_settings(given, place=place)


def value_of(text: str) -> Any:
    """Read a number, a truth, a list or a mapping as such, and anything else as it stands: a command line has text."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text


def refuse(switches: Mapping[str, Any], *, place: str) -> None:
    """Raise if a switch is on by which the trainer would compute another loss.

    Args:
        switches: The trainer's own names, each with its value.
        place: The trainer.
    """
    on = [
        f"{name}={value!r}" for name, value in switches.items() if value not in (None, False, 0, "", "false", "False")
    ]
    if on:
        raise ConfigurationError(
            f"{place} would compute its loss by {', '.join(on)} and never call the selective one. Take it out of the "
            "configuration, or train without ProFit."
        )
