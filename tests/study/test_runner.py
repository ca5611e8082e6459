"""Whole studies on a tiny model: what they leave, and that a kill loses nothing."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from real_study import CELLS, figures, metric_lines

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.files import write_text
from profit_sft.study.cells import CellFailed, imitated_share, needs_scores
from profit_sft.study.driver import sole_driver
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import load_plan, parse_plan
from profit_sft.study.results import read_results
from profit_sft.study.runner import _Loop, choose_cells, run_study


@pytest.mark.slow
def test_cells_hold_training_heldout_nll_and_evaluation(finished_study, study_file):
    summaries = figures(finished_study)
    assert summaries["untrained"]["training"] is None
    trained = summaries["nll-s0"]
    assert trained["training"]["steps"] == load_plan(study_file).train["max_steps"]
    assert trained["training"]["kept_share"] == 1.0
    assert trained["training"]["last_nll"] < trained["training"]["first_nll"]
    assert trained["heldout"]["nll"] < summaries["untrained"]["heldout"]["nll"]
    heldout = json.loads(StudyFolder(finished_study).cell("nll-s0").heldout.read_text())
    assert sum(nll for nll, _ in heldout["rows"]) / heldout["label_tokens"] == pytest.approx(heldout["nll"])
    assert len(heldout["rows"]) == 4
    assert trained["evaluation"]["tasks"][0]["num_problems"] == 5
    assert 0 < summaries["profit-t0.0033-reference-s0"]["training"]["kept_share"] < 1


@pytest.mark.slow
def test_weights_are_dropped_once_measured(finished_study):
    left = {path.suffix for path in finished_study.rglob("*") if path.is_file()}
    assert not left & {".safetensors", ".pt", ".bin"}
    assert not list(finished_study.rglob("checkpoint-*"))
    assert (StudyFolder(finished_study).cell("nll-s0").run / "metrics.jsonl").is_file()


@pytest.mark.slow
def test_a_study_stopped_and_then_killed_goes_on_and_ends_with_the_same_figures(study_file, finished_study, tmp_path):
    command = [sys.executable, "-m", "profit_sft.cli", "study", str(study_file), "--output_dir", str(tmp_path / "out")]
    command += ["--cells", "nll-s0"]
    cell = StudyFolder(tmp_path / "out").cell("nll-s0")

    def lines():
        metrics = cell.run / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def end_by(number):
        before = lines()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while lines() < before + 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, messages = process.communicate()
        assert not cell.trained.exists()
        return process.returncode, messages

    status, messages = end_by(signal.SIGINT)
    assert status == 130
    assert "nll-s0: stopped; it goes on from here next time" in messages
    assert "Stopped by SIGINT. The same command goes on." in messages
    assert len(list(cell.run.glob("checkpoint-*/trainer_state.json"))) == 1
    status, messages = end_by(signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert "nll-s0: going on after step" in messages
    last = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert last.returncode == 0
    assert "nll-s0: going on after step" in last.stderr
    assert figures(tmp_path / "out", ["nll-s0"]) == figures(finished_study, ["nll-s0"])
    assert metric_lines(tmp_path / "out", "nll-s0") == metric_lines(finished_study, "nll-s0")
    assert json.loads(cell.finished.read_text())["cost"]["attempts"] == 3


@pytest.mark.slow
def test_a_finished_study_is_left_alone_and_other_settings_are_refused(study_file, finished_study):
    def files():
        found = (path for path in finished_study.rglob("*") if path.is_file() and path.name != "driver.lock")
        return {path: path.stat().st_mtime_ns for path in found}

    before = files()
    plan = load_plan(study_file)
    result = run_study(plan, finished_study)
    assert result.finished == CELLS
    assert files() == before
    content = study_file.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002")
    changed = study_file.with_name("changed.yaml")
    changed.write_text(content)
    with pytest.raises(
        ConfigurationError, match=r"was run with train\.learning_rate = 0\.001, the study file says 0\.002"
    ):
        run_study(load_plan(changed), finished_study)


def plan_without_measuring(**changes):
    content = {
        "model_name_or_path": "absent",
        "dataset_name": "absent.jsonl",
        "cells": [
            {"objective": "nll"},
            {"objective": "profit"},
            {"objective": "profit", "direction": "random", "kept_share_of": "profit-t0.1"},
        ],
    }
    return parse_plan(content | changes)


def test_a_failed_cell_is_reported_and_the_others_run(tmp_path):
    lines = []
    result = run_study(plan_without_measuring(), tmp_path, cells="[!n]*", report=lines.append)
    assert result.finished == ("untrained",)
    assert list(result.failed) == ["profit-t0.1-s0", "random-as-profit-t0.1-s0"]
    assert "no tokenizer could be loaded from 'absent'" in result.failed["profit-t0.1-s0"]
    assert "profit-t0.1-s0, whose kept share it needs, has failed" in result.failed["random-as-profit-t0.1-s0"]
    assert any(line.startswith("failed: profit-t0.1-s0: exit status 2") for line in lines)


def test_a_cell_that_the_system_fails_does_not_keep_the_others_from_running(tmp_path):
    cells = StudyFolder(tmp_path).path / "cells"
    (cells / "nll-s0" / "settings.json").mkdir(parents=True)  # in the way of a file, as a full disk would be
    (cells / "nll-s0" / "settings.json" / "x").touch()
    (cells / "profit-t0.1-s0").parent.mkdir(exist_ok=True)
    (cells / "profit-t0.1-s0").touch()  # in the way of a folder
    plan = plan_without_measuring(cells=[{"objective": "nll"}, {"objective": "profit"}])
    failed = run_study(plan, tmp_path, cells="profit*").failed | run_study(plan, tmp_path, cells="untrained").failed
    assert list(failed) == ["profit-t0.1-s0"]
    assert failed["profit-t0.1-s0"].startswith("profit-t0.1-s0: '")
    assert failed["profit-t0.1-s0"].count("\n") == 0


@pytest.mark.parametrize("torn", ["", "{", '{"format": 1', "[]", "null", "\x00", '{"a": 1' + "0" * 5000 + "}"])
@pytest.mark.parametrize("name", ["settings.json", "cell.json"])
def test_a_torn_file_of_a_cell_is_named_with_the_way_out(tmp_path, name, torn):
    plan = plan_without_measuring()
    path = StudyFolder(tmp_path).cell("nll-s0").path / name
    path.parent.mkdir(parents=True)
    path.write_text(torn)
    with pytest.raises((DataError, ConfigurationError), match=rf"{name}.*[Dd]elete .*nll-s0"):
        if name == "settings.json":
            run_study(plan, tmp_path, cells="nll-s0")
        else:
            read_results(plan, tmp_path)


def test_a_folder_that_another_driver_has_is_refused_before_anything_is_written(tmp_path):
    study = StudyFolder(tmp_path)
    with sole_driver(study), pytest.raises(ConfigurationError, match="is running the study in"):
        run_study(plan_without_measuring(), tmp_path)
    assert not (tmp_path / "cells").exists()


def test_cells_of_a_model_wait_for_the_one_that_makes_its_scores(tmp_path):
    cells = [
        {"objective": "profit", "mask_source": "reference", "seed": [0, 1]},
        {"objective": "nll", "seed": 0},
    ]
    plan, study = plan_without_measuring(cells=cells, baseline="nll"), StudyFolder(tmp_path)
    started, lock = [], threading.Lock()
    all_but_one = threading.Event()

    def run_one(run):
        with lock:
            started.append((run.cell.slug, study.scored("absent")))
            if len(started) == 3:
                all_but_one.set()
        if needs_scores(run.cell) and not study.scored("absent"):
            assert all_but_one.wait(60)
            write_text(study.scores("absent") / "scores.json", "{}")

    _Loop(plan, study, list(plan.cells), lambda text: None).run(run_one, jobs=4)
    # The second of seed 1 comes last, though there was room for it.
    assert sorted(started[:3]) == [("nll-s0", False), ("profit-t0.1-reference-s0", False), ("untrained", False)]
    assert started[3:] == [("profit-t0.1-reference-s1", True)]


def test_a_pattern_must_match_and_must_include_what_a_cell_depends_on(tmp_path):
    plan = plan_without_measuring()
    assert [cell.slug for cell in choose_cells(plan, "*-s0")] == [
        "nll-s0",
        "profit-t0.1-s0",
        "random-as-profit-t0.1-s0",
    ]
    with pytest.raises(ConfigurationError, match=r"--cells 'dft\*' matches none of 4 cells, such as untrained, nll-s0"):
        choose_cells(plan, "dft*")
    with pytest.raises(ConfigurationError, match=r"takes its rate from profit-t0\.1-s0, which is not finished"):
        run_study(plan, tmp_path, cells="random*")


@pytest.mark.slow
def test_a_random_mask_gets_the_share_its_model_cell_kept(finished_study, study_file, tmp_path):
    plan = load_plan(study_file)
    content = {
        "model_name_or_path": plan.models[0].model_name_or_path,
        "dataset_name": "generated",
        "cells": [
            {"objective": "profit", "threshold": 0.0033, "mask_source": "reference", "seed": 0},
            *(
                {
                    "objective": "profit",
                    "direction": "random",
                    "kept_share_of": "profit-t0.0033-reference",
                    "kept_share_from": source,
                }
                for source in ("run", "scores")
            ),
        ],
        "baseline": "untrained",
    }
    random_run, random_scores = parse_plan(content).cells[-2:]
    study = StudyFolder(tmp_path)
    shutil.copytree(finished_study, tmp_path, dirs_exist_ok=True)
    measured = json.loads(study.cell("profit-t0.0033-reference-s0").finished.read_text())["training"]["kept_share"]
    assert imitated_share(parse_plan(content), random_run, study) == measured
    unlogged = study.cell("profit-t0.0033-reference-s0").finished
    unlogged.write_text('{"training": {"kept_share": null}}')
    with pytest.raises(CellFailed, match=r"has logged no kept share\. Lower train\.logging_steps"):
        imitated_share(parse_plan(content), random_run, study)
    # A reference mask never moves: what it kept in training is what it keeps of the scores, up to unequal batches.
    assert imitated_share(parse_plan(content), random_scores, study) == pytest.approx(measured, abs=0.02)
