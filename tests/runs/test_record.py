"""A run read from its folder, whole or half written."""

import json
import os

import pytest
from made_run import made_run

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.runs.record import read_run


def test_a_run_that_has_ended(tmp_path):
    record = read_run(made_run(tmp_path / "run", warning="look out"))
    assert (record.name, record.step, record.has_ended) == ("run", 40, True)
    assert record.standing == "Done: step 40 of 40, 1 min 15 s"
    assert record.checkpoints == (20,)
    assert record.warnings == [(10, "look out")]


def test_a_run_that_goes_on_says_how_long_the_rest_takes(tmp_path):
    folder = made_run(tmp_path / "run", steps=40, ended=False)
    about = (folder / "run.json").read_text()
    (folder / "run.json").write_text(about.replace('"max_steps": 40', '"max_steps": 100'))
    os.utime(folder / "metrics.jsonl", (1080.0, 1080.0))
    assert read_run(folder).standing == "Step 40 of 100, 2 min 0 s left"


@pytest.mark.parametrize("updated", [900.0, 1080.0])
@pytest.mark.parametrize("start_step", [0, 40, 50])
def test_how_long_the_rest_takes_is_never_negative(tmp_path, updated, start_step):
    """Whatever the clock was set to, and however the steps of several sessions follow each other."""
    folder = made_run(tmp_path / "run", steps=40, ended=False)
    about = json.loads((folder / "run.json").read_text()) | {"max_steps": 100, "start_step": start_step}
    (folder / "run.json").write_text(json.dumps(about))
    os.utime(folder / "metrics.jsonl", (updated, updated))
    told = ", 2 min 0 s left" if (updated, start_step) == (1080.0, 0) else ""
    assert read_run(folder).standing == f"Step 40 of 100{told}"


def test_a_run_that_was_stopped(tmp_path):
    folder = made_run(tmp_path / "run")
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"max_steps": 40', '"max_steps": 100'))
    assert read_run(folder).standing.startswith("Stopped at step 40 of 100")


def test_a_run_of_an_earlier_version_has_its_log_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    record = read_run(tmp_path)
    assert (record.standing, record.rows, dict(record.facts)) == ("Step 1", None, {})


@pytest.mark.parametrize("rest", ['{"step": 41, "lo', "{}", '{"step": "x"}', "[1]"])
def test_a_line_that_is_torn_is_left_out(tmp_path, rest):
    folder = made_run(tmp_path / "run", ended=False)
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write(rest)
    assert read_run(folder).step == 40
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('\n{"step": 42}\n')
    assert read_run(folder).step == 42


def test_what_is_no_run_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is no run: it has no metrics.jsonl. Name the --output_dir"):
        read_run(tmp_path)
    folder = made_run(tmp_path / "run")
    (folder / "rows.json").write_text("half")
    with pytest.raises(DataError, match=r"rows.json' is not JSON .*Delete it; the page does without"):
        read_run(folder)
