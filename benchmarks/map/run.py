"""Where does a mask help? Start strength x references x objective, on models small enough for two cores.

    python benchmarks/map/run.py OUT [--grid corners|whole] [--jobs 2]

A cell is one fine-tuning, a file in OUT/cells; a second call goes on with those that are missing. Each objective tries
five learning rates with seed 0, and the one with the best validation score is run with two more seeds.
"""

import argparse
import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from profit_sft.files import write_text
from profit_sft.objectives import OBJECTIVES
from train import STRENGTHS, fine_tune, make_starts, measure, training_rows, validation_score

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2)
OBJECTIVE_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "nll": ("nll", {}),
    "profit 0.05": ("profit", {"threshold": 0.05}),
    "profit 0.1": ("profit", {"threshold": 0.1}),
    "profit 0.3": ("profit", {"threshold": 0.3}),
    "profit 0.1, reference": ("profit", {"threshold": 0.1, "mask_source": "reference"}),
    "dft": ("dft", {}),
    "eaft": ("eaft", {}),
    "trsft": ("trsft", {}),
    "deft": ("deft", {}),
    "psft": ("psft", {}),
}
RANDOM = "random, as many as profit 0.1"


@dataclass(frozen=True, slots=True)
class Condition:
    """What is fine-tuned on what."""

    start: str
    wording: str
    wrong_share: float
    new_skill: bool


GRIDS = {
    "corners": [
        Condition("strong", "alien", 0.5, True),
        Condition("strong", "alien", 0.0, True),
        Condition("weak", "own", 0.0, True),
        Condition("strong", "alien", 0.5, False),
        Condition("strong", "own", 0.5, True),
        Condition("weak", "alien", 0.5, True),
        Condition("half", "alien", 0.3, True),
        Condition("good", "alien", 0.3, True),
    ],
    "whole": [
        Condition(*factors)
        for factors in itertools.product(STRENGTHS, ("own", "alien"), (0.0, 0.1, 0.3, 0.5), (False, True))
    ],
}


def run_cell(
    out: Path, condition: Condition, name: str, objective: tuple[str, dict[str, Any]], rate: float, seed: int
) -> dict[str, Any]:
    """Run a cell, or read what it gave."""
    label = f"{condition.start} {condition.wording} {condition.wrong_share:g} {'new' if condition.new_skill else 'old'}"
    file = out / "cells" / label / f"{name} {rate:g} {seed}.json"
    if file.exists():
        return json.loads(file.read_text())
    began = time.perf_counter()
    start = torch.load(out / "starts" / f"{condition.start}.pt", weights_only=True)
    data = {"wording": condition.wording, "wrong_share": condition.wrong_share, "new_skill": condition.new_skill}
    model, kept_share = fine_tune(start, training_rows(seed, **data), *objective, rate=rate, seed=seed)
    found = {
        **asdict(condition),
        "objective": name,
        "rate": rate,
        "seed": seed,
        "kept_share": kept_share,
        "validation": validation_score(model, new_skill=condition.new_skill),
        **measure(model, wording=condition.wording),
        "seconds": time.perf_counter() - began,
    }
    write_text(file, json.dumps(found) + "\n")
    return found


def run_condition(out: Path, condition: Condition) -> str:
    """Run what a condition still lacks: five rates with the first seed, the best one with the others."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    kept_share = 0.0
    objectives = {name: made for name, made in OBJECTIVE_SETTINGS.items() if made[0] in OBJECTIVES}
    for name, objective in [*objectives.items(), (RANDOM, None)]:
        made = objective or ("profit", {"direction": "random", "rate": kept_share})
        tries = [run_cell(out, condition, name, made, rate, SEEDS[0]) for rate in RATES]
        best = max(tries, key=lambda cell: cell["validation"])
        for seed in SEEDS[1:]:
            run_cell(out, condition, name, made, best["rate"], seed)
        if name == "profit 0.1":
            kept_share = best["kept_share"]
    return f"{condition}: {time.perf_counter() - began:.0f} s"


def main() -> None:
    """Make the starts, then the cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--grid", choices=GRIDS, default="corners")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    make_starts(arguments.out / "starts", lambda line: print(line, flush=True))
    measured = arguments.out / "starts.json"
    if not measured.exists():
        write_text(measured, json.dumps({name: _measured(arguments.out, name) for name in STRENGTHS}) + "\n")
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for line in pool.map(run_condition, itertools.repeat(arguments.out), GRIDS[arguments.grid]):
            print(line, flush=True)


def _measured(out: Path, name: str) -> dict[str, Any]:
    from train import new_model

    model = new_model()
    model.load_state_dict(torch.load(out / "starts" / f"{name}.pt", weights_only=True))
    return {wording: measure(model, wording=wording) for wording in ("own", "alien")}


if __name__ == "__main__":
    main()
