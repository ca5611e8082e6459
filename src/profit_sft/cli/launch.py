"""`profit train --accelerate_config FILE`: the same command once more, under `accelerate launch`."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from profit_sft.train.arguments import RunArguments
from profit_sft.train.engine import planned_engine

_LAUNCHED = "PROFIT_LAUNCHED"  # a launcher leaves no mark of its own in a single process


def is_launched() -> bool:
    """Say whether a launcher started this process, `launch` among them."""
    return "WORLD_SIZE" in os.environ or _LAUNCHED in os.environ


def launch(run: RunArguments, arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Become `accelerate launch` of the same `profit train`, as `run.accelerate_config` says.

    Args:
        run: Names the file, and perhaps another number of processes.
        arguments: The command line after `profit train`.
        environment: As it was before settings left their marks in it.

    Raises:
        ConfigurationError: The file cannot be used.
    """
    assert run.accelerate_config is not None
    planned_engine(run.accelerate_config, run.num_processes)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", run.accelerate_config]
    if run.num_processes is not None:
        command += ["--num_processes", str(run.num_processes)]
    command += ["-m", "profit_sft.cli", "train", *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, {**environment, _LAUNCHED: "1"})
