"""The map in figures: each objective against plain SFT, condition by condition.

    python benchmarks/map/report.py OUT [--choosing 3]

Writes OUT/map-cells.json, the cells that are there as they are, and of them map.json, map-smollm2.json and
map-check.json: the grid, the real model, and what a rule is checked on. An objective is taken at the learning rate with
the best validation score, of the first seed or in the mean of as many as `--choosing` says. Differences are paired by
problem and seed. `tries` has what each rate gave on validation problems; `profiles` what scoring each condition's
references told before training, and how much of problems like theirs its start had right.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profit_sft.files import write_text
from profit_sft.study.seeds import pooled_seed_variance, seed_comparison
from profit_sft.study.statistics import paired_comparison
from run import SEEDS, Condition, condition_of
from train import FROM_SCRATCH

MEASURES = ("greedy_taught", "greedy_old", "sampled_old", "greedy_new", "greedy_longer")
BASELINE = "nll"


def scores(cell: dict[str, Any], measure: str, *, new_skill: bool) -> np.ndarray:
    """Return a cell's scores, `(P,)`, in [0, 1]; `greedy_taught` is of problems like those of the training data."""
    if measure == "greedy_taught":
        count = len(cell["greedy_new"]) if new_skill else len(cell["greedy_old"])
        values = cell["greedy_old"][:count] + (cell["greedy_new"] if new_skill else "")
    else:
        values = cell[measure]
    return np.array([int(digit) for digit in values] if isinstance(values, str) else values, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Finished:
    """What an objective that ran with all seeds gave in a condition.

    Attributes:
        runs: Its cells at the rate that was chosen, by seed.
        tries: Every rate, rising, with its validation scores, means of the seeds that choose.
    """

    runs: dict[int, dict[str, Any]]
    tries: list[dict[str, Any]]


def finished(condition: Condition, cells: list[dict[str, Any]], choosing: int) -> Finished | None:
    """Choose an objective's rate as run.py does, of equals the smallest; None where a run is missing for it."""
    found = {(cell["rate"], cell["seed"]): cell for cell in cells}
    tries: list[dict[str, Any]] = []
    for rate in sorted(condition.rates):
        of_rate = [found.get((rate, seed), {}) for seed in condition.seeds[:choosing]]
        if not all("validation" in cell for cell in of_rate):
            return None
        keys = [key for key in of_rate[0] if key.startswith("validation")]
        tries.append({"rate": rate} | {key: float(np.mean([cell[key] for cell in of_rate])) for key in keys})
    rate = max(tries, key=lambda row: row["validation"])["rate"]
    runs = {seed: found.get((rate, seed), {}) for seed in condition.seeds}
    return Finished(runs, tries) if all("greedy_old" in cell for cell in runs.values()) else None


def compare(condition: Condition, objectives: dict[str, Finished], start: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each measure and objective."""
    rows, runs = [], {name: of.runs for name, of in objectives.items()}
    for measure in MEASURES:
        if measure not in start and measure != "greedy_taught":  # a large model is not measured on all
            continue
        arrays = {
            name: {seed: scores(cell, measure, new_skill=condition.new_skill) for seed, cell in by_seed.items()}
            for name, by_seed in runs.items()
        }
        pooled = pooled_seed_variance(
            [{seed: float(values.mean()) for seed, values in by_seed.items()} for by_seed in arrays.values()]
        )
        for name, by_seed in arrays.items():
            row = {
                **asdict(condition),
                "measure": measure,
                "objective": name,
                "rate": next(iter(runs[name].values()))["rate"],
                "start_right": float(scores(start, measure, new_skill=condition.new_skill).mean()),
                "share_right": float(np.mean([values.mean() for values in by_seed.values()])),
                "kept_share": float(np.mean([cell["kept_share"] for cell in runs[name].values()])),
            }
            if name != BASELINE and BASELINE in arrays:
                first, second = by_seed, arrays[BASELINE]
                over_problems = paired_comparison(*(np.mean([*side.values()], axis=0) for side in (first, second)))
                over_seeds = seed_comparison(first, second, pooled)
                assert over_seeds.p_value is not None  # there are three seeds
                row |= {
                    "difference": over_problems.difference,
                    "low": over_seeds.low,
                    "high": over_seeds.high,
                    "p_value": max(over_problems.p_value, over_seeds.p_value),
                }
            rows.append(row)
    return rows


def figures_of(out: Path, conditions: dict[Condition, dict[str, Finished]]) -> str:
    """Return the figures of these conditions as JSON, a row a line."""
    measured = {of.start: json.loads((out / "starts" / f"{of.start}.json").read_text()) for of in conditions}
    starts = {name: of_start["own"] for name, of_start in measured.items()}
    profiles = [
        {
            **asdict(of),
            "start_right": float(scores(starts[of.start], "greedy_taught", new_skill=of.new_skill).mean()),
            "out_of_reach": float(np.mean([measured[of.start]["out_of_reach"][skill] for skill in of.skills])),
            **json.loads((out / "profiles" / f"{of.label}.json").read_text()),
        }
        for of in conditions
    ]
    parts = {
        "profiles": profiles,
        "rows": [row for of, objectives in conditions.items() for row in compare(of, objectives, starts[of.start])],
        "tries": [
            asdict(of) | {"objective": name} | row
            for of, objectives in conditions.items()
            for name, its in objectives.items()
            for row in its.tries
        ],
    }
    return "{" + ", ".join(f'"{name}": {_lines(rows)}' for name, rows in parts.items()) + "}\n"


def _lines(rows: list[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]"


def main() -> None:
    """Read the cells, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--choosing", type=int, default=1, help="How many of the seeds choose the learning rate.")
    arguments = parser.parse_args()
    out = arguments.out
    found: dict[Condition, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    cells = [json.loads(file.read_text()) for file in sorted((out / "cells").glob("*/*.json"))]
    for cell in cells:
        found[condition_of(cell)][cell["objective"]].append(cell)
    starts = {
        name: json.loads((out / "starts" / f"{name}.json").read_text()) for name in sorted({of.start for of in found})
    }
    write_text(out / "map-cells.json", f'{{"starts": {json.dumps(starts)}, "cells": {_lines(cells)}}}\n')
    figures: dict[str, dict[Condition, dict[str, Finished]]] = defaultdict(dict)
    for of, objectives in found.items():
        of_all = {name: finished(of, its, arguments.choosing) for name, its in objectives.items()}
        if known := {name: its for name, its in of_all.items() if its is not None}:
            figures[file_of(of)][of] = known
    for name, conditions in figures.items():
        write_text(out / f"{name}.json", figures_of(out, conditions))


def file_of(condition: Condition) -> str:
    """Return the name of the file that a condition's figures stand in."""
    if condition.start not in FROM_SCRATCH.strengths:
        return f"map-{condition.start}"
    return "map" if condition.seeds == SEEDS else "map-check"


if __name__ == "__main__":
    main()
