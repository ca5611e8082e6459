"""Run `profit` in several real processes on CPUs, as launchers start them."""

import functools
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed
from accelerate.commands.launch import launch_command, launch_command_parser

from distributed import cpu_engines
from forks import run_ranks
from profit_sft.cli.app import run_app

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TIMEOUT_SECONDS = 600


def environment(**changes: str) -> dict[str, str]:
    """Return what the processes get: one thread each, and this tree's package before an installed one."""
    source = str(Path(__file__).resolve().parents[2] / "src")
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **changes}


def accelerate_environment(*flags: str) -> dict[str, str]:
    """Return what `accelerate launch` with these flags gives to the processes it starts, but for their ranks."""
    found: dict[str, str] = {}
    with patch("torch.distributed.run.run", lambda _: found.update(os.environ)):
        launch_command(launch_command_parser().parse_args([*flags, "script"]))
    assert found
    return found


def run_on_cpus(main: Callable[..., int | None], *arguments: Any, folder: Path, ranks: int, **environment: str) -> None:
    """Call a function in so many processes, which have to end well."""
    statuses, printed = run_ranks(*(main, *arguments), folder=folder, ranks=ranks, environment=os.environ | environment)
    assert not any(statuses), f"exit statuses {statuses}\n{printed[-4000:]}"


def with_cpu_engines(target: Callable[..., int | None], *arguments: Any) -> int | None:
    """Call a function where accelerate takes up its engines on CPUs."""
    cpu_engines.install()
    return target(*arguments)


def launch_as_node(flags: list[str], words: list[str]) -> None:
    """Be `accelerate launch` of these words on one of several machines, which this process's rank counts."""
    given = {name: os.environ.pop(name) for name in ("MASTER_ADDR", "MASTER_PORT", "RANK")}
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        del os.environ[name]
    address = ["--main_process_ip", given["MASTER_ADDR"], "--main_process_port", given["MASTER_PORT"]]
    machine = [*address, "--machine_rank", given["RANK"]]
    launch_command(launch_command_parser().parse_args([*flags, *machine, *words]))


def train_and_part(words: list[str]) -> None:
    """Train; the group of processes must be over by then.

    What its threads still do while Python shuts down may abort a process whose work is done.
    """
    assert run_app(words) == 0
    assert not torch.distributed.is_initialized()


def import_deepspeed() -> None:
    """Fail where it cannot start."""
    cpu_engines.skip_shared_memory_op()
    import deepspeed  # noqa: F401


@functools.cache
def deepspeed_fault() -> str | None:
    """Return why DeepSpeed cannot start on this machine's CPUs, or None."""
    if find_spec("deepspeed") is None:
        return "DeepSpeed is not installed: pip install deepspeed"
    with tempfile.TemporaryDirectory() as folder:
        statuses, printed = run_ranks(
            import_deepspeed, ranks=1, folder=Path(folder), environment={**os.environ, "DS_ACCELERATOR": "cpu"}
        )
    return None if statuses == [0] else f"DeepSpeed cannot start here: {printed.strip().splitlines()[-1]}"
