"""The variants of a study: an objective with its settings, expanded from entries and named by what sets it apart."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, NonNegativeInt

from profit_sft.objectives import Objective, make_objective
from profit_sft.study.study_file import Section, StudyFile, key_errors, one_or_more

MAX_NAME = 100  # characters of a cell's or model's name; file systems take 255, and a cell has both and a seed
UNTRAINED = "untrained"  # name of the variant that is the starting model

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


def leave_the_studys_own(settings: dict[str, Any]) -> dict[str, Any]:
    """Refuse what the study sets itself; `check_flags` knows all the others."""
    own = {key: f" is set by {_OWN_FLAGS[key]}. Take it out." for key in settings if key in _OWN_FLAGS}
    if own:
        raise key_errors(own)
    return settings


def _folder_name(name: str) -> str:
    """Refuse a name that is a path, or that no file system takes: a cell's folder is called by it."""
    if not name or name != make_slug(name):
        hint = f" Write {make_slug(name)!r}." if make_slug(name) else ""
        raise ValueError(
            f" must be letters, digits, '.', '_' and '-', from a letter or digit to one, at most {MAX_NAME} of them, "
            f"got {name!r}.{hint}"
        )
    return name


TrainSettings = Annotated[dict[str, Any], AfterValidator(leave_the_studys_own)]

_T = TypeVar("_T")
OneOrMore = Annotated[list[_T], BeforeValidator(one_or_more), Field(min_length=1)]


class CellEntry(Section):
    """An entry of `cells`, which stands for every combination of its lists. Other keys are fields of the objective."""

    model_config = ConfigDict(extra="allow")

    objective: OneOrMore[str]
    seed: OneOrMore[NonNegativeInt] = Field(default=[0])
    normalize: OneOrMore[Literal["all", "kept"] | None] = Field(default=[None])
    kept_share_of: OneOrMore[str | None] = Field(default=[None])
    kept_share_from: OneOrMore[Literal["run", "scores"] | None] = Field(default=[None])
    name: Annotated[str, AfterValidator(_folder_name)] | None = None
    train: TrainSettings = Field(default_factory=dict)


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
        entry: Number of the entry of `cells` that it is first in, for messages.
    """

    name: str
    objective: str | None
    objective_kwargs: Mapping[str, Any] = field(default_factory=dict)
    normalize: str | None = None
    kept_share_of: str | None = None
    kept_share_from: str = "run"
    train: Mapping[str, Any] = field(default_factory=dict)
    entry: int = field(default=0, compare=False)

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


def read_variants(file: StudyFile, entries: Sequence[CellEntry]) -> tuple[tuple[Variant, ...], dict[str, list[int]]]:
    """Expand the entries; return the variants in order and the seeds of each.

    Raises:
        ConfigurationError: Two are called alike, or an entry contradicts itself.
    """
    variants: dict[str, Variant] = {}
    seeds: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        for variant in _expand(file, index, entry):
            known = variants.setdefault(variant.name, variant)
            if known != variant:
                raise file.error(
                    ("cells", index), f": two different variants are called {variant.name!r}. Give one a `name`."
                )
            for seed in entry.seed:
                if seed in seeds.setdefault(variant.name, []):
                    raise file.error(("cells", index), f": {variant.name} with seed {seed} is there twice.")
                seeds[variant.name].append(seed)
    return tuple(variants.values()), seeds


def _expand(file: StudyFile, index: int, entry: CellEntry) -> Iterator[Variant]:
    """Yield one variant for every combination of the entry's lists."""
    place = ("cells", index)
    if entry.train and entry.name is None:
        raise file.error(place, " has settings of its own under `train`, so it needs a `name`.")
    values = entry.model_dump(exclude={"seed", "name", "train"})
    # In the order of the file, which decides that of the cells.
    axes = {key: one_or_more(values[key]) for key in file.content["cells"][index] if key in values}
    combinations = list(itertools.product(*axes.values()))
    if entry.name is not None and len(combinations) > 1:
        raise file.error(place, f" stands for {len(combinations)} variants, so it cannot have a `name`.")
    for combination in combinations:
        yield _variant(file, index, dict(zip(axes, combination, strict=True)), entry)


def _variant(file: StudyFile, index: int, kwargs: dict[str, Any], entry: CellEntry) -> Variant:
    place = ("cells", index)
    objective, normalize = kwargs.pop("objective"), kwargs.pop("normalize", None)
    kept_share_of, kept_share_from = kwargs.pop("kept_share_of", None), kwargs.pop("kept_share_from", None)
    if objective == "profit":
        kwargs.setdefault("threshold", 0.1)
    if kept_share_of is None and kept_share_from is not None:
        raise file.error((*place, "kept_share_from"), " needs kept_share_of, the variant to imitate.")
    if kept_share_of is not None and (kwargs.get("direction") != "random" or "rate" in kwargs):
        raise file.error(
            (*place, "kept_share_of"), " gives the rate of `direction: random`; set that direction and no rate."
        )
    variant = Variant(
        name=entry.name or _variant_name(objective, kwargs, normalize, kept_share_of, kept_share_from),
        objective=objective,
        objective_kwargs=kwargs,
        normalize=normalize,
        kept_share_of=kept_share_of,
        kept_share_from=kept_share_from or "run",
        train=entry.train,
        entry=index,
    )
    try:
        variant.make_objective(rate=0.5 if kept_share_of is not None else None)
    except (TypeError, ValueError) as error:
        raise file.error(place, f": {error}") from None
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
        parts = [objective, *(str(kwargs[key]) if key in words else short(key, kwargs[key]) for key in shown)]
    if normalize == "kept":
        parts.append("kept")
    return make_slug("-".join(parts))


_SHORT = {"threshold": "t", "learning_rate": "lr"}


def short(key: str, value: Any) -> str:
    """Return a setting for a name: `t0.1`, `lr1e-05`, `k1e06`."""
    shown = "-".join(f"{item:g}" for item in value) if isinstance(value, (list, tuple)) else value
    shown = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else shown
    return make_slug(f"{_SHORT.get(key, key)}{shown}".replace("e+", "e"))  # not 1e-06 for a million


def make_slug(text: str) -> str:
    """Return the text as a name for a folder; nothing of a text without a letter or digit."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:MAX_NAME].strip("-.")
