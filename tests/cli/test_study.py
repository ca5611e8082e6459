"""`profit study` as a user calls it."""

import json
from pathlib import Path

import pytest
import yaml

from forks import fork_children_of_studies
from profit_sft.cli.app import run_app
from profit_sft.study.plan import load_plan

STUDIES = sorted((Path(__file__).resolve().parents[2] / "recipes" / "studies").glob("*.yaml"))


@pytest.fixture
def study_file(tiny_folder, tmp_path):
    """A study that only trains, in a few seconds."""
    content = {
        "model_name_or_path": tiny_folder,
        "dataset_name": "generated",
        "generated": {"rows": 8},
        "train": {"max_steps": 2, "logging_steps": 1, "max_length": 256, "use_cpu": True},
        "cells": [{"objective": "nll"}],
        "estimate": {"device": "a desk", "train_tokens_per_second": 100, "evaluate_seconds": 1},
    }
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}+1?", "answer": f"{n + 1}."}) + "\n" for n in range(8)))
    return str(path)


@pytest.mark.slow
def test_a_study_runs_and_tells_what_it_found(study_file, tmp_path, capsys, monkeypatch):
    fork_children_of_studies(monkeypatch)
    folder = tmp_path / "out"
    assert run_app(["study", str(study_file), "--output-dir", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "nll-s0: finished (2/2)" in err
    assert f"Report: {folder}/report.html" in err
    assert "There is nothing to compare yet" in out
    assert (folder / "report.md").read_text().count("| nll |") == 2
    command = f"profit study {study_file} --output_dir {folder}"
    assert command in (folder / "report.html").read_text()
    assert run_app(["study", str(study_file), "--output_dir", str(folder), "--report_only", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in found["rows"]] == ["untrained", "nll"]


def test_dry_run_lists_cells_and_cost_and_writes_nothing(study_file, tmp_path, capsys):
    folder = tmp_path / "out"
    (folder / "cells" / "untrained").mkdir(parents=True)
    (folder / "cells" / "untrained" / "cell.json").write_text("{}")
    before = set(tmp_path.rglob("*"))
    arguments = ["study", str(study_file), "--output_dir", str(folder), "--dry-run"]
    assert run_app([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(cell["slug"], cell["steps"]) for cell in found["cells"]] == [("untrained", 0), ("nll-s0", 2)]
    assert found["finished"] == ["untrained"]
    assert found["hours"] == pytest.approx(found["cells"][1]["train_tokens"] / 100 / 3600)
    (folder / "cells" / "untrained").rename(folder / "cells" / "nll-s0")
    before = set(tmp_path.rglob("*"))
    assert run_app([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["finished"], found["hours"]) == (["nll-s0"], 0)
    (folder / "cells" / "nll-s0").rename(folder / "cells" / "untrained")
    before = set(tmp_path.rglob("*"))
    assert run_app([*arguments, "--cells", "nll*"]) == 0
    shown = capsys.readouterr().out
    assert "8 rows" in shown
    assert "1 cells to run: about 0.0 hours of a desk, an estimate" in shown
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("recipe", STUDIES, ids=lambda path: path.stem)
def test_every_study_file_dry_runs(recipe, tiny_folder, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(recipe.parents[2])
    arguments = ["study", str(recipe), "--model_name_or_path", tiny_folder, "--output_dir", str(tmp_path / "out")]
    if load_plan(recipe).dataset_name != "generated":
        arguments += ["--dataset_name", rows]
    assert run_app([*arguments, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["cells"]) == len(load_plan(recipe).runs)
    assert all(data["measured"] for data in found["data"].values())
    assert found["hours"] > 0


def test_the_papers_grid_is_that_of_the_recipes():
    plan = load_plan(next(path for path in STUDIES if path.stem == "paper-grid"))
    assert len(plan.models) == 5
    assert [variant.name for variant in plan.variants] == ["nll", "entropy", "dft", "profit-t0.1", "eaft"]
    recipes = STUDIES[0].parents[1]
    names = {"Qwen3-0.6B-Base": "qwen3-0.6b", "Qwen3-4B-Base": "qwen3-4b", "Qwen3-14B-Base": "qwen3-14b"}
    names |= {"Llama-3.1-8B": "llama-3.1-8b", "OLMo-2-1124-7B": "olmo-2-7b"}
    for model in plan.models:
        recipe = yaml.safe_load((recipes / f"{names[model.name]}-profit.yaml").read_text())
        train = {**plan.train, **model.train}
        assert model.model_name_or_path == recipe["model_name_or_path"]
        assert train.get("chat_template_path") == recipe.get("chat_template_path")
        for key in ("global_batch_size", "accelerator_config", "eos_token"):
            assert train.get(key) == recipe.get(key), key
        for key in ("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_length", "bf16"):
            assert train[key] == recipe[key], key
        assert {cell.seed for cell in plan.cells} == {None, recipe["seed"]}


def test_without_the_data_the_grids_assumptions_are_used(capsys, monkeypatch):
    grid = next(path for path in STUDIES if path.stem == "paper-grid")
    monkeypatch.chdir(grid.parents[2])
    assert run_app(["study", str(grid), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Qwen3-14B-Base: 2,000 rows, 1,200,000 tokens (assumed: the data was not read), 14.80 B parameters" in shown
    assert "30 cells to run" in shown


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--cells", "dft*"], 2, "--cells 'dft*' matches none of 2 cells, such as untrained, nll-s0."),
        (["--jobs", "0"], 2, "--jobs must be at least 1, got 0."),
        (["--executor", "slurm"], 2, "--executor must be local or ray, got 'slurm'."),
        (["--report_only"], 2, "holds no finished cell, so there is nothing to report."),
        (["--dataset_name", "absent.jsonl", "--dry-run"], 2, "To estimate without it, give estimate.rows and"),
        (["--model_name_or_path", "./absent", "--dry-run"], 2, "there is no folder './absent'"),
    ],
)
def test_a_mistake_gets_one_message(study_file, tmp_path, capsys, flags, status, message):
    assert run_app(["study", str(study_file), "--output_dir", str(tmp_path / "out"), *flags]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"learning_rat": 1}}, "train.learning_rat is unknown. Did you mean learning_rate?"),
        ({"train": {"max_length": 0}}, "train: max_length must be at least 1, got 0."),
        ({"evaluate": {"tasks": ["gsm9k"]}}, "evaluate: tasks: gsm9k given. Known are"),
        ({"evaluate": {"task": ["gsm8k"]}}, "evaluate.task is unknown. Did you mean tasks?"),
    ],
)
def test_settings_of_training_and_evaluation_are_checked_before_anything_runs(
    study_file, tmp_path, capsys, changes, message
):
    study_file.write_text(yaml.safe_dump(yaml.safe_load(study_file.read_text()) | changes))
    assert run_app(["study", str(study_file), "--output_dir", str(tmp_path / "out"), "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
