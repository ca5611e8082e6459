"""What `profit train` tells of its flags: each once, under its subject, and only those that there are."""

import dataclasses
import re
from collections import Counter

import pytest

from profit_sft.cli import train_help
from profit_sft.cli.app import run_app
from profit_sft.cli.train_flags import make_parser, normalized
from profit_sft.cli.train_help import FIRST_FLAGS, GROUPS, OTHERS, first_help, help_all
from profit_sft.objectives import OBJECTIVES
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig

COMMAND = {"--config", "--dry_run", "--json", "--help", "--help_all"}


@pytest.fixture(scope="module")
def parser():
    return make_parser()


def flags_by_heading(text):
    """Headings, each with the flags whose entries stand below it."""
    found = {}
    for line in text.splitlines()[1:]:
        if re.match(r"\S", line):
            found[line] = []
        elif line.startswith("  --"):
            found[list(found)[-1]] += re.findall(r"--\w[\w-]*", re.split(r"\s{3,}", line[2:])[0])
    return found


def test_every_setting_is_in_exactly_one_group(parser):
    counts = Counter(name for names in GROUPS.values() for name in names)
    assert {name: count for name, count in counts.items() if count > 1} == {}
    # A setting that a new version of TRL or transformers brings is to be put where one looks for it.
    assert {action.dest for action in parser._actions} - set(counts) == set()


def test_all_help_has_every_flag_once_below_its_heading(parser):
    found = flags_by_heading(help_all(parser))
    assert list(found) == ["The command", *GROUPS]
    shown = Counter(normalized(flag) for flags in found.values() for flag in set(map(normalized, flags)))
    spelled = {normalized(option) for action in parser._actions for option in action.option_strings}
    assert shown == Counter(dict.fromkeys(spelled | COMMAND, 1))
    for title, names in GROUPS.items():
        assert {f"--{name}" for name in names} <= set(found[title])
    assert "--model" in found["Model"]
    assert "--no_gradient_checkpointing" in found["Batch and memory"]


def test_a_flag_that_no_group_has_is_shown_under_a_heading_of_its_own(parser):
    more = make_parser()
    more.add_argument("--brand_new", help="Of a version to come.")
    assert flags_by_heading(help_all(more))[OTHERS] == ["--brand_new"]
    assert OTHERS not in help_all(parser)


def test_all_help_is_short_and_fits_80_columns(parser):
    lines = help_all(parser).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 3.2 * len({action.dest for action in parser._actions})


def test_defaults_and_choices_are_told_once(parser):
    text = " ".join(help_all(parser).split())
    assert "The initial learning rate for AdamW. (default: 2e-05)" in text
    assert "the run folder" not in text  # of the short help
    assert "--eval_strategy When to run evaluation. Options: 'no', 'steps', 'epoch'. (default: no)" in text
    assert "--prompt_column Column with the question (default: question). --response_column" in text
    assert "One of linear, cosine, cosine_with_restarts" in text
    assert "~20% slower" in text  # argparse's text has it doubled


def test_what_this_package_says_of_its_own_flags_is_shown_whole(parser):
    text = " ".join(help_all(parser).split())
    own = {*vars(ProFitConfig)["__annotations__"], *(entry.name for entry in dataclasses.fields(RunArguments))}
    told = {action.dest: " ".join((action.help or "").split()) for action in parser._actions if action.dest in own}
    assert {"gradient_budget", "allow_changes", "skip_bad_rows"} <= set(told)
    assert [name for name, help in told.items() if help % {"default": ""} not in text] == []


def test_the_short_help_names_every_objective():
    named = set(re.findall(r"\w+", train_help._BESIDE_TRL["objective"]))
    assert named >= OBJECTIVES.keys()


def test_the_short_help_names_only_flags_that_exist(parser):
    known = {option for action in parser._actions for option in action.option_strings} | COMMAND
    named = [flag.split()[0] for flags in FIRST_FLAGS.values() for flag in flags]
    assert len(named) == len(set(named))
    assert {normalized(flag) for flag in named} <= known


def test_the_short_help_tells_the_defaults_that_there_are(parser):
    defaults = {action.dest: action.default for action in parser._actions if action.default is not None}
    texts = {name: text for name, text in train_help._BESIDE_TRL.items() if name in defaults}
    told = {name: found[1] for name, text in texts.items() if (found := re.search(r"\(default: ([^;)]+)", text))}
    assert len(told) > 3
    assert told == {name: str(defaults[name]) for name in told}


def test_both_helps_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run_app(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for line in first_help().splitlines():  # as laid out, wrapped nowhere
        assert f" {line.removeprefix('[bold]').removesuffix('[/]')}" in shown
    assert run_app(["train", "--help-all"]) == 0
    assert capsys.readouterr().out == help_all(make_parser())
