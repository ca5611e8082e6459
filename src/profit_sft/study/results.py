"""Read the finished cells of a study back from its folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profit_sft.errors import DataError
from profit_sft.evaluation.budgets import BudgetAccuracies, budget_file, read_budgets
from profit_sft.evaluation.records import SampleFile, task_fingerprints
from profit_sft.evaluation.results import judged_accuracy
from profit_sft.files import read_json
from profit_sft.study.cells import FORMAT, read_metrics, refuse_other_settings
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import Cell, StudyPlan
from profit_sft.train.callbacks import CollapseWarning

_REMEDY = "Delete its cell's folder and run the study again."  # of samples that cannot be read


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """A finished cell.

    Attributes:
        cell: What it is.
        summary: Its cell.json.
        metrics: Its training logs.
        accuracies: By task, that of each problem over its samples, in the order of the task.
        samples: By task, the file of its samples.
        fingerprints: By task, what tells its problems apart, and how they were asked and graded.
        by_budget: By task, accuracies by token budget; empty for cells that were measured before there were any.
    """

    cell: Cell
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    accuracies: Mapping[str, Sequence[float]]
    samples: Mapping[str, Path]
    fingerprints: Mapping[str, Mapping[str, Any]]
    by_budget: Mapping[str, Sequence[BudgetAccuracies]]

    @property
    def collapse(self) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """The logs in which `profit train` saw a collapse, by the rule of today; None where there was none."""
        return CollapseWarning().first_collapse(self.metrics)

    @property
    def was_probed(self) -> bool:
        """Whether a collapse would have been seen: the logs have measurements of a probe."""
        return any("probe_rise_se" in entry for entry in self.metrics)


def read_results(plan: StudyPlan, output_dir: Path, *, tries: bool = False) -> list[CellResult]:
    """Return the finished cells, or the finished tries, in the plan's order.

    Raises:
        ConfigurationError: A cell was run with other settings than the plan has for it now.
        DataError: A file is of another format, or cells were measured on different problems.
    """
    study = StudyFolder(output_dir)
    cells = plan.tries if tries else plan.cells
    found = [_read_cell(plan, study, cell) for cell in cells if study.cell(cell.slug).finished.exists()]
    for result in found[1:]:
        for task, accuracies in result.accuracies.items():
            if len(accuracies) != len(found[0].accuracies[task]):
                raise DataError(
                    f"{study.cell(result.cell.slug).path}: {len(accuracies)} problems of {task}, but "
                    f"{found[0].cell.slug} has {len(found[0].accuracies[task])}. All cells must be measured on the "
                    "same problems: delete the folder of the one that differs and run the study again."
                )
            first, other = (cell.fingerprints.get(task, {}) for cell in (found[0], result))
            if any(first[name] != other[name] for name in first.keys() & other.keys()):
                raise DataError(
                    f"{study.cell(result.cell.slug).path}: {task} was another task than for {found[0].cell.slug}; its "
                    "file or data was changed in between. Delete the folders of the cells that have the ones you "
                    "do not want, and run the study again."
                )
    return found


def _read_cell(plan: StudyPlan, study: StudyFolder, cell: Cell) -> CellResult:
    folder = study.cell(cell.slug)
    summary = read_json(folder.finished, f"Delete {folder.path} and run the study again.")
    if summary.get("format") != FORMAT:
        raise DataError(
            f"{folder.finished} has format {summary.get('format')!r}, this version reads {FORMAT}. Delete "
            f"{folder.path} and run the study again."
        )
    refuse_other_settings(plan, _as_it_ran(plan, cell, summary), summary["settings"], folder.path)
    tasks = plan.eval_settings(cell).get("tasks", ())
    samples = {task: folder.evaluation / "samples" / f"{task}.jsonl" for task in tasks}
    return CellResult(
        cell=cell,
        summary=summary,
        metrics=read_metrics(folder),
        accuracies={
            task: [judged_accuracy(of_problem) for of_problem in SampleFile(path, _REMEDY).by_problem()]
            for task, path in samples.items()
        },
        samples=samples,
        fingerprints=task_fingerprints(folder.evaluation),
        by_budget={task: rows for task in tasks if (rows := read_budgets(budget_file(folder.evaluation, task)))},
    )


def _as_it_ran(plan: StudyPlan, cell: Cell, summary: Mapping[str, Any]) -> Cell:
    """Return the cell with its own value of what is tuned: that another is the best now, the report warns of."""
    if not plan.tries_of(cell) or plan.tune is None:
        return cell
    ran = summary["settings"]["train"].get(plan.tune.setting)
    return cell if ran is None else dataclasses.replace(cell, tuned={plan.tune.setting: ran})


def read_answers(path: Path, most: int) -> list[dict[str, str]]:
    """Return prompt, expected answer and the first sample's text of each problem, as `profit eval` wrote them.

    Args:
        path: A file of samples.
        most: So many problems from the first on.

    Raises:
        DataError: It cannot be read.
    """
    return [
        {name: str(of_problem[0].get(name) or "") for name in ("prompt", "expected", "answer")}
        for of_problem in SampleFile(path, _REMEDY).by_problem()[:most]
    ]
