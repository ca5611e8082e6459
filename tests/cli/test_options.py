"""Short forms of every command's flags, and the data options: declared once, flags of whatever reads data."""

import dataclasses
import json
from typing import Annotated, get_type_hints

import pytest
import typer

from profit_sft.cli.app import app, run_app
from profit_sft.cli.options import SHORT_FORMS, takes_arguments_as_flags, takes_data_options, underscored
from profit_sft.cli.train_flags import parse
from profit_sft.data.settings import DataOptions, DataSettings

OPTIONS = dataclasses.fields(DataOptions)
# A value other than the default, by the field's type. From the class: transformers' parser changes its fields.
VALUES = {str: "last", str | None: "some", int: 7, int | None: 7, float | None: 7.0, bool: True}
TYPES = get_type_hints(DataOptions)


PROFIT = typer.main.get_command(app)


def flags_of(command):
    return {option: param for param in PROFIT.commands[command].params for option in param.opts}


def arrives(command, *words):
    """What typer makes of a command line, before anything is run or found missing."""
    root = PROFIT.make_context("profit", [], resilient_parsing=True)
    return PROFIT.commands[command].make_context(command, list(words), parent=root, resilient_parsing=True).params


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
    assert flags[f"--{entry.name}"].help.startswith(entry.metadata["help"].removesuffix("."))
    assert flags[f"--{entry.name}"].default is None
    words = [] if TYPES[entry.name] is bool else ["7"]
    with_hyphens = arrives(command, f"--{entry.name.replace('_', '-')}", *words)
    assert with_hyphens == arrives(command, f"--{entry.name}", *words) != arrives(command)


@pytest.mark.parametrize("entry", OPTIONS, ids=lambda entry: entry.name)
@pytest.mark.filterwarnings("ignore:.*bf16")
def test_what_train_is_given_arrives_in_the_data_settings(entry):
    value = OTHER_VALUES.get(entry.name, VALUES[TYPES[entry.name]])
    flag = f"--{entry.name.replace('_', '-')}"
    words = [flag] if value is True else [flag, str(value)]
    settings = parse([*words, "--dataset_name", "x.jsonl", "--use_cpu", "True"])[0].training_data()
    assert getattr(settings, entry.name) == value != entry.default
    assert dataclasses.replace(settings, **{entry.name: entry.default}) == DataSettings(dataset_name="x.jsonl")


def given_to_a_command(*words):
    probe = typer.Typer()
    found = {}

    @probe.command(context_settings={"token_normalize_func": underscored})
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


# Every command, and the flags that have a short form among what it takes.
SHORT_FORMS_OF = {
    "train": {"--model": "model_name_or_path", "--data": "dataset_name", "--out": "output_dir"},
    "data": {"--model": "model_name_or_path", "--data": "dataset_name"},
    "score": {"--model": "model_name_or_path", "--data": "dataset_name", "--out": "output_dir"},
    "inspect": {"--model": "model_name_or_path", "--data": "dataset_name", "--out": "output_file"},
    "advise": {"--model": "model_name_or_path", "--data": "dataset_name"},
    "report": {"--out": "output_file"},
    "watch": {},
    "chat": {"--model": "model_name_or_path"},
    "merge": {"--out": "output_dir"},
    "quickstart": {"--out": "output_dir"},
    "eval": {"--model": "model_name_or_path", "--out": "output_dir"},
    "study": {"--model": "model_name_or_path", "--data": "dataset_name", "--out": "output_dir"},
    "llamafactory": {},
    "plugin": {},
}


def test_the_table_of_short_forms_has_every_command():
    assert set(SHORT_FORMS_OF) == set(PROFIT.commands)


@pytest.mark.parametrize("command", sorted(set(SHORT_FORMS_OF) - {"train"}))
def test_a_short_form_brings_the_value_that_the_long_form_does(command):
    declared = {option for option in flags_of(command) if option in SHORT_FORMS}
    assert declared == set(SHORT_FORMS_OF[command])
    for short, long in SHORT_FORMS_OF[command].items():
        spelled = [f"--{long}", f"--{long.replace('_', '-')}", short]
        found = [arrives(command, option, "given") for option in spelled]
        found += [arrives(command, f"{option}=given") for option in spelled]
        assert all(params == found[0] for params in found)
        assert "given" in map(str, found[0].values())
    for param in PROFIT.commands[command].params:  # nothing that has a short form elsewhere goes without
        assert any(param.name.removesuffix("_flag") in names for names in SHORT_FORMS.values()) == (
            param.name.removesuffix("_flag") in SHORT_FORMS_OF[command].values()
        )


@pytest.mark.parametrize("short", SHORT_FORMS)
@pytest.mark.filterwarnings("ignore:.*bf16")
def test_a_short_form_brings_train_the_value_that_the_long_form_does(short):
    name = SHORT_FORMS_OF["train"][short]
    others = [word for flag in set(SHORT_FORMS) - {short} for word in (flag, "other")]
    for words in ([short, "given"], [f"{short}=given"], [f"--{name}", "given"], [f"--{name.replace('_', '-')}=given"]):
        assert parse([*words, *others, "--use_cpu", "True"])[0].values[name] == "given"


def test_an_argument_and_its_flag_are_one(rows, tiny_folder, capsys):
    model = ["--model", tiny_folder, "--json"]
    found = []
    for words in ([rows], ["--data", rows], [f"--dataset-name={rows}"]):
        assert run_app(["data", *words, *model]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] == found[2]
    assert found[0]["report"]["rows_used"] == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.jsonl", "--data", "b.jsonl"], "DATA is there twice, 'a.jsonl' and 'b.jsonl'. Leave one out."),
        ([], "DATA is missing. Write it alone or as --data DATA."),
    ],
)
def test_an_argument_is_named_once(words, message, capsys):
    assert run_app(["data", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_argument_without_a_short_form_stays_as_it_is():
    def command(run: Annotated[str, typer.Argument(metavar="RUN")]) -> int:
        return 0

    assert takes_arguments_as_flags(command) is command
