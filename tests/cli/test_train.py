"""`profit train` as a user calls it: flags, files, messages, exit codes."""

import dataclasses
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from forks import start
from profit_sft.cli.app import run_app
from profit_sft.cli.train import next_commands
from profit_sft.cli.train_flags import parse
from profit_sft.loss.devices import cpu_multiplies_bf16
from profit_sft.objectives import make_objective
from profit_sft.runs.record import read_run
from profit_sft.train import config
from profit_sft.train.engine import planned_engine

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
# A tiny random model gives every token p near 1/320, under any threshold a person would set.
pytestmark = pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"What is {n}+1?", "answer": f"{n + 1}."}) + "\n" for n in range(16))
    )
    return str(path)


@pytest.fixture
def arguments(tiny_folder, rows, tmp_path):
    return [
        "train",
        *("--model_name_or_path", tiny_folder),
        *("--dataset_name", rows),
        *("--output_dir", str(tmp_path / "run")),
        *("--threshold", "0.0034"),
        *("--max_steps", "3"),
        *("--logging_steps", "1"),
        *("--use_cpu", "True"),
    ]


def test_a_run_leaves_what_the_folder_promises(arguments, tmp_path, capsys):
    assert run_app([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["step"] == 3
    assert "Trained 3 steps" in err
    run = tmp_path / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["threshold"], config["objective"], config["max_steps"]) == (0.0034, "profit", 3)
    assert json.loads((run / "environment.json").read_text())["packages"]["trl"]
    assert json.loads((run / "data.json").read_text())["rows_used"] == 16
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert "ProFit(threshold=0.0034)" in (run / "README.md").read_text()
    assert (run / "checkpoint-3" / "model.safetensors").is_file()
    AutoModelForCausalLM.from_pretrained(run)
    AutoTokenizer.from_pretrained(run)


def test_resolved_configuration_repeats_the_run(arguments, tmp_path, capsys):
    assert run_app([*arguments, "--json"]) == 0
    again = ["train", "--config", str(tmp_path / "run" / "config.yaml"), "--output_dir", str(tmp_path / "again")]
    assert run_app([*again, "--json"]) == 0
    first, second = (json.loads(line)["last_log"] for line in capsys.readouterr().out.splitlines())
    assert first["loss"] == second["loss"]
    assert first["nll"] == second["nll"]


def test_a_launchers_mixed_precision_is_said_and_written(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # all that `accelerate launch --mixed_precision` does
    monkeypatch.setattr(config, "_LAUNCHED_PRECISION", "bf16")  # which is read at import
    assert run_app([*arguments, "--bf16", "False"]) == 2
    assert "bf16 is False, but the launcher's mixed_precision is bf16" in capsys.readouterr().err
    assert run_app([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "float32, computed in bf16" in err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["bf16"] is True
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setattr(config, "_LAUNCHED_PRECISION", "no")
    assert run_app([*arguments, "--overwrite_output_dir", "True", "--bf16", "True", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last_log"]["loss"] == json.loads(out)["last_log"]["loss"]
    assert run_app([*arguments, "--overwrite_output_dir", "True", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last_log"]["loss"] != json.loads(out)["last_log"]["loss"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_configuration_of_a_run_is_read_back_whole(recipe, tiny_folder, rows, monkeypatch, tmp_path):
    monkeypatch.chdir(recipe.parents[1])
    more = ["--dataset_name", rows, "--use_cpu", "True", "--weight_decay", "0.25"]
    written = parse(["--config", str(recipe), *more])[0].as_yaml()
    file = tmp_path / "config.yaml"
    file.write_text(written)
    again = parse(["--config", str(file)])[0]
    assert again.as_yaml() == written
    before = parse(["--config", str(recipe), *more])[0]
    for part in dataclasses.fields(before):
        first, second = getattr(before, part.name), getattr(again, part.name)
        for entry in dataclasses.fields(first):
            if entry.init and entry.name not in ("logging_dir", "local_rank"):
                assert getattr(first, entry.name) == getattr(second, entry.name), entry.name


def test_a_flag_wins_over_the_configuration_of_a_run(arguments, tmp_path):
    written = tmp_path / "config.yaml"
    written.write_text(parse([*arguments[1:], "--gradient_checkpointing"])[0].as_yaml())
    assert parse(["--config", str(written)])[0].config.checkpointing == "as asked"
    assert parse(["--config", str(written)])[0].config.gradient_checkpointing
    config = parse(["--config", str(written), "--gradient_checkpointing", "False"])[0].config
    assert not config.gradient_checkpointing
    assert not getattr(config, "activation_checkpointing", False)


def test_flags_win_over_the_file_and_values_keep_their_dashes(tiny_folder, rows, tmp_path, capsys):
    config = tmp_path / "recipe.yaml"
    config.write_text(f"dataset_name: {rows}\nthreshold: 0.5\nobjective: profit\nlearning_rate: 1e-5\n")
    arguments = ["--model-name-or-path", tiny_folder, "--threshold=0.25", "--output_dir", str(tmp_path / "a-b")]
    assert run_app(["train", "--config", str(config), *arguments, "--dry-run", "--json", "--use_cpu", "True"]) == 0
    report = json.loads(capsys.readouterr().out)
    resolved = yaml.safe_load(report["config"])
    assert resolved["threshold"] == 0.25
    assert resolved["learning_rate"] == 1e-5
    assert resolved["output_dir"].endswith("a-b")


def test_dry_run_measures_the_mask_and_writes_nothing(arguments, tmp_path, capsys):
    before = set(tmp_path.rglob("*"))
    assert run_app([*arguments, "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["kept_share"] < 1
    assert report["sample_label_tokens"] == report["data"]["label_tokens"]
    assert report["optimizer_steps"] == 3
    assert set(tmp_path.rglob("*")) == before
    assert run_app([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "threshold: 0.0034" in shown
    assert "kept share on the sample" in shown
    assert "memory of a device: sum, an estimate" in shown


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_dry_runs(recipe, tiny_folder, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(recipe.parents[1])
    flags = ["--model_name_or_path", tiny_folder, "--dataset_name", rows, "--output_dir", str(tmp_path / "run")]
    assert run_app(["train", "--config", str(recipe), *flags, "--use_cpu", "True", "--dry-run", "--json"]) == 0
    resolved = yaml.safe_load(json.loads(capsys.readouterr().out)["config"])
    assert resolved["learning_rate"] == 1e-5
    assert resolved["lr_scheduler_type"] == "cosine"
    assert resolved["warmup_steps"] == 0.1
    ranks = planned_engine(resolved["accelerate_config"]).ranks
    assert resolved["per_device_train_batch_size"] * resolved["gradient_accumulation_steps"] * ranks == 32
    assert resolved["max_length"] == 8192
    assert resolved["objective"] == "profit"
    assert resolved.get("threshold") is None  # ProFit's default is the paper's


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_dry_runs_without_its_model_and_data(recipe, capsys, monkeypatch):
    """As it is, on a machine without GPUs that reaches no hub: bf16, eight ranks and all."""
    monkeypatch.chdir(recipe.parents[1])
    assert run_app(["train", "--config", str(recipe), "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    written = yaml.safe_load(recipe.read_text())
    assert yaml.safe_load(report["config"])["bf16"] is True
    assert report["batch"].startswith("32 rows")
    data, model = report["not_checked"]
    assert written["dataset_name"] in data
    assert written["model_name_or_path"] in model
    assert run_app(["train", "--config", str(recipe), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The settings agree" in shown
    assert f"Not checked, {model}" in shown


def test_a_twin_of_a_recipe_is_one_flag_away(monkeypatch):
    recipe = RECIPES[0]
    monkeypatch.chdir(recipe.parents[1])
    named = re.findall(r"--objective (\w+)", recipe.read_text())
    assert named == ["nll", "dft", "entropy", "eaft"]
    for objective in named:
        config = parse(["--config", str(recipe), "--use_cpu", "True", "--objective", objective])[0].config
        assert config.make_objective() == make_objective(objective)


def test_bad_rows_can_be_skipped_and_are_reported(arguments, rows, tmp_path, capsys):
    with open(rows, "a") as lines:
        lines.write('{"question": "no answer"}\n')
    assert run_app(arguments) == 1
    assert "row 17: has no field 'answer'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run_app([*arguments, "--skip-bad-rows"]) == 0
    assert "1 bad rows were left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--treshold", "0.2"], 2, "unknown setting --treshold. Did you mean --threshold?"),
        (["--lr", "1"], 2, "unknown setting --lr. See profit train --help-all."),  # two begin so
        (["--learn", "1"], 2, "unknown setting --learn. Did you mean --learning_rate?"),
        (["--learn=1"], 2, "unknown setting --learn=1. Did you mean --learning_rate?"),
        (["--threshold", "2"], 2, "threshold must be a probability in [0, 1], got 2.0. Write 10% as 0.1."),
        (["--threshold", "high"], 2, "argument --threshold: invalid float value: 'high'"),
        (["--objective", "profitt"], 2, "no objective is named 'profitt'. Known: nll, profit"),
        (["--dataset_name", "absent.jsonl"], 1, "'absent.jsonl' does not exist. Check the path"),
        (["--config", "absent.yaml"], 2, "'absent.yaml' cannot be read"),
        (["--config"], 2, "--config needs a file"),
        (["--model_name_or_path", "./absent"], 2, "there is no folder './absent'"),
        (["--resume_from_checkpoint", "latest"], 2, "holds no checkpoint. Leave the flag out"),
        (["--resume_from_checkpoint", "absent"], 2, "there is no folder 'absent'. Name a checkpoint-N folder"),
        (["--eval_strategy", "epoch"], 2, "there is nothing to evaluate on. Name it with --eval_dataset_name"),
        (["--chat_template_path", "absent.jinja"], 2, "chat_template_path: 'absent.jinja' cannot be read"),
        (["--eval_dataset_name", "absent.jsonl"], 2, "eval_strategy is 'no', so it would not be looked at"),
        (["other.jsonl"], 2, "'other.jsonl' belongs to no flag. Data is named by --dataset_name."),
        (["-h"], 2, "'-h' belongs to no flag. See profit train --help."),
        (["--dataset_name", ""], 2, "dataset_name is empty: name a file, a folder, or a hub data set."),
        (["--output_dir", ""], 2, "output_dir is empty. Name a folder, or leave it out."),
        (["--output_dir", __file__], 2, "test_train.py' is none. Choose another."),
        (["--train_on", "some"], 2, "train_on must be one of all, last, got 'some'"),
    ],
)
def test_a_mistake_gets_one_message_and_leaves_nothing(arguments, tmp_path, capsys, flags, status, message):
    assert run_app([*arguments, *flags]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_the_model_must_be_named(arguments, tmp_path, capsys):
    at = arguments.index("--model_name_or_path")
    arguments = arguments[:at] + arguments[at + 2 :]
    (tmp_path / "c.yaml").write_text("seed: 1\n")
    for flags in ([], ["--dry-run"], ["--config", str(tmp_path / "c.yaml")]):
        assert run_app([*arguments, *flags]) == 2
        assert "or the small model that needs no hub (--model_name_or_path embedded)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_it_says_at_once_what_it_has(arguments, tiny_folder, rows, tmp_path, capsys):
    output_dir = str(tmp_path / "[bold]run[x]")  # a path is no markup
    more = ["--output_dir", output_dir, "--gradient_accumulation_steps", "2", "--use_peft", "--normalize", "kept"]
    assert run_app([*arguments, *more]) == 0
    lines = capsys.readouterr().err.splitlines()
    facts = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[:12]}
    data = json.loads((tmp_path / "[bold]run[x]" / "data.json").read_text())
    assert facts.pop("tokens") == f"{data['total_tokens']:,}, {data['label_tokens']} of them labels, in 16 rows"
    assert re.fullmatch(r"[\d,]+, [\d,]+ trained", facts.pop("parameters"))
    device, *hint = facts.pop("device").split("; ")
    assert hint == (["--bf16 true would be faster here"] if cpu_multiplies_bf16() else [])
    assert device == "cpu, one process"
    assert facts == {
        "model": f"{tiny_folder}, float32, LoRA",
        "objective": "ProFit(threshold=0.0034), divided by the kept tokens",
        "data": rows,
        "batch": "16 rows: 8 a device x 2 accumulated x 1 ranks",
        "output": output_dir,
        "memory": "activations are kept: a step is estimated to fit",
        "end": "<|im_end|>, where the saved model stops",
        "steps": "3",
        "step": facts["step"],  # the first log's line: nothing else stands in between
    }
    assert next(line for line in lines if line.startswith("Trained 3 steps")).endswith(output_dir)


def test_it_says_so_before_it_reads_the_data(arguments, rows, capsys):
    Path(rows).write_text("no json")
    assert run_app(arguments) == 1
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()][:3] == ["model", "objective", "data"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"skip-bad-rows: true", "line 1: unknown setting --skip-bad-rows. In YAML write skip_bad_rows."),
        (b"seed: 1\nweight_decay: -3", "c.yaml', line 2: weight_decay must be at least 0"),
        (b"seed: 1\nfp16: perhaps", "c.yaml', line 2: argument --fp16: Truthy value expected"),
        (b"torch_dtype: float16", "line 1: unknown setting --torch_dtype. In YAML write dtype."),
        (b"group_by_length: true", "--group_by_length. In YAML write train_sampling_strategy: group_by_length."),
        (b"seed: 1\nmodel: embedded", "line 2: unknown setting --model. In YAML write model_name_or_path."),
        (b"data: rows.jsonl", "line 1: unknown setting --data. In YAML write dataset_name."),
        (b"out: run", "line 1: unknown setting --out. In YAML write output_dir."),
        (b"dry_run: true", "unknown setting --dry_run. It goes on the command line, once, as --dry-run."),
        (b"config: other.yaml", "unknown setting --config. It goes on the command line, once, as --config FILE."),
        (b"objective: caf\xe9", "c.yaml' is not UTF-8 (byte 15). Convert it first."),
    ],
)
def test_a_mistake_in_the_file_gets_one_message(arguments, tmp_path, capsys, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    assert run_app([*arguments, "--config", str(tmp_path / "c.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_the_file_may_be_named_in_one_word(tmp_path):
    (tmp_path / "c.yaml").write_text("threshold: 0.25")
    for words in (["--config", str(tmp_path / "c.yaml")], [f"--config={tmp_path / 'c.yaml'}"]):
        assert parse([*words, "--use_cpu", "True"])[0].config.threshold == 0.25


def test_what_the_system_refuses_on_the_way_is_one_message_too(arguments, capsys):
    assert run_app([*arguments, "--output_dir", "/proc/new"]) == 1
    assert "error: '/proc/new': " in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten_unasked(arguments, capsys):
    assert run_app(arguments) == 0
    assert run_app(arguments) == 2
    assert "holds an earlier run. Go on with it by --resume_from_checkpoint latest" in capsys.readouterr().err
    assert run_app([*arguments, "--overwrite_output_dir", "True"]) == 0


def end_by(number, process, metrics):
    """Signal it once it has logged three lines, and return how it ends."""
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    return process.exitcode


def stopped_at(run):
    (checkpoint,) = run.glob("checkpoint-*")
    return int(checkpoint.name.rsplit("-", 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_saves_a_checkpoint_and_the_command_it_prints_goes_on(arguments, tmp_path, number):
    arguments[arguments.index("--max_steps") + 1] = "400"
    run, log = tmp_path / "run", tmp_path / "log"
    metrics = run / "metrics.jsonl"
    assert end_by(number, start(arguments, log), metrics) == 130
    err, step = log.read_text(), stopped_at(run)
    assert f"Stopped by {number.name} after step" in err
    assert "Traceback" not in err
    assert 2 < step < 400
    resume = err.split("profit train --config", 1)[1].split("\n")[0].split()
    assert run_app(["train", "--config", *resume, "--max_steps", str(step + 2)]) == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, step + 3))


@pytest.mark.slow
def test_a_single_process_that_was_launched_is_stopped_as_well(arguments, tmp_path):
    """In tests/distributed/test_command.py several are, and go on by the command that they print."""
    run, log, plan = tmp_path / "run", tmp_path / "log", tmp_path / "plan.yaml"
    plan.write_text("distributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    arguments[arguments.index("--max_steps") + 1] = "400"
    process = start([*arguments, "--accelerate_config", str(plan)], log, OMP_NUM_THREADS="1")
    assert end_by(signal.SIGINT, process, run / "metrics.jsonl") == 130
    err = log.read_text()
    # It is told through a pipe, in which signals have no names.
    assert "Stopped by SIGTERM after step" in err
    assert "profit train --config" in err
    assert "Traceback" not in err
    assert 2 < stopped_at(run) < 400


@pytest.mark.slow
@pytest.mark.model
def test_the_main_job_runs_on_real_rows_and_plain_transformers_loads_it(smollm2_folder, shared_data, tmp_path, capsys):
    arguments = [
        "train",
        *("--model_name_or_path", "embedded"),
        *("--dataset_name", str(shared_data / "gsm8k_train.jsonl")),
        *("--max_samples", "4"),
        *("--max_length", "256"),
        *("--per_device_train_batch_size", "2"),
        *("--num_train_epochs", "1"),
        *("--gradient_checkpointing", "False"),
        *("--logging_steps", "1"),
        *("--save_only_model", "True"),
        *("--output_dir", str(tmp_path / "run")),
        "--json",
    ]
    assert run_app(arguments) == 0
    last = json.loads(capsys.readouterr().out)["last_log"]
    assert 0.5 < last["kept_share"] < 0.95
    assert 0 < last["loss"] < last["nll"]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    before = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    assert trained.config.tie_word_embeddings
    assert (trained.lm_head.weight - before.lm_head.weight).abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"objective": "nll"}, "--objective profit"),
        ({"objective": "profit"}, "--objective nll"),
        ({"objective": "profit", "threshold": 0.1, "threshold_direction": "lower"}, "--objective nll"),
        ({"objective": "eaft", "objective_kwargs": {"alpha": 2.0}}, "--objective nll"),
    ],
)
def test_a_run_ends_with_three_commands_that_work_as_printed(tmp_path, tiny_folder, rows, settings, flags):
    folder = tmp_path / "my run"
    folder.mkdir()
    more = {"model_name_or_path": tiny_folder, "dataset_name": rows, "use_cpu": True, "output_dir": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, **more}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    commands = [shlex.split(command) for _, command in next_commands(read_run(folder))]
    assert [command[:2] for command in commands[:2]] == [["profit", "eval"], ["profit", "inspect"]]
    assert str(folder) in commands[0]
    assert flags in " ".join(commands[2])
    config = parse(commands[2][2:])[0].config
    assert config.output_dir == f"{folder}-compared"
    assert repr(config.make_objective()) == {"nll": "NLL()", "profit": "ProFit(threshold=0.1)"}[config.objective]
