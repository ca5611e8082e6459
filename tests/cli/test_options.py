"""The data options: declared once, flags of every command that reads data."""

import dataclasses
from typing import get_type_hints

import pytest
import typer

from profit_sft.cli.app import app
from profit_sft.cli.options import takes_data_options
from profit_sft.cli.train_flags import parse
from profit_sft.data import DataOptions, DataSettings
from profit_sft.train.data import training_settings

OPTIONS = dataclasses.fields(DataOptions)
# A value other than the default, by the field's type. From the class: transformers' parser changes its fields.
VALUES = {str: "last", str | None: "some", int: 7, int | None: 7, bool: True}
TYPES = get_type_hints(DataOptions)


def flags_of(command):
    return {option: param for param in typer.main.get_command(app).commands[command].params for option in param.opts}


OTHER_VALUES = {
    "dataset_format": "messages",
    "chat_template_kwargs": '{"enable_thinking": false}',
    "template_date": "2025-01-02",
    "empty_think": "ignore",
    "given_weights": '{"content": 0.5}',
}


@pytest.mark.parametrize("command", ["score", "inspect", "advise"])
@pytest.mark.parametrize("entry", OPTIONS, ids=lambda entry: entry.name)
def test_a_data_option_is_a_flag_of_every_command_with_the_help_of_its_field(command, entry):
    flags = flags_of(command)
    assert flags[f"--{entry.name}"] is flags[f"--{entry.name.replace('_', '-')}"]
    assert flags[f"--{entry.name}"].help.startswith(entry.metadata["help"].removesuffix("."))
    assert flags[f"--{entry.name}"].default is None


@pytest.mark.parametrize("entry", OPTIONS, ids=lambda entry: entry.name)
@pytest.mark.filterwarnings("ignore:.*bf16")
def test_what_train_is_given_arrives_in_the_data_settings(entry):
    value = OTHER_VALUES.get(entry.name, VALUES[TYPES[entry.name]])
    flag = f"--{entry.name.replace('_', '-')}"
    words = [flag] if value is True else [flag, str(value)]
    run, config, *_ = parse([*words, "--dataset_name", "x.jsonl", "--use_cpu", "True"])
    settings = training_settings(run, config)
    assert getattr(settings, entry.name) == value != entry.default
    assert dataclasses.replace(settings, **{entry.name: entry.default}) == DataSettings(dataset_name="x.jsonl")


def given_to_a_command(*words):
    probe = typer.Typer()
    found = {}

    @probe.command()
    @takes_data_options(max_samples=20)
    def command(*, data: dict, threshold: float = 0.5) -> int:
        found.update(data, threshold=threshold)
        return 0

    probe(args=list(words), standalone_mode=False)
    return found


def test_a_command_gets_what_was_given_and_no_defaults():
    assert given_to_a_command() == {"threshold": 0.5}
    words = ("--skip-bad-rows", "--max_samples", "0", "--threshold", "0.1", "--dataset-split", "test")
    assert given_to_a_command(*words) == {
        "skip_bad_rows": True,
        "max_samples": 0,
        "threshold": 0.1,
        "dataset_split": "test",
    }


def test_the_help_text_tells_the_default_that_holds():
    assert "(default: 1024)" in flags_of("score")["--max_length"].help
    assert "default" not in flags_of("score")["--max_samples"].help
    assert "(default: 200)" in flags_of("advise")["--max_samples"].help
    assert "(default: 500)" in flags_of("inspect")["--max_samples"].help
