"""How a study goes through its cells: which, in which order, and what of a folder it refuses."""

import json
import threading

import pytest

from forks import fork_children_of_studies
from profit_sft.errors import ConfigurationError, DataError
from profit_sft.files import write_text
from profit_sft.study.cells import CellFailed, cell_settings, data_contents, needs_scores
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


def test_a_failed_cell_is_reported_and_the_others_run(tmp_path, monkeypatch):
    fork_children_of_studies(monkeypatch)
    lines = []
    result = run_study(plan_without_measuring(), tmp_path, cells="[!n]*", say=lines.append)
    assert result.finished == ("untrained",)
    assert list(result.failed) == ["profit-t0.1-s0", "random-as-profit-t0.1-s0"]
    assert "no tokenizer could be loaded from 'absent'" in result.failed["profit-t0.1-s0"]
    assert "profit-t0.1-s0, which it needs for its rate, has failed" in result.failed["random-as-profit-t0.1-s0"]
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


def test_cells_of_other_rows_of_the_same_name_are_not_mixed(tmp_path, monkeypatch):
    fork_children_of_studies(monkeypatch)
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


TUNED = {
    "cells": [
        {"objective": "nll", "seed": [1, 2]},
        {"objective": "profit", "direction": "random", "kept_share_of": "nll", "seed": 1},
    ],
    "tune": {"learning_rate": [1e-5, 1e-4, 1e-3], "seed": 7, "evaluate": {"tasks": ["gsm8k"]}},
    "evaluate": {"tasks": ["generated"]},
}
VALIDATION = {
    "nll-lr1e-05-s7-try": 0.3,
    "nll-lr0.0001-s7-try": 0.5,
    "nll-lr0.001-s7-try": 0.5,  # as good: the smaller value
    "nll-lr0.01-s7-try": 0.9,
    "nll-lr1e-05-s8-try": 0.3,
    "nll-lr0.0001-s8-try": 0.0,
    "nll-lr0.001-s8-try": 0.2,
    "random-as-nll-lr1e-05-s7-try": 0.6,
    "random-as-nll-lr0.0001-s7-try": 0.5,
    "random-as-nll-lr0.001-s7-try": 0.4,
    "random-as-nll-lr0.01-s7-try": 0.4,
}


def run_tuned(folder, jobs=1, fails=(), cells=None, **changes):
    """Run the study above with cells that only write their files; return what ran at which rate, and what failed."""
    plan, study, ran = plan_without_measuring(**(TUNED | changes)), StudyFolder(folder), []

    def run_one(run):
        ran.append((run.cell.slug, run.cell.tuned.get("learning_rate")))
        if run.cell.slug in fails:
            raise CellFailed(f"{run.cell.slug}: exit status 1.")
        settings = {**cell_settings(plan, run.cell), **data_contents(plan)}
        write_text(run.folder.settings, json.dumps(settings))
        evaluation = {"tasks": [{"accuracy": {"mean": VALIDATION.get(run.cell.slug, 0.0)}}]}
        write_text(run.folder.finished, json.dumps({"evaluation": evaluation}))

    loop = _Loop(plan, study, list(choose_cells(plan, cells)), lambda text: None)
    loop.run(run_one, jobs=jobs)
    return ran, loop.failed


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_cell_runs_at_the_best_of_the_values_its_variant_tried(tmp_path, jobs):
    ran, failed = run_tuned(tmp_path, jobs)
    assert failed == {}
    assert {slug: rate for slug, rate in ran if not slug.endswith("-try")} == {
        "untrained": None,
        "nll-s1": 1e-4,
        "nll-s2": 1e-4,
        "random-as-nll-s1": 1e-5,
    }
    order = [slug for slug, _ in ran]
    # The tries of a random mask take its share from the cell that it imitates, which waits for its own tries.
    assert order.index("nll-lr0.001-s7-try") < order.index("nll-s1") < order.index("random-as-nll-lr1e-05-s7-try")
    assert json.loads(StudyFolder(tmp_path).cell("nll-s1").settings.read_text())["train"] == {"learning_rate": 1e-4}
    assert run_tuned(tmp_path) == ([], {}), "a finished study is left alone"


def test_a_failed_try_fails_what_needs_it_and_nothing_else(tmp_path):
    ran, failed = run_tuned(tmp_path, fails=("random-as-nll-lr0.0001-s7-try",))
    assert failed["random-as-nll-s1"] == (
        "random-as-nll-s1: random-as-nll-lr0.0001-s7-try, which it needs for its learning_rate, has failed."
    )
    assert list(failed) == ["random-as-nll-lr0.0001-s7-try", "random-as-nll-s1"]
    assert ("nll-s2", 1e-4) in ran


def test_values_may_change_until_a_cell_has_run_at_another_than_the_best(tmp_path):
    fewer, more = [1e-5, 1e-4], [1e-5, 1e-4, 1e-2]
    only = {"cells": "nll*"}
    run_tuned(tmp_path, tune=TUNED["tune"] | {"learning_rate": fewer}, cells="nll*-try")
    ran, _ = run_tuned(tmp_path, tune=TUNED["tune"] | {"learning_rate": more}, cells="nll*-[ts][r1]*")
    assert ran == [("nll-lr0.01-s7-try", 1e-2), ("nll-s1", 1e-2)], "tries that are there stay"
    plan = plan_without_measuring(**(TUNED | {"tune": TUNED["tune"] | {"learning_rate": fewer}}))
    refusal = r"nll-s1 was run with train\.learning_rate = 0\.01, the best of those tried is 0\.0001\. Choose another"
    with pytest.raises(ConfigurationError, match=refusal):
        run_study(plan, tmp_path, **only)


def test_of_several_seeds_the_mean_chooses_and_seeds_that_are_there_stay(tmp_path):
    """The rate that does best with the first seed collapses with the second."""
    run_tuned(tmp_path, cells="nll*-try")
    ran, failed = run_tuned(tmp_path, cells="nll*", tune=TUNED["tune"] | {"seed": [7, 8]})
    assert failed == {}
    tries = {f"nll-lr{rate:g}-s8-try": rate for rate in (1e-5, 1e-4, 1e-3)}
    assert dict(ran) == tries | {"nll-s1": 1e-3, "nll-s2": 1e-3}


def test_a_cell_at_another_value_than_a_later_try_shows_best_fails_by_name(tmp_path):
    run_tuned(tmp_path, cells="nll*")
    more = TUNED["tune"] | {"learning_rate": [1e-5, 1e-4, 1e-2]}
    ran, failed = run_tuned(tmp_path, tune=more, cells="nll*")
    assert ran == [("nll-lr0.01-s7-try", 1e-2)]
    assert list(failed) == ["nll-s1", "nll-s2"]
    assert "was run with train.learning_rate = 0.0001, the best of those tried is 0.01." in failed["nll-s1"]


def test_a_whole_number_stays_one_on_its_way_to_training(tmp_path):
    tune = {"num_train_epochs": [2, 1], "evaluate": {"tasks": ["gsm8k"]}}
    run_tuned(tmp_path, tune=tune, cells="nll*")
    for slug in ("nll-num_train_epochs1-s0-try", "nll-s1"):
        settings = json.loads(StudyFolder(tmp_path).cell(slug).settings.read_text())["train"]
        assert repr(settings) == "{'num_train_epochs': 1}"


def test_a_cell_and_its_tries_are_chosen_together(tmp_path):
    plan = plan_without_measuring(**TUNED)
    with pytest.raises(
        ConfigurationError, match=r"nll-s1 takes its learning_rate from nll-lr1e-05-s7-try, which is not"
    ):
        run_study(plan, tmp_path, cells="nll-s1")
    with pytest.raises(
        ConfigurationError, match=r"random-as-nll-lr1e-05-s7-try takes its rate from nll-s1, which is not"
    ):
        run_study(plan, tmp_path, cells="random*")


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
