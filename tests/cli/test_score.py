"""`profit score` and `profit train --reference_scores` as a user calls them."""

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from forks import start
from profit_sft.cli.app import run_app
from profit_sft.scores.store import load_scores


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = ({"question": f"What is {n}+1?", "answer": f"It is {n + 1}. " * (1 + n % 3)} for n in range(16))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_scores_are_summed_up_and_the_next_command_is_given(tiny_folder, rows, tmp_path, capsys):
    out = str(tmp_path / "scores")
    assert run_app(["score", rows, "--model", tiny_folder, "--out", out, "--max_length", "99"]) == 0
    shown, err = capsys.readouterr()
    manifest = load_scores(out).manifest
    assert f"{manifest.num_label_tokens:,}" in shown
    assert f"{manifest.mean_nll:.3f} nats a token" in shown
    assert "share of label tokens under p 0.1" in shown
    assert re.search(r"tokens a second, one process\s+│\s+[\d,]+\s+│", shown)
    assert f"Scores: {out}\n" in shown
    assert "scored 16/16 rows" in err
    command = shlex.split(shown.split("Train with the mask these scores give:\n")[1])
    assert command == [
        *("profit", "train", "--dataset_name", rows, "--max_length", "99"),
        *("--model_name_or_path", tiny_folder, "--reference_scores", out),
    ]
    assert run_app(["score", rows, "--model", tiny_folder, "--out", out, "--max_length", "99"]) == 0
    assert "all were there" in capsys.readouterr().out


def test_flags_are_spelled_as_in_train_with_dashes_or_without(tiny_folder, rows, tmp_path, capsys):
    out = str(tmp_path / "scores")
    flags = {
        "model_name_or_path": tiny_folder,
        "output_dir": out,
        "dataset_format": "question_answer",
        "prompt_column": "question",
        "response_column": "answer",
        "system_prompt": "Be brief.",
        "max_length": "64",
        "train_on": "last",
        "max_samples": "5",
        "dtype": "bfloat16",
        "max_batch_tokens": "100",
        "shard_rows": "2",
    }
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert run_app(["score", rows, *words, "--skip-bad-rows", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 5
    manifest = load_scores(out).manifest
    assert manifest.num_shards == 3
    for name in ("system_prompt", "train_on", "dataset_format"):
        assert manifest.data_settings[name] == flags[name]
    assert (manifest.dtype, manifest.data_settings["max_length"]) == ("bfloat16", 64)
    log_probs = load_scores(out).column("log_probs")
    assert found["mean_nll"] == manifest.mean_nll
    assert found["share_below_0.1"] == (log_probs < np.log(0.1)).mean()
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert run_app(["score", rows, *words, "--skip_bad_rows", "--json"]) == 0  # the same job
    assert json.loads(capsys.readouterr().out)["tokens_per_second"] is None


def test_training_takes_its_mask_from_the_scores(tiny_folder, rows, tmp_path, capsys):
    out = str(tmp_path / "scores")
    assert run_app(["score", rows, "--model", tiny_folder, "--out", out]) == 0
    capsys.readouterr()
    probs = np.exp(load_scores(out).column("log_probs"))
    threshold = float(np.median(probs)) * 1.0001
    command = [
        *("train", "--dataset_name", rows, "--model_name_or_path", tiny_folder, "--reference-scores", out),
        *("--output_dir", str(tmp_path / "run"), "--threshold", str(threshold), "--use_cpu", "True"),
        # All rows in every step, and steps so large that a mask of the trained model's own would move.
        *("--per_device_train_batch_size", "16", "--max_steps", "4", "--learning_rate", "0.1", "--logging_steps", "1"),
        *("--gradient_checkpointing", "False", "--lr_scheduler_type", "constant"),
    ]
    assert run_app(command) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in lines if "loss" in line]
    kept = probs >= threshold
    assert 0.3 < kept.mean() < 0.7
    assert [log["kept_share"] for log in logs] == [pytest.approx(kept.mean(), abs=1e-12)] * 4
    assert logs[0]["mean_p_kept"] == pytest.approx(probs[kept].mean(), rel=1e-5)
    assert logs[0]["mean_p_masked"] == pytest.approx(probs[~kept].mean(), rel=1e-5)
    assert logs[3]["mean_p_kept"] > 1.2 * logs[0]["mean_p_kept"]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["reference_scores"] == out
    assert config["objective_kwargs"] == {"mask_source": "reference"}
    capsys.readouterr()
    again = ["train", "--config", str(tmp_path / "run" / "config.yaml"), "--output_dir", str(tmp_path / "again")]
    assert run_app([*again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last_log"]["loss"] == logs[-1]["loss"]
    assert run_app([*command, "--output_dir", str(tmp_path / "dry"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept_share"] == pytest.approx(kept.mean(), abs=1e-12)


def test_scores_that_do_not_fit_the_run_are_refused_with_the_command(tiny_folder, rows, tmp_path, capsys):
    out = str(tmp_path / "scores")
    assert run_app(["score", rows, "--model", tiny_folder, "--out", out]) == 0
    run = ["train", "--dataset_name", rows, "--model_name_or_path", tiny_folder, "--output_dir", str(tmp_path / "run")]
    run += ["--use_cpu", "True"]
    assert run_app([*run, "--reference_scores", out, "--max_length", "30"]) == 2
    err = capsys.readouterr().err
    assert "holds scores of other data than this run trains on: max_length 1024, not 30" in err
    assert f"profit score {rows} --max_length 30 --model_name_or_path {tiny_folder} --output_dir FOLDER" in err
    assert run_app([*run, "--objective", "asft"]) == 2
    err = capsys.readouterr().err
    assert f"profit score {rows} --model_name_or_path {tiny_folder} --output_dir FOLDER" in err
    assert run_app([*run, "--objective", "asft", "--dry-run"]) == 2
    assert run_app([*run, "--reference_scores", str(tmp_path / "nowhere")]) == 1
    assert "holds no scores (it has no scores.json)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_template_of_ones_own_is_part_of_the_check_and_of_the_run(tiny_folder, rows, tmp_path, capsys):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    out = str(tmp_path / "scores")
    assert run_app(["score", rows, "--model", tiny_folder, "--out", out, "--chat-template-path", str(template)]) == 0
    shown = capsys.readouterr().out
    command = shlex.split(shown.split("Train with the mask these scores give:\n")[1])[1:]
    own = ["--output_dir", str(tmp_path / "run"), "--threshold", "0.0001", "--max_steps", "1", "--use_cpu", "True"]
    assert run_app([*command, *own]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["chat_template_path"] == str(template)
    without = [word for word in command if word not in ("--chat_template_path", str(template))]
    assert run_app([*without, *own, "--overwrite_output_dir", "True"]) == 2
    assert "another tokenizer or chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--dtype", "fp32"], 2, "dtype must be one of float32, bfloat16, float16, auto, got 'fp32'"),
        (["--max_length", "0"], 2, "max_length must be at least 1, got 0"),
        (["--model", "./absent"], 2, "there is no folder './absent'"),
        (["--out", f"{__file__}/x"], 2, "test_score.py' is none. Choose another."),
        (["--max_length", "5"], 1, "nothing is left to train on"),
    ],
)
def test_a_mistake_gets_one_message(tiny_folder, rows, tmp_path, capsys, flags, status, message):
    assert run_app(["score", rows, "--model", tiny_folder, "--out", str(tmp_path / "scores"), *flags]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "scores").exists()


def test_missing_arguments_are_usage_errors(rows, capsys):
    assert run_app(["score", rows]) == 2
    assert run_app(["score"]) == 2
    assert run_app(["score", rows, "--out", "scored"]) == 2
    assert "model_name_or_path is missing: name a hub model" in capsys.readouterr().err
    assert run_app(["score", "--help"]) == 0
    assert "Example: profit score train.jsonl" in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_keeps_the_shards_and_prints_the_command_that_goes_on(tiny_folder, rows, tmp_path):
    out = tmp_path / "scores"
    options = ["--model", tiny_folder, "--out", str(out), "--shard_rows", "1", "--max_batch_tokens", "1"]
    path = Path(rows)
    path.write_text(path.read_text() * 8)
    process = start(["score", rows, *options], tmp_path / "log", COLUMNS="80")
    deadline = time.monotonic() + 120
    while len(list(out.glob("shard-*"))) < 3 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    err = (tmp_path / "log").read_text()
    assert process.exitcode == 130, err
    assert "Stopped by SIGTERM; the shards that were done are kept. Go on with the same command:" in err
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert 3 <= len(before) < 16 * 8
    command = shlex.split(err.split("the same command:\n")[1])
    assert run_app(command[1:]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert len(after) == 16 * 8
    assert {name: after[name] for name in before} == before
