"""Measuring one model: plain NLL by kind of token, and a base model that gets the runs' chat template."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from profit_sft.data.generated import generate_problems, write_jsonl
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.data.sources import data_to_evaluate
from profit_sft.models.pretrained import load_model, load_tokenizer
from profit_sft.study.cells import measure as measure_cell
from profit_sft.study.layout import CellFolder, StudyFolder
from profit_sft.study.measure import eval_settings, heldout_nll, measure, with_chat_template
from profit_sft.study.plan import parse_plan
from tiny import CHATML


@pytest.fixture
def heldout(tmp_path):
    path = tmp_path / "heldout.jsonl"
    write_jsonl(generate_problems(3, seed=1, split="test"), path)
    return DataSettings(dataset_name=str(path), max_length=None)


def test_nll_is_the_models_own_and_splits_into_core_and_style(tiny_folder, heldout):
    model, tokenizer = load_model(tiny_folder), load_tokenizer(tiny_folder)
    found = heldout_nll(model, tokenizer, heldout)
    data = prepare_dataset(heldout, tokenizer, False).dataset
    nll = labels = 0.0
    by_kind = {1: [], 2: []}
    for row in data:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].double()
        for position, label in enumerate(row["labels"]):
            if label != -100:
                loss = -logits[position - 1].log_softmax(-1)[label].item()
                nll, labels = nll + loss, labels + 1
                if row["token_kinds"][position] in by_kind:
                    by_kind[row["token_kinds"][position]].append(loss)
    assert found["label_tokens"] == labels
    assert found["nll"] == pytest.approx(nll / labels, rel=1e-5)
    assert found["nll_core"] == pytest.approx(sum(by_kind[1]) / len(by_kind[1]), rel=1e-5)
    assert found["nll_style"] == pytest.approx(sum(by_kind[2]) / len(by_kind[2]), rel=1e-5)
    assert [count for _, count in found["rows"]] == [sum(label != -100 for label in row["labels"]) for row in data]


@pytest.mark.slow
def test_a_base_model_is_measured_with_the_template_of_the_runs(tiny_folder, heldout, tmp_path):
    base, template = tmp_path / "base", tmp_path / "chat.jinja"
    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(base)
    template.write_text(CHATML)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    made = with_chat_template(str(base), str(template), tmp_path / "made")
    assert load_tokenizer(str(made)).chat_template == CHATML
    assert (made / "model.safetensors").is_symlink()
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    folder = CellFolder(tmp_path / "cell")
    folder.path.mkdir()
    settings = {"tasks": ["generated"], "greedy": True, "max_new_tokens": 2, "limit": 2}
    request = {
        "model_name_or_path": str(base),
        "dtype": "float32",
        "chat_template_path": str(template),
        "eos_token": None,
        "heldout": {"dataset_name": heldout.dataset_name, "max_length": None},
        "evaluate": settings,
    }
    folder.request.write_text(json.dumps(request))
    measure(folder)
    measure(folder)  # what is there is not done again
    assert json.loads(folder.heldout.read_text())["nll"] > 0
    results = json.loads((folder.evaluation / "results.json").read_text())
    assert results["tasks"][0]["num_problems"] == 2
    (folder.evaluation / "results.json").unlink()  # killed once all was answered
    measure(folder)
    again = json.loads((folder.evaluation / "results.json").read_text())
    assert {**again, "seconds": None} == {**results, "seconds": None}
    assert "<|im_start|>" in (folder.evaluation / "samples" / "generated.jsonl").read_text()


def test_the_untrained_model_is_measured_on_what_the_runs_are_trained_on(tiny_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "unread", "body": "two plus two is four"}\n')
    train = {"dataset_text_field": "body", "eos_token": "<|im_start|>", "test_split_size": 1}
    row, folder = str(tmp_path / "rows.jsonl"), CellFolder(tmp_path / "cell")
    folder.path.mkdir()
    request = {
        **{"model_name_or_path": tiny_folder, "dtype": "float32", "chat_template_path": None, "evaluate": {}},
        **{"eos_token": train["eos_token"], "heldout": asdict(data_to_evaluate(train, row))},
    }
    folder.request.write_text(json.dumps(request))
    measure(folder)
    tokenizer = load_tokenizer(tiny_folder)
    labels = tokenizer("two plus two is four<|im_start|>")["input_ids"][1:]
    assert json.loads(folder.heldout.read_text())["label_tokens"] == len(labels)
    assert request["heldout"]["dataset_text_field"] == "body"


@pytest.mark.parametrize(
    "own",
    [{"max_length": 16}, {"dataset_text_field": "body"}, {"dtype": "bfloat16"}],
    ids=lambda own: next(iter(own)),
)
def test_a_variant_of_other_training_data_is_measured_on_the_same_tokens(tmp_path, own):
    plan = parse_plan(
        {
            "model_name_or_path": "absent",
            "dataset_name": "generated",
            "heldout_dataset_name": "generated",
            "train": {"max_length": 64, "dtype": "float32"},
            "cells": [{"objective": "nll"}, {"objective": "dft", "name": "own", "train": own}],
        }
    )
    asked = {}
    for cell in plan.cells:
        study = StudyFolder(tmp_path)
        run = SimpleNamespace(plan=plan, cell=cell, study=study, folder=study.cell(cell.slug), child=lambda *_: None)
        measure_cell(run)
        request = json.loads(run.folder.request.read_text())
        asked[cell.slug] = {key: request[key] for key in ("heldout", "dtype")}
    assert asked["own-s0"] == asked["nll-s0"] == asked["untrained"]
    assert asked["own-s0"]["heldout"]["max_length"] == 64


def test_evaluation_settings_come_from_plain_values(tmp_path):
    found = eval_settings({"tasks": ["gsm8k"], "data_dir": "data", "greedy": True}, "embedded", tmp_path)
    assert (found.tasks, str(found.data_dir), found.samples_per_problem) == (("gsm8k",), "data", 1)
    with pytest.raises(TypeError, match="top_q"):
        eval_settings({"tasks": ["gsm8k"], "top_q": 1}, "embedded", tmp_path)
