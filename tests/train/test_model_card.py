"""The model card: what is said of every kind of run, and what never is."""

import json

import pytest
import yaml

from profit_sft.train.config import ProFitConfig
from profit_sft.train.model_card import BaseCard, add_benchmarks, base_card, render_model_card


def card(folder, *, base=None, dataset_name=None, log_history=(), is_adapter=False, **settings):
    args = ProFitConfig(str(folder), use_cpu=True, report_to=[], **settings)
    told = render_model_card(
        args,
        base=base or BaseCard(),
        dataset_name=dataset_name,
        log_history=log_history,
        tags=["sft"],
        is_adapter=is_adapter,
    )
    return yaml.safe_load(told.split("---\n")[1]), told


@pytest.mark.parametrize(
    ("settings", "sentence", "source"),
    [
        ({}, "Fine-tuned with [ProFit](https://arxiv.org/abs/2601.09195)", "Liu et al. 2026"),
        ({"objective": "nll"}, "Fine-tuned by plain supervised fine-tuning", "maximum likelihood"),
        ({"objective": "dft"}, "Fine-tuned with [DFT](https://arxiv.org/abs/2508.05629)", "Wu et al. 2025"),
    ],
)
def test_it_names_the_objective_that_was_used_and_its_source(tmp_path, settings, sentence, source):
    head, told = card(tmp_path / "run", **settings)
    assert sentence in told
    assert source in told
    assert ("ProFit" in told) == (not settings)
    assert ("profit" in head["tags"]) == (not settings)


def test_no_local_path_is_told(tmp_path):
    (tmp_path / "base").mkdir()
    base = base_card(str(tmp_path / "base"))
    head, told = card(tmp_path / "run", base=base, dataset_name=str(tmp_path / "secret" / "train.jsonl"))
    assert str(tmp_path) not in told
    assert "/tmp" not in told
    assert "`train.jsonl`" in told
    assert "from a local checkpoint" in told
    assert "base_model" not in head
    assert "license" not in head
    assert "That of the base model, which is not known here" in told


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nbase_model: some/base\nlicense: mit\n---\n# x", BaseCard(hub_name="some/base", license="mit")),
        ("---\nbase_model: [some/base]\n---\n", BaseCard(hub_name="some/base")),
        ("---\nbase_model: [a/b, c/d]\nlicense: 3\n---\n", BaseCard()),
        ("---\n[half", BaseCard()),
        ("---\n- a list\n---\n", BaseCard()),
        ("no front matter", BaseCard()),
    ],
)
def test_a_local_checkpoint_passes_on_what_its_own_card_says(tmp_path, readme, expected):
    (tmp_path / "README.md").write_text(readme)
    assert base_card(str(tmp_path)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", None),
        (None, None),
        ("/no/such/folder", None),
        ("./x", None),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("gpt2", "gpt2"),
    ],
)
def test_what_is_a_name_on_the_hub(name, expected):
    assert base_card(name).hub_name == expected


def test_front_matter_names_base_license_data_and_library(tmp_path):
    base = BaseCard(hub_name="some/base", license="apache-2.0")
    head, told = card(tmp_path / "run", base=base, dataset_name="openai/gsm8k", is_adapter=True)
    assert (head["base_model"], head["license"], head["datasets"]) == ("some/base", "apache-2.0", ["openai/gsm8k"])
    assert head["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in told
    assert "card says `apache-2.0`" in told


def test_figures_data_and_versions_are_told(tmp_path):
    (tmp_path / "data.json").write_text(
        json.dumps({"rows_used": 1234, "label_tokens": 5, "total_tokens": 9, "fingerprint": "f" * 64})
    )
    logs = [{"step": 1, "probe_nll": 2.0, "epoch": 0.5}, {"step": 7, "probe_nll": 1.0, "loss": 0.25, "epoch": 1.0}]
    _, told = card(tmp_path, dataset_name="train.jsonl", log_history=logs)
    assert "1,234 rows, 5 label tokens of 9" in told
    assert "| NLL, same rows (`probe_nll`) | 2 | 1 |" in told
    assert "| steps, epochs | 7, 1 |" in told
    assert "torch 2" in told
    assert "The training gave none." in told


def test_benchmarks_are_added_and_replaced_in_our_cards_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(card(tmp_path)[1])
    assert add_benchmarks(path, {"gsm8k": "10.0% right", "ifeval": "20.0% right"})
    assert add_benchmarks(path, {"gsm8k": "30.0% right"})
    told = path.read_text()
    assert "- gsm8k: 30.0% right\n- ifeval: 20.0% right\n" in told
    assert "No benchmark" not in told
    assert "10.0%" not in told
    assert told.index("30.0%") < told.index("## Warnings") < told.index("## Citation")
    path.write_text("# a card of somebody else")
    assert not add_benchmarks(path, {"gsm8k": "1%"})
    assert not add_benchmarks(tmp_path / "none" / "README.md", {"gsm8k": "1%"})
