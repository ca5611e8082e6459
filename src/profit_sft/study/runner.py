"""Run the cells of a study: one after the other, several at a time, or on the nodes of a Ray cluster."""

import fnmatch
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from profit_sft.data.generated import SYSTEM_PROMPT, generate_problems, write_jsonl
from profit_sft.errors import ConfigurationError, ProFitError
from profit_sft.files import check_output_folder
from profit_sft.interrupts import signals_handled
from profit_sft.study.cells import (
    CellRun,
    check_settings,
    drop_weights,
    failure_of,
    imitated_cell,
    needs_scores,
    run_cell,
)
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import GENERATED, Cell, StudyPlan
from profit_sft.study.processes import Interrupted, StopRequest
from profit_sft.study.ray_executor import ray_cluster
from profit_sft.study.tries import with_best_value

_WAIT_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """How a call of `run_study` ended.

    Attributes:
        finished: Names of the chosen cells that are finished now.
        failed: Reason by name of those that failed.
        stopped_by: Number of the signal that stopped it, or None.
    """

    finished: tuple[str, ...]
    failed: dict[str, str]
    stopped_by: int | None


def choose_cells(plan: StudyPlan, pattern: str | None) -> tuple[Cell, ...]:
    """Return the cells whose name matches a shell pattern, in the plan's order.

    Raises:
        ConfigurationError: None does.
    """
    if pattern is None:
        return plan.runs
    chosen = tuple(cell for cell in plan.runs if fnmatch.fnmatchcase(cell.slug, pattern))
    if not chosen:
        names = ", ".join(cell.slug for cell in plan.runs[:8])
        raise ConfigurationError(f"--cells {pattern!r} matches none of {len(plan.runs)} cells, such as {names}.")
    return chosen


def run_study(
    plan: StudyPlan,
    output_dir: Path,
    *,
    cells: str | None = None,
    on_ray: bool = False,
    jobs: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> RunReport:
    """Run every chosen cell that is not finished.

    Call it again after a stop, a crash or a kill: finished cells are left alone, begun ones go on from their last
    checkpoint. A cell that fails does not keep the others from running.

    Args:
        plan: The study.
        output_dir: Its folder, see `profit_sft.study.layout`.
        cells: Shell pattern for names of cells. None: all.
        on_ray: Run them on the nodes of a Ray cluster, not on this machine.
        jobs: Cells that run at a time. None: one, on Ray as many as there is room for.
        say: Called with one line of text whenever something begins or ends, from several threads.

    Raises:
        ConfigurationError: The folder holds cells with other settings or is another process's at the moment, a chosen
            cell waits for one left out, or there is no Ray cluster that the cells could run on.
    """
    check_output_folder(output_dir)
    chosen, study = choose_cells(plan, cells), StudyFolder(output_dir)
    for cell in chosen:
        if (tuned := with_best_value(plan, cell, study)) is not None:
            check_settings(plan, tuned, study.cell(cell.slug))
    _check_dependencies(plan, chosen, study)
    loop = _Loop(plan, study, list(chosen), say)
    executor = ray_cluster(plan, chosen) if on_ray else nullcontext(run_cell)
    with study.driven(), executor as run_one, signals_handled(loop.stop.ask):
        write_generated(plan, study)
        loop.run(run_one, jobs or (len(chosen) if on_ray else 1))
    return RunReport(
        finished=tuple(cell.slug for cell in chosen if study.cell(cell.slug).finished.exists()),
        failed=loop.failed,
        stopped_by=loop.stop.signal_number,
    )


def write_generated(plan: StudyPlan, study: StudyFolder) -> None:
    """Write the generated problems where the study uses them. They are the same every time."""
    made = plan.generated
    files = (
        (plan.dataset_name, study.train_file, made.rows, made.seed, "train"),
        (plan.heldout_dataset_name, study.heldout_file, made.heldout_rows, made.heldout_seed, "test"),
    )
    for name, path, rows, seed, split in files:
        if name == GENERATED and not path.exists():
            try:
                problems = generate_problems(rows, seed=seed, split=split, steps=made.steps)  # type: ignore[arg-type]
            except ValueError as error:
                raise plan.file.error(("generated",), f": {error}") from None
            write_jsonl(problems, path, system_prompt=SYSTEM_PROMPT)


def _check_dependencies(plan: StudyPlan, chosen: tuple[Cell, ...], study: StudyFolder) -> None:
    for cell in chosen:
        for needed, what in _needed_cells(plan, cell):
            if needed not in chosen and not study.cell(needed.slug).finished.exists():
                raise ConfigurationError(
                    f"{cell.slug} takes its {what} from {needed.slug}, which is not finished and which --cells leaves "
                    "out. Choose both, or run that one first."
                )


def _needed_cells(plan: StudyPlan, cell: Cell) -> list[tuple[Cell, str]]:
    """Return the cells that must be finished before this one can start, each with what it gives."""
    needed = [(tried, name) for tried in plan.tries_of(cell) for name in tried.tuned]
    if cell.variant.kept_share_of is not None and cell.variant.kept_share_from == "run":
        needed.append((imitated_cell(plan, cell), "rate"))
    return needed


class _Loop:
    """Hands cells to threads, each of which waits for one."""

    def __init__(self, plan: StudyPlan, study: StudyFolder, pending: list[Cell], say: Callable[[str], None]) -> None:
        self.plan, self.study, self.say = plan, study, say
        self.pending = pending
        self.total = len(pending)
        self.failed: dict[str, str] = {}
        self.stop = StopRequest()
        self.running: dict[Future[None], Cell] = {}

    def run(self, run_one: Callable[[CellRun], None], jobs: int) -> None:
        """Return when every cell is finished or failed, or a stop was asked for and the cells have stopped."""
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            while (self.pending and not self.stop.asked) or self.running:
                if not self.stop.asked and len(self.running) < jobs:  # with no room there is nothing to look for
                    self._start_what_can(lambda cell: pool.submit(run_one, self._cell_run(cell, jobs)), jobs)
                done, _ = wait(self.running, timeout=_WAIT_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    self._collect(future, self.running.pop(future))

    def _start_what_can(self, start: Callable[[Cell], "Future[None]"], jobs: int) -> None:
        for cell in list(self.pending):
            folder, needed = self.study.cell(cell.slug), _needed_cells(self.plan, cell)
            try:
                tuned = with_best_value(self.plan, cell, self.study)
                if tuned not in (None, cell):
                    check_settings(self.plan, tuned, folder)  # which took the tries to be finished
            except ProFitError as error:
                self.pending.remove(cell)
                self._fail(cell, failure_of(cell, error))
                continue
            if tuned is not None and folder.finished.exists():
                self.pending.remove(cell)
                with suppress(OSError):  # an earlier run may have been killed before it did
                    drop_weights(self.plan, folder)
            elif failed := [(other.slug, what) for other, what in needed if other.slug in self.failed]:
                self.pending.remove(cell)
                self._fail(cell, f"{cell.slug}: {failed[0][0]}, which it needs for its {failed[0][1]}, has failed.")
            elif len(self.running) < jobs and tuned is not None and not self._must_wait(cell, needed):
                self.pending.remove(cell)
                self.running[start(tuned)] = cell

    def _must_wait(self, cell: Cell, needed: Sequence[tuple[Cell, str]]) -> bool:
        """Say whether a cell waits for others to be finished, or for one that is making the scores it needs."""
        if any(not self.study.cell(other.slug).finished.exists() for other, _ in needed):
            return True
        if not needs_scores(cell) or self.study.scored(cell.model.name):
            return False
        return any(needs_scores(other) and other.model == cell.model for other in self.running.values())

    def _cell_run(self, cell: Cell, jobs: int) -> CellRun:
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        return CellRun(
            plan=self.plan,
            cell=cell,
            study=self.study,
            stop=self.stop,
            say=self.say,
            # Several processes with a thread a core each would only get in each other's way.
            environment={} if jobs == 1 else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)},
        )

    def _collect(self, future: "Future[None]", cell: Cell) -> None:
        try:
            future.result()
            self.say(f"{cell.slug}: finished ({self.total - len(self.pending) - len(self.running)}/{self.total})")
        except Interrupted:
            self.say(f"{cell.slug}: stopped; it goes on from here next time")
        except Exception as error:  # whatever it is, the other cells go on
            self._fail(cell, failure_of(cell, error))

    def _fail(self, cell: Cell, reason: str) -> None:
        self.failed[cell.slug] = reason
        self.say(f"failed: {reason}")
