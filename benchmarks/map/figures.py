"""The map's pictures and tables, of the figures that report.py wrote: `TABLES` names the files.

    python benchmarks/map/figures.py docs/results/data

Writes docs/images/map*.svg and the tables in docs/results/map.md. A row of a file is a condition, an objective and a
measure. Differences from plain SFT are shown where p < 0.05 after Holm's correction for all of a measure.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from profit_sft.files import write_text
from profit_sft.mask.reach import Region, region_of
from profit_sft.study.report import LIMITS, shade
from profit_sft.study.statistics import SIGNIFICANCE, holm

Row = dict[str, Any]
DOCS = Path(__file__).resolve().parents[2] / "docs"
BASELINE, MASK, FIXED_MASK = "nll", "profit 0.1", "profit 0.1, reference"
MEASURES = {  # a column of tables and a title of pictures each
    "greedy_taught": (
        "like the data",
        "Problems like those of the data: of the old skill, and of the new one where there is one",
    ),
    "greedy_old": ("old skill", "The old skill: sums of two steps, which the start was taught"),
    "sampled_old": ("old skill, 8 samples", "The old skill, 8 samples at temperature 0.7"),
    "greedy_new": ("new skill", "The new skill: sums of three steps, in half of the references"),
}
TITLES = {
    BASELINE: ("plain SFT", "% right after it"),
    MASK: ("profit 0.1", "online mask, as published"),
    FIXED_MASK: ("profit 0.1", "mask of the start"),
    "random, as many as profit 0.1": ("random mask", "as many as profit 0.1"),
}
_NAMES = {BASELINE: "nll (plain SFT)"}
_EVERYWHERE = (BASELINE, MASK, FIXED_MASK)  # the objectives that ran in all conditions
# By file: of which figures, measures and objectives (None: all that there are).
PICTURES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...] | None]] = {
    "map.svg": ("map", ("greedy_taught", "greedy_old", "greedy_new"), _EVERYWHERE),
    "map-short.svg": ("map", ("greedy_taught",), _EVERYWHERE),
    "map-other-starts.svg": ("map-other-starts", ("greedy_taught", "greedy_old"), None),
}
# Two tables each, in the order of the page; the second of these objectives (None: all that there are).
TABLES: dict[str, tuple[str, ...] | None] = {
    "map": _EVERYWHERE,
    "map-other-starts": None,
    "map-three-seeds": None,
    "map-smollm2": None,
    "map-smollm2-again": None,
}
# A theme each: paper, ink, paler ink, lines, no difference; then ahead of plain SFT and behind it, by size. Blue and
# orange are told apart with any kind of color vision.
THEMES = {
    "light": {
        "paper": "#ffffff", "ink": "#1a1c20", "pale": "#5b616b", "line": "#c9ccd1", "same": "#eceded",
        "ahead": ("#dbe9f7", "#a9ccee", "#5a9bd8", "#1d5fa6"),
        "behind": ("#fbe8d3", "#f6c894", "#e8973f", "#a4500a"),
    },
    "dark": {
        "paper": "#16191d", "ink": "#f0f2f4", "pale": "#a7aeb8", "line": "#474d56", "same": "#2a2e34",
        "ahead": ("#1e3247", "#23507d", "#3a83c9", "#93c4f5"),
        "behind": ("#43301c", "#714615", "#b96a14", "#f7b56b"),
    },
}  # fmt: skip
_MARKER = "<!-- python benchmarks/map/figures.py docs/results/data -->\n"  # a table stands between two
_CELL, _LEFT, _GAP, _HEAD, _WIDTH = (70, 38), 172, 14, 58, 760  # pixels


def read_figures(file: Path) -> dict[str, list[Row]]:
    """Return a file's figures; of its rows those of measures shown here, and Holm's p-value of what is compared."""
    figures: dict[str, list[Row]] = json.loads(file.read_text())
    rows = [row for row in figures["rows"] if row["measure"] in MEASURES]
    rows = [row for row in rows if row["new_skill"] or row["measure"] != "greedy_new"]  # nothing was to be learned
    for measure in MEASURES:
        compared = [row for row in rows if row["measure"] == measure and "p_value" in row]
        for row, adjusted in zip(compared, holm([row["p_value"] for row in compared]), strict=True):
            row["adjusted_p_value"] = adjusted
    return figures | {"rows": rows}


def condition(row: Row) -> tuple[str, str, float, bool]:
    """Return what is fine-tuned on what."""
    return row["start"], row["wording"], row["wrong_share"], row["new_skill"]


def is_shown(row: Row) -> bool:
    """Return whether the difference is more than chance."""
    return bool(row["adjusted_p_value"] < SIGNIFICANCE)


def regions(figures: dict[str, list[Row]]) -> dict[str, Region]:
    """Return what was measured of the masks in each region of the rule, see `profit_sft.mask.reach`."""
    found: dict[str, dict[str, list[Row]]] = {}
    for region, row in _by_region(figures):
        found.setdefault(region, {}).setdefault(row["objective"], []).append(row)
    return {
        region: Region(
            len(of[MASK]),
            *(
                sum(is_shown(row) and (row["difference"] > 0) == ahead for row in of[mask])
                for mask in (MASK, FIXED_MASK)
                for ahead in (True, False)
            ),
            *(round(100 * pick(row["difference"] for row in of[MASK]), 1) for pick in (min, max)),
        )
        for region, of in found.items()
    }


def hits(*figures: dict[str, list[Row]]) -> tuple[int, int, float]:
    """Return for how many conditions the rule names a side, in how many it is that, and the largest miss in points."""
    sides = {"new": -1, "wording": 1}
    signed = [
        sides[region] * row["difference"]
        for of_file in figures
        for region, row in _by_region(of_file)
        if region in sides and row["objective"] == MASK
    ]
    misses = [-100 * difference for difference in signed if difference <= 0]
    return len(signed), len(signed) - len(misses), round(max(misses, default=0.0), 1)


def _by_region(figures: dict[str, list[Row]]) -> Iterator[tuple[str, Row]]:
    profiles = {(*condition(row), row["rows"]): row for row in figures["profiles"]}
    for row in figures["rows"]:
        if row["measure"] == "greedy_taught" and "difference" in row:
            profile = profiles[(*condition(row), row["rows"])]
            yield region_of(profile["out_of_reach"], profile["below_0.1"]), row


def table(rows: Sequence[Row]) -> str:
    """Return markdown: a row a condition and objective."""
    columns = ["start", "references", "objective", "rate", "kept", *(column for column, _ in MEASURES.values())]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    starts = _starts(rows)
    objectives = _objectives(rows)
    found = {(condition(row), row["objective"], row["measure"]): row for row in rows}
    keys = sorted(
        {(condition(row), row["objective"]) for row in rows},
        key=lambda key: (starts.index(key[0][0]), key[0][1:], objectives.index(key[1])),
    )
    for key, before in zip(keys, [(None, ""), *keys], strict=False):
        row, named = found[(*key, "greedy_old")], key[0] != before[0]
        references = f"{row['wrong_share']:.0%} wrong, {_words(row['wording'], row['new_skill'])}"
        cells = [row["start"], references] if named else ["", ""]
        cells += [_NAMES.get(key[1], key[1])]
        cells += [_rate(row["rate"]), f"{row['kept_share']:.0%}"]
        cells += [_in_words(found.get((*key, measure))) for measure in MEASURES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table_of_tries(tries: Sequence[Row], starts: Sequence[str], objectives: Sequence[str]) -> str:
    """Return markdown: rates across, and of each the share right of the old skill and of the new one."""
    rates = sorted({row["rate"] for row in tries})
    lines = ["| start | references | objective | " + " | ".join(map(_rate, rates)) + " |"]
    lines += ["|" + "---|" * (3 + len(rates))]
    found = {(condition(row), row["objective"], row["rate"]): row for row in tries}
    conditions = sorted({condition(row) for row in tries}, key=lambda one: (starts.index(one[0]), one[1:]))
    for one, name in itertools.product(conditions, objectives):
        of_rates = [found.get((one, name, rate)) for rate in rates]
        if not any(of_rates):
            continue
        start, wording, wrong_share, new_skill = one
        cells = [start, f"{wrong_share:.0%} wrong, {_words(wording, new_skill)}"] if name == BASELINE else ["", ""]
        cells += [_NAMES.get(name, name)]
        for row in of_rates:
            skills = ("old", "new") if new_skill else ("old",)
            cells.append(" / ".join(f"{row[f'validation_{skill}']:.0%}" for skill in skills) if row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rate(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


def _in_words(row: Row | None) -> str:
    if row is None:
        return ""
    if "difference" not in row:
        return f"{row['share_right']:.1%}"
    text = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return f"**{text}**" if is_shown(row) else text


def _words(wording: str, new_skill: bool) -> str:
    return f"{wording} words{'' if new_skill else ', nothing new'}"


def _starts(rows: Iterable[Row]) -> list[str]:
    """Return the starts there are, the weakest first."""
    strength = {row["start"]: row["start_right"] for row in rows if row["measure"] == "greedy_old"}
    return sorted(strength, key=lambda name: strength[name])


def _objectives(rows: Iterable[Row]) -> list[str]:
    """Return the objectives there are: plain SFT, those of most conditions first."""
    conditions: dict[str, set[Any]] = {}
    for row in rows:
        conditions.setdefault(row["objective"], set()).add(condition(row))
    return sorted(conditions, key=lambda name: (name != BASELINE, -len(conditions[name]), name == "dft", name))


def picture(rows: Sequence[Row], measures: Sequence[str], objectives: Sequence[str] | None) -> str:
    """Return an SVG: of each measure and objective a small map, starts across, references down."""
    objectives, starts = objectives or _objectives(rows), _starts(rows)
    panel = max(len(starts) * _CELL[0], 156) + _GAP
    across = max(3, (_WIDTH - _LEFT) // panel)
    parts, top = [], 74
    for measure in measures:
        parts.append(_text(12, top, MEASURES[measure][1], "measure"))
        for first in range(0, len(objectives), across):
            names = objectives[first : first + across]
            of_measure = [row for row in rows if row["measure"] == measure and row["objective"] in names]
            references = sorted({condition(row)[1:] for row in of_measure}, key=_rank)
            body = top + 14 + _HEAD
            for index, (wording, wrong_share, new_skill) in enumerate(references):
                y = body + index * _CELL[1]
                parts.append(_text(12, y + 17, f"{wrong_share:.0%} wrong", "row"))
                parts.append(_text(12, y + 32, _words(wording, new_skill), "pale"))
            for column, name in enumerate(names):
                one = [row for row in of_measure if row["objective"] == name]
                parts += _panel(one, name, starts, references, left=_LEFT + column * panel, body=body)
            top = body + len(references) * _CELL[1] + 12
        top += 16
    strengths = ", ".join(f"{name} {_strength(rows, name)}" for name in starts)
    axes = f"Down: references to learn from. Across: the start, and its share right before: {strengths}"
    title = "Where a mask helps: points right beyond (+) or short of (-) plain SFT"
    head = [_text(12, 26, title, "title"), _text(12, 47, axes, "pale")]
    width = max(_LEFT + min(across, len(objectives)) * panel, _WIDTH)
    return _document([*head, *parts, *_legend(top)], width, top + 44)


def _rank(references: tuple[str, float, bool]) -> tuple[bool, str, float]:
    """Wrong references up, alien words before one's own, a new skill before none."""
    wording, wrong_share, new_skill = references
    return not new_skill, wording, -wrong_share


def _strength(rows: Iterable[Row], start: str) -> str:
    """Return the share right of the old skill; starts of the same name may differ between files."""
    of_start = [row for row in rows if (row["start"], row["measure"]) == (start, "greedy_old")]
    shares = sorted(row["start_right"] for row in of_start)
    return " to ".join(dict.fromkeys((f"{shares[0]:.0%}", f"{shares[-1]:.0%}")))


def _panel(
    rows: Sequence[Row], name: str, starts: list[str], references: list[Any], *, left: int, body: int
) -> Iterator[str]:
    title, second = TITLES.get(name, (name, ""))
    yield _text(left + 2, body - 44, title, "name")
    yield _text(left + 2, body - 28, second, "pale")
    found = {(row["start"], condition(row)[1:]): row for row in rows}
    for column, start in enumerate(starts):
        x = left + column * _CELL[0]
        yield _text(x + _CELL[0] / 2, body - 8, start, "pale middle")
        for index, reference in enumerate(references):
            y = body + index * _CELL[1]
            row = found.get((start, reference))
            yield _cell(row, x, y) if row else _text(x + _CELL[0] / 2, y + 24, "·", "pale middle")


def _cell(row: Row, x: int, y: int) -> str:
    (width, height), middle = _CELL, x + _CELL[0] / 2
    box = f'x="{x + 2}" y="{y + 2}" width="{width - 4}" height="{height - 4}" rx="3"'
    if "difference" not in row:
        share = f"{row['share_right']:.0%}"
        return f'<rect class="cell plain" {box}/>{_text(middle, y + 25, share, "number middle")}'
    difference, low, high = (_points(row[key]) for key in ("difference", "low", "high"))
    shown = " shown" if is_shown(row) else ""
    return (
        f'<g class="{shade(row["difference"])}"><rect class="cell{shown}" {box}/>'
        f"{_text(middle, y + 19, difference, 'number middle' + shown)}"
        f"{_text(middle, y + 32, f'{low} to {high}', 'interval middle')}</g>"
    )


def _points(share: float) -> str:
    found = round(100 * share)
    return f"{found:+d}" if found else "0"


def _legend(top: int) -> Iterator[str]:
    yield _text(12, top + 12, "plain SFT ahead", "pale")
    sizes = range(1, len(LIMITS) + 1)
    shades = [*(f"behind{size}" for size in reversed(sizes)), "same", *(f"ahead{size}" for size in sizes)]
    for index, name in enumerate(shades):
        box = f'x="{116 + 30 * index}" y="{top}" width="28" height="16"'
        yield f'<g class="{name}"><rect class="cell" {box}/></g>'
    for index, limit in enumerate((*reversed(LIMITS), *LIMITS)):
        yield _text(145 + 30 * index, top + 30, str(limit), "pale middle")
    yield _text(392, top + 12, "the objective ahead", "pale")
    yield f'<rect class="cell shown" x="530" y="{top}" width="28" height="16" rx="3"/>'
    yield _text(564, top + 12, "shown (p < 0.05, corrected)", "pale")
    yield _text(392, top + 30, "small: the 95% interval; a dot: not run", "pale")


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>' if text else ""


def _document(parts: Sequence[str], width: int, height: int) -> str:
    styles = [
        "text{font:12px system-ui,sans-serif}.title{font-size:15px}.measure{font-size:14px}",
        ".title,.measure,.name,.row{font-weight:700}.middle{text-anchor:middle}",
        ".number{font-size:14px}.interval{font-size:10.5px}.number.shown{font-weight:700}.cell.shown{stroke-width:2.5}",
        _colors("light"),
        f"@media (prefers-color-scheme:dark){{{_colors('dark')}}}",
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            "<title>Where a mask helps: right answers against plain SFT, by start, references and objective</title>",
            f"<style>{''.join(styles)}</style>",
            '<rect class="paper" width="100%" height="100%"/>',
            *(part for part in parts if part),
            "</svg>\n",
        ]
    )


def _colors(theme: str) -> str:
    colors = THEMES[theme]
    rules = [
        f".paper{{fill:{colors['paper']}}}text{{fill:{colors['ink']}}}text.pale{{fill:{colors['pale']}}}",
        f".cell{{fill:{colors['paper']}}}.plain{{stroke:{colors['line']}}}text.plain{{stroke:none}}",
        f".cell.shown{{stroke:{colors['ink']}}}.same .cell{{fill:{colors['same']}}}",
    ]
    for side in ("ahead", "behind"):
        for size, color in enumerate(colors[side], 1):
            rules.append(f".{side}{size} .cell{{fill:{color}}}")
            rules.append(f".{side}{size} text{{fill:{text_color(color)}}}")
    return "".join(rules)


def text_color(fill: str) -> str:
    """Return the color of text on a fill: the darker or the lighter, whichever stands out more."""
    return max(("#101214", "#ffffff"), key=lambda color: contrast(color, fill))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors, 1 to 21, as WCAG 2 defines it."""
    lights = sorted(_luminance(color) for color in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(color: str) -> float:
    shares = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(factor * value for factor, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def files_of(folder: Path) -> dict[Path, str]:
    """Return what the pictures and the page should hold, of the folder with the figures."""
    figures = {name: read_figures(folder / f"{name}.json") for name in TABLES}
    page = DOCS / "results" / "map.md"
    parts = page.read_text().split(_MARKER)
    tables = []
    for name, objectives in TABLES.items():
        rows, tries = figures[name]["rows"], figures[name]["tries"]
        tables += [table(rows), table_of_tries(tries, _starts(rows), objectives or _objectives(rows))]
    parts[1::2] = (f"\n{made}\n" for made in tables)
    pictures = {DOCS / "images" / file: picture(figures[name]["rows"], *of) for file, (name, *of) in PICTURES.items()}
    return {**pictures, page: _MARKER.join(parts)}


def main() -> None:
    """Read the figures, write pictures and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for file, text in files_of(parser.parse_args().folder).items():
        write_text(file, text)


if __name__ == "__main__":
    main()
