"""Study folders made of chosen numbers, for tests of what is read and shown."""

import json

import numpy as np

from profit_sft.study.cells import FORMAT
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import parse_plan

ENVIRONMENT = {
    "python": "3.12.1",
    "platform": "Linux",
    "device": "cpu",
    "packages": {"torch": "2.9.0", "trl": "1.16.0", "peft": None},
}


def made_plan(**changes):
    content = {
        "name": "made-up",
        "question": "Is <b>profit</b> better & why?",
        "model_name_or_path": "embedded",
        "dataset_name": "generated",
        "heldout_dataset_name": "generated",
        "evaluate": {"tasks": ["generated"], "greedy": True},
        "cells": [
            {"objective": ["nll", "dft"], "seed": [0, 1, 2]},
            {"objective": "profit", "threshold": [0.1, 0.5], "seed": 0},
        ],
    }
    return parse_plan(content | changes)


def made_study(folder, plan, rates, *, problems=120, collapsed=(), not_probed=(), skip=(), attempts=1, ran_at=()):
    """Write the files of finished cells.

    Args:
        folder: The study's folder.
        plan: The study.
        rates: Share of right answers by variant, of a try by its name; a problem's hardness is the same for all.
        problems: Problems a task.
        collapsed: Variants whose plain NLL rises while their loss falls.
        not_probed: Variants trained without a probe.
        skip: Cells that are not finished.
        attempts: What the cells cost, which no figure may depend on.
        ran_at: Value of the tuned setting by cell; the others have none.
    """
    study = StudyFolder(folder)
    for index, cell in enumerate(plan.runs):
        if cell.slug in skip:
            continue
        files, name = study.cell(cell.slug), cell.variant.name
        rate = rates[cell.slug if cell.is_try else name]
        generator = np.random.default_rng((1, index))
        for number, task in enumerate(plan.eval_settings(cell).get("tasks", ())):
            hardness = np.random.default_rng(100 + number).random(problems)
            noise = generator.random(problems) * 0.2 - 0.1
            samples = files.evaluation / "samples"
            samples.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps(
                    {"task": task, "problem": problem, "sample": 0, "correct": bool(right)} | said(problem, name)
                )
                for problem, right in enumerate(hardness + noise < rate)
            ]
            (samples / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
        trained = cell.variant.objective is not None
        if trained:
            files.run.mkdir(parents=True, exist_ok=True)
            logs = [_log(step, name, name in collapsed, name not in not_probed) for step in range(1, 31)]
            if name not in not_probed:
                logs.insert(0, {"step": 0, "probe_nll": 2.5, "probe_loss": 2.5})
            (files.run / "metrics.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
        summary = {
            "format": FORMAT,
            "cell": cell.slug,
            "settings": {"train": plan.train_settings(cell) | dict(ran_at).get(cell.slug, {})},
            "evaluation": {"tasks": [{"accuracy": {"mean": rate}} for _ in plan.eval_settings(cell).get("tasks", ())]},
            "training": {"steps": 30, "kept_share": 1.0 if name == "nll" else 0.7} if trained else None,
            "heldout": {"nll": 0.5 + 0.01 * index, "nll_core": 0.2, "nll_style": 0.8},
            "cost": {"measure_seconds": 30.0 * attempts, "attempts": attempts}
            | ({"train_seconds": 120.0 * attempts, "train_tokens": 16000} if trained else {}),
            "environment": ENVIRONMENT if trained else None,
        }
        files.path.mkdir(parents=True, exist_ok=True)
        files.finished.write_text(json.dumps(summary))


def said(problem, variant):
    """What a record of `profit eval` has besides: texts, in which nothing is markup."""
    return {"prompt": f"question {problem}?", "expected": str(problem), "answer": f"<b>{problem}</b> of {variant}"}


def _log(step, name, collapsed, probed):
    falling = 2.5 * 0.93**step + 0.5
    entry = {
        "step": step,
        "loss": falling * (1.0 if name == "nll" else 0.3),
        "nll": 2.5 + 0.05 * step if collapsed else falling,
        "kept_share": 1.0 if name == "nll" else 0.6 + 0.005 * step,
        "mean_token_accuracy": 1 - 0.4 * 0.95**step,
    }
    if probed and step % 10 == 0:
        entry |= {"probe_nll": entry["nll"], "probe_loss": entry["loss"], "probe_rise_se": 0.02}
    return entry
