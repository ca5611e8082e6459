"""A run that goes on is the run that was begun, alone in its folder, and stops at a step that is no number."""

import json
import math
import os
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from trl import ModelConfig

from forks import start
from profit_sft.cli.app import run_app
from profit_sft.errors import ProFitError
from profit_sft.runs.record import checkpoints
from profit_sft.train.arguments import RunArguments
from profit_sft.train.checkpoints import last_whole
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer
from profit_sft.train.tried import try_settings
from tiny import save_tiny_chat_model, tiny_dataset, tiny_model, tiny_tokenizer


def resumed(flags, folder, *more):
    return run_app(
        [*flags, "--max_steps", "6", "--output_dir", str(folder), "--resume_from_checkpoint", "latest", *more]
    )


@pytest.fixture(scope="module")
def others(train_flags, tmp_path_factory):
    """Another model, and the same rows in another order."""
    folder = tmp_path_factory.mktemp("others")
    save_tiny_chat_model(folder / "model")
    weights = load_file(folder / "model" / "model.safetensors")
    save_file(
        {name: value + 0.01 for name, value in weights.items()},
        folder / "model" / "model.safetensors",
        {"format": "pt"},
    )
    with open(train_flags[train_flags.index("--dataset_name") + 1]) as lines:
        (folder / "rows.jsonl").write_text("".join(reversed(lines.readlines())))
    return {"MODEL": str(folder / "model"), "ROWS": str(folder / "rows.jsonl")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--dataset_name", "ROWS"], "another data"),
        (["--model_name_or_path", "MODEL"], "another model"),
        (["--objective", "dft"], "objective: NLL() before, DFT("),
        (["--normalize", "kept"], "objective, normalize: all before, kept now"),
        (["--seed", "7"], "seed: 42 before, 7 now"),
        (["--data_seed", "7"], "seed, data_seed: None before, 7 now"),
        (["--use_peft", "True"], "model, use_peft: False before, True now"),
        (["--bf16", "True"], "precision, bf16: False before, True now"),
        (["--learning_rate", "1e-4"], "optimizer, learning_rate: 0.001 before, 0.0001 now"),
        (["--lr_scheduler_type", "constant"], "optimizer, lr_scheduler_type: linear before, constant now"),
        (["--weight_decay", "0.1"], "optimizer, weight_decay: 0.0 before, 0.1 now"),
        (["--model_init_kwargs", '{"attn_implementation": "eager"}'], "model, model_init_kwargs: None before, {"),
        (["--accelerator_config", '{"even_batches": false}'], "batch, accelerator_config: {'split_batches': False"),
        (["--gradient_accumulation_steps", "2"], "batch, rows_a_step: 2 before, 4 now"),
    ],
)
def test_a_run_that_is_not_the_one_that_was_begun_is_refused(stopped, train_flags, others, capsys, change, named):
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.name != ".lock"}
    assert resumed(train_flags, stopped, *(others.get(word, word) for word in change)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert named in last
    assert last.endswith(f"--allow_changes {named.split(':')[0].split(',')[0].removeprefix('another ')}")
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.name != ".lock"} == before


def test_other_weights_of_the_same_tokens_are_other_data(train_flags, tmp_path, capsys):
    flags = [word if word != "nll" else "given" for word in train_flags]
    assert (
        run_app([*flags, "--given_weights", '{"content": 0.5}', "--max_steps", "2", "--output_dir", str(tmp_path)]) == 0
    )
    assert resumed(flags, tmp_path, "--given_weights", '{"content": 2}') == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "data, token_weights: " in last
    assert last.endswith("--allow_changes data")
    assert resumed(flags, tmp_path, "--given_weights", '{"content": 0.5}') == 0


@pytest.mark.parametrize("change", [["--dataset_name", "ROWS"], ["--train_on", "last"]], ids=str)
def test_a_stream_of_other_rows_is_other_data(train_flags, others, tmp_path, capsys, change):
    flags = [*train_flags, "--streaming", "True"]
    assert run_app([*flags, "--max_steps", "2", "--output_dir", str(tmp_path)]) == 0
    assert resumed(flags, tmp_path, *(others.get(word, word) for word in change)) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("--allow_changes data")
    assert resumed(flags, tmp_path) == 0


def test_rows_are_only_trained_on_again_where_that_is_meant(stopped, train_flags, capsys):
    change = ["--ignore_data_skip", "True"]
    assert resumed(train_flags, stopped, *change) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("--allow_changes batch")
    for _ in range(2):  # a run that was resumed so does not take it for granted the next time
        assert resumed(train_flags, stopped, *change, "--allow_changes", "batch") == 0
        capsys.readouterr()
        assert resumed(train_flags, stopped, *change) == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith("--allow_changes batch")


def test_a_change_that_is_meant_goes_through_and_no_other(stopped, train_flags, capsys):
    change = ["--seed", "7", "--objective", "dft"]
    assert resumed(train_flags, stopped, *change, "--allow_changes", "objective") == 2
    assert "--allow_changes seed" in capsys.readouterr().err
    assert resumed(train_flags, stopped, *change, "--allow_changes", "objective,sed") == 2
    assert "allow_changes: 'sed' is none of data, tokenizer, reference, objective" in capsys.readouterr().err
    assert resumed(train_flags, stopped, *change, "--allow_changes", "objective, seed") == 0


def test_a_run_goes_on_by_its_own_settings_whatever_they_are(train_flags, tmp_path):
    flags = [*train_flags, "--model_init_kwargs", '{"attn_implementation": "eager"}', "--max_steps", "2"]
    assert run_app([*flags, "--output_dir", str(tmp_path)]) == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model_init_kwargs"] == {
        "attn_implementation": "eager"
    }
    command = ["train", "--config", str(tmp_path / "config.yaml"), "--max_steps", "4"]
    assert run_app([*command, "--resume_from_checkpoint", "latest"]) == 0


def test_the_same_model_and_rows_elsewhere_are_the_same(stopped, train_flags, tmp_path):
    flags = list(train_flags)
    for name in ("--model_name_or_path", "--dataset_name"):
        at = flags.index(name) + 1
        os.symlink(flags[at], tmp_path / name.strip("-"))
        flags[at] = str(tmp_path / name.strip("-"))
    os.rename(tmp_path / "dataset_name", tmp_path / "rows.jsonl")
    flags[flags.index("--dataset_name") + 1] = str(tmp_path / "rows.jsonl")
    assert resumed(flags, stopped) == 0


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused_and_leaves_the_first_alone(train_flags, tmp_path, capfd):
    command = [*train_flags, "--max_steps", "100000", "--output_dir", str(tmp_path / "run")]
    first = start(command, tmp_path / "log")
    try:
        deadline = time.monotonic() + 120
        while not checkpoints(tmp_path / "run"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for flag in ("--overwrite_output_dir", "--resume_from_checkpoint"):
            capfd.readouterr()
            assert run_app([*command, flag, "True"]) == 2
            (line,) = capfd.readouterr().err.splitlines()
            assert line.startswith(f"error: output_dir: another run is at work in '{tmp_path / 'run'}'. Wait for it")
        assert first.is_alive()
    finally:
        first.kill()
        first.join()
    assert last_whole(tmp_path / "run") is not None


class Spoiled(ProFitTrainer):
    """Trains a loss that is no number on some batches, or has no gradient that is one."""

    bad = math.nan
    token = None  # of the batches; "any": all of them

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        is_meant = self.token == "any" or (inputs["input_ids"] == self.token).any()
        if not self.model.training or not is_meant:
            return loss
        # A root of zero has a value, and a gradient that is infinite.
        return loss + (loss * 0).sqrt() if self.bad is None else loss * self.bad


def spoiled(folder, bad, **settings):
    dataset = tiny_dataset(16)
    trainer = Spoiled(
        tiny_model(),
        ProFitConfig(
            str(folder),
            **{
                "objective": "nll",
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "num_train_epochs": 1,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 1,
                "gradient_checkpointing": False,
                "use_cpu": True,
                "report_to": [],
                "disable_tqdm": True,
                **settings,
            },
        ),
        train_dataset=dataset,
        eval_dataset=dataset if "eval_strategy" in settings else None,
        processing_class=tiny_tokenizer(),
    )
    # A token of the last step's rows alone.
    drawn = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    early = {token for batch in drawn[:-2] for token in batch.flatten().tolist()}
    trainer.bad = bad
    trainer.token = next(token for token in drawn[-1].flatten().tolist() if token not in early and token > 1)
    rows = [
        number
        for number, row in enumerate(dataset, start=1)
        if any(row["input_ids"] == batch_row[: len(row["input_ids"])] for batch_row in drawn[-1].tolist())
    ]
    return trainer, rows


@pytest.mark.parametrize(
    ("bad", "settings", "what"),
    [
        (math.nan, {}, "the loss is not finite"),
        (math.inf, {}, "the loss is not finite"),
        (None, {}, "the gradient norm is not finite"),
        (None, {"max_grad_norm": 0.0}, "the gradient norm is not finite"),
        (math.nan, {"logging_steps": 100}, "the loss is not finite"),
    ],
)
def test_a_step_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path, bad, settings, what):
    trainer, rows = spoiled(tmp_path, bad, **settings)
    with pytest.raises(ProFitError) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert message.startswith(f"step 4: {what} on rows ")
    named = {int(word) for word in message.split(" on rows ")[1].split(" of the data")[0].split(", ")}
    assert set(rows) <= named
    assert len(named) == (2 if "loss" in what else 4)  # of the micro-batch, or of the step
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("saves", [["--save_strategy", "no"], ["--save_steps", "1"]], ids=lambda flags: flags[0])
def test_weights_that_an_update_has_spoiled_are_not_saved(train_flags, tmp_path, capsys, saves):
    flags = [*train_flags, "--output_dir", str(tmp_path), "--max_steps", "1", "--dtype", "float16", *saves]
    assert run_app([*flags, "--learning_rate", "10000", "--weight_decay", "1000000"]) == 1
    assert "step 1: the update has left weights that are not finite, the first in " in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors")) + list(tmp_path.glob("checkpoint-*"))


def test_a_run_of_weights_that_are_no_numbers_ends_at_once(train_flags, tmp_path, capsys):
    model = save_tiny_chat_model(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    flags = [*train_flags, "--model_name_or_path", model, "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    assert run_app(flags) == 2
    assert "model.norm.weight is not finite (NaN or infinity)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_stays_where_the_state_says_it_is(tmp_path):
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "learning_rate": 5.0,  # each step is worse than the one before
        "lr_scheduler_type": "constant",
    }
    trainer, _ = spoiled(tmp_path, 1.0, **settings)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]
    saved = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")


def test_a_log_that_is_no_number_is_null_in_the_file(tmp_path):
    trainer, _ = spoiled(tmp_path, 1.0)
    trainer.log({"eval_loss": math.nan, "eval_parts": [1.0, math.inf]})
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    assert (last["eval_loss"], last["eval_parts"]) == (None, [1.0, None])


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ({}, 3),
        ({"max_skipped_steps": 1}, 1),
        ({"max_skipped_steps": 4}, 4),
        ({"max_skipped_steps": 5}, None),
        ({"optim": "adamw_torch"}, 3),
    ],
)
def test_so_many_steps_in_a_row_that_loss_scaling_skips_end_the_run(tmp_path, settings, step):
    trainer, _ = spoiled(tmp_path, math.inf, **settings)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")  # as in fp16, which wants an accelerator
    trainer.token = "any"
    if step is None:
        trainer.train()
    else:
        with pytest.raises(
            ProFitError, match=f"step {step}: {step} steps in a row were skipped, since gradients overflow"
        ):
            trainer.train()
        assert len(checkpoints(tmp_path)) == step - 1
    for name, weights in tiny_model().state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "x"}, "the generation_config.json of 'MODEL' has temperature 'x', which is no number."),
        ({"eos_token_id": 99999}, "the generation_config.json of 'MODEL' has eos_token_id 99999, and the model has "),
        ({"eos_token_id": [1, "x"]}, "the generation_config.json of 'MODEL'"),
    ],
)
def test_settings_of_generation_that_could_not_be_saved_again_are_refused_at_load(
    train_flags, tmp_path, capsys, settings, message
):
    model = save_tiny_chat_model(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    flags = [*train_flags, "--model_name_or_path", model, "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    assert run_app(flags) == 2
    assert message.replace("MODEL", model) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_published_model_that_names_a_temperature_alone_is_trained_and_samples(train_flags, tmp_path, capsys):
    model = save_tiny_chat_model(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    flags = [*train_flags, "--model_name_or_path", model, "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    assert run_app(flags) == 0
    saved = json.loads((tmp_path / "run" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)


# What transformers or torch would say only once training has begun.
SETTINGS_TRIED = [
    ({"optim": "adafactor", "optim_args": "x"}, "optim 'adafactor', optim_args 'x' cannot be used ("),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type 'cosine_with_min_lr', lr_scheduler_kwargs "),
    ({"lr_scheduler_kwargs": [1]}, "lr_scheduler_kwargs"),
    ({"lr_scheduler_kwargs": "{a:1}"}, "lr_scheduler_kwargs is not JSON: '{a:1}' ("),
    (
        {"lr_scheduler_kwargs": {"a": 1}},
        "'a' is no argument of lr_scheduler_type 'linear'. It has none.",
    ),
    ({"torch_compile_mode": "bogus"}, "torch_compile_mode 'bogus' cannot be used ("),
    ({"torch_compile_backend": "bogus"}, "torch_compile_backend 'bogus', torch_compile_mode None cannot be used ("),
    ({"gradient_checkpointing_kwargs": {"a": 1}}, "gradient_checkpointing_kwargs {'a': 1} cannot be used ("),
    ({"model_init_kwargs": "x"}, "model_init_kwargs is not JSON: 'x' ("),
    ({"objective": "nll", "objective_kwargs": "3"}, "objective_kwargs must be a mapping such as"),
    ({"eval_on_start": True}, "eval_on_start is True but eval_strategy is 'no'"),
    ({"metric_for_best_model": "bogus"}, "metric_for_best_model is 'bogus', and an evaluation measures loss, "),
    ({"allow_changes": 3}, "allow_changes must be a list of text, got 3"),
    ({"allow_changes": ["sed"]}, "allow_changes: 'sed' is none of data, "),
    ({"use_peft": True, "lora_target_modules": [1, 2]}, "lora_target_modules must be a list of text, got [1, 2]"),
    ({"seed": None}, "seed must be a whole number, got None"),
    ({"ddp_backend": "gloo"}, "ddp_backend is 'gloo', but this is one process"),
]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_kwargs` is deprecated:FutureWarning")
@pytest.mark.parametrize(("settings", "message"), SETTINGS_TRIED, ids=lambda value: str(value)[:50])
def test_a_setting_that_training_would_trip_over_is_refused_before(train_flags, tmp_path, capsys, settings, message):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    flags = [*train_flags, "--config", str(tmp_path / "c.yaml"), "--output_dir", str(tmp_path / "run")]
    assert run_app([*flags, "--max_steps", "1"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spelled", [["objective", "seed"], "objective, seed", ["objective,seed"]], ids=str)
def test_what_may_change_is_a_list_or_a_line(spelled):
    assert RunArguments(allow_changes=spelled).allowed_changes == ("objective", "seed")


# Every kind that needs nothing but transformers and torch.
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
@pytest.mark.parametrize("schedule", ["linear", "cosine_with_restarts", "polynomial", "warmup_stable_decay"])
def test_settings_that_can_be_used_pass(tmp_path, optim, schedule):
    kwargs = {"num_decay_steps": 1} if schedule == "warmup_stable_decay" else None
    config = ProFitConfig(
        str(tmp_path), use_cpu=True, optim=optim, lr_scheduler_type=schedule, lr_scheduler_kwargs=kwargs
    )
    try_settings(config, ModelConfig())
