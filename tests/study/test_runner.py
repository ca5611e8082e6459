"""How a study goes through its cells: which, in which order, and what of a folder it refuses."""

import threading

import pytest

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.files import write_text
from profit_sft.study.cells import needs_scores
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import parse_plan
from profit_sft.study.results import read_results
from profit_sft.study.runner import _Loop, choose_cells, run_study


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
    result = run_study(plan_without_measuring(), tmp_path, cells="[!n]*", say=lines.append)
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


def test_cells_of_other_rows_of_the_same_name_are_not_mixed(tmp_path):
    data, study = tmp_path / "rows.jsonl", StudyFolder(tmp_path / "study")
    folder = study.cell("nll-s0")

    def run(rows):
        data.write_text(rows)
        plan = plan_without_measuring(dataset_name=str(data), heldout_dataset_name=str(data))
        return run_study(plan, study.path, cells="nll-s0").failed

    run("one\n")
    assert "no tokenizer" in run("more\n")["nll-s0"]  # nothing was made of the rows before, and they are mended
    for made in (folder.trained, folder.heldout):
        made.write_text("{}")
        with pytest.raises(
            ConfigurationError, match=r"nll-s0 was run with other contents of '.*rows.jsonl' than are th"
        ):
            run("others\n")
        made.unlink()


def test_a_folder_that_another_driver_has_is_refused_before_anything_is_written(tmp_path):
    study = StudyFolder(tmp_path)
    with study.driven(), pytest.raises(ConfigurationError, match="is running the study in"):
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
