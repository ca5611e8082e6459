"""Run `profit` in several real processes on CPUs, as launchers start them."""

import os
import subprocess
import sys
from collections.abc import Sequence
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
