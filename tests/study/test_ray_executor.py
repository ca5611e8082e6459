"""Studies on a real Ray cluster of several nodes, all on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from real_study import CELLS, figures, metric_lines

import profit_sft
from profit_sft.errors import ConfigurationError
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import parse_plan
from profit_sft.study.ray_executor import _check_gpus, _run_on_node

pytest.importorskip("ray", reason="the extra ray")
EIGHT = str(Path(__file__).resolve().parents[2] / "recipes" / "accelerate" / "fsdp2_8gpu.yaml")


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs, so that nothing runs on it; tests add the nodes that work."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(profit_sft.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: sums of more threads round otherwise
    found = Cluster(initialize_head=True, head_node_args=node(num_cpus=0, include_dashboard=False))
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()


def node(**resources):
    return {"object_store_memory": 80 * 2**20, **resources}


def start(study_file, folder, *more):
    command = [sys.executable, "-m", "profit_sft.cli", "study", str(study_file), "--output_dir", str(folder)]
    return subprocess.Popen([*command, "--executor", "ray", *more], stderr=subprocess.PIPE, text=True)


def attempts(cell):
    return [json.loads(line) for line in cell.attempts.read_text().splitlines()]


def wait_for_steps(cell, steps, process):
    metrics = cell.run / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
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
    cell = StudyFolder(folder).cell("nll-s0")

    process = start(study_file, folder)
    wait_for_steps(cell, 6, process)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate()
    assert process.returncode == 130, messages
    assert "nll-s0: stopped; it goes on from here next time" in messages
    assert "Stopped by SIGINT. The same command goes on." in messages
    assert len(list(cell.run.glob("checkpoint-*/trainer_state.json"))) == 1
    assert not cell.trained.exists()

    steps = (cell.run / "metrics.jsonl").read_text().count("\n")
    process = start(study_file, folder)
    wait_for_steps(cell, steps + 6, process)
    kill_node(cluster, attempts(cell)[-1]["pid"])
    _, messages = process.communicate()
    assert process.returncode == 0, messages
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
    study_file, study = tmp_path / "study.yaml", StudyFolder(tmp_path / "out")
    study_file.write_text(yaml.safe_dump(content))
    process = start(study_file, study.path, "--cells", "*untrained")
    _, messages = process.communicate()
    assert process.returncode == 0, messages
    gpus = [attempts(study.cell(f"m{index}.untrained"))[0]["gpus"] for index in range(4)]
    assert set(gpus) <= {"0", "1"}
    study_file.write_text(yaml.safe_dump(content | {"train": {"accelerate_config": EIGHT}}))
    process = start(study_file, tmp_path / "other")
    _, messages = process.communicate()
    assert process.returncode == 2
    assert "trains on 8 GPUs, and no node of the Ray cluster has more than 2." in messages


@pytest.mark.parametrize(("node_gpus", "fits"), [(0, True), (4, True), (3, False)])
def test_ranks_must_fit_a_node_that_has_gpus(node_gpus, fits):
    train = {"accelerate_config": EIGHT, "num_processes": 4}
    content = {"model_name_or_path": "x", "dataset_name": "x.jsonl", "cells": [{"objective": "nll"}], "train": train}
    plan = parse_plan(content)
    if fits:
        _check_gpus(plan, plan.cells, node_gpus)
        return
    with pytest.raises(ConfigurationError, match="untrained trains on 4 GPUs, and no node of the Ray cluster has more"):
        _check_gpus(plan, plan.cells, node_gpus)


def test_a_node_that_does_not_share_the_folder_says_so(tmp_path):
    plan = parse_plan({"model_name_or_path": "x", "dataset_name": "x.jsonl", "cells": [{"objective": "nll"}]})
    failure = _run_on_node(plan, plan.cells[0], StudyFolder(tmp_path / "elsewhere"), tmp_path, None)
    assert f"'{tmp_path}/elsewhere' is not the study's folder. All nodes must share them." in failure
    assert not (tmp_path / "elsewhere").exists()
