"""The report of a study: an HTML page, the same in Markdown, and the figures as JSON; all from recorded numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from profit_sft.files import write_text
from profit_sft.pages.render import render_page, render_text
from profit_sft.runs.figures import metric
from profit_sft.study.analysis import CURVES, Analysis, ComparisonRow, VariantRow, analyze
from profit_sft.study.budgets import BudgetFindings, BudgetPoint, findings_by_budget
from profit_sft.study.plan import StudyPlan
from profit_sft.study.results import CellResult, read_answers, read_results
from profit_sft.study.tries import TunedRow, tuned_rows, warnings
from profit_sft.study.variants import UNTRAINED
from profit_sft.study.verdict import best_first, headline, limits, standings, summary

_DASH = "\N{EN DASH}"
LIMITS = (1, 5, 15, 40)  # points: on a map a difference of at least so many has the next color
_LOOKS = 6  # colors of charts.css; a further round of variants has other dashes and markers with them
_MOST_PROBLEMS = 500  # whose answers the page has, of each task
_MOST_CHARACTERS = 500  # of an answer; of a prompt, from its end
_SHOWN = {
    "better": "better",
    "worse": "worse",
    "better here": "better, these models",
    "worse here": "worse, these models",
    "no difference": "not shown",
}


def write_report(plan: StudyPlan, output_dir: Path, *, command: str) -> Analysis:
    """Write report.html, report.md and results.json from the finished cells; return the figures.

    Args:
        plan: The study.
        output_dir: Its folder.
        command: The command line that runs the study, as the report tells it.

    Raises:
        DataError: A cell's files cannot be read, or cells were measured on different problems.
    """
    results, tries = read_results(plan, output_dir), read_results(plan, output_dir, tries=True)
    analysis = analyze(plan, results)
    budgets = findings_by_budget(plan, results)
    rows = tuned_rows(plan, tries)
    values = report_values(plan, results, analysis, command) | {
        "budgets": budget_values(budgets),
        "tuning": tuning_values(plan, rows, warnings(plan, rows, results, tries)),
        "cost": _cost([*tries, *results]),
    }
    content = {
        "study": plan.name,
        "headline": headline(plan, analysis),
        "limits": values["limits"],
        **analysis.as_dict(),
        "by_budget": asdict(budgets),
        "tuning": None if plan.tune is None else plan.tune.model_dump() | {"rows": [asdict(row) for row in rows]},
    }
    write_text(output_dir / "results.json", json.dumps(content | {"cost": values["cost"]}, indent=1) + "\n")
    write_text(output_dir / "report.md", render_text("study.md", values))
    write_text(output_dir / "report.html", render_html(plan, results, analysis, budgets, values))
    return analysis


def render_html(
    plan: StudyPlan,
    results: Sequence[CellResult],
    analysis: Analysis,
    budgets: BudgetFindings,
    values: Mapping[str, Any],
) -> str:
    """Return the page; `values` as the templates need them."""
    by_budget = _budget_curves(budgets)
    models = [
        {
            "name": model.name,
            "variants": [
                {
                    "name": row.variant,
                    "look": index % _LOOKS,
                    "mark": (index + index // _LOOKS) % _LOOKS,
                    "curves": {**row.curves, **by_budget.get((row.model, row.variant), {})},
                }
                for index, row in enumerate(
                    sorted(analysis.rows, key=lambda row: (row.model != model.name, row.variant == UNTRAINED))
                )
                if row.model == model.name
            ],
            "comparisons": [
                {
                    "label": row.first if row.second == plan.baseline else f"{row.first} against {row.second}",
                    "difference": row.comparison.difference,
                    "low": row.comparison.low,
                    "high": row.comparison.high,
                    "shown": row.shown,
                    "verdict": row.verdict,
                }
                for row in sorted(
                    analysis.main_comparisons, key=lambda row: (row.second != plan.baseline, -row.comparison.difference)
                )
                if row.model == model.name
            ],
            "answers": answers_of([result for result in results if result.cell.model.name == model.name]),
        }
        for model in plan.models
    ]
    curves: list[dict[str, Any]] = [
        {"name": name, "title": metric(name).title, "form": metric(name).form} for name in CURVES
    ]
    for task, limits_of_task in _budgets_of(budgets).items():
        curves.append(
            {"name": _budget_name(task), "title": f"Share of {task} right", "form": "share", "budgets": limits_of_task}
        )
    data = {"models": models, "curves": curves, "baseline": plan.baseline}
    look = {"styles": ("charts.css", "study.css"), "scripts": ("charts.js", "study.js")}
    return render_page("study.html", data=data, values=values, **look)


def answers_of(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Return by task what the page shows of a model's answers: the problems, and how each variant answered them.

    Of a variant that is the share right over seeds and samples, and as its text the first sample of its first seed.
    """
    by_variant: dict[str, list[CellResult]] = {}
    for result in results:
        by_variant.setdefault(result.cell.variant.name, []).append(result)
    found = []
    for task in results[0].samples if results else ():
        texts = {name: read_answers(of[0].samples[task], _MOST_PROBLEMS) for name, of in by_variant.items()}
        if not any(entry["answer"] for entries in texts.values() for entry in entries):  # choices, ranked by log p
            continue
        shares = {name: np.mean([result.accuracies[task] for result in of], axis=0) for name, of in by_variant.items()}
        problems = [
            {
                "prompt": _end_of(entry["prompt"]),
                "expected": entry["expected"],
                "answers": [
                    [name, round(float(shares[name][index]), 4), texts[name][index]["answer"][:_MOST_CHARACTERS]]
                    for name in by_variant
                    if index < len(texts[name])
                ],
            }
            for index, entry in enumerate(next(iter(texts.values())))
        ]
        seeds = {name: [result.cell.seed for result in of] for name, of in by_variant.items()}
        found.append({"task": task, "problems": problems, "of": len(next(iter(shares.values()))), "seeds": seeds})
    return found


def _end_of(prompt: str) -> str:
    return prompt if len(prompt) <= _MOST_CHARACTERS else f"\N{HORIZONTAL ELLIPSIS}{prompt[-_MOST_CHARACTERS:]}"


def report_values(plan: StudyPlan, results: Sequence[CellResult], analysis: Analysis, command: str) -> dict[str, Any]:
    """Return what both templates show, numbers already as text."""
    return {
        "title": plan.name,
        "question": plan.question,
        "baseline": plan.baseline,
        "several_models": len(plan.models) > 1,
        "map": model_map(plan, analysis),
        "headline": summary(plan, analysis),
        "standings": standings(plan, analysis),
        "limits": limits(plan, analysis),
        "facts": _facts(plan, analysis),
        "outcomes": list(analysis.outcomes),
        "has_kinds": any(row.heldout_nll_core is not None for row in analysis.rows),
        "rows": [_table_row(row, against) for row, against in best_first(plan, analysis)],
        "comparisons": [_comparison_row(row) for row in analysis.comparisons],
        "collapses": [_collapse_row(result.cell.slug, *logs) for result in results if (logs := result.collapse)],
        "not_probed": [result.cell.slug for result in results if result.metrics and not result.was_probed],
        "settings": yaml.safe_dump(_settings(plan), sort_keys=False, width=100).strip(),
        "versions": _versions(results),
        "devices": _devices(results),
        "command": command,
    }


def budget_values(budgets: BudgetFindings) -> dict[str, Any]:
    """Return what both templates show by token budget, numbers already as text."""
    return {
        "sentences": budgets.sentences,
        "tables": [
            {
                "task": task,
                "budgets": limits_of_task,
                "rows": [
                    {"model": curve.model, "variant": curve.variant, "cells": [_budget_cell(at) for at in curve.points]}
                    for curve in budgets.curves
                    if curve.task == task
                ],
            }
            for task, limits_of_task in _budgets_of(budgets).items()
        ],
    }


def tuning_values(plan: StudyPlan, rows: Sequence[TunedRow], warnings: Sequence[str]) -> dict[str, Any] | None:
    """Return what both templates show of the values tried, numbers already as text; None where none were."""
    if plan.tune is None:
        return None
    return {
        "setting": plan.tune.setting,
        "tasks": ", ".join(plan.tune.evaluate.get("tasks", ())),
        "seeds": f"seed{'s' if len(plan.tune.seed) > 1 else ''} {', '.join(map(str, plan.tune.seed))}",
        "warnings": warnings,
        "values": [f"{value:g}" for value in plan.tune.values],
        "rows": [
            {
                "model": row.model,
                "variant": row.variant,
                "accuracies": [
                    {"accuracy": _DASH if found is None else f"{100 * found:.1f}%", "chosen": value == row.chosen}
                    for value, found in row.accuracies.items()
                ],
                "chosen": _DASH if row.chosen is None else f"{row.chosen:g}",
            }
            for row in rows
        ],
    }


def _budgets_of(budgets: BudgetFindings) -> dict[str, list[int]]:
    return {curve.task: [point.budget for point in curve.points] for curve in budgets.curves}


def _budget_name(task: str) -> str:
    return f"by_budget_{task}"


def _budget_curves(budgets: BudgetFindings) -> dict[tuple[str, str], dict[str, list[list[float]]]]:
    found: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    for curve in budgets.curves:
        points = [[float(point.budget), point.mean, point.low, point.high] for point in curve.points]
        found.setdefault((curve.model, curve.variant), {})[_budget_name(curve.task)] = points
    return found


def _budget_cell(point: BudgetPoint) -> dict[str, str]:
    return {
        "mean": f"{100 * point.mean:.1f}%",
        "interval": f"{100 * point.low:.1f} to {100 * point.high:.1f}",
        "cut_off": "" if point.truncated_share is None else f"{100 * point.truncated_share:.0f}%",
    }


def model_map(plan: StudyPlan, analysis: Analysis) -> dict[str, Any] | None:
    """Return the differences from the baseline on the first outcome, numbers as text: models across, variants down.

    None where fewer than two models have any. Both are in the order of the plan; under a model stands the accuracy of
    the untrained one.
    """
    found = {(row.model, row.first): row for row in analysis.main_comparisons if row.second == plan.baseline}
    variants = [variant.name for variant in plan.variants if any(first == variant.name for _, first in found)]
    models = [model.name for model in plan.models if any((model.name, name) in found for name in variants)]
    if len(models) < 2:
        return None
    before = {row.model: f"{100 * row.scores[0].mean:.1f}%" for row in analysis.rows if row.variant == UNTRAINED}
    behind = [(shade(-limit / 100), f"-{limit}") for limit in reversed(LIMITS)]
    ahead = [(shade(limit / 100), f"+{limit}") for limit in LIMITS]
    return {
        "outcome": analysis.outcomes[0],
        "models": [(name, before.get(name, _DASH)) for name in models],
        "rows": [(variant, [_map_cell(found.get((name, variant))) for name in models]) for variant in variants],
        "legend": [*behind, ("same", "0"), *ahead],
    }


def shade(difference: float) -> str:
    """Return the class of the color that a difference, in [-1, 1], has on a map."""
    size = sum(100 * abs(difference) >= limit for limit in LIMITS)
    return f"{'ahead' if difference > 0 else 'behind'}{size}" if size else "same"


def _map_cell(row: ComparisonRow | None) -> dict[str, str]:
    frame = "" if row is None else {"no difference": "", "better": "shown", "worse": "shown"}.get(row.shown, "here")
    return {**_difference(row), "look": "" if row is None else f"{shade(row.comparison.difference)} {frame}".strip()}


def _facts(plan: StudyPlan, analysis: Analysis) -> list[tuple[str, str]]:
    problems = ", ".join(f"{count} of {task}" for task, count in analysis.num_problems.items())
    return [
        ("Cells", f"{len(plan.cells) - len(analysis.missing)} of {len(plan.cells)}"),
        ("Model" if len(plan.models) == 1 else "Models", ", ".join(model.name for model in plan.models)),
        ("Problems", problems or _DASH),
        ("Comparisons", str(len(analysis.comparisons))),
    ]


def _table_row(row: VariantRow, against: ComparisonRow | None) -> dict[str, Any]:
    return {
        **_difference(against),
        "model": row.model,
        "variant": row.variant,
        "seeds": _DASH if row.seeds == (None,) else f"{len(row.seeds)} of {row.planned}",
        "scores": [
            {
                "mean": f"{100 * score.mean:.1f}%",
                "interval": f"{100 * score.low:.1f} to {100 * score.high:.1f}",
                "by_seed": ", ".join(f"{100 * mean:.1f}" for mean in score.by_seed),
            }
            for score in row.scores
        ],
        "heldout_nll": _number(row.heldout_nll),
        "heldout_nll_core": _number(row.heldout_nll_core),
        "heldout_nll_style": _number(row.heldout_nll_style),
        "kept_share": _DASH if row.kept_share is None else f"{100 * row.kept_share:.0f}%",
        "collapsed": f"{row.collapsed} of {len(row.seeds)}" if row.collapsed else "",
    }


def _difference(row: ComparisonRow | None) -> dict[str, str]:
    if row is None:
        return dict.fromkeys(("difference", "interval", "shown"), "")
    found = row.comparison
    return {
        "difference": f"{100 * found.difference:+.1f}",
        "interval": f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
        "shown": _SHOWN[row.shown],
    }


def _collapse_row(cell: str, first: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    return {
        "cell": cell,
        "step": str(now["step"]),
        "nll": f"{first['probe_nll']:.3f} to {now['probe_nll']:.3f}",
        "rise": f"{now['probe_nll'] - first['probe_nll']:.3f} ({now['probe_rise_se']:.3f})",
        "loss": f"{first['probe_loss']:.3f} to {now['probe_loss']:.3f}",
    }


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3f}"


def _comparison_row(row: ComparisonRow) -> dict[str, Any]:
    found, seeds = row.comparison, row.seeds
    return {
        **_difference(row),
        "model": row.model,
        "first": row.first,
        "second": row.second,
        "outcome": row.outcome,
        "won": f"{found.better} : {found.worse}",
        "p_value": _p_value(found.p_value),
        "p_seeds": _p_value(seeds.p_value),
        "adjusted_p": _p_value(row.adjusted_p),
        "adjusted_method_p": _p_value(row.adjusted_method_p),
        "seeds": _DASH
        if seeds.low is None or seeds.high is None
        else f"{100 * seeds.low:+.1f} to {100 * seeds.high:+.1f}",
        "verdict": row.verdict,
    }


def _p_value(value: float | None) -> str:
    if value is None:
        return _DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _trained(results: Sequence[CellResult]) -> list[CellResult]:
    return [result for result in results if result.summary["training"] is not None]


def _cost(results: Sequence[CellResult]) -> dict[str, Any]:
    """Sum up what was paid: the only part of a report that differs between two runs of the same study."""
    cells = []
    for result in results:
        cost = result.summary["cost"]
        seconds = cost.get("train_seconds", 0.0)
        cells.append(
            {
                "cell": result.cell.slug,
                "train_seconds": round(seconds),
                "tokens_per_second": round(cost["train_tokens"] / seconds) if seconds else None,
                "measure_seconds": round(cost["measure_seconds"]),
                "attempts": cost["attempts"],
            }
        )
    hours = sum(cell["train_seconds"] + cell["measure_seconds"] for cell in cells) / 3600
    return {"cells": cells, "hours": f"{hours:.1f}"}


def _settings(plan: StudyPlan) -> dict[str, Any]:
    return {
        "models": [model.model_name_or_path for model in plan.models],
        "dataset_name": plan.dataset_name,
        "heldout_dataset_name": plan.heldout_dataset_name,
        "train": dict(plan.train),
        **({} if plan.tune is None else {"tune": plan.tune.model_dump()}),
        "evaluate": dict(plan.evaluate),
    }


def _devices(results: Sequence[CellResult]) -> str:
    return ", ".join(sorted({result.summary["environment"]["device"] for result in _trained(results)})) or _DASH


def _versions(results: Sequence[CellResult]) -> str:
    """List versions of packages; where cells were run with different ones, all of them."""
    found: dict[str, set[str]] = {}
    for result in _trained(results):
        environment = result.summary["environment"]
        for name, version in {"python": environment["python"], **environment["packages"]}.items():
            if version is not None:
                found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items()) or _DASH
