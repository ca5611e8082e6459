"""Which engine an accelerate configuration would start, what is refused, and how many steps a run takes."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from profit_sft.errors import ConfigurationError
from profit_sft.train.config import ProFitConfig
from profit_sft.train.engine import (
    Engine,
    check_launched_as_planned,
    planned_device,
    planned_engine,
    planned_precision,
    planned_steps,
)
from profit_sft.train.trainer import ProFitTrainer
from tiny import tiny_dataset, tiny_model, tiny_tokenizer

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "accelerate"


@pytest.fixture
def written(tmp_path):
    """Write a configuration and return its path."""

    def write(text):
        path = tmp_path / "accelerate.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("recipe", "engine"),
    [
        ("one_gpu", Engine()),
        ("fsdp2_8gpu", Engine(name="FSDP2", ranks=8)),
        ("zero3_8gpu", Engine(name="ZeRO-3", ranks=8)),
        ("two_nodes", Engine(name="FSDP2", ranks=16)),
    ],
)
def test_the_recipes_start_what_they_say(recipe, engine):
    file = str(RECIPES / f"{recipe}.yaml")
    assert planned_engine(file) == engine
    assert planned_precision(file) == "bf16"


def test_the_device_a_file_means(written):
    assert planned_device(str(RECIPES / "one_gpu.yaml")) == "cuda"
    assert planned_device(written({"distributed_type": "NO", "num_processes": 1, "use_cpu": True})) == "cpu"


def test_every_recipe_is_looked_at():
    assert {path.stem for path in RECIPES.glob("*")} == {"one_gpu", "fsdp2_8gpu", "zero3_8gpu", "two_nodes"}


@pytest.mark.parametrize(
    ("settings", "num_processes", "engine"),
    [
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, None, Engine(name="DDP", ranks=4)),
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, 2, Engine(name="DDP", ranks=2)),
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, 1, Engine()),
        ({"distributed_type": "MULTI_CPU", "num_processes": 2, "num_machines": 2}, None, Engine(name="DDP", ranks=2)),
        ({"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {}}, None, Engine(name="FSDP1", ranks=4)),
        ({"distributed_type": "DEEPSPEED", "num_processes": 1}, None, Engine(name="ZeRO-2", ranks=1)),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"zero_stage": 1}},
            None,
            Engine(name="ZeRO-1", ranks=2),
        ),
    ],
)
def test_other_configurations(written, settings, num_processes, engine):
    assert planned_engine(written(settings), num_processes) == engine


def test_the_stage_may_lie_in_deepspeeds_own_file(written, tmp_path):
    own = tmp_path / "ds.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    settings = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": str(own)}}
    assert planned_engine(written(settings | {"num_processes": 2})).zero_stage == 3
    assert planned_precision(written(settings | {"num_processes": 2})) == "no"
    own.write_text(json.dumps({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}))
    assert planned_precision(written(settings | {"num_processes": 2})) == "bf16"
    for text, message in (
        ("{}", "whose zero_optimization.stage is not 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 0}}', "whose zero_optimization.stage is not 1, 2 or 3"),
        ("{", "which cannot be read"),
    ):
        own.write_text(text)
        with pytest.raises(ConfigurationError, match=f"names DeepSpeed's configuration '.*ds.json', {message}"):
            planned_engine(written(settings | {"num_processes": 2}))


@pytest.mark.parametrize(
    ("text", "num_processes", "message"),
    [
        ("num_processes: 2\ndistributed_type: 'NO'\n", 0, "num_processes = 0 cannot be used: Input should be greater"),
        ("num_processes: two\ndistributed_type: MULTI_GPU\n", None, "num_processes = 'two' cannot be used"),
        ("distributed_type: MULTI_GPU\n", None, "names no num_processes"),
        ({"distributed_type": "FSDP", "num_processes": 4}, 1, "accelerate leaves out of a single process"),
        (
            {"distributed_type": "MEGATRON_LM", "num_processes": 4},
            None,
            "distributed_type = 'MEGATRON_LM' cannot be used",
        ),
        ({"distributed_type": "THREE_GPU", "num_processes": 4}, None, "THREE_GPU"),
        ({"distributed_type": "NO", "num_processes": 2}, None, "2 processes under NO, for which accelerate starts one"),
        ({"distributed_type": "MULTI_CPU", "num_processes": 1}, 3, "3 processes under MULTI_CPU, for which accelerate"),
        ({"distributed_type": "NO", "num_processes": 1, "mixed_precision": "fp8"}, None, "mixed_precision = 'fp8'"),
        ({"distributed_type": "NO", "colour": "red"}, None, "colour"),
        ("a: [\n", None, "cannot be read as a configuration of accelerate"),
        ("[1, 2]\n", None, "cannot be read as a configuration of accelerate"),
        ("", None, "cannot be read as a configuration of accelerate"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": "x"}, "num_processes": 2},
            None,
            "zero_stage = 'x'",
        ),
        (
            {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 3}},
            None,
            "fsdp_version = 3",
        ),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, None, "accelerate_config"),
    ],
)
def test_what_cannot_be_started_is_one_clear_error(written, text, num_processes, message):
    with pytest.raises(ConfigurationError) as error:
        planned_engine(written(text), num_processes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"there is no file '.*absent.yaml'"):
        planned_engine(str(tmp_path / "absent.yaml"))


def test_an_engine_that_was_not_planned_is_refused():
    file = str(RECIPES / "fsdp2_8gpu.yaml")
    check_launched_as_planned(Engine(name="FSDP2", ranks=8), file)
    check_launched_as_planned(Engine(name="FSDP2", ranks=3), file, 3)
    for engine in (Engine(name="FSDP2", ranks=4), Engine(name="DDP", ranks=8), Engine()):
        with pytest.raises(ConfigurationError, match=f"asks for 8 ranks, FSDP2, and launched is {engine}"):
            check_launched_as_planned(engine, file)


@pytest.mark.parametrize(("rows", "size"), [(7, 2), (9, 4), (1, 4)])
def test_steps_are_those_of_the_trainer(tmp_path, rows, size):
    # With max_steps the number of epochs says nothing.
    ends = ((0.5, -1), (1.0, -1), (2.3, -1), (0.5, 4))
    for micro_batches, (epochs, max_steps) in itertools.product((1, 3), ends):
        settings = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": micro_batches,
            "num_train_epochs": epochs,
            "max_steps": max_steps,
        }
        quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "probe_rows": 0, "threshold": 0.0}
        config = ProFitConfig(str(tmp_path), use_cpu=True, gradient_checkpointing=False, **quiet, **settings)
        trainer = ProFitTrainer(
            tiny_model(), config, train_dataset=tiny_dataset(rows), processing_class=tiny_tokenizer()
        )
        batches = len(trainer.get_train_dataloader())
        trainer.train()
        found, _ = planned_steps(batches, micro_batches=micro_batches, epochs=epochs, max_steps=max_steps)
        assert found == trainer.state.global_step, settings
