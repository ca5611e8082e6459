"""Whole runs side by side: real commands of a tiny model, and the figures made of what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import run as benchmark
from run import PHASES, Run, check_same, summarize


def made_run(seconds, *, loss=1.0, tokens=100):
    phases = dict.fromkeys(PHASES, (seconds / 5, seconds / 10))
    return Run(phases=phases, peak_memory_mib=10.0, tokens=tokens, label_tokens=50, loss=loss)


def test_ratios_are_those_within_a_round():
    rows = summarize(
        {"first": [made_run(10), made_run(20), made_run(40)], "second": [made_run(5), made_run(20), made_run(80)]}
    )
    assert rows[0]["seconds_ratio"] == 1.0
    assert (rows[1]["seconds"], rows[1]["seconds_ratio"]) == (20, 1.0)
    assert rows[1]["tokens_per_second"] == 100 / 4
    assert rows[1]["tokens_per_cpu_second"] == 100 / 2


@pytest.mark.parametrize(
    ("other", "what"),
    [(made_run(1, loss=1.002), "loss"), (made_run(1, tokens=101), "tokens"), (made_run(1, loss=1.0005), None)],
)
def test_sides_that_do_other_work_get_no_figures(other, what):
    rows = summarize({"first": [made_run(1)], "second": [other]})
    names = ("first", "second")
    if what is None:
        check_same(rows, names, same_loss=names)
        return
    with pytest.raises(SystemExit, match=f"not the same {what}, so"):
        check_same(rows, names, same_loss=names)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="launchers are read from /proc, which is Linux's")
def test_trl_and_profit_train_the_same_and_the_phases_are_told_apart(tiny_folder, tmp_path):
    data, file = tmp_path / "rows.jsonl", tmp_path / "figures.json"
    data.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": f"{n + 1}"}) + "\n" for n in range(4)))
    command = [sys.executable, benchmark.__file__, "--data", str(data), "--model_name_or_path", tiny_folder]
    command += ["--settings", "equal", "--only", "trl nll", "profit nll", "--json", str(file)]
    done = subprocess.run(
        [*command, "--rows", "4", "--batch_size", "2", "--rounds", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    theirs, ours = json.loads(file.read_text())["results"][0]["rows"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert ours["label_tokens"] == theirs["label_tokens"] > 0
    for row in (theirs, ours):
        assert all(row[f"{phase}_cpu_seconds"] > 0 for phase in ("start", "model", "data", "steps", "save"))
        assert row["cpu_seconds"] > row["start_cpu_seconds"] > row["model_cpu_seconds"]
