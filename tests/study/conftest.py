"""A small study on a tiny model, its file, and one finished copy of it."""

from pathlib import Path

import pytest
import yaml

from forks import fork_children_of_studies
from profit_sft.study.plan import load_plan
from profit_sft.study.runner import run_study


@pytest.fixture(scope="session")
def study_file(tiny_folder, tmp_path_factory) -> Path:
    """Two cells besides the untrained model; every part of a study is in it."""
    content = {
        "name": "plumbing",
        "question": "Does it hold?",
        "model_name_or_path": tiny_folder,
        "dataset_name": "generated",
        "generated": {"rows": 16, "heldout_rows": 4},
        "heldout_dataset_name": "generated",
        "train": {
            "max_steps": 40,
            "logging_steps": 1,
            "max_length": 256,
            "use_cpu": True,
            "learning_rate": 1.0e-3,
            "per_device_train_batch_size": 4,
            "save_strategy": "steps",
            "save_steps": 4,
            "save_total_limit": 1,
            "gradient_checkpointing": False,
        },
        "cells": [
            {"objective": "nll", "seed": 0},
            {"objective": "profit", "threshold": 0.0033, "mask_source": "reference", "seed": 0},
        ],
        "evaluate": {"tasks": ["generated"], "greedy": True, "max_new_tokens": 4, "limit": 5, "dtype": "float32"},
        "keep_models": False,
    }
    path = tmp_path_factory.mktemp("study") / "plumbing.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def finished_study(study_file, tmp_path_factory) -> Path:
    """The folder of that study after an undisturbed run, two cells at a time."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        fork_children_of_studies(patch)
        result = run_study(load_plan(study_file), folder, jobs=2)
    assert result.failed == {}
    return folder
