"""What a study is: its models, data, common settings and cells, read from study.yaml.

A cell is one training run: a model, a variant (an objective with its settings) and a seed. Cells are written as
entries; an entry with lists stands for every combination:

    cells:
      - {objective: [nll, dft], seed: [0, 1, 2]}                                   # six cells
      - {objective: profit, threshold: [0.1, 0.3], mask_source: [online, reference], seed: 0}
      - {objective: profit, direction: random, kept_share_of: profit-t0.1, seed: 0}
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from profit_sft.data.rows import means_a_file
from profit_sft.errors import ConfigurationError, missing_extra
from profit_sft.study.estimate import Assumptions, read_assumptions
from profit_sft.study.sections import Section, unknown_key
from profit_sft.study.variants import UNTRAINED, Variant, check_train, make_slug, read_variants

GENERATED = "generated"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPlan:
    """A model of the study.

    Attributes:
        model_name_or_path: Hub name, folder or `embedded`.
        name: Short name; part of a cell's name when the study has several models.
        train: Settings of `profit train` for this model alone.
        parameters: Number of parameters, for the estimate where the model cannot be looked at.
    """

    model_name_or_path: str
    name: str
    train: Mapping[str, Any] = field(default_factory=dict)
    parameters: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One training run, or the untrained model."""

    slug: str
    model: ModelPlan
    variant: Variant
    seed: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedData:
    """The generated arithmetic problems: how many, and which.

    Attributes:
        rows: Training problems.
        seed: Their seed. All cells train on the same rows.
        heldout_rows: Problems of the held-out split whose reference solutions plain NLL is measured on.
        heldout_seed: Their seed.
        steps: Equations per solution, 1 to 3.
    """

    rows: int = 240
    seed: int = 0
    heldout_rows: int = 100
    heldout_seed: int = 1
    steps: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """A whole study.

    Attributes:
        name: Title of the report.
        question: What the study asks, in words.
        models: The models; comparisons are made within each.
        dataset_name: Training data, as for `profit train`, or `generated`.
        generated: The generated problems, used where a data set is called `generated`.
        heldout_dataset_name: Data for plain NLL, or `generated`; None: not measured.
        train: Settings of `profit train` that all cells share.
        evaluate: Settings of the evaluation that all cells share; empty: none.
        baseline: Name of the variant the others are compared with.
        comparisons: Further pairs of variants to compare, first against second.
        variants: All of them, in order, without the untrained model.
        cells: All of them, in the order they run.
        keep_models: Keep the weights of cells that have been measured.
        estimate: Assumptions of the cost estimate.
    """

    name: str
    question: str | None
    models: tuple[ModelPlan, ...]
    dataset_name: str
    generated: GeneratedData
    heldout_dataset_name: str | None
    train: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    baseline: str
    comparisons: tuple[tuple[str, str], ...]
    variants: tuple[Variant, ...]
    cells: tuple[Cell, ...]
    keep_models: bool
    estimate: Assumptions


def load_plan(path: str | Path, *, model_name_or_path: str | None = None, dataset_name: str | None = None) -> StudyPlan:
    """Read a study file.

    Args:
        path: The YAML file.
        model_name_or_path: Use this model in place of each one the file names, for a rehearsal.
        dataset_name: Train on this in place of what the file names.

    Raises:
        ConfigurationError: The file cannot be read, or something in it is missing, unknown or out of range; the
            message names file, key and value.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"study file '{path}' cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"study file '{path}' is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"study file '{path}' must be a mapping with keys such as `cells`, got {content!r}.")
    if dataset_name is not None:
        content["dataset_name"] = dataset_name
    try:
        return parse_plan(content, model_name_or_path=model_name_or_path, default_name=Path(path).stem)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def parse_plan(
    content: Mapping[str, Any], *, model_name_or_path: str | None = None, default_name: str = "study"
) -> StudyPlan:
    """Build the plan from the mapping of a study file; errors as `load_plan`, without the file's name."""
    top = Section("", content)
    name = top.take("name", str, default_name)
    question = top.take("question", str)
    models = _models(top, model_name_or_path)
    generated = _generated(Section("generated", top.take("generated", dict, {})))
    train = top.take("train", dict, {})
    check_train("train", train)
    evaluate = top.take("evaluate", dict, {})
    variants, seeds = read_variants(top.take("cells", list, required=True))
    plan = StudyPlan(
        name=name,
        question=question,
        models=models,
        dataset_name=top.take("dataset_name", str, required=True),
        generated=generated,
        heldout_dataset_name=top.take("heldout_dataset_name", str),
        train=train,
        evaluate=evaluate,
        baseline=top.take("baseline", str, "nll"),
        comparisons=_pairs(top.take("comparisons", list, [])),
        variants=variants,
        cells=_cells(models, variants, seeds),
        keep_models=top.take("keep_models", bool, True),
        estimate=read_assumptions(Section("estimate", top.take("estimate", dict, {}))),
    )
    top.finish()
    _check_names(plan)
    return plan


def _models(top: Section, override: str | None) -> tuple[ModelPlan, ...]:
    single, several = top.take("model_name_or_path", str), top.take("models", list)
    if (single is None) == (several is None):
        raise ConfigurationError("give one of model_name_or_path and models: the model, or a list of them.")
    models = []
    for index, entry in enumerate([single] if several is None else several):
        section = Section(f"models[{index}]", {"model_name_or_path": entry} if isinstance(entry, str) else entry)
        path = section.take("model_name_or_path", str, required=True)
        train = section.take("train", dict, {})
        check_train(section.at("train"), train)
        parameters = section.take_positive("parameters")
        models.append(
            ModelPlan(
                model_name_or_path=override or path,
                name=make_slug(section.take("name", str, path.rstrip("/").rsplit("/", 1)[-1])),
                train=train,
                parameters=None if override else parameters,
            )
        )
        section.finish()
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"models: two of them are called {name!r}. Give each a name of its own.")
    return tuple(models)


def _generated(section: Section) -> GeneratedData:
    default = GeneratedData()
    made = GeneratedData(
        rows=section.take_count("rows", default.rows) or 0,
        seed=section.take("seed", int, default.seed),
        heldout_rows=section.take_count("heldout_rows", default.heldout_rows) or 0,
        heldout_seed=section.take("heldout_seed", int, default.heldout_seed),
        steps=section.take_count("steps", default.steps) or 0,
    )
    section.finish()
    return made


def check_flags(plan: StudyPlan) -> None:
    """Refuse settings that `profit train` and `profit eval` would refuse, and data that is not there. Imports both.

    Raises:
        ConfigurationError: A training setting is no flag of `profit train` or no number where it takes one, an
            evaluation setting is wrong, or the held-out data is missing.
    """
    from trl import ModelConfig

    from profit_sft.train.arguments import RunArguments
    from profit_sft.train.config import ProFitConfig

    kinds: dict[str, Any] = {}
    for source in (RunArguments, ProFitConfig, ModelConfig):
        hints = get_type_hints(source)
        kinds |= {entry.name: hints[entry.name] for entry in dataclasses.fields(source)}
    places = [("train", plan.train)]
    places += [(f"models[{index}].train", model.train) for index, model in enumerate(plan.models)]
    places += [(f"cells: {variant.name}: train", variant.train) for variant in plan.variants]
    for place, settings in places:
        for key, value in settings.items():
            if key not in kinds:
                raise unknown_key(f"{place}.{key}", key, list(kinds))
            _check_number(f"{place}.{key}", value, kinds[key])
    heldout = plan.heldout_dataset_name
    if heldout not in (None, GENERATED) and means_a_file(heldout) and not Path(heldout).exists():
        raise ConfigurationError(f"heldout_dataset_name: '{heldout}' does not exist. Check the path.")
    if plan.evaluate:
        _check_evaluation(plan)


def _check_number(place: str, value: Any, kind: Any) -> None:
    """Refuse text where a flag takes a number. YAML reads 1e-5 as text, and `profit train` as a number."""
    kinds = get_args(kind) or (kind,)
    if not isinstance(value, str) or str in kinds or not {int, float} & set(kinds):
        return
    try:
        float(value)
    except ValueError:
        raise ConfigurationError(f"{place} must be a number, got {value!r}.") from None


def _check_evaluation(plan: StudyPlan) -> None:
    try:
        from profit_sft.evaluation import EvalSettings
        from profit_sft.study.measure import evaluation_settings

        own = ("model_name_or_path", "output_dir")
        known = [entry.name for entry in dataclasses.fields(EvalSettings) if entry.name not in own]
        for key in plan.evaluate:
            if key in own:
                raise ConfigurationError(f"evaluate.{key} is set by the study itself. Take it out.")
            if key not in known:
                raise unknown_key(f"evaluate.{key}", key, known)
        tasks = plan.evaluate.get("tasks")
        if not isinstance(tasks, list):
            raise ConfigurationError(f"evaluate.tasks must be a list such as [gsm8k, math500], got {tasks!r}.")
        settings = evaluation_settings(plan.evaluate, plan.models[0].model_name_or_path, Path())
        if settings.data_dir is not None and not settings.data_dir.is_dir():
            raise ConfigurationError(f"evaluate.data_dir: there is no folder '{settings.data_dir}'.")
    except ModuleNotFoundError as error:
        raise missing_extra(error.name, wanted_by="evaluate") or error from error
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"evaluate: {error}") from None


def _cells(
    models: Sequence[ModelPlan], variants: Sequence[Variant], seeds: Mapping[str, Sequence[int]]
) -> tuple[Cell, ...]:
    """List every cell: per model the untrained one, then seed by seed, so that an early stop leaves whole rounds."""
    cells = []
    untrained = Variant(name=UNTRAINED, objective=None)
    for model in models:
        prefix = f"{model.name}." if len(models) > 1 else ""
        cells.append(Cell(slug=f"{prefix}{UNTRAINED}", model=model, variant=untrained, seed=None))
        for round_ in range(max(len(entry) for entry in seeds.values())):
            for variant in variants:
                if round_ < len(seeds[variant.name]):
                    seed = seeds[variant.name][round_]
                    slug = f"{prefix}{variant.name}-s{seed}"
                    cells.append(Cell(slug=slug, model=model, variant=variant, seed=seed))
    return tuple(cells)


def _pairs(entries: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)):
            raise ConfigurationError(f"comparisons: each must be a pair such as [profit-t0.1, dft], got {entry!r}.")
    return tuple((first, second) for first, second in entries)


def _check_names(plan: StudyPlan) -> None:
    """Refuse references to variants that do not exist."""
    names = [variant.name for variant in plan.variants]
    if UNTRAINED in names:
        raise ConfigurationError(
            f"cells: the name {UNTRAINED!r} is taken by the starting model, which is always there."
        )
    references = [("baseline", plan.baseline)]
    references += [("comparisons", name) for pair in plan.comparisons for name in pair]
    for place, name in references:
        if name not in (*names, UNTRAINED):
            raise unknown_key(f"{place}: variant {name!r}", name, [*names, UNTRAINED])
    by_name = {variant.name: variant for variant in plan.variants}
    for variant in plan.variants:
        imitated = variant.kept_share_of
        if imitated is None:
            continue
        if imitated not in names:
            raise unknown_key(f"cells: kept_share_of {imitated!r}", imitated, names)
        if by_name[imitated].kept_share_of is not None:
            raise ConfigurationError(f"cells: {variant.name} imitates {imitated}, which imitates another itself.")
