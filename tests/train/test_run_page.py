"""What a real training leaves behind for people: its page, the rows on it, its warnings, and what trackers are told."""

import json
import sys
import types
import warnings

import pytest
from transformers import TrainerCallback

from profit_sft.runs.record import read_run
from profit_sft.train import run_page
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer
from tiny import tiny_dataset, tiny_model, tiny_tokenizer


def trainer(folder, callbacks=(), **overrides):
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 0.01,
        "threshold": 1 / 64,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **overrides,
    }
    return ProFitTrainer(
        tiny_model(),
        ProFitConfig(str(folder), **settings),
        train_dataset=tiny_dataset(20),
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
    )


class Warns(TrainerCallback):
    """Warn at every step."""

    def on_step_end(self, args, state, control, **kwargs):
        warnings.warn("look out", UserWarning, stacklevel=1)


def shown(page):
    """What the page's script is given."""
    return json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])


def test_the_page_is_there_at_each_log_and_says_at_the_end_what_the_log_says(tmp_path, monkeypatch):
    steps = []

    class Looks(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            page = tmp_path / "report.html"
            losses = shown(page)["charts"][0]["series"][0]["points"] if page.exists() and state.global_step else []
            steps.append([step for step, _ in losses])

    monkeypatch.setattr(run_page, "_TIME_SHARE", 0)  # these steps are faster than a page
    run = trainer(tmp_path, [Looks()])
    run.train()
    assert steps == [[], [1], [1, 2], [1, 2, 3]]
    record = read_run(tmp_path)
    assert (record.step, record.max_steps, record.has_ended) == (4, 4, True)
    assert record.facts["objective"] == "ProFit(threshold=0.015625)"
    found = shown(tmp_path / "report.html")
    losses = [[log["step"], log["loss"]] for log in run.state.log_history if "loss" in log]
    assert found["charts"][0]["series"][0]["points"] == losses
    assert all("memory_gib" in log for log in record.logs if "loss" in log)


def test_rows_are_those_of_the_probe_token_by_token_at_the_start_and_now(tmp_path):
    run = trainer(tmp_path, max_steps=6)
    run.train()
    rows = read_run(tmp_path).rows
    assert rows.step == 6
    assert len(rows.rows) == 6
    for row in rows.rows:
        source = run.train_dataset[row.row - 1]
        assert [token.strip() for token in row.tokens] == [f"w{index}" for index in source["input_ids"]]
        labeled = [label != -100 for label in source["labels"]]
        for side in (row.start, row.now):
            assert [p is not None for p in side.p] == labeled
            kept = [0.0 if p is None else float(p >= 1 / 64) for p in side.p]
            assert side.w == kept
        assert row.start.p != row.now.p
    first = next(log for log in run.state.log_history if "probe_nll" in log)
    assert 0.5 < sum(row.start.nll for row in rows.rows) / 6 / first["probe_nll"] < 2


def test_a_resumed_run_keeps_the_rows_of_its_start(tmp_path):
    trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2).train()
    before = read_run(tmp_path).rows.rows
    resumed = trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    rows = read_run(tmp_path).rows
    assert rows.step == 8
    assert [row.start for row in rows.rows] == [row.start for row in before]
    assert rows.rows[0].now != before[0].now


def test_a_run_that_is_gone_on_with_has_not_ended_before_its_first_log_either(tmp_path):
    trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2).train()
    assert read_run(tmp_path).has_ended
    seen = []

    class Looks(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(read_run(tmp_path).has_ended)

    resumed = trainer(tmp_path, [Looks()], max_steps=8, logging_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert seen == [False] * 4
    assert read_run(tmp_path).has_ended


def test_a_warning_is_shown_logged_once_and_stands_on_page_and_card(tmp_path):
    run = trainer(tmp_path, [Warns()])
    with pytest.warns(UserWarning, match="look out"):
        run.train()
    assert read_run(tmp_path).warnings == [(1, "look out")]
    assert [log for log in run.state.log_history if "warning" in log] == [{"step": 1, "warning": "look out"}]
    assert "<b>step 1</b>: look out" in (tmp_path / "report.html").read_text()
    run.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "- Step 1: look out" in card
    assert "**The run was warned of 1 time, see [below](#warnings).**" in card


def test_after_training_nothing_listens(tmp_path):
    before = warnings.showwarning
    trainer(tmp_path).train()
    assert warnings.showwarning is before


def test_trackers_get_the_facts_and_warnings_as_alerts(tmp_path, monkeypatch):
    told = []
    tracker = types.ModuleType("trackio")
    tracker.AlertLevel = types.SimpleNamespace(WARN="warn")
    tracker.alert = lambda **alert: told.append(alert)
    tracker.config = types.SimpleNamespace(update=lambda facts, allow_val_change: told.append(facts))
    monkeypatch.setitem(sys.modules, "trackio", tracker)

    class Board(TrainerCallback):
        tb_writer = types.SimpleNamespace(add_text=lambda *text: told.append(text))

    run = trainer(tmp_path, [Board(), Warns()])
    run.args.report_to = ["trackio"]
    with pytest.warns(UserWarning, match="look out"):
        run.train()
    assert told[0]["profit/objective"] == "ProFit(threshold=0.015625)"
    assert told[1][0] == "run"
    assert told[2:] == [{"title": "ProFit, step 1", "text": "look out", "level": "warn"}, ("warnings", "look out", 1)]


def test_a_page_that_cannot_be_written_is_warned_of_once_and_ends_nothing(tmp_path):
    (tmp_path / "report.html").mkdir()
    run = trainer(tmp_path)
    with pytest.warns(UserWarning, match="the page of the run cannot be written") as seen:
        run.train()
    assert run.state.global_step == 4
    assert sum("cannot be written" in str(entry.message) for entry in seen) == 1
    # The warning came with the probe's first log, and a resumed run still finds the probe's rows there.
    assert "probe_rows" in next(log for log in run.state.log_history if "probe_nll" in log)
