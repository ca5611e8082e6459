"""`profit advise` as a user calls it."""

import json

import numpy as np
import pytest

from made_scores import made_example, write_scores
from profit_sft.cli.app import run_app
from profit_sft.data.generated import SYSTEM_PROMPT, generate_problems, write_jsonl
from profit_sft.models.fingerprint import model_fingerprint

CORE, STYLE = 1, 2


@pytest.fixture
def scores(tmp_path):
    random = np.random.default_rng(0)
    examples = [
        made_example(
            number, np.log(random.uniform(0.01, 0.6, 4) + np.array([0.3, 0.3, 0, 0])), kinds=[CORE, CORE, STYLE, STYLE]
        )
        for number in range(12)
    ]
    folder = tmp_path / "scores"
    write_scores(folder, examples)
    return str(folder)


def test_the_tables_show_profile_positions_and_kinds(scores, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert run_app(["advise", scores, "--threshold", "0.15"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("12 examples, 48 label tokens of train.jsonl under models/a: mean p 0.")
    shown = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert shown[:10] == ["0.01", "0.02", "0.05", "0.1", "0.15", "0.2", "0.3", "0.5", "0.7", "0.9"]
    assert {"1", "2", "3 to 4", "kept at 0.15", "0.0 to 0.1", "0.9 to 1.0"} <= set(shown)
    for text in (
        "AUC 0.",
        "Mann-Whitney U",
        "A core token is likelier",
        "At threshold 0.15",
        "No number here predicts",
    ):
        assert text in out


def test_json_has_what_the_tables_show(scores, capsys):
    assert run_app(["advise", scores, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"] == 0.1
    assert len(found["profile"]) == 9
    assert found["profile"][3]["kept_share"] == pytest.approx(
        (found["kinds"]["kept"][3]["core_kept_share"] + found["kinds"]["kept"][3]["style_kept_share"]) / 2
    )
    assert 0.5 < found["kinds"]["auc_interval"][0] < found["kinds"]["auc"]


def test_warnings_are_shown(scores, capsys):
    assert run_app(["advise", scores, "--threshold", "0.6"]) == 0
    assert "warning: The mask hides most of the data" in capsys.readouterr().out


def test_data_is_scored_first_and_the_scores_are_kept_where_wanted(rows, tiny_folder, tmp_path, capsys):
    with open(rows, "a") as lines:
        lines.write('{"question": "no answer"}\n')
    flags = ["--dataset_name", rows, "--model_name_or_path", tiny_folder, "--skip-bad-rows", "--train_on", "last"]
    flags += ["--json"]
    assert run_app(["advise", *flags, "--scores_dir", str(tmp_path / "kept")]) == 0
    out, err = capsys.readouterr()
    assert "scoring" in err
    found = json.loads(out)
    assert (found["examples"], found["final_answers"], found["kinds"]) == (6, 6, None)
    assert run_app(["advise", str(tmp_path / "kept"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_dashes_do_for_underscores_and_nothing_is_left_behind(rows, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert run_app(["advise", "--dataset-name", rows, "--model-name-or-path", tiny_folder, "--max-samples", "2"]) == 0
    assert capsys.readouterr().out.startswith("2 examples")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_row_that_the_docs_show_is_understood(tiny_folder, tmp_path, capsys, repo_root):
    page = (repo_root / "docs" / "how-to" / "advise.md").read_text(encoding="utf-8")
    row = json.loads(page[page.index('{"question"') : page.index("}]}") + 3])
    spans = {span["kind"]: row["answer"][span["start"] : span["end"]] for span in row["answer_spans"]}
    assert spans == {"style": "Taking away gives ", "core": "37"}
    path = tmp_path / "marked.jsonl"
    path.write_text((json.dumps(row) + "\n") * 2)
    assert run_app(["advise", "--dataset_name", str(path), "--model_name_or_path", tiny_folder, "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)["kinds"]
    assert (kinds["core"]["tokens"], kinds["style"]["tokens"]) == (4, 36)  # a token a character


@pytest.mark.slow
@pytest.mark.model
def test_the_real_model_finds_numbers_likelier_than_their_wording(smollm2_folder, tmp_path, capsys):
    path = tmp_path / "problems.jsonl"
    write_jsonl(generate_problems(16, seed=0), path, system_prompt=SYSTEM_PROMPT)
    flags = ["--dataset_name", str(path), "--model_name_or_path", str(smollm2_folder), "--json"]
    assert run_app(["advise", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["examples"], found["final_answers"]) == (16, 16)
    assert found["kinds"]["auc_interval"][0] > 0.75
    assert found["kinds"]["kept"][3]["core_kept_share"] > 2 * found["kinds"]["kept"][3]["style_kept_share"]
    assert 0.4 < found["profile"][3]["kept_share"] < 0.8


MODEL = ("--model_name_or_path", "TINY")


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["SCORES", "--threshold=abc"], 2, "got 'abc'. See profit advise --help."),
        (["SCORES", "--max-samples=2.5"], 2, "unable to parse string as an integer, got '2.5'. See"),
        ([], 2, "name scores (profit advise SCORES), or data to score first"),
        (["SCORES", "--dataset_name", "x.jsonl"], 2, "is scored already, so --dataset_name would change nothing"),
        (["SCORES", "--threshold", "10"], 2, "threshold must be a probability in [0, 1], got 10.0. Write 10% as 0.1."),
        (
            ["SCORES", "--max_samples", "5", "--scores_dir", "x"],
            2,
            "so --max_samples, --scores_dir would change nothing",
        ),
        (["absent"], 1, "'absent' holds no scores"),
        (["--dataset_name", "x.jsonl"], 2, "model_name_or_path is missing: name a hub model"),
        (["--dataset_name", "absent.jsonl", *MODEL], 1, "'absent.jsonl' does not exist"),
        (["--dataset_name", "x.jsonl", *MODEL, "--dtype", "int3"], 2, "dtype must be one of"),
    ],
)
def test_a_mistake_gets_one_message(scores, tiny_folder, capsys, flags, status, message):
    flags = [{"SCORES": scores, "TINY": tiny_folder}.get(flag, flag) for flag in flags]
    assert run_app(["advise", *flags]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def answered(folder, unsolved, *, fingerprint):
    """Write what profit eval would: ten problems, so many of them never right in eight samples."""
    (folder / "samples").mkdir(parents=True)
    job = {"model": "models/b", "model_fingerprint": fingerprint}
    (folder / "job.json").write_text(json.dumps({"format": 1, "job": job, "tasks": {}}))
    lines = [
        json.dumps({"problem": problem, "sample": sample, "correct": problem >= unsolved and sample == 7})
        for problem in range(10)
        for sample in range(8)
    ]
    (folder / "samples" / "sums.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.parametrize(("unsolved", "reading"), [(5, "use plain SFT"), (1, "changes little")])
def test_what_the_model_can_do_before_training_says_where_on_the_map_it_lies(
    scores, unsolved, reading, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    answers = answered(tmp_path / "answers", unsolved, fingerprint=None)
    assert run_app(["advise", scores, "--eval_results", answers]) == 0
    out = capsys.readouterr().out
    assert f"solves {1 - unsolved / 10:.0%} of problems like these within 8 tries" in out
    assert reading in out
    assert run_app(["advise", scores, "--eval_results", answers, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unsolved_share"] == unsolved / 10
    assert reading in found["on_the_map"][0]


def test_answers_of_another_model_say_nothing_of_this_one(scores, tmp_path, capsys):
    answers = answered(tmp_path / "answers", 5, fingerprint="another")
    assert run_app(["advise", scores, "--eval_results", answers]) == 1
    assert "has the answers of 'models/b', which is not the model of the scores, 'models/a'" in capsys.readouterr().err


def test_answers_of_another_model_are_refused_before_anything_is_scored(rows, tiny_folder, tmp_path, capsys):
    answers = answered(tmp_path / "answers", 5, fingerprint="another")
    flags = ["--dataset_name", rows, "--model_name_or_path", tiny_folder, "--scores_dir", str(tmp_path / "kept")]
    assert run_app(["advise", *flags, "--eval_results", answers]) == 1
    err = capsys.readouterr().err
    assert f"which is not the model of the scores, '{tiny_folder}'" in err
    assert "scoring" not in err
    assert not list(tmp_path.glob("kept/*"))


def test_answers_of_the_model_are_taken_with_what_is_scored(rows, tiny_folder, tmp_path, capsys):
    answers = answered(tmp_path / "answers", 5, fingerprint=model_fingerprint(tiny_folder))
    flags = ["--dataset_name", rows, "--model_name_or_path", tiny_folder, "--max_samples", "2"]
    assert run_app(["advise", *flags, "--eval_results", answers, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unsolved_share"] == 0.5
