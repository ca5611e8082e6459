"""Whole evaluations: what they leave, and that they go on where they were."""

import json
import shutil
import sys

import pytest
import torch

from profit_sft.data.generated import generate_problems
from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.budgets import budget_file, read_budgets
from profit_sft.evaluation.runner import evaluate
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.models.pretrained import load_model, load_tokenizer
from profit_sft.quickstart import generate_answers
from tiny import CHATML

FIELDS = {"task", "problem", "sample", "prompt", "answer", "expected", "correct", "truncated"}


@pytest.fixture
def settings(tiny_folder, made_data, tmp_path):
    def make(**changes):
        common = {"tasks": ("gsm8k",), "data_dir": made_data, "max_new_tokens": 6, "samples": 2, "batch_size": 3}
        return EvalSettings(**{"model_name_or_path": tiny_folder, "output_dir": tmp_path / "out", **common, **changes})

    return make


def records(folder, task="gsm8k"):
    return [json.loads(line) for line in (folder / "samples" / f"{task}.jsonl").read_text("utf-8").splitlines()]


def texts(folder, task="gsm8k"):
    return {(row["problem"], row["sample"]): row["answer"] for row in records(folder, task)}


def test_an_evaluation_leaves_records_and_figures(settings, tmp_path, punkt):
    said, seen = [], []
    names = ("gsm8k", "math500", "aime24", "ifeval")
    report = evaluate(settings(tasks=names), say=said.append, progress=lambda *where: seen.append(where))
    assert [result.task for result in report.tasks] == list(names)
    assert seen[-1] == ("ifeval", 4, 4)
    assert "gsm8k: 12 answers to generate, 0 are there" in said
    for row in records(tmp_path / "out"):
        assert row.keys() >= FIELDS
        assert row["prompt"].endswith("<|im_start|>assistant\n")
    assert [(row["problem"], row["sample"]) for row in records(tmp_path / "out")] == [
        (p, s) for p in range(6) for s in (0, 1)
    ]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == json.loads(json.dumps(report.as_dict()))
    assert results["settings"]["temperature"] == 0.7
    assert results["versions"]["lm-eval"]
    assert report.task("gsm8k").max_new_tokens == 6
    assert {metric.name for metric in report.task("ifeval").metrics} >= {"prompt_loose", "instruction_strict"}


def test_accuracy_by_budget_ends_with_the_evaluation_itself(settings, tmp_path):
    report = evaluate(settings(limit=2, max_new_tokens=150))
    found = report.task("gsm8k")
    assert [row.budget for row in found.by_budget] == [128, 150]
    assert found.by_budget[0].truncated_share >= found.by_budget[1].truncated_share == found.truncated_share
    assert found.by_budget[1].accuracy.mean == found.accuracy.mean
    assert 0 <= found.inexact_cut_share <= 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tasks"][0]["by_budget"][0]["budget"] == 128
    kept = read_budgets(budget_file(tmp_path / "out", "gsm8k"))
    assert [(row.budget, len(row.accuracies)) for row in kept] == [(128, 2), (150, 2)]
    assert evaluate(settings(limit=2, max_new_tokens=150)).tasks == report.tasks  # without the model
    assert evaluate(settings(output_dir=tmp_path / "short", max_new_tokens=128)).task("gsm8k").by_budget == ()


def test_the_preset_sets_samples_of_each_task(settings, tmp_path):
    report = evaluate(settings(tasks=("gsm8k_paper", "aime24_paper"), preset="paper", samples=None, limit=1))
    assert [result.samples_per_problem for result in report.tasks] == [8, 32]
    prompt = records(tmp_path / "out", "gsm8k_paper")[0]["prompt"]
    assert prompt.count("<|im_start|>assistant\n") == 5


def test_code_of_a_model_runs_only_where_that_was_confirmed(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    row = {"prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    assert f() == 1"}
    (tmp_path / "humaneval.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigurationError, match="humaneval_paper runs code that the model wrote"):
        evaluate(settings(tasks=("humaneval_paper",), data_dir=tmp_path))
    assert not (tmp_path / "out").exists()
    report = evaluate(settings(tasks=("humaneval_paper",), data_dir=tmp_path, confirm_run_unsafe_code=True))
    assert report.task("humaneval_paper").accuracy.mean == 0.0


def test_what_is_there_is_summed_up_without_the_model(settings, tmp_path):
    first = evaluate(settings())
    again = evaluate(settings(), progress=pytest.fail)
    assert first.device == again.device == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    assert again.tasks == first.tasks


def test_an_interrupted_evaluation_goes_on_and_ends_as_one_that_was_not(settings, tmp_path):
    def interrupt(task, done, total):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(settings(), progress=interrupt)
    kept = records(tmp_path / "out")
    assert len(kept) == 6
    said = []
    report = evaluate(settings(), say=said.append)
    assert "gsm8k: 6 answers to generate, 6 are there" in said
    now = {(row["problem"], row["sample"]): row for row in records(tmp_path / "out")}
    # With their times: not made again.
    assert all(now[row["problem"], row["sample"]].items() >= row.items() for row in kept)
    assert all("correct" in row for row in now.values())
    whole = evaluate(settings(output_dir=tmp_path / "whole"))
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")
    assert report.task("gsm8k").accuracy == whole.task("gsm8k").accuracy


def test_limit_samples_batches_and_other_tasks_change_no_sample(settings, tmp_path):
    evaluate(settings())
    expected = texts(tmp_path / "out")
    evaluate(settings(output_dir=tmp_path / "few", limit=2, samples=1, batch_size=16))
    few = texts(tmp_path / "few")
    assert few == {key: expected[key] for key in ((0, 0), (1, 0))}
    evaluate(settings(output_dir=tmp_path / "few", tasks=("aime24", "gsm8k"), batch_size=1))
    assert texts(tmp_path / "few") == expected
    report = evaluate(settings(limit=3, samples=1))  # fewer than are there
    assert (report.task("gsm8k").num_problems, report.task("gsm8k").samples_per_problem) == (3, 1)
    assert texts(tmp_path / "out") == expected
    evaluate(settings(output_dir=tmp_path / "other", seed=1))
    assert texts(tmp_path / "other") != expected


def test_the_same_question_twice_is_sampled_with_other_random_numbers(settings, tmp_path):
    (tmp_path / "math500.jsonl").write_text('{"problem": "What is one?", "answer": "1"}\n' * 2)
    evaluate(settings(tasks=("math500",), data_dir=tmp_path))
    assert len(set(texts(tmp_path / "out", "math500").values())) == 4


def test_a_folder_of_another_evaluation_is_refused_by_name(settings, tmp_path, made_data, tiny_folder):
    evaluate(settings(limit=1))
    for changes, message in (
        ({"seed": 5}, "seed 0, not 5"),
        ({"greedy": True, "samples": None}, "greedy False, not True"),
        ({"max_new_tokens": 7}, "gsm8k: max_new_tokens 6, not 7"),
        ({"system_prompt": "Be brief."}, "system_prompt None, not 'Be brief.'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            evaluate(settings(limit=1, **changes))
    data = shutil.copytree(made_data, tmp_path / "data")
    content = (data / "gsm8k_test.jsonl").read_text()
    (data / "gsm8k_test.jsonl").write_text(content.replace("Ann", "Bob"))
    with pytest.raises(ConfigurationError, match="gsm8k: fingerprint"):
        evaluate(settings(limit=1, data_dir=data))
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = load_model(str(model))
    weights.lm_head.weight.data.mul_(2)
    weights.save_pretrained(model)
    with pytest.raises(ConfigurationError, match="model_fingerprint"):
        evaluate(settings(limit=1, model_name_or_path=str(model)))


def test_answers_to_prompts_of_another_chat_template_are_not_taken_for_the_models_own(settings, tmp_path, tiny_folder):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    asked = settings(limit=1, samples=1, model_name_or_path=str(model))
    evaluate(asked)
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template += "{# another #}"
    tokenizer.save_pretrained(model)
    with pytest.raises(ConfigurationError, match="tokenizer_fingerprint"):
        evaluate(asked)


def test_the_system_prompt_and_plain_prompts(settings, tmp_path):
    evaluate(settings(limit=1, samples=1, system_prompt="Be brief."))
    assert records(tmp_path / "out")[0]["prompt"].startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAnn"
    )
    plain = tmp_path / "plain"
    evaluate(settings(limit=1, samples=1, output_dir=plain, apply_chat_template=False))
    assert records(plain)[0]["prompt"].startswith("Ann has 1 cups")
    evaluate(settings(limit=1, samples=1, output_dir=plain, tasks=("generated",), apply_chat_template=False))
    assert records(plain, "generated")[0]["prompt"].startswith("Solve.")


def model_with(tiny_folder, folder, **changes):
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return str(folder)


def test_the_limit_of_new_tokens_is_lowered_to_the_window(settings, tmp_path, tiny_folder):
    model = model_with(tiny_folder, tmp_path / "short", max_position_embeddings=200)
    said = []
    report = evaluate(
        settings(model_name_or_path=model, max_new_tokens=500, limit=1, samples=1, batch_size=8), say=said.append
    )
    lowered = report.task("gsm8k").max_new_tokens
    assert 0 < lowered < 200
    assert f"gsm8k: max_new_tokens is {lowered} instead of 500" in " ".join(said)
    assert records(tmp_path / "out")[0]["new_tokens"] <= lowered


def test_a_prompt_longer_than_the_window_is_refused(settings, tmp_path, tiny_folder):
    model = model_with(tiny_folder, tmp_path / "short", max_position_embeddings=40)
    with pytest.raises(ConfigurationError, match=r"gsm8k: its longest prompt has \d+ tokens, the model's window 40"):
        evaluate(settings(model_name_or_path=model))


def test_a_model_without_a_chat_template_is_refused_with_the_way_out(settings, tmp_path, tiny_folder):
    model = tmp_path / "base"
    shutil.copytree(tiny_folder, model)
    for file in model.glob("*.jinja"):
        file.unlink()
    assert CHATML not in (model / "tokenizer_config.json").read_text()
    with pytest.raises(ConfigurationError, match="no chat template.*--no_chat_template"):
        evaluate(settings(model_name_or_path=str(model)))
    evaluate(settings(model_name_or_path=str(model), apply_chat_template=False, limit=1))  # the same folder
    assert records(tmp_path / "out")[0]["prompt"].startswith("Ann")


def test_a_missing_package_names_the_extra(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        ConfigurationError, match=r"evaluation needs the extra 'eval': lm_eval is not installed.*\[eval\]"
    ):
        evaluate(settings())


@pytest.mark.slow
@pytest.mark.model
def test_the_real_model_answers_the_generated_problems_as_in_the_quickstart(smollm2_folder, tmp_path):
    problems = 4
    settings = EvalSettings(
        model_name_or_path=str(smollm2_folder),
        tasks=("generated",),
        output_dir=tmp_path,
        greedy=True,
        max_new_tokens=40,
        limit=problems,
    )
    report = evaluate(settings)
    answers = [row["answer"] for row in records(tmp_path, "generated")]
    model, tokenizer = load_model(str(smollm2_folder)), load_tokenizer(str(smollm2_folder))
    quickstart = generate_answers(model, tokenizer, generate_problems(problems, seed=1, split="test"))
    assert answers == quickstart
    assert [row["truncated"] for row in records(tmp_path, "generated")] == [answer.truncated for answer in quickstart]
    assert report.task("generated").num_problems == problems
