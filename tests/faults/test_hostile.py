"""Hostile text in names and paths, and weights and scores that are not numbers."""

import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from injection import refusal, report
from transformers import AutoModelForCausalLM

from profit_sft.cli.app import run_app

pytestmark = pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")
NAMES = (
    "\x1b[2J",
    "\x1b]0;x\x07",
    "\u202ex",
    "[/x]",
    "[red]x",
    "a b; touch owned",
    "$(touch owned)",
    "'",
    "--x",
    "é\n",
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_run_in_a_folder_of_any_name_ends_well_and_prints_it_harmlessly(name, train, rows, tmp_path, capsys):
    data = tmp_path / f"data {name}.jsonl"
    data.parent.mkdir(exist_ok=True)
    shutil.copy(rows, data)
    folder = tmp_path / f"run {name}"
    words = [str(data) if word == rows else word.replace(f"{tmp_path}/out/run", str(folder)) for word in train]
    assert run_app(words) == 0
    out, err = capsys.readouterr()
    shown = out + err
    assert all(character in "\n\t" or character.isprintable() for character in shown)
    assert (folder / "model.safetensors").is_file()
    report("hostile names, train", {ascii(name): None})


def test_a_folder_that_libraries_cannot_write_to_is_refused(train, tmp_path, capsys):
    words = [word.replace("/out/run", "/run \udcff") for word in train]
    report("hostile names, train", {"no UTF-8": refusal(words, capsys, writes_to=tmp_path)})


@pytest.fixture
def scored(rows, tiny_folder, tmp_path):
    folder = tmp_path / "scores"
    assert run_app(["score", rows, "--model", tiny_folder, "--out", str(folder)]) == 0
    return folder


def test_weights_and_scores_that_are_no_numbers_are_refused(train, rows, tiny_folder, scored, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    shutil.copytree(tiny_folder, tmp_path / "nan")
    model.save_pretrained(tmp_path / "nan")
    (shard,) = Path(scored).glob("shard-*.parquet")
    table = pyarrow.parquet.read_table(shard)
    at = table.column_names.index("log_probs")
    kind = table.schema.field("log_probs").type
    lists = [[float("nan")] * len(row) for row in table.column("log_probs").to_pylist()]
    pyarrow.parquet.write_table(table.set_column(at, "log_probs", pyarrow.array(lists, kind)), shard)
    out = tmp_path / "out"
    out.mkdir()
    nan = str(tmp_path / "nan")
    found = {
        "NaN reference scores": refusal([*train, "--reference_scores", str(scored)], capsys, writes_to=out),
        "scoring under NaN weights": refusal(
            ["score", rows, "--model", nan, "--out", str(tmp_path / "nan scores")], capsys, writes_to=out
        ),
        "evaluating NaN weights": refusal(
            [
                "eval",
                nan,
                "--tasks",
                "generated",
                "--limit",
                "2",
                "--max_new_tokens",
                "4",
                "--output_dir",
                str(tmp_path / "e"),
            ],
            capsys,
            writes_to=out,
        ),
    }
    report("numbers that are none", found)
