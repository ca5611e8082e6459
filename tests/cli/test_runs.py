"""`profit watch` and `profit report`, on runs made of numbers."""

import io

import pytest
from made_run import HOSTILE, made_run
from rich.console import Console

from profit_sft.cli.app import run_app
from profit_sft.cli.runs import sparkline, view
from profit_sft.runs.record import read_run


@pytest.mark.parametrize("width", [60, 80, 140])
def test_what_is_watched_fits_the_terminal(tmp_path, width):
    record = read_run(made_run(tmp_path / "run", warning="collapse: it rose"))
    out = Console(file=io.StringIO(), width=width)
    out.print(view(record, width=width))
    lines = out.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("run  Done: step 40 of 40")
    loss = next(line for line in lines if line.startswith("loss"))
    assert loss.split()[1:3] == ["2", "0.05"]
    assert "█" in loss
    assert "warning, step 10" in out.file.getvalue()


def test_a_run_that_logs_no_more_is_said_to_be_silent(tmp_path):
    record = read_run(made_run(tmp_path / "run", ended=False))
    out = Console(file=io.StringIO(), width=120)
    out.print(view(record, width=120, now=record.updated + 3600))
    assert "Nothing was logged for 60 min: it may be over" in out.file.getvalue()


def test_a_course_is_drawn_by_step():
    assert sparkline([(1, 1.0), (2, 2.0), (4, 8.0), (5, None)], 6, 5) == " ▁▂▂█!"
    assert sparkline([], 6, 5) == ""
    assert set(sparkline([(step, 1.0) for step in range(100)], 10, 99)) == {"▁"}


def test_the_command_prints_how_it_stands_where_there_is_no_terminal(tmp_path, capsys):
    folder = made_run(tmp_path / "run", warning=HOSTILE)
    assert run_app(["watch", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "NLL, same rows" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["watch", "FOLDER/none"], "is no run: it has no metrics.jsonl"),
        (["watch", "FOLDER/run", "--interval", "0"], "interval must be seconds above 0, got 0.0"),
        (["report", "FOLDER/none"], "is no run: it has no metrics.jsonl"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    made_run(tmp_path / "run")
    assert run_app([argument.replace("FOLDER", str(tmp_path)) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_report_says_where_the_page_is(tmp_path, capsys):
    folders = [str(made_run(tmp_path / name)) for name in ("a", "b")]
    assert run_app(["report", folders[0]]) == 0
    assert capsys.readouterr().out == f"{folders[0]}/report.html\n"
    assert run_app(["report", *folders]) == 0
    assert capsys.readouterr().out == f"{folders[0]}/comparison.html\n"
    assert run_app(["report", *folders, "--out", str(tmp_path / "c" / "x.html")]) == 0
    assert (tmp_path / "c" / "x.html").is_file()
