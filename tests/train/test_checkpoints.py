"""Checkpoints appear whole or not at all, and only whole ones are used."""

import os
import random
import shutil
import sys
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

from forks import start
from profit_sft.cli.app import run_app
from profit_sft.errors import DataError
from profit_sft.runs.record import checkpoints, read_metrics
from profit_sft.train.checkpoints import (
    MANIFEST,
    check_whole,
    clear_saving,
    last_whole,
    publish,
    rotate,
)
from profit_sft.train.run_folder import choose_start

FILES = (
    *("config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer.json"),
    *("trainer_state.json", "training_args.bin", MANIFEST),
)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 4
    path.write_bytes(content)


def empty(path):
    os.truncate(path, 0)


DAMAGES = {damage.__name__: damage for damage in (truncate, flip, empty, os.unlink)}


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(folder, other):
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_checkpoint_lists_all_its_files_and_what_the_run_was(six_steps):
    for step in (2, 4, 6):
        checkpoint = six_steps / f"checkpoint-{step}"
        manifest = check_whole(checkpoint)
        assert manifest.step == step
        assert {*manifest.files, MANIFEST} == {path.name for path in checkpoint.iterdir()}
        assert set(FILES) <= {*manifest.files, MANIFEST}
        assert manifest.fixed["seed"]["seed"] == 42
    assert not (six_steps / ".saving").exists()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_refused_and_the_last_whole_one_taken(stopped, name, damage):
    newest = stopped / "checkpoint-4"
    DAMAGES[damage](newest / name)
    with pytest.raises(DataError) as refused:
        choose_start(stopped, resume_from=str(newest), overwrite=False)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.warns(UserWarning, match=f"{name}.* The checkpoint before it is looked at") as said:
        assert choose_start(stopped, resume_from="latest", overwrite=False) == str(stopped / "checkpoint-2")
    assert len(said) == 1


@pytest.mark.filterwarnings("always::UserWarning")  # the command prints them
def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(stopped, train_flags, capsys):
    for checkpoint in checkpoints(stopped):
        flip(checkpoint / "optimizer.pt")
    command = [*train_flags, "--max_steps", "6", "--output_dir", str(stopped), "--resume_from_checkpoint", "latest"]
    assert run_app(command) == 2
    err = capsys.readouterr().err
    assert err.count("optimizer.pt' is damaged") == 2
    assert "holds no whole checkpoint. Leave the flag out" in err


@pytest.mark.filterwarnings("always::UserWarning")  # the command prints them
def test_a_run_that_goes_on_before_the_damage_ends_as_if_nothing_had_been(stopped, six_steps, train_flags, capsys):
    truncate(stopped / "checkpoint-4" / "optimizer.pt")
    (stopped / ".saving" / "checkpoint-6").mkdir(parents=True)  # as a kill during a save leaves it
    (stopped / "metrics.jsonl").write_text((six_steps / "metrics.jsonl").read_text()[:-20])
    command = [*train_flags, "--max_steps", "6", "--output_dir", str(stopped), "--resume_from_checkpoint", "latest"]
    assert run_app(command) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert ["optimizer.pt' is damaged" in said[0], "metrics.jsonl', line 4 is torn" in said[1]] == [True, True]
    assert_same_weights(stopped, six_steps)
    assert not (stopped / ".saving").exists()
    logs = [
        [(log["step"], log["num_tokens"]) for log in read_metrics(run) if "loss" in log] for run in (stopped, six_steps)
    ]
    assert logs[0] == logs[1]


def test_a_run_that_is_resumed_at_its_end_trains_nothing_more(stopped, train_flags, capsys):
    steps_before = (stopped / "checkpoint-4" / "trainer_state.json").read_bytes()
    command = [*train_flags, "--output_dir", str(stopped), "--resume_from_checkpoint", "latest", "--max_steps"]
    assert run_app([*command, "4"]) == 0
    assert "Trained 4 steps" in capsys.readouterr().err
    assert_same_weights(stopped, stopped / "checkpoint-4")
    assert [path.name for path in checkpoints(stopped)] == ["checkpoint-4", "checkpoint-2"]
    assert (stopped / "checkpoint-4" / "trainer_state.json").read_bytes() == steps_before


@pytest.mark.parametrize("shorter", [["--max_steps", "3"], ["--num_train_epochs", "0.25"]], ids=lambda flags: flags[0])
def test_a_run_does_not_go_on_from_beyond_its_end(stopped, train_flags, capsys, shorter):
    command = [*train_flags, "--output_dir", str(stopped), "--resume_from_checkpoint", "latest", *shorter]
    assert run_app(command) == 2
    assert "checkpoint-4' has done 4 steps, and this run ends after " in capsys.readouterr().err
    assert not (stopped / "model.safetensors").exists()


def test_a_checkpoint_under_another_steps_name_is_passed_over(stopped):
    shutil.copytree(stopped / "checkpoint-2", stopped / "checkpoint-9")
    with pytest.warns(UserWarning, match="checkpoint-9' is of step 2: it was copied or renamed"):
        assert choose_start(stopped, resume_from="latest", overwrite=False) == str(stopped / "checkpoint-4")
    named = (stopped / "checkpoint-9").rename(stopped / "the best one")
    assert choose_start(stopped, resume_from=str(named), overwrite=False) == str(named)


def made(folder, *steps):
    for step in steps:
        (folder / ".saving" / "staged").mkdir(parents=True)
        (folder / ".saving" / "staged" / "weights").write_text(str(step))
        publish(folder / ".saving" / "staged", folder / f"checkpoint-{step}", num_tokens=0, fixed={})


@pytest.mark.parametrize(
    ("steps", "step", "limit", "keep", "left"),
    [
        ([8, 9, 10], 10, 2, [], [10, 9]),
        ([8, 9, 10], 10, 1, [], [10]),
        ([8, 9, 10], 10, 5, [], [10, 9, 8]),
        ([8, 9, 10], 10, None, [], [10, 9, 8]),
        ([8, 9, 10], 10, 0, [], [10, 9, 8]),
        ([2, 8, 9, 10], 10, 2, ["run/checkpoint-2", None], [10, 2]),
        ([8, 9, 10], 10, 1, ["run/checkpoint-8"], [10, 8]),
        ([2, 4, 8, 10], 4, 2, [], [4, 2]),  # resumed from step 2
    ],
)
def test_the_oldest_go_by_step_whatever_the_clock_said(tmp_path, steps, step, limit, keep, left):
    made(tmp_path, *steps)
    for age, number in enumerate(steps):
        os.utime(tmp_path / f"checkpoint-{number}", (1e9 - age, 1e9 - age))  # the clock went backwards
    rotate(tmp_path, limit=limit, step=step, keep=keep)
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == left


def test_a_checkpoint_that_is_saved_again_replaces_the_first(tmp_path):
    made(tmp_path, 4, 4)
    assert check_whole(tmp_path / "checkpoint-4").step == 4
    assert list((tmp_path / ".saving").iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoint-4/manifest.json", "metrics.jsonl", "run.json", "rows.json"])
@pytest.mark.filterwarnings("always::UserWarning")  # the command prints them
def test_a_pipe_in_a_runs_folder_is_not_waited_for(stopped, train_flags, capsys, name):
    (stopped / name).unlink(missing_ok=True)
    os.mkfifo(stopped / name)
    command = [*train_flags, "--max_steps", "6", "--output_dir", str(stopped), "--resume_from_checkpoint", "latest"]
    status = run_app(command)
    err = capsys.readouterr().err
    assert f"{name}' is a pipe or a device" in err or (status == 0 and "manifest" not in name)


def test_links_to_checkpoints_are_gone_on_from_and_go_as_links(six_steps, train_flags, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(six_steps, elsewhere)
    run.mkdir()
    for step in (2, 4):
        (run / f"checkpoint-{step}").symlink_to(f"../elsewhere/checkpoint-{step}", target_is_directory=True)
    (run / ".saving").symlink_to(elsewhere, target_is_directory=True)
    command = [*train_flags, "--max_steps", "6", "--output_dir", str(run), "--resume_from_checkpoint", "latest"]
    assert run_app([*command, "--save_total_limit", "1"]) == 0
    assert [path.name for path in checkpoints(run)] == ["checkpoint-6"]
    assert [path.name for path in checkpoints(elsewhere)] == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    assert_same_weights(run, six_steps)


class Killed(BaseException):
    """Nothing runs after it but what this test does."""


@pytest.mark.parametrize("before", range(1, 6))
def test_a_kill_inside_a_publishing_that_replaces_leaves_one_of_the_two(tmp_path, before):
    """Killed before each change that the publishing makes to the names of files."""
    made(tmp_path, 4)
    (tmp_path / ".saving" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / ".saving" / "checkpoint-4" / "weights").write_text("4, again")
    changes = 0

    def kill(event, arguments):
        nonlocal changes
        if event in ("os.rename", "shutil.rmtree") and str(tmp_path) in str(arguments[0]) and changes >= 0:
            changes += 1
            if changes == before:
                changes = -1
                raise Killed

    sys.addaudithook(kill)
    with suppress(Killed):
        publish(tmp_path / ".saving" / "checkpoint-4", tmp_path / "checkpoint-4", num_tokens=0, fixed={})
    changes = -1  # a hook stays for good
    clear_saving(tmp_path)
    assert check_whole(tmp_path / "checkpoint-4").step == 4
    assert not (tmp_path / ".saving").exists()


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_run_loses_no_checkpoint(train_flags, tmp_path):
    """Saving after each step, a run is nearly always inside a save."""
    generator, run = random.Random(0), tmp_path / "run"
    command = [*train_flags, "--max_steps", "4000", "--save_steps", "1", "--save_total_limit", "3"]
    command += ["--output_dir", str(run)]
    last = 0
    for attempt in range(5):
        more = ["--resume_from_checkpoint", "latest"] if attempt else []
        process = start([*command, *more], tmp_path / "log")
        deadline = time.monotonic() + 120
        while not any(path.name == f"checkpoint-{last + 2}" for path in checkpoints(run)):
            assert process.is_alive(), (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(generator.random())
        process.kill()
        process.join()
        found = checkpoints(run)
        assert [check_whole(path).step for path in found] == [int(path.name.split("-")[1]) for path in found]
        assert last_whole(run) == found[0]
        assert int(found[0].name.split("-")[1]) >= last + 2
        last = int(found[0].name.split("-")[1])
