"""Where does a mask help? Start strength x references x objective, on models small enough for two cores.

    python benchmarks/map/run.py OUT [--grid new old check smollm2 objectives between] [--jobs 2]

A cell is one fine-tuning, a file in OUT/cells; a second call goes on with those that are missing. Each objective tries
five learning rates (three on SmolLM2) with its first seed, or with as many as `--choosing` says, and the one with the
best mean validation score is measured with all seeds.
"""

import argparse
import itertools
import json
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from profit_sft.files import write_text
from profit_sft.objectives import OBJECTIVES
from train import (
    FROM_SCRATCH,
    Learner,
    fine_tune,
    lessons_of,
    make_starts,
    measure,
    out_of_reach,
    profile,
    training_rows,
    validate,
)

OBJECTIVE_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "nll": ("nll", {}),
    "profit 0.1": ("profit", {"threshold": 0.1}),
    "profit 0.1, reference": ("profit", {"threshold": 0.1, "mask_source": "reference"}),
    "dft": ("dft", {}),
    "profit 0.05": ("profit", {"threshold": 0.05}),
    "profit 0.3": ("profit", {"threshold": 0.3}),
    "eaft": ("eaft", {}),
    "trsft": ("trsft", {}),
    "deft": ("deft", {}),
    "psft": ("psft", {}),
}
RANDOM = "random, as many as profit 0.1"
FEW = tuple(OBJECTIVE_SETTINGS)[:4]  # run everywhere
ALL = (*(name for name, (kind, _) in OBJECTIVE_SETTINGS.items() if kind in OBJECTIVES), RANDOM)
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Condition:
    """What is fine-tuned on what; `seeds` are those of the data and of training."""

    start: str
    wording: str
    wrong_share: float
    new_skill: bool
    rows: int = 512
    seeds: tuple[int, ...] = SEEDS

    @property
    def label(self) -> str:
        """Name of its folder."""
        skill = "new" if self.new_skill else "old"
        return f"{self.start} {self.wording} {self.wrong_share:g} {skill} {self.rows}"

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates that each objective tries."""
        return lessons_of(self.start).tried_rates

    @property
    def skills(self) -> tuple[str, ...]:
        """Those of the problems in its references."""
        return ("old", "new") if self.new_skill else ("old",)

    @property
    def data(self) -> dict[str, Any]:
        """What its references are drawn by."""
        return {
            "wording": self.wording,
            "wrong_share": self.wrong_share,
            "new_skill": self.new_skill,
            "rows": self.rows,
        }


Grid = list[tuple[Condition, tuple[str, ...]]]


def _crossed(starts: Iterable[str], wordings: Iterable[str], wrong_shares: Iterable[float], new_skill: bool) -> Grid:
    factors = itertools.product(starts, wordings, wrong_shares)
    return [(Condition(start, *of_start, new_skill), FEW) for start, *of_start in factors]


_BOTH = ("alien", "own")
_STARTS = tuple(reversed(FROM_SCRATCH.strengths))
_NEW = _crossed(_STARTS, _BOTH, (0.0, 0.5), True)
_OLD = _crossed(("half", "strong"), _BOTH, (0.0, 0.5), False)
GRIDS: dict[str, Grid] = {
    "new": _NEW,
    "old": _OLD,
    "objectives": [(Condition("strong", "alien", 0.5, new_skill), ALL) for new_skill in (False, True)],
    "smollm2": [
        (Condition("smollm2", "alien", wrong_share, True, rows=128), (*FEW, "trsft")) for wrong_share in (0.0, 0.3)
    ],
    # Other seeds, sizes and shares of wrong references than those that a rule was made of.
    "check": [
        (Condition(start, wording, wrong_share, new_skill, rows, (3, 4, 5)), FEW[:2])
        for start, wording, wrong_share, new_skill, rows in (
            ("weak", "alien", 0.3, True, 128),
            ("half", "own", 0.3, True, 1024),
            ("half", "alien", 0.3, False, 128),
            ("good", "own", 0.0, False, 512),
            ("good", "alien", 0.5, False, 1024),
            ("good", "own", 0.3, True, 128),
            ("strong", "own", 0.3, False, 128),
            ("strong", "alien", 0.3, False, 1024),
            ("strong", "alien", 0.1, True, 128),
            ("strong", "own", 0.1, True, 1024),
        )
    ],
    "between": _crossed(("half", "strong"), _BOTH, (0.1, 0.3), False),
}


def cell_file(out: Path, condition: Condition, objective: str, rate: float, seed: int) -> Path:
    """Return where a cell is kept."""
    return out / "cells" / condition.label / f"{objective} {rate:g} {seed}.json"


def condition_of(cell: dict[str, Any]) -> Condition:
    """Return a cell's condition."""
    values = {field.name: cell[field.name] for field in fields(Condition)}
    return Condition(**values | {"seeds": tuple(values["seeds"])})


def take_up(out: Path, published: Path, conditions: Collection[Condition]) -> None:
    """Lay out cells that report.py has published, so that they need not run again; refused where the starts differ."""
    found = json.loads(published.read_text())
    for name, measured in found["starts"].items():
        own = out / "starts" / f"{name}.json"
        if own.exists() and json.loads(own.read_text()) != measured:
            raise SystemExit(f"{published}: its start '{name}' answers otherwise than the one in {out}: run all anew")
    for cell in found["cells"]:
        file = cell_file(out, condition_of(cell), cell["objective"], cell["rate"], cell["seed"])
        if condition_of(cell) in conditions and not file.exists():
            write_text(file, json.dumps(cell) + "\n")


def run_objective(
    out: Path, condition: Condition, name: str, objective: tuple[str, dict[str, Any]], choosing: int
) -> list[dict[str, Any]]:
    """Run what an objective still lacks: each rate with the seeds that choose, the best one measured with all seeds."""
    start = load_start(out, condition.start)
    best: tuple[float, float] | None = None  # mean validation score and rate
    best_models: dict[int, Learner] = {}  # those that are not from an earlier call

    def cell(rate: float, seed: int) -> tuple[Path, dict[str, Any]]:
        file = cell_file(out, condition, name, rate, seed)
        return file, json.loads(file.read_text()) if file.exists() else {}

    def trained(rate: float, seed: int) -> tuple[Learner, dict[str, Any]]:
        rows = training_rows(seed, **condition.data)
        model, kept_share = fine_tune(start, rows, *objective, rate=rate, seed=seed)
        return model, asdict(condition) | {"objective": name, "rate": rate, "seed": seed, "kept_share": kept_share}

    for rate in condition.rates:
        models, validated = {}, []
        for seed in condition.seeds[:choosing]:
            file, found = cell(rate, seed)
            if "validation" not in found:
                models[seed], made = trained(rate, seed)
                found = made | found | validate(models[seed], condition.skills)
                write_text(file, json.dumps(found) + "\n")
            validated.append(found["validation"])
        if best is None or fmean(validated) > best[0]:
            best, best_models = (fmean(validated), rate), models
    assert best is not None  # there are rates
    runs = []
    for seed in condition.seeds:
        file, found = cell(best[1], seed)
        if "greedy_old" not in found:
            model = best_models.get(seed)
            if model is None:
                model, made = trained(best[1], seed)
                found = made | found
            found |= measure(model, wording=condition.wording)
            write_text(file, json.dumps(found) + "\n")
        runs.append(found)
    return runs


def run_condition(out: Path, choosing: int, condition: Condition, names: tuple[str, ...]) -> str:
    """Profile a condition's data under its start, then run its objectives."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    profiled = out / "profiles" / f"{condition.label}.json"
    if not profiled.exists():
        rows = training_rows(condition.seeds[0], **condition.data)
        write_text(profiled, json.dumps(profile(load_start(out, condition.start), rows)) + "\n")
    kept_share = 0.0
    for name in names:
        random = ("profit", {"direction": "random", "rate": kept_share})
        objective = random if name == RANDOM else OBJECTIVE_SETTINGS[name]
        runs = run_objective(out, condition, name, objective, choosing)
        if name == "profit 0.1":
            kept_share = runs[0]["kept_share"]
    return f"{condition.label}: {time.perf_counter() - began:.0f} s"


def load_start(out: Path, name: str) -> Learner:
    """Return a start."""
    learner = lessons_of(name).make()
    learner.model.load_state_dict(torch.load(out / "starts" / f"{name}.pt", weights_only=True))
    learner.model.eval()
    return learner


def main() -> None:
    """Make the starts, then the cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--grid", choices=GRIDS, nargs="+", default=[*GRIDS])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--choosing", type=int, default=1, help="How many of the seeds choose the learning rate.")
    parser.add_argument("--known", type=Path, help="Cells that need not run again: docs/results/data/map-cells.json.")
    arguments = parser.parse_args()
    items = [item for name in arguments.grid for item in GRIDS[name]]
    starts = dict.fromkeys(condition.start for condition, _ in items)
    for name in starts:
        make_starts(arguments.out / "starts", lessons_of(name), lambda line: print(line, flush=True))
        measured = arguments.out / "starts" / f"{name}.json"
        if not measured.exists():
            write_text(measured, json.dumps(_measured(arguments.out, name)) + "\n")
    if arguments.known:
        take_up(arguments.out, arguments.known, {condition for condition, _ in items})
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for line in pool.map(partial(run_condition, arguments.out, arguments.choosing), *zip(*items, strict=True)):
            print(line, flush=True)


def _measured(out: Path, name: str) -> dict[str, Any]:
    learner = load_start(out, name)
    reach = {skill: out_of_reach(learner, skill) for skill in ("old", "new")}
    return {wording: measure(learner, wording=wording) for wording in _BOTH} | {"out_of_reach": reach}


if __name__ == "__main__":
    main()
