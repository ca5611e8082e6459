"""The progress display, on a terminal and elsewhere, and what training shows on it."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from profit_sft.cli.progress import ProgressDisplay
from profit_sft.cli.training_bar import TrainingBar


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def console(request):
    return Console(file=io.StringIO(), force_terminal=request.param, width=120, color_system=None)


def lines_on(console):
    """What was printed; of a terminal, what stays on it."""
    lines = re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", console.file.getvalue()).splitlines()
    return [line for line in lines if line]


@pytest.mark.parametrize(
    ("total", "step", "shown"),
    [
        (100, 1, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (100, 7, [14, 21, 35, 42, 56, 63, 70, 84, 91]),
        (3, 1, [1, 2, 3]),
        (25, 25, [25]),
        (1000, 1000, [1000]),
    ],
)
def test_elsewhere_a_line_tells_every_tenth(total, step, shown):
    console = Console(file=io.StringIO(), force_terminal=False)
    with ProgressDisplay(console, line="{task}: {done} of {total}") as display:
        for done in range(step, total + 1, step):
            display.update("[x]", done, total, figures="9 a second")
    lines = console.file.getvalue().splitlines()
    assert lines == [f"[x]: {done} of {total}  9 a second" for done in shown]


def test_every_task_is_shown_by_itself_and_what_is_done_is_known(console):
    with ProgressDisplay(console, line="{task}: {done} of {total} answers") as display:
        for done in (1, 2):
            for task in ("gsm8k", "math500"):
                display.update(task, done, 2)
    assert display.done == {"gsm8k": 2, "math500": 2}
    if console.is_terminal:
        last = lines_on(console)[-2:]
        assert [line.split()[0] for line in last] == ["gsm8k", "math500"]
        assert all("2/2" in line for line in last)
    else:
        assert lines_on(console)[:2] == ["gsm8k: 1 of 2 answers", "math500: 1 of 2 answers"]


def test_a_bar_is_taken_down_when_the_work_fails():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with pytest.raises(RuntimeError, match="half"), ProgressDisplay(console, line="", transient=True) as display:
        display.update("scoring rows", 1, 2)
        assert console._live_stack
        raise RuntimeError("half way")
    assert not console._live_stack


def test_training_shows_its_steps_and_the_last_figures(console, monkeypatch):
    monkeypatch.setattr("profit_sft.cli.training_bar.console", lambda **options: console)
    bar, state = TrainingBar(), SimpleNamespace(is_world_process_zero=True, global_step=4, max_steps=6)
    bar.on_train_begin(None, state, None)  # going on from step 4
    for state.global_step in (5, 6):
        bar.on_step_end(None, state, None)
        bar.on_log(None, state, None, logs={"loss": 0.5, "kept_share": 0.25, "learning_rate": 1e-5})
    bar.on_log(None, state, None, logs={"train_runtime": 1.0})
    bar.on_train_end(None, state, None)
    lines = lines_on(console)
    if console.is_terminal:
        assert "6/6" in lines[-1]
        assert "loss 0.5  kept 25.0%" in lines[-1]
    else:
        assert lines == [f"step {step}/6  loss 0.5  kept 25.0%" for step in (5, 6)]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_narrow_terminal_leaves_out_the_last_figures_and_never_step_time_or_loss(width, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr("profit_sft.cli.training_bar.console", lambda **options: console)
    bar, state = TrainingBar(), SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=12000)
    logs = {"loss": 1.23456, "kept_share": 0.643, "nll": 2.3451, "tokens_per_second": 123456.0, "probe_nll": 2.1}
    bar.on_train_begin(None, state, None)
    state.global_step = 11000
    bar.on_log(None, state, None, logs=logs)
    bar.on_train_end(None, state, None)
    line = console.file.getvalue().replace("\r", "\n").splitlines()[-2]
    assert "11000/12000" in line
    assert re.search(r"[-\d]:[-\d]{2}:[-\d]{2} left", line)
    assert "loss 1.235" in line
    assert ("kept 64.3%" in line) == (width >= 80)
    assert ("NLL, same rows 2.1" in line) == (width >= 200)


def test_training_is_shown_by_one_rank(console, monkeypatch):
    monkeypatch.setattr("profit_sft.cli.training_bar.console", lambda **options: console)
    bar, state = TrainingBar(), SimpleNamespace(is_world_process_zero=False, global_step=1, max_steps=1)
    bar.on_train_begin(None, state, None)
    bar.on_step_end(None, state, None)
    bar.on_log(None, state, None, logs={"loss": 0.5})
    bar.on_train_end(None, state, None)
    assert console.file.getvalue() == ""
