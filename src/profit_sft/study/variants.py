"""The variants of a study: an objective with its settings, expanded from entries and named by what sets it apart."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profit_sft.errors import ConfigurationError
from profit_sft.objectives import Objective, make_objective
from profit_sft.study.sections import Section

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


def read_variants(entries: Sequence[Any]) -> tuple[tuple[Variant, ...], dict[str, list[int]]]:
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
    check_train(section.at("train"), train)
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
    return make_slug("-".join(parts))


def _short(key: str, value: Any) -> str:
    shown = "-".join(f"{item:g}" for item in value) if isinstance(value, (list, tuple)) else value
    shown = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else shown
    return f"{'t' if key == 'threshold' else key}{shown}"


def make_slug(text: str) -> str:
    """Return the text as a name for a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


def check_train(place: str, settings: Mapping[str, Any]) -> None:
    """Refuse what the study sets itself; `check_flags` knows all the others."""
    for key in settings:
        if key in _OWN_FLAGS:
            raise ConfigurationError(f"{place}.{key} is set by {_OWN_FLAGS[key]}. Take it out.")
