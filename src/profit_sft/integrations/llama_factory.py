"""LLaMA-Factory's own training command with the selective loss, in one process or in as many as it starts.

    profit llamafactory train config.yaml [key=value ...]               in place of llamafactory-cli train
    python -m profit_sft.integrations.llama_factory config.yaml ...     the same, under a launcher of one's own, too

Of the configuration it takes `prob_threshold` and `threshold_direction`, as the paper's code spells them there,
`objective`, `objective_kwargs`, `gradient_budget`, `statistics` and `skip_padding`; the rest is LLaMA-Factory's.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from profit_sft.errors import ConfigurationError, ProFitError
from profit_sft.integrations.callback import ProFitCallback
from profit_sft.integrations.settings import Settings, read_settings, refuse, value_of

_PLACE = "LLaMA-Factory"
_OURS = (
    *("prob_threshold", "threshold_direction", "objective", "objective_kwargs"),
    *("gradient_budget", "statistics", "skip_padding", "normalize"),
)
# By each of these it would train by another loss, or by another trainer that this one's callbacks do not reach.
_RIVALS = (
    *("use_dft_loss", "use_eaft_loss", "use_asft_loss", "label_smoothing_factor"),
    *("use_mca", "use_hyper_parallel", "use_kt", "use_unsloth"),
)
_RIVAL_VARIABLES = ("USE_V1", "USE_MCA", "USE_KT")
_STAGES = ("sft", "pt")

Arguments = dict[str, Any] | list[str]  # a file's, or flags as they stand


def main(arguments: Sequence[str]) -> int:
    """Train as `llamafactory-cli train` would with these arguments, and return the exit status.

    Args:
        arguments: What follows `llamafactory-cli`; the word `train` may be left out.

    Raises:
        ConfigurationError: A setting cannot be used, or one is on by which another loss would be trained.
        LossBypassedError: After the first step of a run whose loss came from elsewhere.
    """
    arguments = list(arguments)
    if arguments[:1] == ["train"]:
        del arguments[0]
    elif arguments and not arguments[0].startswith("-") and not arguments[0].endswith((".yaml", ".yml", ".json")):
        raise ConfigurationError(f"only LLaMA-Factory's train is run with ProFit, got {arguments[0]!r}.")
    _refuse_variables()
    try:
        from llamafactory import launcher
        from llamafactory.hparams import read_args
        from llamafactory.train import tuner
    except ModuleNotFoundError as error:
        if error.name != "llamafactory":
            raise
        raise ConfigurationError(
            "LLaMA-Factory is not installed in this environment. Run pip install llamafactory, or use its environment."
        ) from error
    # read_args and launch read the command line, each its own part of it.
    sys.argv[1:] = arguments
    settings, theirs = take_settings(read_args())

    def run_exp() -> None:
        from llamafactory.extras import logging

        logging.get_logger("llamafactory.profit").info_rank0(str(settings))  # it shows what is named after it
        tuner_run_exp(theirs, callbacks=[ProFitCallback(settings.objective, **settings.options)])

    tuner_run_exp = tuner.run_exp
    if "LOCAL_RANK" in os.environ:  # a launcher has started this process
        run_exp()
        return 0
    tuner.run_exp = run_exp
    try:
        return _launch(launcher)
    finally:
        tuner.run_exp = tuner_run_exp


def _launch(launcher: Any) -> int:
    """Have LLaMA-Factory call `run_exp` here, or start this module on every rank, whichever its variables ask for."""
    launcher.__file__ = f"-m {__spec__.name}"  # what its line for torchrun names, which is split at blanks
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    sys.argv.insert(1, "train")
    try:
        launcher.launch()
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def take_settings(arguments: Arguments) -> tuple[Settings, Arguments]:
    """Take our settings out of LLaMA-Factory's arguments, and refuse what would train another loss.

    Args:
        arguments: What its `read_args` returns.

    Returns:
        Our settings, and its own arguments without them.
    """
    given = dict(arguments) if isinstance(arguments, dict) else _named(arguments)
    refuse({name: given.get(name) for name in _RIVALS}, place=_PLACE)
    stage = given.get("stage", "sft")
    if stage not in _STAGES:
        raise ConfigurationError(f"stage {stage!r} has no reference answer to weigh. ProFit serves sft and pt.")
    settings = read_settings({name: given[name] for name in _OURS if name in given}, place="LLaMA-Factory's arguments")
    if isinstance(arguments, dict):
        return settings, {name: value for name, value in arguments.items() if name not in _OURS}
    theirs, skipping = [], False
    for text in arguments:
        if text.startswith("--"):
            skipping = text.removeprefix("--").partition("=")[0] in _OURS
        if not skipping:
            theirs.append(text)
    return settings, theirs


def _named(flags: Sequence[str]) -> dict[str, Any]:
    """Read `--name value`, `--name=value`, several values as a list, and `--name` by itself, which is true."""
    given: dict[str, list[Any]] = {}
    name = ""
    for text in flags:
        if text.startswith("--"):
            name, assigned, text = text.removeprefix("--").partition("=")
            given[name] = []
            if not assigned:
                continue
        if name:
            given[name].append(value_of(text))
    return {name: True if not values else values[0] if len(values) == 1 else values for name, values in given.items()}


def _refuse_variables() -> None:
    on = {
        name: value for name in _RIVAL_VARIABLES if (value := os.environ.get(name, "0").lower()) in ("1", "y", "true")
    }
    refuse(on, place=_PLACE)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ProFitError as error:
        sys.exit(f"error: {error}")
