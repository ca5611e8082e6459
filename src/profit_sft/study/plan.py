"""What a study is: its models, data, common settings and cells, read from study.yaml.

A cell is one training run: a model, a variant (an objective with its settings) and a seed. Cells are written as
entries; an entry with lists stands for every combination:

    cells:
      - {objective: [nll, dft], seed: [0, 1, 2]}                                   # six cells
      - {objective: profit, threshold: [0.1, 0.3], mask_source: [online, reference], seed: 0}
      - {objective: profit, direction: random, kept_share_of: profit-t0.1, seed: 0}
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from profit_sft.errors import ConfigurationError
from profit_sft.objectives import Objective, make_objective
from profit_sft.study.sections import Section, unknown_key

GENERATED = "generated"
UNTRAINED = "untrained"

# The study sets these in every run; common settings must leave them alone.
_OWN_FLAGS = {
    "config": "`train`",
    "dataset_name": "`dataset_name`",
    "model_name_or_path": "`model_name_or_path` or `models`",
    "objective": "`cells`",
    "objective_kwargs": "`cells`",
    "output_dir": "--output_dir",
    "overwrite_output_dir": "the study",
    "reference_scores": "`mask_source: reference` in `cells`",
    "resume_from_checkpoint": "the study",
    "seed": "`cells`",
    "threshold": "`cells`",
    "threshold_direction": "`cells`",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPlan:
    """A model of the study.

    Attributes:
        model_name_or_path: Hub name, folder or `embedded`.
        name: Short name; part of a cell's name when the study has several models.
        train: Settings of `profit train` for this model alone.
        launch: Words put between `python` and `-m profit_sft.cli train`, such as `-m accelerate.commands.launch`.
        parameters: Number of parameters, for the estimate where the model cannot be looked at.
    """

    model_name_or_path: str
    name: str
    train: Mapping[str, Any] = field(default_factory=dict)
    launch: str | None = None
    parameters: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """An objective with its settings: what the cells of several seeds share.

    Attributes:
        name: Such as `profit-t0.1-reference`.
        objective: Name of the objective; None for the untrained model.
        objective_kwargs: Its fields, without a `rate` that is only known later.
        normalize: `all` or `kept`; None: as the common settings say.
        kept_share_of: Variant whose kept share gives the `rate` of direction `random`.
        kept_share_from: `run`: what that variant kept while it was trained; `scores`: what its mask keeps of the
            training data under the starting model.
        train: Settings of `profit train` for this variant alone.
    """

    name: str
    objective: str | None
    objective_kwargs: Mapping[str, Any] = field(default_factory=dict)
    normalize: str | None = None
    kept_share_of: str | None = None
    kept_share_from: str = "run"
    train: Mapping[str, Any] = field(default_factory=dict)

    def make_objective(self, rate: float | None = None) -> Objective:
        """Build the objective; one that waits for a kept share needs `rate`."""
        assert self.objective is not None
        kwargs = dict(self.objective_kwargs)
        if rate is not None:
            kwargs["rate"] = rate
        return make_objective(self.objective, **kwargs)

    @property
    def needs_reference(self) -> bool:
        """True if the objective reads reference log-probabilities."""
        if self.objective is None or self.kept_share_of is not None:
            return False
        return "reference_log_probs" in self.make_objective().needs


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
        estimate: Assumptions of the cost estimate; see `profit_sft.study.estimate`.
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
    estimate: Mapping[str, Any]


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
    _check_train("train", train)
    evaluate = top.take("evaluate", dict, {})
    variants, seeds = _variants(top.take("cells", list, required=True))
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
        estimate=top.take("estimate", dict, {}),
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
        _check_train(section.at("train"), train)
        models.append(
            ModelPlan(
                model_name_or_path=override or path,
                name=_slug(section.take("name", str, path.rstrip("/").rsplit("/", 1)[-1])),
                train=train,
                launch=section.take("launch", str),
                parameters=section.take("parameters", float),
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


def _check_train(place: str, settings: Mapping[str, Any]) -> None:
    """Refuse what the study sets itself; `check_flags` knows all the others."""
    for key in settings:
        if key in _OWN_FLAGS:
            raise ConfigurationError(f"{place}.{key} is set by {_OWN_FLAGS[key]}. Take it out.")


def check_flags(plan: StudyPlan) -> None:
    """Refuse training settings that are no flag of `profit train`. Imports TRL."""
    import dataclasses

    from trl import ModelConfig

    from profit_sft.run import RunArguments
    from profit_sft.trainer import ProFitConfig

    known = [entry.name for source in (RunArguments, ProFitConfig, ModelConfig) for entry in dataclasses.fields(source)]
    places = [("train", plan.train)]
    places += [(f"models[{index}].train", model.train) for index, model in enumerate(plan.models)]
    places += [(f"cells: {variant.name}: train", variant.train) for variant in plan.variants]
    for place, settings in places:
        for key in settings:
            if key not in known:
                raise unknown_key(f"{place}.{key}", key, known)


def _variants(entries: Sequence[Any]) -> tuple[tuple[Variant, ...], dict[str, list[int]]]:
    """Expand the entries; return the variants in order and the seeds of each."""
    if not entries:
        raise ConfigurationError("cells is empty: name at least one, such as {objective: nll, seed: 0}.")
    variants: dict[str, Variant] = {}
    seeds: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        section = Section(f"cells[{index}]", entry)
        entry_seeds = _seeds(section)
        for variant in _expand(section):
            known = variants.setdefault(variant.name, variant)
            if known != variant:
                raise ConfigurationError(
                    f"{section.place}: two different variants are called {variant.name!r}. Give one a `name`."
                )
            for seed in entry_seeds:
                if seed in seeds.setdefault(variant.name, []):
                    raise ConfigurationError(f"{section.place}: {variant.name} with seed {seed} is there twice.")
                seeds[variant.name].append(seed)
    return tuple(variants.values()), seeds


def _seeds(section: Section) -> list[int]:
    value = section.take("seed", object, 0)
    seeds: list[Any] = value if isinstance(value, list) else [value]
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"{section.at('seed')} must be a whole number from 0 up or a list, got {seed!r}.")
    return seeds


def _expand(section: Section) -> Iterator[Variant]:
    """Yield one variant for every combination of the entry's lists."""
    name, train = section.take("name", str), section.take("train", dict, {})
    _check_train(section.at("train"), train)
    if train and name is None:
        raise ConfigurationError(f"{section.place} has settings of its own under `train`, so it needs a `name`.")
    axes = {key: value if isinstance(value, list) else [value] for key, value in section.rest().items()}
    if "objective" not in axes:
        raise ConfigurationError(f"{section.place}.objective is missing, such as nll, dft or profit.")
    combinations = list(itertools.product(*axes.values()))
    if name is not None and len(combinations) > 1:
        raise ConfigurationError(
            f"{section.place} stands for {len(combinations)} variants, so it cannot have a `name`."
        )
    for values in combinations:
        yield _variant(section, dict(zip(axes, values, strict=True)), name, train)


def _variant(section: Section, chosen: dict[str, Any], name: str | None, train: Mapping[str, Any]) -> Variant:
    parts = Section(section.place, chosen)
    objective = parts.take("objective", str, required=True)
    normalize = parts.take_choice("normalize", ("all", "kept"))
    kept_share_of = parts.take("kept_share_of", str)
    kept_share_from = parts.take_choice("kept_share_from", ("run", "scores"))
    kwargs = parts.rest()
    if objective == "profit":
        kwargs.setdefault("threshold", 0.1)
    if kept_share_of is None and kept_share_from is not None:
        raise ConfigurationError(f"{section.at('kept_share_from')} needs kept_share_of, the variant to imitate.")
    if kept_share_of is not None and (kwargs.get("direction") != "random" or "rate" in kwargs):
        raise ConfigurationError(
            f"{section.at('kept_share_of')} gives the rate of `direction: random`; set that direction and no rate."
        )
    variant = Variant(
        name=name or _variant_name(objective, kwargs, normalize, kept_share_of, kept_share_from),
        objective=objective,
        objective_kwargs=kwargs,
        normalize=normalize,
        kept_share_of=kept_share_of,
        kept_share_from=kept_share_from or "run",
        train=train,
    )
    try:
        variant.make_objective(rate=0.5 if kept_share_of is not None else None)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{section.place}: {error}") from None
    return variant


def _variant_name(
    objective: str,
    kwargs: Mapping[str, Any],
    normalize: str | None,
    kept_share_of: str | None,
    kept_share_from: str | None,
) -> str:
    """Name a variant by what sets it apart: `profit-t0.1-lower`, `power-k0.5`, `random-as-profit-t0.1`."""
    if kept_share_of is not None:
        parts = [f"random-as-{kept_share_of}" + ("-scores" if kept_share_from == "scores" else "")]
    else:
        # In one order, however the file writes it: the threshold, other fields, then the words.
        words = ("direction", "mask_source")
        keys = sorted(kwargs, key=lambda key: (key in words, key != "threshold", key))
        default = (("direction", "higher"), ("mask_source", "online"))
        shown = [key for key in keys if (key, kwargs[key]) not in default]
        if kwargs.get("direction") == "random":
            shown.remove("threshold")
        parts = [objective, *(str(kwargs[key]) if key in words else _short(key, kwargs[key]) for key in shown)]
    if normalize == "kept":
        parts.append("kept")
    return _slug("-".join(parts))


def _short(key: str, value: Any) -> str:
    shown = "-".join(f"{item:g}" for item in value) if isinstance(value, (list, tuple)) else value
    shown = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else shown
    return f"{'t' if key == 'threshold' else key}{shown}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


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
