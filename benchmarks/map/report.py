"""The map as figures and as a picture: each objective against plain SFT, condition by condition.

    python benchmarks/map/report.py OUT

Writes OUT/map.json, OUT/map.md and OUT/map.svg from the cells that are there. An objective is taken at the learning
rate with the best validation score. Differences are paired by problem and seed; p-values are corrected (Holm) for all
comparisons of a measure.
"""

import argparse
import json
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from profit_sft.files import write_text
from profit_sft.study.seeds import pooled_seed_variance, seed_comparison
from profit_sft.study.statistics import holm, paired_comparison
from run import RATES, SEEDS, Condition
from train import STRENGTHS

MEASURES = {
    "greedy_old": "old skill, greedy",
    "sampled_old": "old skill, 8 samples at 0.7",
    "greedy_new": "new skill, greedy",
    "greedy_longer": "longer problems, greedy",
}
_BASELINE = "nll"
_BOX, _LEFT, _TOP = (54, 30), 190, 64


def scores(cell: dict[str, Any], measure: str) -> np.ndarray:
    """Return a cell's scores, `(P,)`, in [0, 1]."""
    values = cell[measure]
    return np.array([int(digit) for digit in values] if isinstance(values, str) else values, dtype=np.float64)


def chosen(cells: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the runs at the rate that was best on validation with the first seed, by seed."""
    tries = [cell for cell in cells if cell["seed"] == SEEDS[0]]
    if len(tries) < len(RATES):
        return {}
    rate = max(tries, key=lambda cell: cell["validation"])["rate"]
    return {cell["seed"]: cell for cell in cells if cell["rate"] == rate}


def compare(found: dict[Condition, dict[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Return one row a condition, objective and measure."""
    rows = []
    for measure in MEASURES:
        of_measure = []
        for condition, objectives in found.items():
            runs = {name: chosen(cells) for name, cells in objectives.items()}
            arrays = {
                name: {seed: scores(cell, measure) for seed, cell in by_seed.items()} for name, by_seed in runs.items()
            }
            pooled = pooled_seed_variance(
                [{seed: float(values.mean()) for seed, values in by_seed.items()} for by_seed in arrays.values()]
            )
            for name, by_seed in arrays.items():
                if not by_seed:
                    continue
                row = {
                    "start": condition.start,
                    "wording": condition.wording,
                    "wrong_share": condition.wrong_share,
                    "new_skill": condition.new_skill,
                    "measure": measure,
                    "objective": name,
                    "seeds": len(by_seed),
                    "rate": next(iter(runs[name].values()))["rate"],
                    "share_right": float(np.mean([values.mean() for values in by_seed.values()])),
                    "kept_share": float(np.mean([cell["kept_share"] for cell in runs[name].values()])),
                }
                common = sorted(set(by_seed) & set(arrays.get(_BASELINE, {})))
                if name != _BASELINE and len(common) == len(SEEDS):
                    first, second = ({seed: arrays[side][seed] for seed in common} for side in (name, _BASELINE))
                    over_problems = paired_comparison(
                        np.mean([*first.values()], axis=0), np.mean([*second.values()], axis=0)
                    )
                    over_seeds = seed_comparison(first, second, pooled)
                    assert over_seeds.p_value is not None  # there are three seeds
                    row |= {
                        "difference": over_problems.difference,
                        "low": over_seeds.low,
                        "high": over_seeds.high,
                        "p_value": max(
                            over_problems.p_value, 1.0 if over_seeds.p_value is None else over_seeds.p_value
                        ),
                    }
                of_measure.append(row)
        compared = [row for row in of_measure if "p_value" in row]
        for row, adjusted in zip(compared, holm([row["p_value"] for row in compared]), strict=True):
            row["adjusted_p_value"] = adjusted
        rows += of_measure
    return rows


def markdown(rows: list[dict[str, Any]], starts: dict[str, Any]) -> str:
    """Return tables: a measure each, conditions down, objectives across."""
    lines = ["Right before fine-tuning, greedy: "]
    for name, measured in starts.items():
        shares = ", ".join(
            f"{label.split(',')[0]} {scores(measured['own'], key).mean():.0%}"
            for key, label in MEASURES.items()
            if key != "sampled_old"
        )
        lines.append(f"- {name}: {shares}")
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    for measure, label in MEASURES.items():
        lines += [
            "",
            f"**{label[0].upper()}{label[1:]}**, share right; plain SFT, then differences from it in points",
            "",
        ]
        lines += ["| start | wording | wrong | new skill | " + " | ".join(objectives) + " |"]
        lines += ["|" + "---|" * (4 + len(objectives))]
        by_condition: dict[Condition, dict[str, dict[str, Any]]] = defaultdict(dict)
        for row in rows:
            if row["measure"] == measure:
                by_condition[condition_of(row)][row["objective"]] = row
        for condition, found in sorted(by_condition.items(), key=lambda entry: order(entry[0])):
            cells = [_in_words(found.get(name)) for name in objectives]
            new = "half" if condition.new_skill else ""
            lines.append(
                " | ".join(
                    ["", condition.start, condition.wording, f"{condition.wrong_share:.0%}", new, *cells, ""]
                ).strip()
            )
    return "\n".join(lines) + "\n"


def _in_words(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "difference" not in row:
        return f"{row['share_right']:.1%}"
    text = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return f"**{text}**" if row["adjusted_p_value"] < 0.05 else text


def condition_of(row: dict[str, Any]) -> Condition:
    """Return a row's condition."""
    return Condition(row["start"], row["wording"], row["wrong_share"], row["new_skill"])


def order(condition: Condition) -> tuple[Any, ...]:
    """Return what conditions are sorted by."""
    return (list(STRENGTHS).index(condition.start), condition.wording, condition.new_skill, condition.wrong_share)


def picture(rows: list[dict[str, Any]], measure: str) -> str:
    """Return an SVG: a panel an objective, strength across, references down; shown differences have a frame."""
    compared = [row for row in rows if row["measure"] == measure and "difference" in row]
    objectives = list(dict.fromkeys(row["objective"] for row in compared))
    kinds = sorted(
        {condition_of(row) for row in compared}, key=lambda one: (one.wording, one.new_skill, one.wrong_share)
    )
    kinds = list(dict.fromkeys((kind.wording, kind.new_skill, kind.wrong_share) for kind in kinds))
    width, height = _BOX
    panel = len(STRENGTHS) * width + 24
    parts = []
    for index, name in enumerate(objectives):
        left = _LEFT + index * panel
        parts.append(f'<text x="{left}" y="24" class="title">{escape(name)}</text>')
        for column, strength in enumerate(STRENGTHS):
            parts.append(f'<text x="{left + (column + 0.5) * width}" y="50" class="axis">{strength}</text>')
        for row in compared:
            if row["objective"] != name:
                continue
            x = left + list(STRENGTHS).index(row["start"]) * width
            y = _TOP + kinds.index((row["wording"], row["new_skill"], row["wrong_share"])) * height
            frame = ' stroke="#111" stroke-width="2"' if row["adjusted_p_value"] < 0.05 else ""
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{width - 3}" height="{height - 3}" '
                f'fill="{_color(row["difference"])}"{frame}/>'
                f'<text x="{x + width / 2}" y="{y + 20}" class="number">{100 * row["difference"]:+.0f}</text>'
            )
    for index, (wording, new_skill, wrong_share) in enumerate(kinds):
        label = f"{wording} wording, {wrong_share:.0%} wrong{', new skill' if new_skill else ''}"
        parts.append(f'<text x="8" y="{_TOP + index * height + 20}" class="row">{label}</text>')
    total = _LEFT + len(objectives) * panel, _TOP + len(kinds) * height + 12
    style = "text{font:13px sans-serif;fill:#111}.title{font-weight:bold}.axis,.number{text-anchor:middle}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}" width="{total[0]}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _color(difference: float) -> str:
    """Blue where the objective is ahead, orange where plain SFT is: told apart with any kind of color vision."""
    strength = min(1.0, abs(difference) / 0.4) ** 0.7
    target = (33, 113, 181) if difference > 0 else (230, 130, 30)
    return "#" + "".join(f"{round(255 + (channel - 255) * 0.8 * strength):02x}" for channel in target)


def main() -> None:
    """Read the cells, write the map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--measure", choices=MEASURES, default="sampled_old", help="Of the picture.")
    arguments = parser.parse_args()
    found: dict[Condition, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted((arguments.out / "cells").glob("*/*.json")):
        cell = json.loads(file.read_text())
        found[condition_of(cell)][cell["objective"]].append(cell)
    rows = compare(found)
    starts = json.loads((arguments.out / "starts.json").read_text())
    write_text(arguments.out / "map.json", json.dumps({"starts": starts, "rows": rows}, indent=1) + "\n")
    write_text(arguments.out / "map.md", markdown(rows, starts))
    write_text(arguments.out / "map.svg", picture(rows, arguments.measure))


if __name__ == "__main__":
    main()
