"""Settings of a study that training or evaluation would refuse, refused before anything runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from profit_sft.data.rows import means_a_file
from profit_sft.data.settings import DataSettings
from profit_sft.data.sources import data_to_train
from profit_sft.errors import ConfigurationError, missing_extra
from profit_sft.study.plan import GENERATED, StudyPlan
from profit_sft.study.study_file import Place, unknown_text

_OF_DATA = {entry.name for entry in dataclasses.fields(DataSettings)}


def check_flags(plan: StudyPlan) -> None:
    """Refuse settings that `profit train` and `profit eval` would refuse, and data that is not there. Imports both.

    Raises:
        ConfigurationError: A training setting is no flag of `profit train`, no number where it takes one, or
            none that data can be read by, an evaluation setting is wrong, or the held-out data is missing.
    """
    from trl import ModelConfig

    from profit_sft.train.arguments import RunArguments
    from profit_sft.train.config import ProFitConfig

    kinds: dict[str, Any] = {}
    for source in (RunArguments, ProFitConfig, ModelConfig):
        hints = get_type_hints(source)
        kinds |= {entry.name: hints[entry.name] for entry in dataclasses.fields(source)}
    tune = plan.tune
    places = plan.train_places
    if tune is not None:
        places += [(("tune",), {tune.setting: value}) for value in tune.values]
    for place, settings in places:
        for key, value in settings.items():
            if key not in kinds:
                raise plan.file.error((*place, key), unknown_text(key, list(kinds)))
            if key == "model_revision" and value not in (None, "main"):
                raise plan.file.error(
                    (*place, key),
                    f" {value!r} would be trained alone: the untrained model and the scores would be of 'main'. "
                    "Download that revision, and name its folder as the model.",
                )
            if tune is not None and key == tune.setting and not {int, float} & _kinds(kinds[key]):
                raise plan.file.error((*place, key), " takes no number, so there is nothing to choose from.")
            if tune is not None and key == tune.setting and key in _OF_DATA:
                raise plan.file.error(
                    (*place, key),
                    " says which tokens are trained, scored and measured on, which are the same in all cells. Choose "
                    "the value of another flag.",
                )
            if not _may_be(kinds[key], value):
                what = "a number" if float in _kinds(kinds[key]) else "a whole number"
                raise plan.file.error((*place, key), f" must be {what}, got {value!r}.")
        try:
            data_to_train({**plan.train, **settings, "dataset_name": plan.dataset_name})
        except ConfigurationError as error:
            raise plan.file.error(place, f": {error}") from None
    heldout = plan.heldout_dataset_name
    if heldout is not None and heldout != GENERATED and means_a_file(heldout) and not Path(heldout).exists():
        raise plan.file.error(("heldout_dataset_name",), f": '{heldout}' does not exist. Check the path.")
    if plan.evaluate:
        _check_evaluation(plan, ("evaluate",), plan.evaluate)
    if tune is not None:
        _check_evaluation(plan, ("tune", "evaluate"), tune.evaluate)
        _check_validation(plan, tune.evaluate)


def _kinds(kind: Any) -> set[Any]:
    return {*(get_args(kind) or (kind,))}


def _may_be(kind: Any, value: Any) -> bool:
    """Say whether a flag takes the value, as far as numbers go. YAML reads 1e-5 as text, `profit train` as a number."""
    kinds = _kinds(kind)
    if isinstance(value, float) and int in kinds and float not in kinds:
        return False
    if not isinstance(value, str) or str in kinds or not {int, float} & kinds:
        return True
    try:
        float(value)
    except ValueError:
        return False
    return float in kinds


def _check_validation(plan: StudyPlan, validation: Mapping[str, Any]) -> None:
    """Refuse to choose a value by the problems that the study judges the variants by."""
    test = {_problems(task, plan.evaluate): task for task in plan.evaluate.get("tasks", ())}
    for task in validation["tasks"]:
        if (same := test.get(_problems(task, validation))) is not None:
            raise plan.file.error(
                ("tune", "evaluate", "tasks"),
                f": {task} asks the problems that {same} of `evaluate` asks, so values would be chosen by the test. "
                "Name another task, or other problems by data_dir.",
            )


def _problems(task: str, evaluate: Mapping[str, Any]) -> tuple[str, Path | None]:
    """Tell tasks apart by their problems: in which form they are asked does not matter, nor how many of them."""
    from profit_sft.evaluation.settings import TASK_FOLDER, task_file, task_files

    task_dir = None if evaluate.get("task_dir") is None else Path(evaluate["task_dir"])
    folder = task_files(task_dir)[task].parent
    reads_files = task_file(task, task_dir).get("metadata", {}).get("data_files")
    if reads_files and evaluate.get("data_dir") is not None:
        folder = Path(evaluate["data_dir"])
    name = task.removesuffix("_paper").removesuffix("_diamond")
    return name, None if folder == TASK_FOLDER else folder.resolve()


def _check_evaluation(plan: StudyPlan, place: Place, evaluate: Mapping[str, Any]) -> None:
    try:
        from profit_sft.evaluation.settings import EvalSettings
        from profit_sft.study.measure import eval_settings

        own = ("model_name_or_path", "output_dir")
        known = [entry.name for entry in dataclasses.fields(EvalSettings) if entry.name not in own]
        for key in evaluate:
            if key in own:
                raise plan.file.error((*place, key), " is set by the study itself. Take it out.")
            if key not in known:
                raise plan.file.error((*place, key), unknown_text(key, known))
        tasks = evaluate.get("tasks")
        if not isinstance(tasks, list):
            raise plan.file.error((*place, "tasks"), f" must be a list such as [gsm8k, math500], got {tasks!r}.")
        settings = eval_settings(evaluate, plan.models[0].model_name_or_path, Path())
        if settings.data_dir is not None and not settings.data_dir.is_dir():
            raise plan.file.error((*place, "data_dir"), f": there is no folder '{settings.data_dir}'.")
    except ModuleNotFoundError as error:
        raise missing_extra(error.name, wanted_by="evaluate") or error from error
    except (TypeError, ValueError) as error:
        raise plan.file.error(place, f": {error}") from None
