"""Accuracy by token budget of a study: a curve a variant, and where a difference goes away with a larger budget.

Of every cell the same answers are graded at each budget (see `evaluation/budgets.py`), so a difference that is there at
a small budget alone says how long the answers of the two are, not which of them are right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from profit_sft.evaluation.budgets import BudgetAccuracies
from profit_sft.study.analysis import grouped, pairs, with_common_seeds
from profit_sft.study.plan import StudyPlan
from profit_sft.study.results import CellResult
from profit_sft.study.statistics import difference_interval, mean_interval


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetPoint:
    """A variant's accuracy at a budget, or the difference of two.

    Attributes:
        budget: The limit of new tokens.
        mean: Mean over problems, samples and seeds.
        low: Lower end of its 95% interval over problems.
        high: Upper end.
        truncated_share: Share of samples cut off; of a difference, None.
    """

    budget: int
    mean: float
    low: float
    high: float
    truncated_share: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetCurve:
    """A variant's accuracies on a task by budget."""

    model: str
    variant: str
    task: str
    points: tuple[BudgetPoint, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetComparison:
    """The difference of two variants on a task by budget; `sentence` says where it goes away, or is None."""

    model: str
    first: str
    second: str
    task: str
    points: tuple[BudgetPoint, ...]
    sentence: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetFindings:
    """All figures by budget; empty where cells have none, or a task one budget alone."""

    curves: tuple[BudgetCurve, ...]
    comparisons: tuple[BudgetComparison, ...]

    @property
    def sentences(self) -> list[str]:
        """What the comparisons say."""
        return [row.sentence for row in self.comparisons if row.sentence is not None]


def findings_by_budget(plan: StudyPlan, results: Sequence[CellResult]) -> BudgetFindings:
    """Turn the cells' accuracies by budget into curves and differences.

    A task is left out unless all finished cells have it at the same budgets, two or more.
    """
    groups = grouped(plan, results)
    tasks = [task for task in plan.evaluate.get("tasks", ()) if _comparable([cell.by_budget for cell in results], task)]
    return BudgetFindings(
        curves=tuple(_curve(cells, task) for cells in groups.values() for task in tasks),
        comparisons=tuple(
            _comparison(groups[model.name, first], groups[model.name, second], task)
            for model in plan.models
            for task in tasks
            for first, second in pairs(plan, model.name, groups)
        ),
    )


def _comparable(cells: Sequence[Mapping[str, Sequence[BudgetAccuracies]]], task: str) -> bool:
    shapes = {tuple((row.budget, len(row.accuracies)) for row in cell.get(task, ())) for cell in cells}
    return len(shapes) == 1 and len(next(iter(shapes))) > 1


def _curve(cells: Sequence[CellResult], task: str) -> BudgetCurve:
    points = []
    for rows in zip(*(cell.by_budget[task] for cell in cells), strict=True):
        means = np.array([row.accuracies for row in rows]).mean(axis=0)  # (P,)
        low, high = mean_interval(means)
        cut_off = sum(row.truncated_share for row in rows) / len(rows)
        points.append(
            BudgetPoint(budget=rows[0].budget, mean=float(means.mean()), low=low, high=high, truncated_share=cut_off)
        )
    cell = cells[0].cell
    return BudgetCurve(model=cell.model.name, variant=cell.variant.name, task=task, points=tuple(points))


def _comparison(first: Sequence[CellResult], second: Sequence[CellResult], task: str) -> BudgetComparison:
    first, second = with_common_seeds(first, second)
    points = []
    for place, row in enumerate(first[0].by_budget[task]):
        one = np.array([cell.by_budget[task][place].accuracies for cell in first]).mean(axis=0)
        other = np.array([cell.by_budget[task][place].accuracies for cell in second]).mean(axis=0)
        low, high = difference_interval(one, other)
        mean = float(one.mean() - other.mean())
        points.append(BudgetPoint(budget=row.budget, mean=mean, low=low, high=high, truncated_share=None))
    names = first[0].cell.variant.name, second[0].cell.variant.name
    return BudgetComparison(
        model=first[0].cell.model.name,
        first=names[0],
        second=names[1],
        task=task,
        points=tuple(points),
        sentence=where_it_goes_away(points, first=names[0], second=names[1], task=task),
    )


def where_it_goes_away(points: Sequence[BudgetPoint], *, first: str, second: str, task: str) -> str | None:
    """Say that a difference at one budget goes away at a larger one, where the 95% intervals say so.

    Args:
        points: The difference at each budget, rising.
        first: The variant that is judged.
        second: The one it is compared with.
        task: What was answered.

    Returns:
        None unless an interval lies on one side of 0, and that of every larger budget, at least one, holds 0.
    """
    apart = [place for place, point in enumerate(points) if point.low > 0 or point.high < 0]
    if not apart or apart[-1] == len(points) - 1:
        return None
    there, gone = points[apart[-1]], points[apart[-1] + 1]
    return (
        f"{first} against {second} on {task}: {_points(there)} at {there.budget} tokens; the difference goes away at a "
        f"larger budget, {_points(gone)} at {gone.budget}."
    )


def _points(point: BudgetPoint) -> str:
    return f"{100 * point.mean:+.1f} points ({100 * point.low:+.1f} to {100 * point.high:+.1f})"
