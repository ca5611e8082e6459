"""The map in figures: each objective against plain SFT, condition by condition.

    python benchmarks/map/report.py OUT

Writes OUT/map.json from the cells that are there; figures.py makes pictures and a table of it. An objective is taken at
the learning rate with the best validation score. Differences are paired by problem and seed. `tries` has what each rate
gave with the first seed.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from profit_sft.files import write_text
from profit_sft.study.seeds import pooled_seed_variance, seed_comparison
from profit_sft.study.statistics import paired_comparison
from run import RATES, SEEDS, Condition

MEASURES = ("greedy_old", "sampled_old", "greedy_new", "greedy_longer")
BASELINE = "nll"


def scores(cell: dict[str, Any], measure: str) -> np.ndarray:
    """Return a cell's scores, `(P,)`, in [0, 1]."""
    values = cell[measure]
    return np.array([int(digit) for digit in values] if isinstance(values, str) else values, dtype=np.float64)


def chosen(cells: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the runs at the rate that was best on validation with the first seed, by seed."""
    tries = tries_of(cells)
    if len(tries) < len(RATES):
        return {}
    rate = max(tries, key=lambda cell: cell["validation"])["rate"]  # of equals the smallest, as in run.py
    return {cell["seed"]: cell for cell in cells if cell["rate"] == rate}


def tries_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs with the first seed, by rate."""
    return sorted((cell for cell in cells if cell["seed"] == SEEDS[0]), key=lambda cell: cell["rate"])


def finished(objectives: dict[str, list[dict[str, Any]]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the chosen runs, by seed, of each objective that ran with all seeds."""
    return {name: by_seed for name, cells in objectives.items() if len(by_seed := chosen(cells)) == len(SEEDS)}


def compare(
    condition: Condition, objectives: dict[str, list[dict[str, Any]]], start: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for each measure and each objective that ran with all seeds."""
    rows, runs = [], finished(objectives)
    for measure in MEASURES:
        arrays = {
            name: {seed: scores(cell, measure) for seed, cell in by_seed.items()} for name, by_seed in runs.items()
        }
        pooled = pooled_seed_variance(
            [{seed: float(values.mean()) for seed, values in by_seed.items()} for by_seed in arrays.values()]
        )
        for name, by_seed in arrays.items():
            row = {
                **asdict(condition),
                "measure": measure,
                "objective": name,
                "seeds": len(by_seed),
                "rate": next(iter(runs[name].values()))["rate"],
                "start_right": float(scores(start, measure).mean()),
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


def tries(condition: Condition, objectives: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return what each finished objective gave at each rate with the first seed."""
    return [
        {
            **asdict(condition),
            "objective": name,
            "rate": cell["rate"],
            "validation": cell["validation"],
            **{measure: float(scores(cell, measure).mean()) for measure in MEASURES},
        }
        for name in finished(objectives)
        for cell in tries_of(objectives[name])
    ]


def condition_of(row: dict[str, Any]) -> Condition:
    """Return a row's condition."""
    return Condition(row["start"], row["wording"], row["wrong_share"], row["new_skill"])


def main() -> None:
    """Read the cells, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    found: dict[Condition, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted((out / "cells").glob("*/*.json")):
        cell = json.loads(file.read_text())
        found[condition_of(cell)][cell["objective"]].append(cell)
    starts = json.loads((out / "starts.json").read_text())
    rows = [row for condition, of in found.items() for row in compare(condition, of, starts[condition.start]["own"])]
    tried = [row for condition, of in found.items() for row in tries(condition, of)]
    write_text(out / "map.json", f'{{"rows": [\n{_lines(rows)}\n], "tries": [\n{_lines(tried)}\n]}}\n')


def _lines(rows: list[dict[str, Any]]) -> str:
    return ",\n".join(json.dumps(row) for row in rows)


if __name__ == "__main__":
    main()
