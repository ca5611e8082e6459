"""Cells as tasks of a Ray cluster: Ray places them by the GPUs they need, and again elsewhere when a machine dies.

All nodes see the study's folder, and the folder the study was started in, under the same paths. A task does there what
the driver does without Ray: it starts the cell's child processes and waits for them.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from profit_sft.errors import ConfigurationError, require_extra
from profit_sft.interrupts import signals_handled
from profit_sft.study.cells import CellFailed, CellRun, failure_of, run_cell
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import Cell, StudyPlan
from profit_sft.study.processes import Interrupted, StopRequest, planned_ranks

_POLL_SECONDS = 0.5
# Ray's default is 3. A cell may take hours, on machines that are taken away; a retry costs it minutes.
_RETRIES = 10


@contextmanager
def ray_cluster(plan: StudyPlan, cells: Sequence[Cell]) -> Iterator[Callable[[CellRun], None]]:
    """Connect to the cluster that this machine belongs to, or that RAY_ADDRESS names; yield what runs a cell on it.

    Raises:
        ConfigurationError: There is none, or no node of it has GPUs enough for a cell.
        MissingExtraError: Ray is not installed.
    """
    require_extra("ray", wanted_by="--executor ray")
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        raise ConfigurationError(
            "--executor ray: there is no Ray cluster here. Start one with `ray start --head`, and on every other "
            "machine `ray start --address=HEAD:6379`."
        ) from None
    try:
        node_gpus = max(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
        _check_gpus(plan, cells, node_gpus)
        # On this node: the messages are for this process, and should not die with another machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        yield _Cluster(has_gpus=node_gpus > 0, messages=messages).run_cell
    finally:
        ray.shutdown()


def _check_gpus(plan: StudyPlan, cells: Sequence[Cell], node_gpus: int) -> None:
    """Refuse a cell that Ray would let wait for ever."""
    for cell in cells:
        ranks = planned_ranks(plan.train_settings(cell))
        if ranks > node_gpus > 0:
            raise ConfigurationError(
                f"{cell.slug} trains on {ranks} GPUs, and no node of the Ray cluster has more than {node_gpus}. Start "
                "one that has, or name fewer num_processes."
            )


class _Cluster:
    """Runs cells on the cluster that this process is connected to."""

    def __init__(self, *, has_gpus: bool, messages: Any) -> None:
        self._has_gpus = has_gpus
        self._messages = messages
        self._reading = threading.Lock()

    def run_cell(self, run: CellRun) -> None:
        """Take the cell to its end, as `profit_sft.study.cells.run_cell` does on this machine; raises the same."""
        import ray

        ranks = planned_ranks(run.plan.train_settings(run.cell))
        task = ray.remote(_run_on_node).options(
            num_cpus=ranks, num_gpus=ranks if self._has_gpus else 0, max_retries=_RETRIES, name=run.cell.slug
        )
        study = StudyFolder(run.study.path.absolute())
        result = task.remote(run.plan, run.cell, study, Path.cwd(), self._messages)
        try:
            failure = self._wait(result, run)
        except ray.exceptions.RayError as error:
            failure = f"{run.cell.slug}: {error}"
        if run.stop.asked and not run.folder.finished.exists():
            raise Interrupted
        if failure is not None:
            raise CellFailed(failure)

    def _wait(self, result: Any, run: CellRun) -> str | None:
        import ray

        passed_on = 0
        while not ray.wait([result], timeout=_POLL_SECONDS)[0]:
            self._pass_on_messages(run)
            # As to a child on this machine: the first stop lets it save a checkpoint, the second one does not wait.
            if run.stop.asked and passed_on < 1 + run.stop.urgent:
                ray.cancel(result, force=run.stop.urgent)
                passed_on += 1
        failure: str | None = ray.get(result)
        self._pass_on_messages(run)
        return failure

    def _pass_on_messages(self, run: CellRun) -> None:
        with self._reading:
            texts = self._messages.get_nowait_batch(self._messages.qsize())
        for text in texts:
            run.say(text)


def _run_on_node(plan: StudyPlan, cell: Cell, study: StudyFolder, started_in: Path, messages: Any) -> str | None:
    """Run the cell on this node; return why it failed, or None."""
    if not (started_in.is_dir() and study.driver.is_file()):
        return (
            f"{cell.slug}: on {socket.gethostname()} there is no '{started_in}', or '{study.path}' is not the study's "
            "folder. All nodes must share them."
        )
    os.chdir(started_in)  # paths in the study file are relative to it
    if study.cell(cell.slug).finished.exists():  # by an attempt that could not tell the driver so any more
        return None
    stop = StopRequest()
    run = CellRun(plan=plan, cell=cell, study=study, stop=stop, say=messages.put, environment={})
    try:
        # Ray cancels a task by what is a SIGINT to Python. SIGTERM ends this process, and with it its child.
        with signals_handled(stop.ask, signal.SIGINT):
            run_cell(run)
    except Interrupted:
        return f"{cell.slug}: stopped on {socket.gethostname()}"
    except Exception as error:
        return failure_of(cell, error)
    return None
