"""The small study that is really run: its cells, and what of them is compared."""

import json

from profit_sft.study.layout import StudyFolder

CELLS = ("untrained", "nll-s0", "profit-t0.0033-reference-s0")


def figures(folder, slugs=CELLS):
    """Everything in the cells' summaries but what was paid for it."""
    found = {}
    for slug in slugs:
        summary = json.loads(StudyFolder(folder).cell(slug).finished.read_text())
        found[slug] = {name: value for name, value in summary.items() if name != "cost"}
    return found


def metric_lines(folder, slug):
    lines = (StudyFolder(folder).cell(slug).run / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [
        {name: entry[name] for name in ("step", "loss", "nll", "kept_share")} for entry in entries if "loss" in entry
    ]
