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
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from profit_sft.data.generated import MAX_PROBLEMS, MAX_STEPS
from profit_sft.study.study_file import Place, Section, StudyFile, unknown_text
from profit_sft.study.tuning import Tuning
from profit_sft.study.variants import UNTRAINED, CellEntry, TrainSettings, Variant, make_slug, read_variants, short

GENERATED = "generated"


class ModelPlan(Section):
    """A model of the study.

    Attributes:
        model_name_or_path: Hub name, folder or `embedded`.
        name: Short name; part of a cell's name when the study has several models.
        train: Settings of `profit train` for this model alone.
        parameters: Number of parameters, for the estimate where the model cannot be looked at.
    """

    model_name_or_path: str
    name: Annotated[str, AfterValidator(make_slug), Field(min_length=1)] = ""
    train: TrainSettings = Field(default_factory=dict)
    parameters: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, entry: Any) -> Any:
        """Take a bare name, too, and call a model by the last part of its path unless told otherwise."""
        entry = {"model_name_or_path": entry} if isinstance(entry, str) else entry
        path = entry.get("model_name_or_path") if isinstance(entry, Mapping) else None
        if not isinstance(path, str) or entry.get("name") is not None:
            return entry
        return {**entry, "name": path.rstrip("/").rsplit("/", 1)[-1]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One training run, or the untrained model.

    Attributes:
        slug: Its name.
        model: The model.
        variant: The variant.
        seed: None for the untrained model.
        is_try: It is measured on the validation problems of `tune`, to choose a value, and compared with nothing.
        tuned: The setting of `tune` with the value of this cell; empty until the tries have chosen one.
    """

    slug: str
    model: ModelPlan
    variant: Variant
    seed: int | None
    is_try: bool = False
    tuned: Mapping[str, float] = field(default_factory=dict)


_Rows = Annotated[PositiveInt, Field(le=MAX_PROBLEMS)]


class GeneratedData(Section):
    """The generated arithmetic problems: how many, and which.

    Attributes:
        rows: Training problems.
        seed: Their seed. All cells train on the same rows.
        heldout_rows: Problems of the held-out split whose reference solutions plain NLL is measured on.
        heldout_seed: Their seed.
        steps: Equations per solution, 1 to 3.
    """

    rows: _Rows = 240
    seed: int = 0
    heldout_rows: _Rows = 100
    heldout_seed: int = 1
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 1


class Assumptions(Section):
    """What the estimate assumes; the section `estimate` of a study file.

    Attributes:
        device: Name of the device the figures are of, for the reader.
        train_tokens_per_second: Measured speed of training. None: from the formula.
        startup_seconds: Measured time a cell takes besides training steps and generation.
        evaluate_seconds: Measured time of one cell's evaluation. None: from the formula.
        peak_tflops: Peak of one GPU in 1e12 operations a second.
        mfu: Share of that peak training reaches.
        bandwidth_gb_per_second: Memory bandwidth of one GPU in 1e9 bytes a second.
        bandwidth_share: Share of it that generation reaches.
        generation_batch: Answers generated together.
        mean_new_tokens: Mean length of an answer in tokens.
        rows: Training rows, where the data is not at hand.
        tokens_per_row: Mean tokens of a training row, where the data is not at hand.
    """

    device: str = "H100"
    train_tokens_per_second: PositiveFloat | None = None
    startup_seconds: PositiveFloat = 0.0
    evaluate_seconds: PositiveFloat | None = None
    peak_tflops: PositiveFloat = 989.0  # bf16, dense
    mfu: PositiveFloat = 0.35
    bandwidth_gb_per_second: PositiveFloat = 3350.0
    bandwidth_share: PositiveFloat = 0.5
    generation_batch: PositiveInt = 64
    mean_new_tokens: PositiveInt = 800
    rows: PositiveInt | None = None
    tokens_per_row: PositiveFloat | None = None


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
        cells: All that are compared, in the order they run.
        tune: What is chosen for each variant and model before its cells run; None: nothing.
        tries: The cells that it is chosen by.
        keep_models: Keep the weights of cells that have been measured.
        estimate: Assumptions of the cost estimate.
        file: What it was read from, for messages.
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
    tune: Tuning | None
    tries: tuple[Cell, ...]
    keep_models: bool
    estimate: Assumptions
    file: StudyFile = field(repr=False, compare=False)

    @property
    def runs(self) -> tuple[Cell, ...]:
        """Tries and cells."""
        return self.tries + self.cells

    @property
    def train_places(self) -> list[tuple[Place, Mapping[str, Any]]]:
        """The settings of `profit train` in the file, each with its place."""
        models, variants = enumerate(self.models), self.variants
        return [
            (("train",), self.train),
            *((("models", index, "train"), model.train) for index, model in models),
            *((("cells", variant.entry, "train"), variant.train) for variant in variants),
        ]

    def of_model(self, name: str) -> str:
        """Return what is put behind a figure of a model: its name in brackets, nothing where the study has one."""
        return f" ({name})" if len(self.models) > 1 else ""

    def tries_of(self, cell: Cell) -> tuple[Cell, ...]:
        """Return the tries that choose the cell's value; none for a try and the untrained model."""
        return tuple(
            other
            for other in self.tries
            if not cell.is_try and (other.model, other.variant) == (cell.model, cell.variant)
        )

    def train_settings(self, cell: Cell) -> dict[str, Any]:
        """Return the cell's settings of `profit train`, but for its objective."""
        return {**self.shared_settings(cell.model), **cell.variant.train, **cell.tuned}

    def shared_settings(self, model: ModelPlan) -> dict[str, Any]:
        """Return the settings of `profit train` of all variants of a model, by which all are scored and measured."""
        return {**self.train, **model.train}

    def eval_settings(self, cell: Cell) -> Mapping[str, Any]:
        """Return the cell's settings of `profit eval`."""
        return self.tune.evaluate if self.tune is not None and cell.is_try else self.evaluate


def _pair(names: Any) -> Any:
    if not isinstance(names, list) or len(names) != 2:
        raise ValueError(f" must be a pair such as [profit-t0.1, dft], got {names!r}.")
    return names


class _Content(Section):
    """The keys of a study file, which `StudyPlan` describes."""

    name: str | None = None
    question: str | None = None
    model_name_or_path: str | None = None
    models: list[ModelPlan] | None = None
    dataset_name: str
    generated: GeneratedData = GeneratedData()
    heldout_dataset_name: str | None = None
    train: TrainSettings = Field(default_factory=dict)
    tune: Tuning | None = None
    evaluate: dict[str, Any] = Field(default_factory=dict)
    baseline: str = "nll"
    cells: Annotated[list[CellEntry], Field(min_length=1)]
    comparisons: list[Annotated[list[str], BeforeValidator(_pair)]] = Field(default_factory=list)
    keep_models: bool = True
    estimate: Assumptions = Assumptions()


def load_plan(path: str | Path, *, model_name_or_path: str | None = None, dataset_name: str | None = None) -> StudyPlan:
    """Read a study file.

    Args:
        path: The YAML file.
        model_name_or_path: Use this model in place of each one the file names, for a rehearsal.
        dataset_name: Train on this in place of what the file names.

    Raises:
        ConfigurationError: The file cannot be read, or something in it is missing, unknown or out of range; the
            message names file, line, key and value.
    """
    file = StudyFile.read(path)
    if dataset_name is not None:
        file = dataclasses.replace(file, content={**file.content, "dataset_name": dataset_name})
    return _plan(file, model_name_or_path)


def parse_plan(content: Mapping[str, Any], *, model_name_or_path: str | None = None) -> StudyPlan:
    """Build the plan from the mapping of a study file; errors as `load_plan`, without file and line."""
    return _plan(StudyFile(content), model_name_or_path)


def _plan(file: StudyFile, model_name_or_path: str | None) -> StudyPlan:
    content = file.parse(_Content)
    models = _models(file, content, model_name_or_path)
    variants, seeds = read_variants(file, content.cells)
    plan = StudyPlan(
        name=content.name or (file.path.stem if file.path else "study"),
        question=content.question,
        models=models,
        dataset_name=content.dataset_name,
        generated=content.generated,
        heldout_dataset_name=content.heldout_dataset_name,
        train=content.train,
        evaluate=content.evaluate,
        baseline=content.baseline,
        comparisons=tuple((first, second) for first, second in content.comparisons),
        variants=variants,
        cells=_cells(models, variants, seeds),
        tune=content.tune,
        tries=_tries(models, variants, content.tune),
        keep_models=content.keep_models,
        estimate=content.estimate,
        file=file,
    )
    _check_names(plan)
    return plan


def _models(file: StudyFile, content: _Content, override: str | None) -> tuple[ModelPlan, ...]:
    single, several = content.model_name_or_path, content.models
    if (single is None) == (several is None):
        raise file.error((), "give one of model_name_or_path and models: the model, or a list of them.")
    models = several or [ModelPlan.model_validate(single)]
    names = [model.name for model in models]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise file.error(("models", index), f": another is called {name!r}, too. Give each a name of its own.")
    if override is not None:
        changes = {"model_name_or_path": override, "parameters": None}
        models = [model.model_copy(update=changes) for model in models]
    return tuple(models)


def _cells(
    models: Sequence[ModelPlan], variants: Sequence[Variant], seeds: Mapping[str, Sequence[int]]
) -> tuple[Cell, ...]:
    """List every cell: per model the untrained one, then seed by seed, so that an early stop leaves whole rounds."""
    cells = []
    untrained = Variant(name=UNTRAINED, objective=None)
    for model in models:
        prefix = _prefix(model, models)
        cells.append(Cell(slug=f"{prefix}{UNTRAINED}", model=model, variant=untrained, seed=None))
        for round_ in range(max(len(entry) for entry in seeds.values())):
            for variant in variants:
                if round_ < len(seeds[variant.name]):
                    seed = seeds[variant.name][round_]
                    slug = f"{prefix}{variant.name}-s{seed}"
                    cells.append(Cell(slug=slug, model=model, variant=variant, seed=seed))
    return tuple(cells)


def _prefix(model: ModelPlan, models: Sequence[ModelPlan]) -> str:
    """Return what a cell's name begins with."""
    return f"{model.name}." if len(models) > 1 else ""


def _tries(models: Sequence[ModelPlan], variants: Sequence[Variant], tune: Tuning | None) -> tuple[Cell, ...]:
    """List a cell for every model, variant, value and seed of `tune`."""
    if tune is None:
        return ()
    return tuple(
        Cell(
            slug=f"{_prefix(model, models)}{variant.name}-{short(tune.setting, value)}-s{seed}-try",
            model=model,
            variant=variant,
            seed=seed,
            is_try=True,
            tuned={tune.setting: value},
        )
        for model in models
        for variant in variants
        for value in tune.values
        for seed in tune.seed
    )


def _check_names(plan: StudyPlan) -> None:
    """Refuse references to variants that do not exist."""
    by_name = {variant.name: variant for variant in plan.variants}
    if UNTRAINED in by_name:
        raise plan.file.error(
            ("cells", by_name[UNTRAINED].entry),
            f": the name {UNTRAINED!r} is taken by the starting model, which is always there.",
        )
    slugs = [cell.slug for cell in plan.runs]
    for index, slug in enumerate(slugs):
        if slug in slugs[:index]:  # of model a.b and variant c, and of model a and variant b.c
            raise plan.file.error((), f"two cells would be called {slug!r}. Give models or variants other names.")
    if plan.tune is not None:
        for place, settings in plan.train_places:
            if plan.tune.setting in settings:
                raise plan.file.error((*place, plan.tune.setting), " is chosen by `tune`. Take out one of the two.")
    references: list[tuple[Place, str]] = [(("baseline",), plan.baseline)]
    for index, pair in enumerate(plan.comparisons):
        references += [(("comparisons", index, side), name) for side, name in enumerate(pair)]
    names = [*by_name, UNTRAINED]
    for place, name in references:
        if name not in names:
            raise plan.file.error(place, f": variant {name!r}{unknown_text(name, names)}")
    for variant in plan.variants:
        imitated, place = variant.kept_share_of, ("cells", variant.entry, "kept_share_of")
        if imitated is None:
            continue
        if imitated not in by_name:
            raise plan.file.error(place, f": variant {imitated!r}{unknown_text(imitated, list(by_name))}")
        if by_name[imitated].kept_share_of is not None:
            raise plan.file.error(place, f": {variant.name} imitates {imitated}, which imitates another itself.")
