"""What is read back from a study's folder."""

import json

import pytest
from made_study import made_plan, made_study

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.evaluation.records import SampleFile
from profit_sft.evaluation.results import judged_accuracy
from profit_sft.study.cells import cell_settings
from profit_sft.study.results import read_results

RATES = {"untrained": 0.1, "nll": 0.5, "dft": 0.5, "profit-t0.1": 0.6, "profit-t0.5": 0.4}


def test_finished_cells_come_back_in_order_with_logs_and_accuracies(tmp_path):
    plan = made_plan()
    made_study(tmp_path, plan, RATES, skip=("dft-s1",))
    results = read_results(plan, tmp_path)
    assert [result.cell.slug for result in results] == [cell.slug for cell in plan.cells if cell.slug != "dft-s1"]
    assert results[0].metrics == []
    assert [entry["step"] for entry in results[1].metrics] == list(range(31)), "the probe's start, then every log"
    assert len(results[1].accuracies["generated"]) == 120


@pytest.mark.parametrize("name", ["fingerprint", "generation_kwargs", "grading"])
def test_cells_that_were_asked_or_graded_otherwise_are_not_compared(tmp_path, name):
    plan = made_plan()
    made_study(tmp_path, plan, RATES)

    def ask(cell, fingerprint):
        job = {"format": 1, "job": {}, "tasks": {"generated": {name: fingerprint}}}
        (tmp_path / "cells" / cell / "evaluation" / "job.json").write_text(json.dumps(job))

    for cell in ("untrained", "nll-s0", "dft-s0"):
        ask(cell, "a")
    assert len(read_results(plan, tmp_path)) == len(plan.cells), "of the others it is not known"
    ask("dft-s0", "b")
    with pytest.raises(DataError, match=r"dft-s0: generated was another task than for untrained; its file or data"):
        read_results(plan, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"max_length": None}}, r"untrained was run with train\.max_length = None, the study file says None"),
        ({"train": {"learning_rate": 1e-4}}, r"untrained was run with train\.learning_rate = None, the study file"),
        ({"evaluate": {"tasks": ["generated"], "samples": 2}}, r"untrained was run with evaluate\.samples = None"),
        (
            {"cells": [{"name": "nll", "objective": "dft", "seed": [0, 1]}]},
            "nll-s0 was run with objective = 'nll', the study file says 'dft'",
        ),
        (
            {"cells": [{"name": "nll", "objective": "nll", "seed": 0, "train": {"packing": True}}]},
            r"nll-s0 was run with train\.packing = None, the study file says True",
        ),
        ({"cells": [{"objective": "nll", "seed": [0, 1, 5]}]}, None),
        ({"cells": [{"objective": ["nll", "eaft"], "seed": 0}]}, None),
        ({"question": "Another?", "baseline": "dft"}, None),
        ({"tune": {"learning_rate": [1e-4, 1e-3], "evaluate": {"tasks": ["generated"]}}}, None),
    ],
)
def test_cells_of_a_study_that_was_edited_since_are_not_reported_as_its_own(tmp_path, changes, message):
    plan = made_plan()
    made_study(tmp_path, plan, RATES)
    for cell in plan.cells:
        finished = tmp_path / "cells" / cell.slug / "cell.json"
        content = json.loads(finished.read_text())
        finished.write_text(json.dumps(content | {"settings": cell_settings(plan, cell)}))
    if message is None:
        assert read_results(made_plan(**changes), tmp_path)
    else:
        with pytest.raises(ConfigurationError, match=message):
            read_results(made_plan(**changes), tmp_path)


def write_samples(path, records):
    lines = [json.dumps({"problem": problem, "sample": sample, "correct": right}) for problem, sample, right in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_samples_of_a_problem_are_averaged_in_the_order_of_the_problems(tmp_path):
    records = [(1, 0, True), (0, 0, False), (0, 1, True), (1, 1, True), (2, 0, 0.25), (2, 1, 0.75)]
    path = write_samples(tmp_path / "task.jsonl", records)
    assert [judged_accuracy(of_problem) for of_problem in SampleFile(path, "").by_problem()] == [0.5, 1.0, 0.5]


def test_samples_that_were_not_judged_are_left_out_and_a_problem_of_them_is_half_right(tmp_path):
    records = [(0, 0, True), (0, 1, None), (1, 0, None), (1, 1, None), (2, 0, False)]
    path = write_samples(tmp_path / "task.jsonl", records)
    assert [judged_accuracy(of_problem) for of_problem in SampleFile(path, "").by_problem()] == [1.0, 0.5, 0.0]


def test_what_cannot_be_read_is_named(tmp_path):
    plan = made_plan()
    made_study(tmp_path, plan, RATES)
    samples = tmp_path / "cells" / "nll-s0" / "evaluation" / "samples" / "generated.jsonl"
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=r"nll-s0: 119 problems of generated, but untrained has 120"):
        read_results(plan, tmp_path)
    for content, what in (("{", " ends within a line"), ("{}\n", ", line 1: not a sample's record")):
        samples.write_text(content)
        with pytest.raises(DataError, match=rf"generated\.jsonl{what}\. Delete its cell's folder"):
            read_results(plan, tmp_path)
    (tmp_path / "cells" / "untrained" / "cell.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match=r"cell\.json has format 99, this version reads 1\. Delete"):
        read_results(plan, tmp_path)
