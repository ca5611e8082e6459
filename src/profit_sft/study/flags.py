"""Settings of a study that training or evaluation would refuse, refused before anything runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from profit_sft.data.rows import means_a_file
from profit_sft.data.sources import data_to_train
from profit_sft.errors import ConfigurationError, missing_extra
from profit_sft.study.plan import GENERATED, StudyPlan
from profit_sft.study.study_file import Place, unknown_text


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
    places: list[tuple[Place, Mapping[str, Any]]] = [(("train",), plan.train)]
    places += [(("models", index, "train"), model.train) for index, model in enumerate(plan.models)]
    places += [(("cells", variant.entry, "train"), variant.train) for variant in plan.variants]
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
        _check_evaluation(plan)


def _kinds(kind: Any) -> set[Any]:
    return {*(get_args(kind) or (kind,))}


def _may_be(kind: Any, value: Any) -> bool:
    """Say whether a flag takes the value, as far as numbers go. YAML reads 1e-5 as text, `profit train` as a number."""
    kinds = _kinds(kind)
    if not isinstance(value, str) or str in kinds or not {int, float} & kinds:
        return True
    try:
        float(value)
    except ValueError:
        return False
    return float in kinds


def _check_evaluation(plan: StudyPlan) -> None:
    try:
        from profit_sft.evaluation.settings import EvalSettings
        from profit_sft.study.measure import eval_settings

        own = ("model_name_or_path", "output_dir")
        known = [entry.name for entry in dataclasses.fields(EvalSettings) if entry.name not in own]
        for key in plan.evaluate:
            if key in own:
                raise plan.file.error(("evaluate", key), " is set by the study itself. Take it out.")
            if key not in known:
                raise plan.file.error(("evaluate", key), unknown_text(key, known))
        tasks = plan.evaluate.get("tasks")
        if not isinstance(tasks, list):
            raise plan.file.error(("evaluate", "tasks"), f" must be a list such as [gsm8k, math500], got {tasks!r}.")
        settings = eval_settings(plan.evaluate, plan.models[0].model_name_or_path, Path())
        if settings.data_dir is not None and not settings.data_dir.is_dir():
            raise plan.file.error(("evaluate", "data_dir"), f": there is no folder '{settings.data_dir}'.")
    except ModuleNotFoundError as error:
        raise missing_extra(error.name, wanted_by="evaluate") or error from error
    except (TypeError, ValueError) as error:
        raise plan.file.error(("evaluate",), f": {error}") from None
