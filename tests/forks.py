"""Processes forked from one that has imported everything, which takes longer than most of what they do."""

import atexit
import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    import pytest

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
    for path in (begun, log, log.with_suffix(".out")):
        path.unlink(missing_ok=True)
    process = FORKS.Process(target=_be_profit, args=(words, log, environment))
    process.start()
    atexit.register(process.kill)  # or the tests would wait in the end for one that a failed test left behind
    while process.is_alive() and not begun.exists():
        time.sleep(0.004)
    return process


def _be_profit(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    from profit_sft.cli.app import run_app

    gc.freeze()  # what was there before the fork is no garbage, and would be copied by being looked at
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
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)


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
        log.unlink(missing_ok=True)
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


def run_script(path: Path, *words: str, folder: Path) -> tuple[int | None, str]:
    """Run a script as `python path words` does; return its exit code, and what it printed, which goes to the folder."""
    statuses, printed = run_ranks(_be_script, path, words, folder=folder, ranks=1)
    return statuses[0], printed


def _be_script(path: Path, words: Sequence[str]) -> None:
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _be_rank(
    target: Callable[..., int | None], arguments: tuple[Any, ...], environment: Mapping[str, str], log: Path
) -> None:
    import torch

    gc.freeze()
    os.environ.clear()
    os.environ.update(environment)
    _print_to(log, log)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _exit_with(lambda: target(*arguments))


def _exit_with(call: Callable[[], int | None]) -> NoReturn:
    try:
        status = call() or 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of an engine may outlive the group


class ForkedModule:
    """In place of the `subprocess.Popen` of `python -m`, as a study starts its children: the same module, forked."""

    _one_at_a_time = threading.Lock()  # starting a process reads the status of every one that has ended

    def __init__(self, command: Sequence[str], *, stdout: BinaryIO, env: Mapping[str, str], **rest: object) -> None:
        assert command[:2] == [sys.executable, "-m"], command
        assert rest == {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}, rest
        reader, self.stdin = FORKS.Pipe(duplex=False)
        with self._one_at_a_time, reader:
            self._process = FORKS.Process(
                target=_be_module, args=(list(command[2:]), dict(env), reader, Path(stdout.name))
            )
            self._process.start()
        self.pid = self._process.pid

    def wait(self, timeout: float) -> int | None:
        if not multiprocessing.connection.wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired("a forked module", timeout)
        with self._one_at_a_time:
            self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _be_module(
    words: Sequence[str], environment: Mapping[str, str], stdin: multiprocessing.connection.Connection, log: Path
) -> None:
    import torch

    gc.freeze()
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(stdin.fileno(), 0)
    _print_to(log, log)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    sys.argv = list(words)
    _exit_with(lambda: runpy.run_module(words[0], run_name="__main__", alter_sys=True) and None)


def fork_children_of_studies(monkeypatch: "pytest.MonkeyPatch") -> None:
    """Let the cells of a study fork their children; tests/study/test_real_study.py has studies that start theirs."""
    names = ("PIPE", "STDOUT", "TimeoutExpired")
    fake = SimpleNamespace(Popen=ForkedModule, **{name: getattr(subprocess, name) for name in names})
    monkeypatch.setattr("profit_sft.study.processes.subprocess", fake)
