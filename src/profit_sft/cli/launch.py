"""`profit train --accelerate_config FILE`: the same command once more, under `accelerate launch`."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from profit_sft.interrupts import signals_handled, stop_with_parent
from profit_sft.train.arguments import RunArguments
from profit_sft.train.engine import planned_engine

_LAUNCHED = "PROFIT_LAUNCHED"  # a launcher leaves no mark of its own in a single process


def is_launched() -> bool:
    """Say whether a launcher started this process, `launch` among them."""
    return "WORLD_SIZE" in os.environ or is_launched_here()


def is_launched_here() -> bool:
    """Say whether `launch` started this process."""
    return _LAUNCHED in os.environ


def launch(run: RunArguments, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `accelerate launch` of the same `profit train`, as `run.accelerate_config` says, and return its exit status.

    Launchers pass a signal on to their processes with 30 seconds to live, or not at all. So these are out of the reach
    of the terminal's, and are told by the end of a pipe that they have inherited (`follow_launch`): at the first SIGINT
    or SIGTERM, or when this process is killed. They save a checkpoint then. A second signal ends them at once.

    Args:
        run: Names the file, and perhaps another number of processes.
        arguments: The command line after `profit train`.
        environment: As it was before settings left their marks in it.

    Raises:
        ConfigurationError: The file cannot be used.
    """
    assert run.accelerate_config is not None
    planned_engine(run.accelerate_config, run.num_processes)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", run.accelerate_config]
    if run.num_processes is not None:
        command += ["--num_processes", str(run.num_processes)]
    command += ["-m", "profit_sft.cli", "train", *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    process = subprocess.Popen(
        command, env={**environment, _LAUNCHED: "1"}, stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    pipe, stopped = process.stdin, False

    def stop(number: int) -> None:
        nonlocal stopped
        if stopped:
            os.killpg(process.pid, signal.SIGTERM)
        stopped = True
        pipe.close()

    with signals_handled(stop):
        status = process.wait()
    return 130 if stopped else int(status != 0)


def follow_launch() -> None:
    """Stop when the process that called `launch` does, or is told to."""
    if is_launched_here():
        stop_with_parent()
