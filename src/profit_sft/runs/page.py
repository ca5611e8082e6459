"""The page of a run, or of several side by side: what its script draws, and what the template says in words."""

import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from profit_sft.errors import ConfigurationError
from profit_sft.files import write_text
from profit_sft.pages.render import render_page
from profit_sft.runs.figures import CHARTS, METRICS, Metric, before_after, metric, other_names, points, thinned
from profit_sft.runs.record import PAGE, RunRecord, read_run

MOST_RUNS = 6  # looks of run.css that are told apart by color, dash and marker
_DASH = "\N{EN DASH}"
_STALE_SECONDS = 3600.0  # a run that has logged nothing for so long is not waited for


def write_run_page(folders: Sequence[str | Path], path: str | Path | None = None) -> Path:
    """Write the page of a run, or the comparison of several, completely or not at all.

    Args:
        folders: Of the runs.
        path: The HTML file; None: `report.html` in the folder of the first, for several `comparison.html`.

    Returns:
        The file.

    Raises:
        ConfigurationError: A folder holds no run, or there are more runs than can be told apart.
        DataError: A file of a run is damaged.
    """
    if len(folders) > MOST_RUNS:
        raise ConfigurationError(f"{len(folders)} runs cannot be told apart on one page. Name {MOST_RUNS} at most.")
    records = [read_run(folder) for folder in folders]
    if path is None:
        path = records[0].folder / (PAGE if len(records) == 1 else "comparison.html")
    write_text(path, render_run_page(records))
    return Path(path)


def render_run_page(records: Sequence[RunRecord]) -> str:
    """Return the page of one run, or of several side by side."""
    names = _names(records)
    first = records[0]
    single = len(records) == 1
    compared = [name for name in _COMPARED if any(points(record.logs, name) for record in records)]
    return render_page(
        "run.html",
        data=page_data(records, names),
        styles=("charts.css", "run.css"),
        scripts=("charts.js", "run.js"),
        values={
            "title": names[0] if single else f"{len(records)} runs side by side",
            "single": single,
            "standing": first.standing,
            "facts": list(first.facts.items()) if single else [],
            "runs": [
                {
                    "name": name,
                    "standing": record.standing,
                    "figures": _figures(record, compared),
                    "warnings": [{"step": f"{step:,}", "text": text} for step, text in record.warnings],
                }
                for name, record in zip(names, records, strict=True)
            ],
            "columns": [METRICS[name].short for name in compared],
            "differences": _differences(records),
            "warned": any(record.warnings for record in records),
            "rows": first.rows if single else None,
            "command": shlex.join(first.about.command),
            "versions": ", ".join(f"{name} {number}" for name, number in first.about.versions.items()),
            "updated": datetime.fromtimestamp(first.updated, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        },
    )


_COMPARED = ("probe_nll", "eval_loss", "nll", "mean_token_accuracy", "kept_share", "loss", "tokens_per_second")


def page_data(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Return what the page's script reads: charts of series, marks on them, and the rows with their tokens."""
    single = len(records) == 1
    return {
        "charts": _charts_of_one(records[0]) if single else _charts_of_several(records, names),
        "marks": _marks(records[0]) if single else [],
        "rows": records[0].rows.model_dump() if single and records[0].rows else None,
        "reload": single and not records[0].has_ended,
        "updated": records[0].updated,
        "stale_seconds": _STALE_SECONDS,
    }


def _charts_of_one(record: RunRecord) -> list[dict[str, Any]]:
    others = [(metric(name).title, (name,)) for name in other_names(record.logs)]
    charts = []
    for index, (title, names) in enumerate((*CHARTS, *others)):
        series = [_series(record, metric(name), metric(name).short) for name in names]
        charts.append(_chart(title, series, metric(names[0]), more=index >= len(CHARTS)))
    return [chart for chart in charts if chart["series"]]


def _charts_of_several(records: Sequence[RunRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    main = [name for _, chart in CHARTS for name in chart]
    others = list(dict.fromkeys(name for record in records for name in other_names(record.logs)))
    charts = []
    for figure in (*main, *others):
        kind = metric(figure)
        series = [
            _series(record, kind, name, look=index)
            for index, (record, name) in enumerate(zip(records, names, strict=True))
        ]
        charts.append(_chart(kind.title, series, kind, more=figure in others))
    return [chart for chart in charts if chart["series"]]


def _chart(title: str, series: list[dict[str, Any]], kind: Metric, *, more: bool) -> dict[str, Any]:
    """Return a chart of the series that have points; a single one keeps the first look."""
    shown = [{"look": index, **entry} for index, entry in enumerate(series) if entry["points"]]
    return {"title": title, "form": kind.form, "more": more, "series": shown}


def _series(record: RunRecord, kind: Metric, name: str, **look: int) -> dict[str, Any]:
    course, averaged = thinned(points(record.logs, kind.name))
    return {"name": name, "points": course, "averaged": averaged, **look}


def _marks(record: RunRecord) -> list[dict[str, Any]]:
    warned = [{"step": step, "kind": "warning", "text": text} for step, text in record.warnings]
    return [*({"step": step, "kind": "checkpoint", "text": ""} for step in record.checkpoints), *warned]


def _figures(record: RunRecord, names: Sequence[str]) -> list[dict[str, str]]:
    """Return the first and the last value of each figure as text; of one that was logged once, no first."""
    found = {kind.name: (kind.text(first), kind.text(last)) for kind, first, last in before_after(record.logs, names)}
    once = {name for name in names if len(points(record.logs, name)) == 1}
    values = [(name, *found.get(name, ("", _DASH))) for name in names]
    return [
        {"name": METRICS[name].short, "first": "" if name in once else first, "last": last}
        for name, first, last in values
    ]


def _differences(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the facts in which the runs differ, with each run's."""
    facts = dict.fromkeys(name for record in records for name in record.facts)
    told = [(name, [record.facts.get(name, _DASH) for record in records]) for name in facts]
    return [(name, values) for name, values in told if len(set(values)) > 1]


def _names(records: Sequence[RunRecord]) -> list[str]:
    """Return the folders' names; where two are alike, their paths."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [str(record.folder) for record in records]
