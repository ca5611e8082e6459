"""Settings that cannot be meant, through the command's own parser: flags, YAML files, study files."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
import yaml
from injection import refusal, report, sampled
from trl import ModelConfig

from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")


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
