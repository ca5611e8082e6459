"""What the tries of a study have shown: the value each variant and model runs with, and how well the others did."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from profit_sft.files import read_json
from profit_sft.study.cells import imitated_cell
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import Cell, StudyPlan
from profit_sft.study.results import CellResult
from profit_sft.study.tuning import Tuning


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedRow:
    """What one variant tried on one model.

    Attributes:
        model: Name of the model.
        variant: Name of the variant.
        accuracies: Of the validation problems, the mean of tasks and seeds, by rising value; None: not finished.
        chosen: The value of the best; None while a try is not finished.
    """

    model: str
    variant: str
    accuracies: Mapping[float, float | None]
    chosen: float | None


def with_best_value(plan: StudyPlan, cell: Cell, study: StudyFolder) -> Cell | None:
    """Return the cell with the best of the values tried, itself if none are; None while a try is not finished.

    Raises:
        ConfigurationError: A try's cell.json cannot be read.
    """
    tries = plan.tries_of(cell)
    if plan.tune is None or not tries:
        return cell
    accuracies = {}
    for tried in tries:
        folder = study.cell(tried.slug)
        if not folder.finished.exists():
            return None
        summary = read_json(folder.finished, f"Delete {folder.path} and run the study again.")
        accuracies[tried.slug] = _accuracy(summary)
    chosen = _row(plan.tune, tries, accuracies).chosen
    return None if chosen is None else dataclasses.replace(cell, tuned={plan.tune.setting: chosen})


def tuned_rows(plan: StudyPlan, results: Sequence[CellResult]) -> tuple[TunedRow, ...]:
    """Gather the accuracies of the finished tries, one row a model and variant."""
    if plan.tune is None:
        return ()
    accuracies = {result.cell.slug: _accuracy(result.summary) for result in results}
    of_row: dict[tuple[str, str], list[Cell]] = {}
    for tried in plan.tries:
        of_row.setdefault((tried.model.name, tried.variant.name), []).append(tried)
    return tuple(_row(plan.tune, tries, accuracies) for tries in of_row.values())


def _row(tune: Tuning, tries: Sequence[Cell], accuracies: Mapping[str, float]) -> TunedRow:
    """Gather what one variant tried on one model; `accuracies` has those of the finished cells by name."""
    means: dict[float, float | None] = {}
    for value in tune.values:
        cells = [tried.slug for tried in tries if tried.tuned[tune.setting] == value]
        finished = all(cell in accuracies for cell in cells)
        means[value] = fmean(accuracies[cell] for cell in cells) if finished else None
    known = {value: accuracy for value, accuracy in means.items() if accuracy is not None}
    return TunedRow(
        model=tries[0].model.name,
        variant=tries[0].variant.name,
        accuracies=means,
        chosen=tune.best(known) if len(known) == len(means) else None,
    )


def warnings(
    plan: StudyPlan, rows: Sequence[TunedRow], results: Sequence[CellResult], tries: Sequence[CellResult]
) -> list[str]:
    """Say where the best value is the last of those tried, and which cells have run with what is no longer so.

    That is with another value than the best, or at the share of a cell that has run at another value since.
    """
    if plan.tune is None:
        return []
    setting, values = plan.tune.setting, plan.tune.values
    said = []
    for edge, end, further in ((values[0], "smallest", "smaller"), (values[-1], "largest", "larger")):
        names = [f"{row.variant}{plan.of_model(row.model)}" for row in rows if row.chosen == edge]
        if names:
            said.append(
                f"The best {setting} is the {end} of those tried, {edge:g}, for {', '.join(names)}: a {further} one "
                f"may be better. Add {further} values under tune and run again."
            )
    chosen = {(row.model, row.variant): row.chosen for row in rows}
    for result in results:
        cell = result.cell
        if (best := chosen.get((cell.model.name, cell.variant.name))) is None:
            continue
        ran = result.summary["settings"]["train"].get(setting)
        if ran != best:
            said.append(f"{cell.slug} was run with {setting} = {ran}, though {best:g} is the best of those tried now.")
    trained = {result.cell.slug: result.summary["training"] for result in results}
    for result in (*tries, *results):
        variant, rate = result.cell.variant, (result.summary["training"] or {}).get("rate")
        if rate is None or variant.kept_share_of is None or variant.kept_share_from != "run":
            continue
        imitated = imitated_cell(plan, result.cell).slug
        share = trained.get(imitated, {}).get("kept_share")
        if share is not None and f"{rate:.4g}" != f"{share:.4g}":  # not what rounding does to the same run
            said.append(
                f"{result.cell.slug} was run at rate {rate:.4g}, the kept share of {imitated}, which has been run "
                f"again since and keeps {share:.4g}. Delete its folder and run again."
            )
    return said


def _accuracy(summary: Mapping[str, Any]) -> float:
    means: list[float] = [task["accuracy"]["mean"] for task in summary["evaluation"]["tasks"]]
    return sum(means) / len(means)
