"""Processes forked from one that has imported everything, which takes longer than most of what they do."""

import atexit
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("profit_sft.cli.app", "profit_sft.train.run", "profit_sft.scores.score", "profit_sft.evaluation.runner"),
        # What the first step of an optimizer and the first model of these families import.
        *("torch._dynamo", "torch.distributed.fsdp", "transformers.models.llama.modeling_llama"),
    ]
)
Process = multiprocessing.process.BaseProcess


def start(words: Sequence[str], log: Path, **environment: str) -> Process:
    """Start `profit` with these words; return its process once it has begun.

    What it says goes to the file, and what it prints on stdout to one beside it whose name ends in `.out`.
    """
    begun = log.with_suffix(".begun")
    begun.unlink(missing_ok=True)
    process = FORKS.Process(target=_be_profit, args=(words, log, environment))
    process.start()
    atexit.register(process.kill)  # or the tests would wait in the end for one that a failed test left behind
    while process.is_alive() and not begun.exists():
        time.sleep(0.004)
    return process


def _be_profit(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    from profit_sft.cli.app import run_app

    os.environ.update(environment)
    _print_to(log.with_suffix(".out"), log)
    log.with_suffix(".begun").touch()
    try:
        status = run_app(words)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is over
    except KeyboardInterrupt:  # before the command, or after it: as Python does
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what multiprocessing does at a process's end is none of a command's


def _print_to(out: Path, err: Path) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), descriptor)


def run_ranks(
    target: Callable[..., int | None],
    *arguments: Any,
    folder: Path,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 600,
) -> tuple[list[int | None], str]:
    """Call a function in so many processes, with the variables that a launcher sets; one rank is not told of any other.

    When one of them fails, or after the time, the others are killed.

    Args:
        target: May return a status; None is 0.
        *arguments: Of `target`.
        folder: Where what they print goes.
        ranks: How many.
        environment: In place of this process's.
        timeout_seconds: For all of them.

    Returns:
        Their exit codes, and what they printed, rank by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    size = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), **address} if ranks > 1 else {}
    folder.mkdir(parents=True, exist_ok=True)
    logs, processes = [folder / f"rank-{rank}.log" for rank in range(ranks)], []
    for rank, log in enumerate(logs):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        variables = {**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1", **size, **own}
        processes.append(FORKS.Process(target=_be_rank, args=(target, arguments, variables, log)))
    try:
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout_seconds
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in processes):
                break
            multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], 1.0)
    finally:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
    return [process.exitcode for process in processes], "\n".join(log.read_text() for log in logs if log.exists())


def _be_rank(
    target: Callable[..., int | None], arguments: tuple[Any, ...], environment: Mapping[str, str], log: Path
) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    _print_to(log, log)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        status = target(*arguments) or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of an engine may outlive the group
