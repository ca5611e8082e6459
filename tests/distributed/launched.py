"""Run `profit` in several real processes on CPUs, as launchers start them."""

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TIMEOUT_SECONDS = 600


def environment(**changes: str) -> dict[str, str]:
    """Return what the processes get: one thread each, and this tree's package before an installed one."""
    source = str(Path(__file__).resolve().parents[2] / "src")
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **changes}


def profit(launcher: Sequence[str], *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `profit` under a launcher to its end."""
    return subprocess.run(
        [*launcher, "-m", "profit_sft.cli", *arguments],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


@functools.cache
def deepspeed_fault():
    """Return why DeepSpeed cannot start on this machine's CPUs, or None."""
    if find_spec("deepspeed") is None:
        return "DeepSpeed is not installed: pip install deepspeed"
    code = "import cpu_engines; cpu_engines.skip_shared_memory_op(); import deepspeed; print(deepspeed.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(DS_ACCELERATOR="cpu"),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"DeepSpeed cannot start here: {done.stderr.strip().splitlines()[-1]}"
