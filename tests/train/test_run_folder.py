"""What a new run may do with the folder of an earlier one."""

import pytest

from profit_sft.cli.app import run_app
from profit_sft.errors import ConfigurationError
from profit_sft.train.checkpoints import publish
from profit_sft.train.engine import Engine
from profit_sft.train.run_folder import choose_start, clear_earlier_run, holds_weights
from tiny import save_tiny_chat_model


def test_an_earlier_run_goes_as_a_whole_and_what_others_put_there_stays(tmp_path):
    save_tiny_chat_model(tmp_path)  # what a run saves of model and tokenizer
    files = ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "metrics.jsonl")
    files += ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.yaml", "environment.json")
    files += ("adapter_config.json", "adapter_model.safetensors", "data.json", "README.md", "training_args.bin")
    for name in files:
        (tmp_path / name).write_text("old")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "model.safetensors").write_text("old")
    foreign = ("notes.txt", "train.jsonl", "scores", "checkpoint-notes.md")
    for name in foreign:
        (tmp_path / name).write_text("mine")
    clear_earlier_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(foreign)


def test_a_folder_without_a_run_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    clear_earlier_run(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("left", ["config.json", "adapter_config.json", "model.safetensors", "checkpoint-7"])
def test_a_model_adapter_or_checkpoint_takes_the_folder(tmp_path, left):
    (tmp_path / left).mkdir() if "checkpoint" in left else (tmp_path / left).touch()
    with pytest.raises(ConfigurationError, match="holds an earlier run. Go on with it by --resume_from_checkpoint"):
        choose_start(tmp_path, resume_from=None, overwrite=False)
    assert choose_start(tmp_path, resume_from="false", overwrite=True) is None
    assert (tmp_path / left).exists()


def test_a_run_goes_on_in_its_own_folder_or_in_one_that_is_free(tmp_path):
    ours, other = tmp_path / "ours", tmp_path / "other"
    for run in (ours, other):
        checkpoint(run, "optimizer.pt")
    (tmp_path / "link").symlink_to(other, target_is_directory=True)
    wanted = str(other / "checkpoint-3")
    with pytest.raises(
        ConfigurationError, match=r"ours' holds an earlier run.* or choose another folder to go on from"
    ):
        choose_start(ours, resume_from=wanted, overwrite=False)
    with pytest.raises(ConfigurationError, match="overwrite_output_dir would delete the run that resume_from_checkp"):
        choose_start(other, resume_from="latest", overwrite=True)
    for folder in (other, tmp_path / "link", tmp_path / "free"):
        assert choose_start(folder, resume_from=wanted, overwrite=False) == wanted


ONE, DDP = Engine(), Engine(name="DDP", ranks=2)
FSDP2, ZERO2, ZERO3 = (Engine(name=name, ranks=2) for name in ("FSDP2", "ZeRO-2", "ZeRO-3"))


def checkpoint(folder, *files, step=3):
    for file in ("trainer_state.json", *files):
        (folder / ".saving" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / ".saving" / file).write_text("{}")
    publish(folder / ".saving", folder / f"checkpoint-{step}", num_tokens=7, fixed={})


@pytest.mark.parametrize(
    ("files", "engines"),
    [
        (["optimizer.pt"], [ONE, DDP]),
        (["optimizer.bin", "pytorch_model_fsdp.bin"], [FSDP2]),
        (["optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata"], [FSDP2]),
        ([f"global_step3/zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in (0, 1)], [ZERO2]),
        ([f"global_step3/bf16_zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in (0, 1)], [ZERO3]),
    ],
)
def test_a_checkpoint_is_gone_on_from_by_the_kind_of_engine_that_saved_it(tmp_path, files, engines):
    checkpoint(tmp_path, *files)
    for engine in (ONE, DDP, FSDP2, ZERO2, ZERO3):
        if engine in engines or (engine.zero_stage and engines[0].zero_stage):
            assert choose_start(tmp_path, resume_from="latest", overwrite=False, engine=engine) is not None
        else:
            with pytest.raises(
                ConfigurationError, match=rf"and this run's engine is {engine.name}. Launch it as it was"
            ):
                choose_start(tmp_path, resume_from="latest", overwrite=False, engine=engine)


def test_deepspeed_goes_on_with_as_many_ranks(tmp_path):
    checkpoint(tmp_path, *(f"global_step3/zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in range(4)))
    with pytest.raises(ConfigurationError, match=r"saved by 4 ranks under DeepSpeed, which goes on with as many, not"):
        choose_start(tmp_path, resume_from="latest", overwrite=False, engine=ZERO3)


def test_a_checkpoint_without_optimizer_state_is_gone_on_from_with_a_warning(tmp_path):
    checkpoint(tmp_path, "model.safetensors")
    with pytest.warns(UserWarning, match="holds no optimizer state .* so Adam starts anew"):
        choose_start(tmp_path, resume_from="true", overwrite=False, engine=DDP)


def test_weights_are_found_whole_in_shards_and_of_adapters(tmp_path):
    assert not holds_weights(tmp_path)
    for name in ("config.json", "training_args.bin", "tokenizer.json"):
        (tmp_path / name).touch()
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    assert not holds_weights(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert holds_weights(tmp_path)


def test_a_new_run_that_fails_before_its_first_step_leaves_the_earlier_one_whole(tmp_path, capsys):
    model = save_tiny_chat_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"question": "2+2?", "answer": "4."}\n' * 8)
    run = tmp_path / "run"
    flags = ["train", "--model_name_or_path", model, "--output_dir", str(run), "--max_steps", "1", "--use_cpu", "True"]
    flags += ["--objective", "nll", "--dataset_name", str(tmp_path / "rows.jsonl")]
    assert run_app(flags) == 0

    def files():
        return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}

    before = files()
    (tmp_path / "rows.jsonl").write_text("no json")
    assert run_app([*flags, "--overwrite_output_dir", "True"]) == 1
    assert files() == before
    assert "error:" in capsys.readouterr().err
