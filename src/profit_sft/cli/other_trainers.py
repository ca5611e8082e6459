"""`profit plugin` and `profit llamafactory`: what another trainer is given, and its command with our loss in it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from profit_sft.errors import ConfigurationError

# By file: ms-swift loads it by its path. A trainer that takes a module's name needs no path.
_FILES = {"ms-swift": "ms_swift/plugin.py"}
_MODULES = {
    "axolotl": "plugins: [profit_sft.integrations.axolotl.ProFitPlugin]",
    "verl": "model.external_lib=profit_sft.integrations.verl",
    "nemo-automodel": "loss_fn: {_target_: profit_sft.integrations.nemo_automodel.ProFitCrossEntropy}",
    "llamafactory": "profit llamafactory train config.yaml",
}


def plugin_command(trainer: Annotated[str, typer.Argument(help="ms-swift.")]) -> int:
    """Print the path of the plug-in for a trainer that loads plug-ins by file: `ms-swift`."""
    if trainer in _MODULES:
        raise ConfigurationError(f"{trainer} takes no plug-in file. Write: {_MODULES[trainer]}")
    if trainer not in _FILES:
        raise ConfigurationError(f"there is no plug-in file for {trainer!r}. There is one for: {', '.join(_FILES)}.")
    sys.stdout.write(f"{Path(__file__).parents[1] / 'integrations' / _FILES[trainer]}\n")
    return 0


def llamafactory_command(context: typer.Context) -> int:
    """Run LLaMA-Factory's train with a token objective: `train config.yaml [key=value ...]`, as its own command does.

    Ours among its keys: prob_threshold, threshold_direction, objective, objective_kwargs, gradient_budget, statistics.
    """
    from profit_sft.integrations.llama_factory import main

    return main(context.args)
