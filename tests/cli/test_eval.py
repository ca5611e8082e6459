"""`profit eval` as a user calls it: table, JSON, messages, exit codes, signals."""

import json
import os
import shutil
import signal
import time

import pytest

from forks import start
from profit_sft.cli.app import run_app


@pytest.fixture
def arguments(tiny_folder, tmp_path):
    common = ("--tasks", "generated", "--output_dir", str(tmp_path / "out"), "--max_new_tokens", "6", "--limit", "3")
    return ["eval", tiny_folder, *common]


def test_the_table_says_what_was_found_and_where_it_is(arguments, tmp_path, capsys):
    assert run_app([*arguments, "--samples", "2", "--batch-size", "2"]) == 0
    out, err = capsys.readouterr()
    assert "temperature 0.7, top-p 0.8, top-k 20" in " ".join(out.split())
    for words in ("avg@k", "interval", "0.0 to 70.8", "3 x 2", "answer", "generated", str(tmp_path / "out")):
        assert words in out.replace("\n", "")
    assert "generated: 6 of 6 answers" in err
    assert (tmp_path / "out" / "samples" / "generated.jsonl").read_text().count("\n") == 6


def test_accuracy_by_token_budget_follows_the_table(tiny_folder, tmp_path, capsys):
    command = ["eval", tiny_folder, "--tasks", "generated", "--output_dir", str(tmp_path / "out"), "--limit", "2"]
    assert run_app([*command, "--preset", "paper", "--samples", "1", "--max_new_tokens", "140"]) == 0
    out = capsys.readouterr().out
    assert "temperature 0.6, top-p 0.9, top-k 0" in " ".join(out.split())  # the tiny model is a Llama
    budgets = [line.split()[1:4:2] for line in out[out.index("By token budget") :].splitlines() if "generated" in line]
    assert budgets == [["generated", "128"], ["generated", "140"]]


def test_answers_that_were_not_judged_are_told_once(arguments, tmp_path, capsys):
    assert run_app([*arguments, "--greedy"]) == 0
    assert "not judged" not in "".join(capsys.readouterr())
    samples = tmp_path / "out" / "samples" / "generated.jsonl"
    first, *others = samples.read_text().splitlines()
    samples.write_text("\n".join([json.dumps({**json.loads(first), "correct": None}), *others]) + "\n")
    assert run_app([*arguments, "--greedy"]) == 0
    shown = "".join(capsys.readouterr())
    assert "generated: 1 of 3 answers are not judged, since comparing them came to no end" in shown
    assert shown.count("not judged") == 1


def test_json_is_what_results_json_holds(arguments, tmp_path, capsys):
    assert run_app([*arguments, "--greedy", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "results.json").read_text())
    assert printed["tasks"][0]["samples_per_problem"] == 1


def test_engine_arguments_are_written_as_lm_eval_writes_them(arguments, capsys):
    assert run_app([*arguments, "--greedy", "--engine_args", "max_length=300,add_bos_token=false", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["settings"]["engine_args"] == {"max_length": 300, "add_bos_token": False}
    assert run_app([*arguments, "--greedy", "--engine_args", "max_length=400"]) == 2
    assert "engine_args {'max_length': 300, 'add_bos_token': False}, not {'max_length': 400}" in capsys.readouterr().err


def test_a_model_without_a_template_is_evaluated_in_the_same_folder_once_it_is_left_out(
    arguments, tiny_folder, tmp_path, capsys
):
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    command = ["eval", str(base), *arguments[2:], "--greedy"]
    assert run_app(command) == 2
    assert "--no_chat_template" in capsys.readouterr().err
    assert run_app([*command, "--no_chat_template"]) == 0


def test_ifeval_shows_its_four_accuracies(tiny_folder, tmp_path, capsys, punkt):
    row = {"key": 1, "prompt": "Go.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "ifeval.jsonl").write_text(json.dumps(row) + "\n")
    command = [
        "eval",
        tiny_folder,
        "--tasks",
        "ifeval",
        "--data-dir",
        str(tmp_path),
        "--output-dir",
        str(tmp_path / "o"),
    ]
    assert run_app([*command, "--greedy", "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out
    for words in ("ifeval", "loose", "instruction", "same, loose"):
        assert words in out


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--tasks", "gsm9k"], 2, "Known are aime24, aime24_paper, arc_challenge_paper, generated, gpqa_diamond"),
        (["--preset", "paper", "--top_k", "5"], 2, "top_k is 5, but preset paper sets it"),
        (["--tasks", "humaneval_paper"], 2, "humaneval_paper runs code that the model wrote"),
        (["--output_dir", __file__], 2, "test_eval.py' is none. Choose another."),
        (["--tasks", "gsm8k", "--data_dir", "/nowhere"], 1, "gsm8k needs /nowhere/gsm8k_test.jsonl"),
        (["--tasks", "gpqa_diamond"], 1, "from the hub only"),
        (["--engine", "nothing"], 2, "Supported model names: "),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_status(arguments, tmp_path, capsys, flags, status, message):
    assert run_app([*arguments, *flags]) == status
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_exist_is_named(tmp_path, capsys):
    nowhere = str(tmp_path / "no-model")
    assert run_app(["eval", nowhere, "--tasks", "generated", "--output_dir", str(tmp_path / "out")]) == 2
    assert nowhere in capsys.readouterr().err


def test_another_evaluation_in_the_folder_is_refused(arguments, capsys):
    assert run_app([*arguments, "--greedy"]) == 0
    assert run_app([*arguments, "--temperature", "1.0"]) == 2
    message = "holds samples of another evaluation: greedy True, not False. Choose another folder"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_stopped_and_killed_it_goes_on(tiny_folder, tmp_path, capsys):
    folder, log = tmp_path / "out", tmp_path / "log"
    # 400 problems of 8 samples, more than it gets done before it is stopped.
    command = ["eval", tiny_folder, "--tasks", "generated", "--output_dir", str(folder), "--max_new_tokens", "8"]
    file = folder / "samples" / "generated.jsonl"
    for number in (signal.SIGINT, signal.SIGKILL):
        before = file.read_text() if file.exists() else ""
        process = start(command, log)
        deadline = time.monotonic() + 300
        while (not file.exists() or file.stat().st_size <= len(before.encode())) and time.monotonic() < deadline:
            assert process.is_alive(), log.read_text()
            time.sleep(0.05)
        os.kill(process.pid, number)
        process.join(60)
        if number == signal.SIGINT:
            out, err = log.with_suffix(".out").read_text(), log.read_text()
            assert process.exitcode == 130
            assert f"finished answers are kept in {folder}. The same command goes on." in err.replace("\n", " ")
            assert out == ""
        assert file.read_text().startswith(before)
        assert len(file.read_text()) > len(before)
    kept = {
        (row["problem"], row["sample"]): row
        for row in map(json.loads, file.read_text().splitlines(keepends=False)[:-1])
    }
    problem, sample = min(kept)
    assert run_app([*command, "--limit", str(problem + 1), "--samples", str(sample + 1), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["num_problems"] == problem + 1
    now = {(row["problem"], row["sample"]): row for row in map(json.loads, file.read_text().splitlines())}
    assert all(now[key].items() >= row.items() for key, row in kept.items())
