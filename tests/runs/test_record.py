"""A run read from its folder, whole or half written."""

import json
import math
import os
import re

import pytest
from made_run import made_rows, made_run

from profit_sft.cli.runs import view
from profit_sft.errors import ConfigurationError, DataError
from profit_sft.runs.page import render_run_page
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


NO_LOGS = [
    *('{"step": 41, "lo', "{}", "[1]", "[" * 100_000),
    *(f'{{"step": {step}}}' for step in ('"x"', "NaN", "Infinity", "1e999", "9" * 400, "true", "null")),
    *(f'{{"step": 41, "train_runtime": {seconds}}}' for seconds in ('"x"', "NaN", "null", "[]")),
]


@pytest.mark.parametrize("rest", NO_LOGS, ids=lambda line: line[:30])
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


ODD = [None, True, -1, 1.5, 10**400, math.nan, -math.inf, "x", [1], {"a": 1}, {"a": [None]}]


def _changed(content):
    """Yield every file that differs in one value, whatever its depth, or lacks it."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, part in parts:
        others = content.copy()
        others.pop(key)
        yield others
        for value in (*ODD, *_changed(part)):
            others = content.copy()
            others[key] = value
            yield others


@pytest.mark.parametrize("name", ["run.json", "rows.json"])
def test_whatever_a_file_of_a_run_says_it_is_shown_or_refused_by_name(tmp_path, name):
    folder = made_run(tmp_path / "run")
    files = {"run.json": json.loads((folder / "run.json").read_text()), "rows.json": made_rows()}
    ends = {"shown": 0, "refused": 0}
    for content in _changed(files[name] | {"more": 1}):
        (folder / name).write_text(json.dumps(content))
        try:
            record = read_run(folder)
        except DataError as error:
            assert re.fullmatch(rf"'.*{name}'.*\. Delete it; the page does without\.", str(error))  # noqa: PT017
            ends["refused"] += 1
        else:
            assert "<title>" in render_run_page([record])
            view(record, width=80)
            ends["shown"] += 1
    assert min(ends.values()) > 20
    (folder / name).write_text(json.dumps(files[name] | {"rows": 5, "facts": {"model": 5}}))
    with pytest.raises(DataError, match=r"(facts.model|rows): Input should be a valid (string|list)"):
        read_run(folder)


def test_rows_have_a_value_for_each_token(tmp_path):
    folder = made_run(tmp_path / "run")
    rows = made_rows()
    rows["rows"][0]["now"]["w"].pop()
    (folder / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"rows.json': rows.0: .* do not have one value for each of the 4 tokens"):
        read_run(folder)
