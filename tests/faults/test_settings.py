"""Settings that cannot be meant, through the command's own parser: flags, YAML files, study files."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
import yaml
from injection import refusal, report
from trl import ModelConfig

from campaign import sampled
from profit_sft.cli.train_flags import parse
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning", "ignore::FutureWarning")


def numeric_fields():
    """Yield every setting of `profit train` that takes a number, with its type."""
    for source in (RunArguments, ProFitConfig, ModelConfig):
        kinds = get_type_hints(source)
        for entry in dataclasses.fields(source):
            taken = {*(get_args(kinds[entry.name]) or (kinds[entry.name],))} & {int, float}
            if taken and entry.init:
                yield entry.name, float if float in taken else int


NUMERIC = list(numeric_fields())
BAD_WORDS = ("-2", "nan", "inf", "-inf", "1e300", "9" * 30, "9" * 5000, "abc", "0x10", "1,000", "--seed", "\x1b[2J")
BAD_VALUES = (
    *(-2, float("nan"), float("inf"), 10**30, "abc", "\u202e1"),
    *([1], {"a": 1}, True, [], "2026-01-01", "[/x]"),
)


@pytest.mark.parametrize(("name", "kind"), NUMERIC, ids=[name for name, _ in NUMERIC])
def test_a_number_that_cannot_be_meant_is_refused_on_the_command_line(name, kind, train, tmp_path, capsys):
    words = sampled([*BAD_WORDS, *(["1.5"] if kind is int else [])], 5)
    report(
        "numbers on the command line",
        {f"--{name} {word[:40]!r}": refusal([*train, f"--{name}", word], capsys, writes_to=tmp_path) for word in words},
    )


@pytest.mark.parametrize(("name", "kind"), NUMERIC, ids=[name for name, _ in NUMERIC])
def test_a_number_that_cannot_be_meant_is_refused_in_yaml(name, kind, train, tmp_path, capsys):
    found = {}
    at = train.index(f"--{name}") if f"--{name}" in train else len(train)
    words = train[:at] + train[at + 2 :]  # a flag would win over the file
    file = tmp_path / "c.yaml"
    for value in sampled([*BAD_VALUES, *([1.5] if kind is int else [])], 5):
        file.write_text(yaml.safe_dump({name: value}))
        found[f"{name}: {value!r}"] = refusal([*words, "--config", str(file)], capsys, writes_to=tmp_path)
    report("numbers in YAML", found)


def named_fields():
    """Yield every setting of `profit train` that takes text and no number."""
    for source in (RunArguments, ProFitConfig, ModelConfig):
        kinds = get_type_hints(source)
        for entry in dataclasses.fields(source):
            taken = {*(get_args(kinds[entry.name]) or (kinds[entry.name],))}
            if entry.init and not taken & {int, float} and not taken <= {bool, type(None)}:
                yield entry.name


NAMED = sorted(named_fields())
# Text for people or a model to read, or the name of what is made.
ANY_TEXT = {"output_dir", "run_name", "project", "system_prompt"}
WITH = {
    **dict.fromkeys((name for name in NAMED if name.startswith("lora_")), ("--use_peft", "True")),
    "optim_target_modules": ("--optim", "galore_adamw"),
    "bnb_4bit_quant_storage": ("--use_peft", "True", "--load_in_4bit", "True"),
}
MORE_NAMES = {
    "a part of a file": ("--dataset_train_split", "train[:3]"),
    "a mixture's split": ("--dataset_name", "mixture.yaml", "--dataset_train_split", "bogus"),
    "a split of a file to evaluate on": (
        *("--eval_strategy", "steps", "--eval_dataset_name", "ROWS", "--dataset_test_split", "bogus"),
    ),
    "a configuration of a file to evaluate on": (
        *("--eval_strategy", "steps", "--test_split_size", "2", "--dataset_test_split", "bogus"),
    ),
    "one of two modules": ("--use_peft", "True", "--lora_target_modules", "q_proj", "bogus"),
    "a pattern of no module": ("--use_peft", "True", "--lora_target_modules", "bogus.*"),
    "half of a module's name": ("--use_peft", "True", "--lora_target_modules", "proj"),
    "a file of FSDP": ("--fsdp", "full_shard", "--fsdp_config", "nofile"),
    "FSDP's settings without FSDP": ("--fsdp_config", '{"activation_checkpointing": true}'),
    "an optimizer's argument": ("--optim_args", "betas=1"),
    "another optimizer's argument": ("--optim", "sgd", "--optim_args", "momentum=0.9,rank=3"),
    "a model's argument": ("--model_init_kwargs", '{"bogus": 1}'),
    "an objective's field": ("--objective_kwargs", '{"bogus": 1}'),
    "a schedule's argument": ("--lr_scheduler_kwargs", '{"bogus": 1}'),
    "an argument that a schedule leaves out": (
        *("--lr_scheduler_type", "constant_with_warmup", "--lr_scheduler_kwargs", '{"bogus": 1}'),
    ),
    "the best model of no evaluation": ("--load_best_model_at_end", "True"),
    "an argument of the accelerator": ("--accelerator_config", '{"bogus": 1}'),
    "an argument of checkpointing": ("--gradient_checkpointing_kwargs", '{"bogus": 1}'),
    "rows to train on again, and nothing to resume": ("--ignore_data_skip", "True"),
    "a tracker without its library": ("--trackio_space_id", "bogus", "--report_to", "none"),
    "a revision of the embedded model": ("--model_revision", "v9"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_of_nothing_is_refused(name, train, tmp_path, capsys):
    at = train.index(f"--{name}") if f"--{name}" in train else len(train)
    words = [*train[:at], *train[at + 2 :], *WITH.get(name, ()), f"--{name}", "bogus"]
    if name in ANY_TEXT:
        assert parse(words[1:])[0]
        return
    defect = refusal(words, capsys, writes_to=tmp_path)
    report("names of nothing", {f"--{name} bogus": defect})


@pytest.mark.parametrize("name", MORE_NAMES)
def test_a_name_of_nothing_beside_one_of_something_is_refused(name, train, rows, tmp_path, capsys):
    (tmp_path / "mixture.yaml").write_text(f"datasets:\n- path: {rows}\n")
    given = [
        {"ROWS": rows, "mixture.yaml": str(tmp_path / "mixture.yaml")}.get(word, word) for word in MORE_NAMES[name]
    ]
    report("names of nothing", {name: refusal([*train, *given], capsys, writes_to=tmp_path)})


def test_a_single_module_is_a_name_and_no_pattern(train):
    for words, wanted in (
        (["q_proj"], ["q_proj"]),
        (["all-linear"], "all-linear"),
        ([".*q_proj"], ".*q_proj"),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
    ):
        model = parse([*train[1:], "--use_peft", "True", "--lora_target_modules", *words])[0].model_config
        assert model.lora_target_modules == wanted
