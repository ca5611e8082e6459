"""How time and memory of the losses grow with tokens and vocabulary: the sizes, and the picture of what was measured.

    python benchmarks/loss.py --growth --json FILE.json --picture FILE.svg    measure and draw
    python benchmarks/growth.py FILE.json FILE.svg                            draw again what was measured

Both axes of a panel are logarithmic, so that what grows in proportion is a straight line. A line ends where the next
size would take too long or too much memory.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

# (N, D, V): tokens at Mistral's vocabulary, then vocabularies up to Gemma's; D is SmolLM2's, so that it fits a laptop.
SIZES = (
    *((tokens, 576, 32_768) for tokens in (1024, 4096, 16_384, 65_536)),
    *((1024, 576, vocab_size) for vocab_size in (16_384, 49_152, 151_936, 262_144)),
)
# name in the table: name in the picture. All compute the same loss.
SHOWN = {
    "ours exact": "this, exact",
    "trl fused head": "TRL's fused head",
    "official formula, full logits": "full logits",
    "cut-cross-entropy": "cut-cross-entropy",
    "torch linear_cross_entropy, chunked": "torch, chunked",
}
MEASURES = {"median_ms": ("time, seconds", 1e-3), "peak_memory_mib": ("peak memory, GiB", 1 / 1024)}
AXES = {"tokens": "tokens N", "vocab_size": "vocabulary V"}

# As on the pages of runs: light, dark; a color and a marker each, so that none has to be seen to tell two apart.
_COLORS = (
    *(("#1d5fa6", "#82b6f2"), ("#b8500a", "#f0a366"), ("#0a6e54", "#3fa884"), ("#8f2f78", "#c46bb0")),
    ("#5a4a00", "#f5e27a"),
)
_MARKERS: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    lambda x, y: f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
    lambda x, y: f"M{x:.1f} {y - 5:.1f}l5 9h-10z",
    lambda x, y: f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
    lambda x, y: f"M{x:.1f} {y + 5:.1f}l5 -9h-10z",
)
_PANEL, _LABELS, _LEFT, _TOP, _ROW = (250, 200), 136, 64, 34, 270  # pixels
_NEAREST = 15  # pixels between two labels


def too_large(
    sizes: Mapping[str, int], before: Sequence[Mapping[str, Any]], limit_s: float, limit_gib: float
) -> dict[str, str]:
    """Return {variant: why} for those that would take too long or too much memory, by their figures at the size before.

    Time and memory grow at most as the logits do, with `N * V`.

    Args:
        sizes: `tokens` and `vocab_size` to come.
        before: Results as `loss.py` writes them, in the order in which they were measured.
        limit_s: Seconds that one run may take.
        limit_gib: Memory that it may take.
    """
    found: dict[str, str] = {}
    for smaller in before:
        ratio = sizes["tokens"] * sizes["vocab_size"] / (smaller["tokens"] * smaller["vocab_size"])
        for row in smaller["rows"]:
            if "median_ms" not in row:
                continue
            seconds, gib = ratio * row["median_ms"] / 1000, ratio * (row.get("peak_memory_mib") or 0) / 1024
            found.pop(row["variant"], None)
            if "kept_share" in row and (seconds > limit_s or gib > limit_gib):  # the unit has none
                found[row["variant"]] = f"about {seconds:.3g} s and {gib:.2g} GiB, by its figures at the size before"
    return found


def picture(results: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG: time and memory down, tokens and vocabulary across; light or dark as the reader's system is.

    Args:
        results: As `loss.py` writes them. Those of the most frequent vocabulary are the growth in tokens, and the other
            way round.
    """
    parts = []
    for column, (axis, fixed) in enumerate((("tokens", "vocab_size"), ("vocab_size", "tokens"))):
        (common, _), *_ = Counter(result[fixed] for result in results).most_common()
        chosen = sorted((result for result in results if result[fixed] == common), key=lambda result: result[axis])
        left = _LEFT + column * (_PANEL[0] + _LABELS + _LEFT)
        letter = "V" if fixed == "vocab_size" else "N"
        title = f"{AXES[axis]}, at {letter} = {common:,}, D = {chosen[0]['width']:,}"
        parts.append(f'<text x="{left}" y="20" class="title">{title}</text>')
        for row, measure in enumerate(MEASURES):
            parts += _panel(chosen, axis, measure, left, _TOP + row * _ROW)
    colors = "".join(f".look-{index}{{--look:{light}}}" for index, (light, _) in enumerate(_COLORS))
    dark = "".join(f".look-{index}{{--look:{dark}}}" for index, (_, dark) in enumerate(_COLORS))
    style = (
        f":root{{--bg:#fff;--ink:#1a1c20;--ink-2:#4a4f58;--line:#e2e3e6}}{colors}"
        f"@media(prefers-color-scheme:dark){{:root{{--bg:#131518;--ink:#e8eaed;--ink-2:#b3b9c2;--line:#2e333a}}{dark}}}"
        "text{font:12px system-ui,sans-serif;fill:var(--ink-2)}.title{font-weight:600;fill:var(--ink)}"
        ".middle{text-anchor:middle}.end{text-anchor:end}.grid{stroke:var(--line)}"
        ".curve{fill:none;stroke:var(--look);stroke-width:1.8}.marker{fill:var(--look)}.name{fill:var(--look)}"
    )
    width, height = 2 * (_LEFT + _PANEL[0] + _LABELS), _TOP + 2 * _ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
        f"<title>Time and peak memory of the losses, by tokens and by vocabulary</title><style>{style}</style>"
        f'<rect width="100%" height="100%" fill="var(--bg)"/>{"".join(parts)}</svg>\n'
    )


def series(results: Sequence[Mapping[str, Any]], axis: str, measure: str) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each variant in `SHOWN`, in the unit of `MEASURES`, where it was measured."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SHOWN}
    for result in results:
        for row in result["rows"]:
            if row["variant"] in found and row.get(measure):
                found[row["variant"]].append((result[axis], row[measure] * MEASURES[measure][1]))
    return {name: points for name, points in found.items() if points}


def _panel(results: Sequence[Mapping[str, Any]], axis: str, measure: str, left: float, top: float) -> list[str]:
    width, height = _PANEL
    lines = series(results, axis, measure)
    values = [y for points in lines.values() for _, y in points]
    sizes = [result[axis] for result in results]
    if not values:
        return [f'<text x="{left}" y="{top + 20}">{MEASURES[measure][0]}: not measured</text>']
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def x_of(value: float) -> float:
        span = math.log(max(sizes) / min(sizes)) or 1.0
        return left + 12 + (width - 24) * math.log(value / min(sizes)) / span

    def y_of(value: float) -> float:
        return top + height - height * (math.log10(value) - low) / (high - low)

    parts = []
    for power in range(low, high + 1):
        y = y_of(10.0**power)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{width}"/>')
        parts.append(f'<text class="end" x="{left - 8}" y="{y + 4:.1f}">{10.0**power:g}</text>')
    for size in sizes:
        parts.append(f'<path class="grid" d="M{x_of(size):.1f} {top}v{height}"/>')
        parts.append(f'<text class="middle" x="{x_of(size):.1f}" y="{top + height + 16}">{_short(size)}</text>')
    parts.append(f'<text class="middle" x="{left + width / 2}" y="{top + height + 34}">{AXES[axis]}</text>')
    middle = top + height / 2
    parts.append(
        f'<text class="middle" transform="rotate(-90 {left - 44} {middle})" x="{left - 44}" y="{middle}">'
        f"{MEASURES[measure][0]}</text>"
    )
    names = list(SHOWN)
    label_y = -math.inf
    for name, points in sorted(lines.items(), key=lambda line: y_of(line[1][-1][1])):
        look = names.index(name)
        places = [(x_of(x), y_of(y)) for x, y in points]
        label_y = max(places[-1][1], label_y + _NEAREST)
        curve = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        markers = "".join(_MARKERS[look](x, y) for x, y in places)
        # A label stands at the panel's edge, and a thin line leads to it from where the curve ends.
        lead = f"M{places[-1][0]:.1f} {places[-1][1]:.1f}L{left + width + 6} {label_y:.1f}"
        parts.append(
            f'<g class="look-{look}"><path class="curve" d="M{curve}"/><path class="marker" d="{markers}"/>'
            f'<path class="curve" style="stroke-width:.7" stroke-dasharray="2 3" d="{lead}"/>'
            f'<text class="name" x="{left + width + 10}" y="{label_y + 4:.1f}">{escape(SHOWN[name])}</text></g>'
        )
    return parts


def _short(size: int) -> str:
    return f"{size / 1000:.0f}k" if size >= 1000 else str(size)


def main() -> None:
    """Draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="the JSON that loss.py wrote")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    args = parser.parse_args()
    args.picture.write_text(picture(json.loads(args.figures.read_text())["results"]), encoding="utf-8")


if __name__ == "__main__":
    main()
