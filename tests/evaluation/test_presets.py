"""The paper's decoding and limits."""

import json
from pathlib import Path

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

import profit_sft.evaluation
from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.paper_form import GRADERS
from profit_sft.evaluation.presets import DECODING, Decoding, TaskPreset, model_type_of, paper_decoding, paper_task

TASK_FILES = Path(profit_sft.evaluation.__file__).with_name("tasks")


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen3", Decoding(temperature=0.7, top_p=0.8, top_k=20)),
        ("olmo2", Decoding(temperature=0.7, top_p=0.8, top_k=20)),
        ("llama", Decoding(temperature=0.6, top_p=0.9, top_k=0)),
    ],
)
def test_decoding_follows_the_family(model_type, expected, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert paper_decoding(model_type_of(tmp_path)) == expected


def test_a_family_the_paper_does_not_have_is_refused_by_name():
    with pytest.raises(
        ConfigurationError, match="no model of the type 'gpt2'.*qwen2, qwen3, olmo2, llama.*temperature"
    ):
        paper_decoding("gpt2")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_model_that_does_not_say_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"preset paper: .*config\.json, which cannot be used"):
        model_type_of(tmp_path)


def test_limits_of_a_task():
    assert paper_task("aime24") == paper_task("aime24_paper") == TaskPreset(samples=32, max_new_tokens=32_768)
    assert paper_task("ifeval") == paper_task("humaneval_paper") == TaskPreset(samples=8, max_new_tokens=8192)


@pytest.mark.parametrize("name", sorted(GRADERS))
def test_the_task_files_say_the_same(name):
    config = load_yaml(TASK_FILES / f"{name}.yaml")
    generation = config["generation_kwargs"]
    assert paper_task(name) == TaskPreset(samples=config["repeats"], max_new_tokens=generation["max_gen_toks"])
    decoding = {key: generation[key] for key in ("temperature", "top_p", "top_k")}
    assert Decoding(**decoding) == DECODING["qwen3"]
