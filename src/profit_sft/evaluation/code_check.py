"""Whether a program that a model wrote passes its tests: it is run, in a process of its own, if that was allowed.

The process has limits of CPU time, wall-clock time, memory and file size, an empty folder, and no variables of the
environment. It is no sandbox: it has the rights of the user, and the network. Run it in a container.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from profit_sft.errors import ConfigurationError

CPU_SECONDS = 10
WALL_SECONDS = 60.0  # for what waits without computing; generous, since the machine may be busy
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20

_WORKER = Path(__file__).with_name("code_worker.py")
_ENVIRONMENT = "HF_ALLOW_CODE_EVAL"  # what lm-evaluation-harness's own humaneval asks for, too
_confirmed: ContextVar[bool] = ContextVar("confirm_run_unsafe_code", default=False)


@contextmanager
def confirm_run_unsafe_code(confirmed: bool = True) -> Iterator[None]:
    """Allow the code that models write to be run, within this context; if `confirmed` is False, do nothing."""
    token = _confirmed.set(confirmed)
    try:
        yield
    finally:
        _confirmed.reset(token)


def check_confirmed(task: str) -> None:
    """Refuse a task that runs code unless that was allowed.

    Args:
        task: Its name.

    Raises:
        ConfigurationError: It was not allowed, or this system knows no limits for a process.
    """
    if os.name != "posix":
        raise ConfigurationError(
            f"{task} runs code that the model wrote, under limits that POSIX systems have. Run it on Linux or a Mac."
        )
    if not _confirmed.get() and os.environ.get(_ENVIRONMENT) != "1":
        raise ConfigurationError(
            f"{task} runs code that the model wrote, with your rights. If that is what you want, best in a container, "
            "give --confirm_run_unsafe_code (to lm-evaluation-harness by itself with the variable "
            f"{_ENVIRONMENT}=1 besides); else leave {task} out."
        )


def passes(program: str, *, cpu_seconds: int = CPU_SECONDS, wall_seconds: float = WALL_SECONDS) -> bool:
    """Run a program with its tests and say whether it came to its end; call `check_confirmed` first.

    Args:
        program: Python source.
        cpu_seconds: Processor time it may take.
        wall_seconds: Time it may take.
    """
    token = secrets.token_hex(16)
    request = {
        "program": program,
        "token": token,
        "cpu_seconds": cpu_seconds,
        "memory_bytes": MEMORY_BYTES,
        "file_bytes": FILE_BYTES,
    }
    with tempfile.TemporaryDirectory(prefix="profit-code-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(json.dumps(request) + "\n", timeout=wall_seconds)
        except subprocess.TimeoutExpired:
            output = ""
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.communicate()
    return output == token
