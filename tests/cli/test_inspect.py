"""`profit inspect` as a user calls it: on scores, on models and data, on two checkpoints of a run."""

import json

import numpy as np
import pytest

from made_scores import made_example, write_scores
from profit_sft.cli.app import run_app
from profit_sft.mask import page
from profit_sft.scores.store import load_scores

CORE, STYLE = 1, 2


@pytest.fixture
def scores(tmp_path):
    p = [[0.05, 0.2, 0.6], [0.08, 0.09, 0.95]]
    examples = [
        made_example(number, np.log(row), texts=list("ab4"), kinds=[STYLE, STYLE, CORE]) for number, row in enumerate(p)
    ]
    folder = tmp_path / "scores"
    write_scores(folder, examples)
    return folder


def test_a_page_is_written_beside_the_scores_and_its_path_printed(scores, capsys):
    assert run_app(["inspect", str(scores)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{scores / 'mask.html'}\n"
    assert "Open it in a browser" in err
    written = (scores / "mask.html").read_text()
    assert "What the mask hides in train.jsonl" in written
    assert "ProFit, keep p ≥ 0.1" in written


def test_json_tells_the_figures_and_writes_no_page(scores, capsys):
    assert run_app(["inspect", str(scores), "--threshold", "0.2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["all"]["kept_share"] == [0.5]
    assert {group["label"]: group["kept_share"] for group in found["by_kind"]} == {"core": [1.0], "style": [0.25]}
    assert found["most_masked_tokens"][0]["label"] == "a"
    assert not (scores / "mask.html").exists()
    assert run_app(["inspect", str(scores), "--threshold_direction", "lower", "--threshold", "0.2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["kept_share"] == [4 / 6]  # a token exactly there is kept by both
    band = ["--threshold_direction", "middle", "--threshold", "0.08", "--upper_threshold", "0.2"]
    assert run_app(["inspect", str(scores), *band, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["kept_share"] == [0.5]


def test_any_objective_s_weights_are_shown(scores, capsys):
    assert run_app(["inspect", str(scores), "--objective", "power", "--objective_kwargs", '{"k": 2}', "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objective"] == "Power(k=2)"
    p = np.array([0.05, 0.2, 0.6, 0.08, 0.09, 0.95])
    assert found["all"]["mean_weight"] == pytest.approx([(p**2).mean()])
    assert run_app(["inspect", str(scores), "--objective", "dft", "--plain"]) == 0
    assert "mean weight" in capsys.readouterr().out
    assert run_app(["inspect", str(scores), "--objective", "dft"]) == 0
    assert ">DFT<" in (scores / "mask.html").read_text()
    assert run_app(["inspect", str(scores), "--objective", "eaft", "--json"]) == 2
    told = capsys.readouterr().err
    assert f"looks at topk_entropy, which '{scores}' does not hold. Score again with --likeliest 20." in told


def test_fewer_examples_than_were_asked_for_are_explained(scores, capsys, monkeypatch):
    monkeypatch.setattr(page, "_MOST_BYTES", 1)
    assert run_app(["inspect", str(scores), "--examples", "5000"]) == 0
    told = "1 examples are shown of the 2 asked for: a page holds about 0 MB of them."
    assert told in capsys.readouterr().err
    assert told in (scores / "mask.html").read_text()


def test_plain_prints_to_the_terminal_and_a_named_page_is_written_too(scores, tmp_path, capsys):
    file = tmp_path / "pages" / "of_mine.html"
    assert run_app(["inspect", str(scores), "--plain", "--examples", "1", "--output", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "Kept share by threshold" in out
    assert "row 1" in out
    assert "row 2" not in out
    assert "⟨a⟩b4" in out
    assert str(file) in err
    assert file.is_file()


def test_two_score_sets_are_compared(scores, tmp_path, capsys):
    p = [[0.5, 0.01, 0.6], [0.5, 0.5, 0.95]]
    examples = [
        made_example(number, np.log(row), texts=list("ab4"), kinds=[STYLE, STYLE, CORE]) for number, row in enumerate(p)
    ]
    write_scores(tmp_path / "after", examples)
    assert run_app(["inspect", str(scores), str(tmp_path / "after"), "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["all"]
    assert (total["kept_kept"], total["kept_masked"], total["masked_kept"], total["masked_masked"]) == (2, 1, 3, 0)
    assert run_app(["inspect", str(scores), str(tmp_path / "after")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'after' / 'mask.html'}\n"


@pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")
def test_two_checkpoints_of_a_run_are_scored_and_compared(tiny_folder, rows, tmp_path, capsys):
    run = tmp_path / "run"
    train = ["train", "--model_name_or_path", tiny_folder, "--dataset_name", rows, "--output_dir", str(run)]
    train += ["--objective", "nll", "--max_steps", "2", "--save_steps", "1", "--learning_rate", "0.01"]
    assert run_app([*train, "--use_cpu", "True"]) == 0
    capsys.readouterr()
    kept = tmp_path / "kept"
    command = ["inspect", "--dataset_name", rows, "--max_samples", "4", "--threshold", "0.0033"]
    command += ["--model_name_or_path", str(run / "checkpoint-1"), "--compare_to", str(run / "checkpoint-2")]
    assert run_app([*command, "--scores_dir", str(kept)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{kept / 'mask.html'}\n"
    assert "scoring" in err
    before, after = load_scores(kept / "before"), load_scores(kept / "after")
    assert (len(before), before.manifest.model_name_or_path) == (4, str(run / "checkpoint-1"))
    assert after.manifest.mean_nll < before.manifest.mean_nll
    assert run_app([*command, "--json"]) == 0  # scores again, into a folder that is thrown away
    found = json.loads(capsys.readouterr().out)
    assert found["mean_nll"] == pytest.approx([before.manifest.mean_nll, after.manifest.mean_nll])
    share = [(scores.column("log_probs") >= np.float32(np.log(0.0033))).mean() for scores in (before, after)]
    assert found["all"]["kept_share"] == share


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name scores (profit inspect SCORES), or data to score first"),
        (["SCORES", "--threshold", "10"], "threshold must be a probability in [0, 1], got 10.0. Write 10% as 0.1."),
        (["SCORES", "--threshold_direction", "middle"], "direction 'middle' needs upper_threshold"),
        (["SCORES", "--threshold_direction", "up"], "threshold_direction must be 'higher', 'lower' or 'middle' here"),
        (["SCORES", "--objective", "dtf"], "no objective is named 'dtf'"),
        (["SCORES", "--objective", "power", "--objective_kwargs", "[1]"], "objective_kwargs must be a JSON object"),
        (["SCORES", "--objective", "nll", "--threshold", "0.2"], "objective 'nll' has no field"),
        (["SCORES", "--objective_kwargs", "{}"], "objective_kwargs {} belong to an objective"),
        (["SCORES", "--examples", "0"], "examples must be at least 1, got 0"),
        (["SCORES", "--plain", "--json"], "--plain and --json both print to stdout. Choose one."),
        (["SCORES", "--dataset_name", "x.jsonl"], "is scored already, so --dataset_name would change nothing"),
        (["--dataset_name", "x.jsonl"], "model_name_or_path is missing: name a hub model"),
        (["SCORES", "--compare_to", "x"], "is scored already, so --compare_to would change nothing"),
        (
            ["--dataset_name", "x.jsonl", "--model_name_or_path", "m", "--output_file", f"{__file__}/m.html"],
            "test_inspect.py' is none. Choose",
        ),
        (["--dataset_name", "x.jsonl", "--model_name_or_path", "m", "--dtype", "int8"], "dtype must be one of float32"),
    ],
)
def test_usage_errors_say_what_to_do(scores, capsys, arguments, told):
    assert run_app(["inspect", *(str(scores) if word == "SCORES" else word for word in arguments)]) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""


def test_scores_that_are_not_there_or_not_of_the_same_data(scores, tmp_path, capsys):
    assert run_app(["inspect", str(tmp_path / "nowhere")]) == 1
    assert "holds no scores (it has no scores.json)" in capsys.readouterr().err
    other = tmp_path / "other"
    write_scores(other, [made_example(0, np.log([0.5, 0.5]))])
    manifest = json.loads((other / "scores.json").read_text())
    manifest["data"]["fingerprint"] = "another"
    (other / "scores.json").write_text(json.dumps(manifest))
    assert run_app(["inspect", str(scores), str(other)]) == 1
    assert "are not scores of the same data: 2 rows, not 1; 6 label tokens, not 2" in capsys.readouterr().err
