"""Data files, settings files and study files that are broken, endless, or too much."""

import csv
import io
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from injection import refusal, report

from campaign import sampled

pytestmark = pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")
GOOD = {"question": "What is 1+1?", "answer": "2."}


def jsonl(*rows) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows=64, *, damage: int | None = None, cut: float = 1.0) -> bytes:
    """A file of several pages, with a byte of its data flipped, or cut off."""
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist([{"question": f"What is {n}+1?", "answer": f"{n + 1}."} for n in range(rows)])
    pyarrow.parquet.write_table(table, buffer, compression="snappy", row_group_size=16)
    content = bytearray(buffer.getvalue())
    if damage is not None:
        for place in range(damage, min(damage + 40, len(content) - 8)):
            content[place] ^= 0xFF
    return bytes(content[: int(len(content) * cut)])


def rows_of(field, values):
    return {f"{field} is {value!r:.30}": jsonl(GOOD, {**GOOD, field: value}) for value in values}


VALUES = (None, 3, 1.5, True, [], {}, [1], {"a": 1}, "", " ", "\ud800", ["x", "y"], [[]], [None])
MESSAGES = (
    *(None, 3, "text", [], {}, [3], [None], [[]], [{}], [{"role": "user"}], [{"role": "user", "content": 3}]),
    *([{"role": 3, "content": "x"}], [{"role": "assistant", "content": None}], [{"content": "x"}]),
    *([{"role": "nobody", "content": "x"}], [{"role": "user", "content": "x"}], [{"role": "user", "content": ["x"]}]),
    *([{"role": "assistant", "content": ""}], [{"role": "assistant", "content": "x", "tool_calls": 3}]),
)
LINES = {
    "no row": b"",
    "empty lines": b"\n\n\n",
    "no JSON": b"no json\n",
    "half a line": jsonl(GOOD) + b'{"question": "What',
    "a list": jsonl(GOOD, [1]),
    "a number": jsonl(GOOD, 3),
    "a null": jsonl(GOOD, None),
    "a text": jsonl(GOOD, "text"),
    "5,000 digits": jsonl(GOOD) + b'{"question": ' + b"9" * 5000 + b', "answer": "x"}\n',
    "5,000 digits in a field nobody reads": jsonl({**GOOD})
    + b'{"question": "a", "answer": "x", "n": '
    + b"9" * 5000
    + b"}\n",
    "3,000 brackets": jsonl(GOOD) + b"[" * 3000 + b"\n",
    "100,000 brackets": jsonl(GOOD) + b'{"a":' * 100_000 + b"\n",
    "NaN": jsonl(GOOD) + b'{"question": NaN, "answer": Infinity}\n',
    "a null character": jsonl(GOOD, {**GOOD, "answer": "\x00"}),
    "null characters": b"\x00" * 1000,
    "Latin-1": jsonl(GOOD) + b'{"question": "caf\xe9", "answer": "x"}\n',
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00" + b"\x00" * 30,
    "another file's columns": jsonl({"left": "a", "right": "b"}),
    "no columns": jsonl({}, {}),
    "columns that change": jsonl(GOOD, {"prompt": "a", "completion": "b"}),
    "a long line without end": b'{"question": "' + b"x" * 3_000_000,
    "the same key twice": jsonl(GOOD) + b'{"question": "a", "question": ["b"], "answer": "c"}\n',
    **rows_of("question", VALUES),
    **rows_of("answer", VALUES),
    **{f"messages are {value!r:.40}": jsonl({"messages": value}) for value in MESSAGES},
    **{f"conversations are {value!r:.40}": jsonl({"conversations": value}) for value in MESSAGES},
    **{f"instruction is {value!r:.40}": jsonl({"instruction": value, "output": "x"}) for value in VALUES},
    **{f"completion is {value!r:.40}": jsonl({"prompt": "x", "completion": value}) for value in VALUES},
    **{
        f"spans are {value!r:.40}": jsonl(
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}],
                "answer_spans": value,
            }
        )
        for value in (
            3,
            "x",
            [3],
            [{}],
            [{"start": 0}],
            [{"start": -1, "end": 99, "kind": "core"}],
            [{"start": 0, "end": 1, "kind": 3}],
            [{"start": "0", "end": 1, "kind": "core"}],
        )
    },
}
FILES = {
    **{f"rows.jsonl: {name}": ("rows.jsonl", content) for name, content in LINES.items()},
    **{
        f"rows.json: {name}": ("rows.json", content)
        for name, content in {
            **{
                repr(text): text.encode()
                for text in ("", "[", "{}", "[]", "3", "null", '"x"', "[3]", "[[]]", "[{}]", '{"a": [], "b": []}')
            },
            "5,000 digits": b'[{"question": ' + b"9" * 5000 + b"}]",
            "100,000 brackets": b"[" * 100_000,
            "a line a row": jsonl(GOOD, [GOOD]),
        }.items()
    },
    **{
        f"rows.csv: {name}": ("rows.csv", content)
        for name, content in {
            "nothing": b"",
            "a header": b"question,answer\n",
            "an unclosed quote": b'question,answer\na,b\n"c,d\ne,f\ng,h\n',
            "an unclosed quote at the end": b'question,answer\na,b\nc,"d',
            "a quote inside": b'question,answer\na,"b"c\n',
            "more cells": b"question,answer\na,b\nc,d,e\n",
            "fewer cells": b"question,answer\na\n",
            "null characters": b"question,answer\na,\x00\n",
            "Latin-1": b"question,answer\ncaf\xe9,x\n",
            "semicolons": b"question;answer\na;b\n",
            "the same column twice": b"question,answer,answer\na,b,c\n",
            "a column without a name": b"question,answer,\na,b,c\n",
        }.items()
    },
    **{
        f"rows.parquet: {name}": ("rows.parquet", content)
        for name, content in {
            "nothing": b"",
            "text": b"question,answer\n",
            "only its magic": b"PAR1PAR1",
            **{f"cut to {share:.0%}": parquet(cut=share) for share in (0.1, 0.5, 0.9, 0.99)},
            **{f"damaged at byte {place}": parquet(damage=place) for place in range(4, 1800, 200)},
            "a huge footer": parquet()[:-8] + b"\xff\xff\xff\x7fPAR1",
        }.items()
    },
    **{
        f"rows.arrow: {name}": ("rows.arrow", content) for name, content in {"nothing": b"", "text": b"x" * 100}.items()
    },
    **{
        f"a file {name}": (name, jsonl(GOOD))
        for name in ("rows.txt", "rows", "rows.pkl", "rows.xlsx", "rows.jsonl.zip")
    },
}


# A number is written as text; each row has a format of its own; the rest no row is read from.
HARMLESS = {
    "rows.jsonl: a null character",
    "rows.jsonl: columns that change",
    *(f"rows.jsonl: {field} is {number}" for field in ("question", "answer") for number in (3, 1.5)),
    *(f"rows.jsonl: {field} is {number}" for field in ("instruction", "completion") for number in (3, 1.5)),
    "rows.csv: null characters",
    "rows.csv: a column without a name",
}


def special(path: Path, kind: str) -> str:
    """Make what no file is, and return its path."""
    makers = {
        "a pipe": lambda: os.mkfifo(path),
        "endless zeros": lambda: path.symlink_to("/dev/zero"),
        "a link to itself": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to(path.with_name("nothing")),
        "a folder of that name": path.mkdir,
        "not to be read": lambda: (path.write_text("x"), path.chmod(0)),
    }
    makers[kind]()
    return str(path)


KINDS = ("a pipe", "endless zeros", "a link to itself", "a link to nothing", "a folder of that name")


def test_broken_rows_and_files_are_refused_with_their_place(tiny_folder, tmp_path, capsys):
    found = {}
    for name in sampled(list(FILES), 60):
        file, content = FILES[name]
        path = tmp_path / file
        path.write_bytes(content)
        words = ["data", str(path), "--model", tiny_folder]
        found[name] = refusal(words, capsys, writes_to=tmp_path, is_harmless=name in HARMLESS)
        path.unlink()
    report("rows and data files", found)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_wherever_a_file_is_named(kind, train, rows, tiny_folder, tmp_path, capsys):
    def named(suffix: str) -> str:
        return special(tmp_path / f"special {len(list(tmp_path.iterdir()))}.{suffix}", kind)

    scored = ["score", rows, "--model", tiny_folder, "--out", str(tmp_path / "out" / "s")]
    commands = {
        **{
            f"data.{kind}": ["data", named(kind), "--model", tiny_folder]
            for kind in ("jsonl", "csv", "parquet", "json")
        },
        "--config": [*train, "--config", named("yaml")],
        "--chat_template_path": [*train, "--chat_template_path", named("jinja")],
        "--accelerate_config": [*train, "--accelerate_config", named("yaml")],
        "data of score": [word if word != rows else named("jsonl") for word in scored],
        "a study": ["study", named("yaml"), "--output_dir", str(tmp_path / "out" / "study")],
    }
    (tmp_path / "out").mkdir()
    found = {}
    for name, words in commands.items():
        found[name] = refusal(words, capsys, writes_to=tmp_path / "out")
    report(f"{kind} in place of a file", found)


OURS = {
    "study": ("cells/nll-s0/settings.json", "cells/nll-s0/cell.json", "driver.json", "cells/nll-s0/run/metrics.jsonl"),
    "score": ("progress.json", "scores.json", "shard-00000.parquet"),
    "eval": ("results.json", "settings.json", "samples/generated.jsonl"),
    "train": ("metrics.jsonl", "checkpoint-2/manifest.json", "run.json"),
}


@pytest.mark.parametrize("kind", ["a pipe", "endless zeros"])
def test_what_is_no_file_is_refused_in_a_folder_of_ours(kind, train, rows, tiny_folder, tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({**STUDY, "model_name_or_path": tiny_folder}))

    def commands(folder: str) -> dict[str, list[list[str]]]:
        written = [*train[: train.index("--output_dir")], "--output_dir", folder]
        return {
            "study": [["study", str(study), "--output_dir", folder, *flag] for flag in ((), ("--report_only",))],
            "score": [
                ["score", rows, "--model", tiny_folder, "--out", folder],
                [*train, "--reference_scores", folder],
                ["inspect", "--dataset_name", rows, "--model_name_or_path", tiny_folder, "--scores_dir", folder],
            ],
            "eval": [["eval", tiny_folder, "--tasks", "generated", "--output_dir", folder]],
            "train": [[*written, "--resume_from_checkpoint", "latest"], ["report", folder]],
        }

    found = {}
    for of, names in OURS.items():
        for number, name in enumerate(names):
            folder = tmp_path / "out" / f"{of} {number}"
            (folder / name).parent.mkdir(parents=True)
            special(folder / name, kind)
            for words in commands(str(folder))[of]:
                found[f"{words[0]}: {name} {words[-1]}"] = refusal(words, capsys, writes_to=tmp_path / "out")
    report(f"{kind} in a folder of ours", found)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "nothing": "",
    "a list": "- a\n",
    "a text": "text",
    "half of it": "cells: [",
    "tabs": "a:\n\t- b\n",
    "an alias bomb": BOMB,
    "an alias of itself": "a: &a [*a]\n",
    "merges of merges": "a: &a {x: 1}\n" + "".join(f"k{n}: &b{n} {{<<: [*a, *a]}}\n" for n in range(1)),
    "100,000 brackets": "a: " + "[" * 100_000,
    "5,000 digits": "seed: " + "9" * 5000,
    "a day that is not": "seed: 2026-99-99",
    "an object of Python": "seed: !!python/object/apply:os.system ['true']",
    "an unknown tag": "seed: !unknown 3",
    "a key twice": "seed: 1\nseed: 2\n",
    "a key that is a number": "1: 2\n",
    "a key that is a list": "[a]: 2\n",
    "a key that is nothing": "null: 2\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "a null character": "seed: \x00",
    "an unknown key": "sed: 1\n",
    "binary": "seed: !!binary aGVsbG8=\n",
    "an escape sequence": 'seed: "\\e[2J"\n',
    "a bidi control": "s\u202eeed: 1\n",
    "env that is no mapping": "env: 3\n",
}
STUDY = {"model_name_or_path": "absent", "dataset_name": "generated", "cells": [{"objective": "nll"}]}
STUDIES = {
    **{name: text for name, text in YAML.items() if name != "merges of merges"},  # several mistakes, a line each
    **{
        f"{key} is {value!r:.20}": yaml.safe_dump({**STUDY, key: value})
        for key in (*STUDY, "name", "generated", "train", "evaluate", "baseline", "comparisons", "estimate", "models")
        for value in (3, [], {}, "\x1b[2J", [3], {"a": 1}, None, "x" * 10_000, float("nan"))
        if (key, value) not in (("name", "\x1b[2J"), ("name", "x" * 10_000))
    },
    **{
        f"a cell called {name!r:.20}": yaml.safe_dump({**STUDY, "cells": [{"objective": "nll", "name": name}]})
        for name in ("../x", "/x", "..", "", "\x00", "a/b", "con\n", "x" * 300)
    },
    **{
        f"{rows!r} generated rows": yaml.safe_dump({**STUDY, "generated": {"rows": rows}})
        for rows in (0, -1, 99_999_999, 1e300, "x", 10**30, 49_999)
    },
    **{
        f"seed {seed!r}": yaml.safe_dump({**STUDY, "cells": [{"objective": "nll", "seed": seed}]})
        for seed in (-1, 1.5, "x", [], 10**30, None, True, [0, 0])
    },
}


@pytest.mark.parametrize("command", ["train", "study"])
def test_a_file_of_settings_that_is_none_is_refused(command, train, tmp_path, capsys):
    contents, found = YAML if command == "train" else STUDIES, {}
    (tmp_path / "out").mkdir()
    for name in sampled(list(contents), 40):
        file = tmp_path / "settings.yaml"
        file.write_text(contents[name], encoding="utf-8")
        words = [*train, "--config", str(file)] if command == "train" else ["study", str(file), "--dry-run"]
        if command == "study":
            words += ["--output_dir", str(tmp_path / "out" / "study")]
        found[name] = refusal(words, capsys, writes_to=tmp_path / "out")
    report(f"files of settings, {command}", found)


def test_a_quote_that_is_not_closed_swallows_no_row(tmp_path):
    from profit_sft.data.rows import load_rows
    from profit_sft.errors import DataError

    path = tmp_path / "rows.csv"
    path.write_text('question,answer\na,b\n"c,d\ne,f\n')
    with pytest.raises(DataError, match=r"rows\.csv"):
        list(load_rows(str(path)))
    path.write_text('question,answer\na,"b\nc"\n"d ""e""",f\n')
    assert [row.values["answer"] for row in load_rows(str(path))] == ["b\nc", "f"]
    assert csv.field_size_limit() > 10**6
