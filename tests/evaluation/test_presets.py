"""The paper's decoding and limits."""

import json

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.settings import (
    DECODING,
    TASK_FOLDER,
    EvalSettings,
    model_type_of,
    paper_decoding,
    resolved,
    task_file,
    task_limits,
)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen3", dict(temperature=0.7, top_p=0.8, top_k=20)),
        ("olmo2", dict(temperature=0.7, top_p=0.8, top_k=20)),
        ("llama", dict(temperature=0.6, top_p=0.9, top_k=0)),
    ],
)
def test_decoding_follows_the_family(model_type, expected, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert paper_decoding(model_type_of(str(tmp_path))) == expected


def test_a_family_the_paper_does_not_have_is_refused_by_name():
    with pytest.raises(
        ConfigurationError, match="no model of the type 'gpt2'.*qwen2, qwen3, olmo2, llama.*temperature"
    ):
        paper_decoding("gpt2")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_model_that_does_not_say_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"config\.json(, which cannot be used|' is )"):
        model_type_of(str(tmp_path))


def test_limits_of_a_task():
    paper, own = settings(preset="paper"), settings()
    assert task_limits(paper, "aime24") == task_limits(paper, "aime24_paper") == (32, 32_768)
    assert task_limits(paper, "ifeval") == task_limits(paper, "humaneval_paper") == (8, 8192)
    assert task_limits(own, "aime24") == task_limits(own, "arc_challenge_paper") == (8, 8192)
    assert task_limits(own, "aime24_paper") == (8, 32_768)


@pytest.mark.parametrize("name", sorted(path.stem for path in TASK_FOLDER.glob("*_paper.yaml")))
def test_a_task_file_is_read_as_the_harness_reads_it(name):
    config = load_yaml(TASK_FOLDER / f"{name}.yaml")
    generation = config["generation_kwargs"]
    assert task_file(name)["generation_kwargs"] == generation
    assert (task_file(name)["repeats"], task_file(name)["metadata"]) == (config["repeats"], config["metadata"])
    decoding = {key: generation[key] for key in ("temperature", "top_p", "top_k")}
    assert decoding == DECODING["qwen3"]


def settings(**changes):
    return EvalSettings(**{"model_name_or_path": "x", "tasks": ("gsm8k",), "output_dir": "x", **changes})


@pytest.mark.parametrize(
    ("changes", "task", "samples", "limit"),
    [
        ({"preset": "paper"}, "aime24", 32, 32_768),
        ({"preset": "paper"}, "gsm8k_paper", 8, 512),
        ({"preset": "paper"}, "generated", 8, 128),
        ({"preset": "paper", "greedy": True}, "aime24", 1, 32_768),
        ({"preset": "paper", "samples": 2, "max_new_tokens": 64}, "aime24", 2, 64),
        ({}, "aime24", 8, None),
    ],
)
def test_settings_of_a_task(tiny_folder, changes, task, samples, limit):
    found = resolved(settings(**changes, model_name_or_path=tiny_folder), task)
    assert (found.samples_per_problem, found.max_new_tokens) == (samples, limit)
    sampled = (0.6, 0.9, 0) if "preset" in changes and not found.greedy else (0.7, 0.8, 20)
    assert (found.temperature, found.top_p, found.top_k) == sampled  # the tiny model is a Llama


def test_another_preset_is_refused():
    with pytest.raises(ValueError, match="preset must be paper, got 'fast'"):
        settings(preset="fast")


def test_a_preset_and_a_decoding_of_ones_own_are_refused():
    with pytest.raises(ValueError, match=r"top_k is 5, but preset paper sets it\. Leave out one of the two"):
        settings(preset="paper", top_k=5)


def test_an_adapters_family_is_that_of_its_base(tmp_path, tiny_folder):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": tiny_folder}))
    assert model_type_of(str(tmp_path)) == "llama"
