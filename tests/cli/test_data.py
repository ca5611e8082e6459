"""`profit data` as a user calls it."""

import json

import pytest

from profit_sft.cli.app import run_app


def test_it_shows_the_rows_with_their_labels_and_what_was_left_out(rows, tiny_folder, capsys):
    with open(rows, "a") as file:
        file.write('{"question": "Who?"}\n')
    arguments = ["data", rows, "--model", tiny_folder, "--examples", "2"]
    assert run_app([*arguments, "--skip_bad_rows"]) == 0
    out = capsys.readouterr().out
    assert "6 / 7 / 1" in out
    assert "⟦It is 1." in out
    assert "row 2: " in out
    assert "row 3: " not in out
    assert "left out: " in out
    assert "'answer'" in out
    assert run_app(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_what_else_there_is_to_know_is_said_in_whole_lines(tmp_path, tiny_folder, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "Who?", "solution": "Me, said the bird.", "answer": "Me", "id": 7}\n')
    note = "note: column 'answer' is not used\nnote: column 'id' is not used\n"
    assert run_app(["data", str(file), "--model", tiny_folder]) == 0
    out = capsys.readouterr().out
    assert note in out
    assert "⟦Me, said the bird." in out
    arguments = ["train", "--dataset_name", str(file), "--model_name_or_path", tiny_folder, "--dry-run"]
    assert run_app([*arguments, "--output_dir", str(tmp_path / "run")]) == 0
    assert note in capsys.readouterr().out


def test_json_has_the_report_and_the_examples(rows, tiny_folder, capsys):
    assert run_app(["data", rows, "--model", tiny_folder, "--examples", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"]["rows_used"] == 6
    assert sum(found["report"]["turns_end_in"].values()) == 6
    (example,) = found["examples"]
    assert next(text for text, labeled in example["stretches"] if labeled).startswith("It is 1.")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "model_name_or_path is missing"),
        (["--model", "embedded", "--examples", "-1"], "examples must be at least 0"),
        (["--model", "embedded", "--max_length", "0"], "max_length must be at least 1"),
    ],
)
def test_a_mistake_is_a_usage_error(rows, capsys, flags, message):
    assert run_app(["data", rows, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_shows_the_first_rows_too(rows, tiny_folder, tmp_path, capsys):
    arguments = ["train", "--dataset_name", rows, "--model_name_or_path", tiny_folder, "--dry-run"]
    assert run_app([*arguments, "--output_dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "what is learned ends in" in out
    assert "⟦It is 1." in out


def test_a_column_that_is_not_used_is_named_once_by_each_command(tmp_path, tiny_folder, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"{n}+1?", "answer": "It is so.", "colour": n}) + "\n" for n in "123")
    )
    train = ["train", "--dataset_name", str(rows), "--model_name_or_path", tiny_folder, "--max_steps", "1", "--use_cpu"]
    train += ["--objective", "nll"]
    for command in (
        ["data", str(rows), "--model", tiny_folder],
        [*train, "--dry-run", "--output_dir", str(tmp_path / "dry")],
        [*train, "--output_dir", str(tmp_path / "run")],
    ):
        assert run_app(command) == 0
        assert "".join(capsys.readouterr()).count("colour") == 1
