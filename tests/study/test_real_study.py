"""Studies that are really run, here and on a Ray cluster of several nodes on this machine: a kill loses nothing.

One file, since one process runs it, and so the study that is not disturbed, once.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from real_study import CELLS, figures, metric_lines

import profit_sft
from forks import fork_children_of_studies, start
from profit_sft.errors import ConfigurationError
from profit_sft.study.cells import CellFailed, imitated_share
from profit_sft.study.flags import check_flags
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import load_plan, parse_plan
from profit_sft.study.report import write_report
from profit_sft.study.runner import run_study

EIGHT = str(Path(__file__).resolve().parents[2] / "recipes" / "accelerate" / "fsdp2_8gpu.yaml")


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
    words = ["study", str(study_file), "--output_dir", str(tmp_path / "out"), "--cells", "nll-s0"]
    log = tmp_path / "log"
    cell = StudyFolder(tmp_path / "out").cell("nll-s0")

    def lines():
        metrics = cell.run / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def end_by(number):
        before = lines()
        process = start(words, log)
        deadline = time.monotonic() + 300
        while lines() < before + 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join()
        assert not cell.trained.exists()
        return process.exitcode, log.read_text()

    status, messages = end_by(signal.SIGINT)
    assert status == 130
    assert "nll-s0: stopped; it goes on from here next time" in messages
    assert "Stopped by SIGINT. The same command goes on." in messages
    assert len(list(cell.run.glob("checkpoint-*/trainer_state.json"))) == 1
    status, messages = end_by(signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert "nll-s0: going on after step" in messages
    last = start(words, log)
    last.join()
    assert last.exitcode == 0
    assert "nll-s0: going on after step" in log.read_text()
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


@pytest.mark.slow
def test_a_variant_is_tried_on_validation_problems_and_trained_at_its_best_value(study_file, tmp_path, monkeypatch):
    fork_children_of_studies(monkeypatch)
    problems = tmp_path / "validation" / "gsm8k_test.jsonl"
    problems.parent.mkdir()
    problems.write_text(
        "".join(json.dumps({"question": f"{n}+1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(3))
    )
    content = yaml.safe_load(study_file.read_text())
    content["cells"] = [{"objective": "nll", "seed": 0}]
    content["train"] = {**content["train"], "max_steps": 2}
    del content["train"]["learning_rate"]
    validation = {"tasks": ["gsm8k"], "data_dir": str(problems.parent), "greedy": True, "max_new_tokens": 4}
    content["tune"] = {"learning_rate": [0.01, 0.001], "seed": 5, "evaluate": validation}
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text(yaml.safe_dump(content))
    plan, study = load_plan(tuned), StudyFolder(tmp_path / "out")
    check_flags(plan)
    assert run_study(plan, study.path, cells="nll*", jobs=2).failed == {}
    write_report(plan, study.path, command="")
    found = json.loads((study.path / "results.json").read_text())["tuning"]["rows"][0]
    assert list(found["accuracies"]) == ["0.001", "0.01"]
    tried = {rate: study.cell(f"nll-lr{rate}-s5-try") for rate in found["accuracies"]}
    for rate, cell in tried.items():
        config, summary = yaml.safe_load(cell.config.read_text()), json.loads(cell.finished.read_text())
        assert (config["learning_rate"], config["seed"]) == (float(rate), 5)
        assert (summary["evaluation"]["tasks"][0]["num_problems"], summary["heldout"]) == (3, None)
        assert summary["evaluation"]["tasks"][0]["accuracy"]["mean"] == found["accuracies"][rate]
        assert not list(cell.run.glob("*.safetensors"))
    best = min(tried, key=lambda rate: (-found["accuracies"][rate], float(rate)))
    main = json.loads(study.cell("nll-s0").finished.read_text())
    assert main["settings"]["train"]["learning_rate"] == found["chosen"] == float(best)
    assert yaml.safe_load(study.cell("nll-s0").config.read_text())["learning_rate"] == float(best)
    assert main["evaluation"]["tasks"][0]["num_problems"] == 5


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


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs, so that nothing runs on it; tests add the nodes that work."""
    Cluster = pytest.importorskip("ray.cluster_utils", reason="the extra ray").Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(profit_sft.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: sums of more threads round otherwise
    found = Cluster(initialize_head=True, head_node_args=node(num_cpus=0, include_dashboard=False))
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()


def node(**resources):
    return {"object_store_memory": 80 * 2**20, **resources}


def start_on_ray(study_file, folder, log, *more):
    words = ["study", str(study_file), "--output_dir", str(folder), "--executor", "ray", *more]
    return start(words, log, RAY_ADDRESS=os.environ["RAY_ADDRESS"])


def attempts(cell):
    return [json.loads(line) for line in cell.attempts.read_text().splitlines()]


def wait_for_steps(cell, steps, process, log):
    metrics = cell.run / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert time.monotonic() < deadline
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)


def kill_node(cluster, worker):
    """Kill the node that this worker process belongs to, with all that runs there, as when a machine loses power."""
    raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    (dying,) = [there for there in cluster.worker_nodes if there.all_processes["raylet"][0].process.pid == raylet]
    for pid in (raylet, worker, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    cluster.remove_node(dying, allow_graceful=False)


@pytest.mark.slow
def test_a_study_is_stopped_and_loses_a_node_and_ends_as_on_one_machine(cluster, study_file, finished_study, tmp_path):
    for _ in range(2):
        cluster.add_node(**node(num_cpus=1))
    folder = tmp_path / "out"
    cell, log = StudyFolder(folder).cell("nll-s0"), tmp_path / "log"

    process = start_on_ray(study_file, folder, log)
    wait_for_steps(cell, 6, process, log)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    messages = log.read_text()
    assert process.exitcode == 130, messages
    assert "nll-s0: stopped; it goes on from here next time" in messages
    assert "Stopped by SIGINT. The same command goes on." in messages
    assert len(list(cell.run.glob("checkpoint-*/trainer_state.json"))) == 1
    assert not cell.trained.exists()

    steps = (cell.run / "metrics.jsonl").read_text().count("\n")
    process = start_on_ray(study_file, folder, log)
    wait_for_steps(cell, steps + 6, process, log)
    kill_node(cluster, attempts(cell)[-1]["pid"])
    process.join()
    messages = log.read_text()
    assert process.exitcode == 0, messages
    assert messages.count("nll-s0: going on after step") == 2
    assert figures(folder) == figures(finished_study)
    for slug in CELLS[1:]:
        assert metric_lines(folder, slug) == metric_lines(finished_study, slug)
    assert len({attempt["pid"] for attempt in attempts(cell)}) == 3
    assert json.loads(cell.finished.read_text())["cost"]["attempts"] == 3


@pytest.mark.slow
def test_cells_share_the_gpus_of_a_node(cluster, tmp_path):
    cluster.add_node(**node(num_cpus=4, num_gpus=2))  # Ray takes our word for it
    content = {
        "models": [{"model_name_or_path": "absent", "name": f"m{index}"} for index in range(4)],
        "dataset_name": "absent.jsonl",
        "cells": [{"objective": "nll"}],
    }
    study_file, study, log = tmp_path / "study.yaml", StudyFolder(tmp_path / "out"), tmp_path / "log"
    study_file.write_text(yaml.safe_dump(content))
    process = start_on_ray(study_file, study.path, log, "--cells", "*untrained")
    process.join()
    assert process.exitcode == 0, log.read_text()
    gpus = [attempts(study.cell(f"m{index}.untrained"))[0]["gpus"] for index in range(4)]
    assert set(gpus) <= {"0", "1"}
    study_file.write_text(yaml.safe_dump(content | {"train": {"accelerate_config": EIGHT}}))
    process = start_on_ray(study_file, tmp_path / "other", log)
    process.join()
    assert process.exitcode == 2
    assert "trains on 8 GPUs, and no node of the Ray cluster has more than 2." in log.read_text()
