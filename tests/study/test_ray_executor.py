"""What Ray is asked for, and what a node says that lacks the study's folder; test_real_study.py runs a cluster."""

from pathlib import Path

import pytest

from profit_sft.errors import ConfigurationError
from profit_sft.study.layout import StudyFolder
from profit_sft.study.plan import parse_plan
from profit_sft.study.ray_executor import _check_gpus, _run_on_node

pytest.importorskip("ray", reason="the extra ray")
EIGHT = str(Path(__file__).resolve().parents[2] / "recipes" / "accelerate" / "fsdp2_8gpu.yaml")


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
