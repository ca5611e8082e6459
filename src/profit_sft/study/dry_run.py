"""What a study would do, without doing it: its cells, how many tokens, and what that is estimated to cost."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profit_sft.data import DataSettings, prepare_dataset
from profit_sft.errors import ConfigurationError, ProFitError, first_line
from profit_sft.models.pretrained import load_tokenizer
from profit_sft.study.cells import data_settings
from profit_sft.study.estimate import CellEstimate, TrainingData, count_parameters, estimate_cell
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import GENERATED, ModelPlan, StudyPlan
from profit_sft.study.runner import choose_cells, write_generated


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyDryRun:
    """What `profit study --dry-run` prints.

    Attributes:
        cells: One estimate a chosen cell.
        finished: Names of those that are finished already.
        data: Training data by model.
        parameters: Parameters by model; None where no formula needs them.
        device: The device the hours are of.
    """

    cells: tuple[CellEstimate, ...]
    finished: tuple[str, ...]
    data: Mapping[str, TrainingData]
    parameters: Mapping[str, float | None]
    device: str

    @property
    def hours(self) -> float:
        """Estimated device hours of the cells that are not finished."""
        return sum(cell.train_hours + cell.evaluate_hours for cell in self.cells if cell.slug not in self.finished)


def dry_run(plan: StudyPlan, output_dir: Path, *, cells: str | None = None) -> StudyDryRun:
    """Estimate every chosen cell. Reads the training data with each model's tokenizer; writes nothing.

    Raises:
        ConfigurationError: The data or a model cannot be read, and the study file assumes nothing in its place.
        DataError: A row cannot be used.
    """
    chosen = choose_cells(plan, cells)
    models = {cell.model.name: cell.model for cell in chosen}
    data = {name: _training_data(plan, model) for name, model in models.items()}
    parameters = {name: _parameters(plan, model) for name, model in models.items()}
    study = StudyFolder(output_dir)
    return StudyDryRun(
        cells=tuple(estimate_cell(plan, cell, data[cell.model.name], parameters[cell.model.name]) for cell in chosen),
        finished=tuple(cell.slug for cell in chosen if study.cell(cell.slug).finished.exists()),
        data=data,
        parameters=parameters,
        device=plan.estimate.device,
    )


def _training_data(plan: StudyPlan, model: ModelPlan) -> TrainingData:
    settings: dict[str, Any] = {**plan.train, **model.train}
    with tempfile.TemporaryDirectory() as folder:
        name = plan.dataset_name
        if name == GENERATED:
            write_generated(plan, StudyFolder(Path(folder)))
            name = str(StudyFolder(Path(folder)).train_file)
        asked = data_settings(settings, name, training=True)
        try:
            return _read_data(asked, model, settings)
        except ProFitError as error:
            rows, tokens_per_row = plan.estimate.rows, plan.estimate.tokens_per_row
            if rows is None or tokens_per_row is None:
                raise ConfigurationError(
                    f"{error} To estimate without it, give estimate.rows and estimate.tokens_per_row in the study file."
                ) from None
            return TrainingData(rows=rows, tokens=round(rows * tokens_per_row), measured=False)


def _read_data(asked: DataSettings, model: ModelPlan, settings: Mapping[str, Any]) -> TrainingData:
    tokenizer = load_tokenizer(model.model_name_or_path, chat_template_path=settings.get("chat_template_path"))
    report = prepare_dataset(asked, tokenizer, False).report
    return TrainingData(rows=report.rows_used, tokens=report.total_tokens, measured=True)


def _parameters(plan: StudyPlan, model: ModelPlan) -> float | None:
    given = plan.estimate
    if given.train_tokens_per_second is not None and given.evaluate_seconds is not None:
        return None
    if model.parameters is not None:
        return model.parameters
    try:
        return float(count_parameters(model.model_name_or_path))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"model '{model.model_name_or_path}' cannot be looked at ({first_line(error)}). Give its "
            "`parameters` in the study file, such as 4.0e9."
        ) from None
