"""Where rows come from, what they know of their place, and what is said of a source that cannot be read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from profit_sft.data.row import chained, first, mapped, selected
from profit_sft.data.rows import evaluation_split, has_splits, load_rows
from profit_sft.data.settings import DataSettings
from profit_sft.data.sources import open_source
from profit_sft.errors import DataError

ROWS = [{"question": f"What is {index}?", "answer": f'It is "{index}",\nno more: ü.'} for index in range(3)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def separated(rows, delimiter):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["question", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def arrow(rows, writer):
    table = pyarrow.Table.from_pylist(rows)
    buffer = io.BytesIO()
    with writer(buffer, table.schema) as file:
        file.write_table(table)
    return buffer.getvalue()


def parquet(rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


KINDS = {
    "rows.jsonl": jsonl,
    "rows.ndjson": jsonl,
    "lines.json": jsonl,
    "list.json": lambda rows: json.dumps(rows).encode(),
    "object.json": lambda rows: json.dumps({"version": 1, "data": rows}, indent=2).encode(),
    "rows.JSONL": jsonl,
    "rows.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "rows.ndjson.xz": lambda rows: lzma.compress(jsonl(rows)),
    "rows.json.bz2": lambda rows: bz2.compress(jsonl(rows)),
    "rows.csv": lambda rows: separated(rows, ","),
    "rows.csv.gz": lambda rows: gzip.compress(separated(rows, ",")),
    "rows.tsv": lambda rows: separated(rows, "\t"),
    "rows.parquet": parquet,
    "stream.arrow": lambda rows: arrow(rows, pyarrow.ipc.new_stream),
    "file.arrow": lambda rows: arrow(rows, pyarrow.ipc.new_file),
}


def write_as(name, folder, rows=ROWS):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(KINDS[next(kind for kind in KINDS if kind.endswith(name[name.index(".") :]))](rows))
    return path


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_numbered_rows_from_any_row_on(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(KINDS[name](ROWS))
    rows = load_rows(str(path))
    assert len(rows) == 3
    for start in (0, 1, 3, 0):
        found = list(rows.read(start))
        assert [row.values for row in found] == ROWS[start:]
        assert [(row.file, row.number, row.problem) for row in found] == [
            (str(path), number, None) for number in range(start + 1, 4)
        ]


@pytest.mark.parametrize("name", KINDS)
def test_a_reader_that_is_closed_holds_no_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(KINDS[name](ROWS))
    rows = load_rows(str(path))
    for source in (
        rows,
        first(rows, 3),
        mapped(rows, lambda row: row, "as it is"),
        selected(rows, [0, 2], "two"),
        chained("twice", [rows, rows]),
    ):
        reader = source.read(0)
        next(reader)
        reader.close()
        assert str(path) not in {file.path for file in psutil.Process().open_files()}


def test_every_row_of_a_large_table_is_numbered(tmp_path):
    many = [{"question": str(index), "answer": "x"} for index in range(1000)]
    for name in ("rows.parquet", "file.arrow"):
        (tmp_path / name).write_bytes(KINDS[name](many))
        assert [row.number for row in load_rows(str(tmp_path / name))] == list(range(1, 1001))


def test_what_a_source_is_known_by_changes_with_the_file(tmp_path):
    path = write_as("rows.jsonl", tmp_path)
    before = load_rows(str(path)).identity
    assert load_rows(str(path)).identity == before
    path.write_bytes(jsonl([*ROWS, *ROWS]))
    assert load_rows(str(path)).identity != before
    assert first(load_rows(str(path)), 2).identity != load_rows(str(path)).identity


FOLDERS = {  # files, the split asked for, the rows expected; each file's rows are named after it
    "no names": (["a.jsonl", "b.csv", "c.parquet"], "train", ["a.jsonl", "b.csv", "c.parquet"]),
    "train and test": (["test.jsonl", "train.jsonl"], "train", ["train.jsonl"]),
    "the other": (["test.jsonl", "train.jsonl"], "test", ["test.jsonl"]),
    "validation": (["dev.jsonl", "train.jsonl"], "validation", ["dev.jsonl"]),
    "parts of names": (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], "train", ["gsm8k_train.jsonl"]),
    "shards": (
        ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        "train",
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
    ),
    "folders": (["test/a.jsonl", "train/a.jsonl", "train/b.jsonl"], "train", ["train/a.jsonl", "train/b.jsonl"]),
    "both": (["test.jsonl", "train.jsonl"], "train+test", ["train.jsonl", "test.jsonl"]),
    "a part": (["test.jsonl", "train.jsonl"], "train[1:2]", ["train.jsonl"]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_has_the_splits_that_datasets_sees_in_it(tmp_path, case):
    files, split, expected = FOLDERS[case]
    for name in files:
        write_as(name, tmp_path, [{"question": name, "answer": str(number)} for number in range(3)])
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".rows.json").write_text("not read")
    rows = list(load_rows(str(tmp_path), split=split))
    numbers = [2] if "[" in split else [1, 2, 3]
    assert [(row.values["question"], row.file, row.number) for row in rows] == [
        (name, str(tmp_path / name), number) for name in expected for number in numbers
    ]


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [(None, "train", "a.jsonl"), ("other", "train", "b.jsonl"), ("other", "eval", "a.jsonl")],
)
def test_a_readme_names_configurations_and_their_files(tmp_path, name, split, expected):
    for file in ("a.jsonl", "b.jsonl"):
        write_as(file, tmp_path, [{"question": file, "answer": "x"}])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  default: true\n  data_files: a.jsonl\n- config_name: other\n"
        "  data_files:\n  - split: train\n    path: b.jsonl\n  - split: eval\n    path: a.jsonl\n---\n"
    )
    assert [row.values["question"] for row in load_rows(str(tmp_path), name=name, split=split)] == [expected]
    with pytest.raises(DataError, match="has the configurations one, other, and none is 'third'. Name one with --data"):
        load_rows(str(tmp_path), name="third")


SPLITS = ("train", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_what_save_to_disk_wrote_is_read(tmp_path, split):
    parts = {
        name: Dataset.from_list([{"text": f"{name} {number}"} for number in range(3)]) for name in ("train", "test")
    }
    DatasetDict(parts).save_to_disk(tmp_path / "all")
    parts[split].save_to_disk(tmp_path / "one")
    for folder, asked in (("all", split), ("one", "train")):
        rows = load_rows(str(tmp_path / folder), split=asked)
        assert [(row.values["text"], row.number) for row in rows] == [(f"{split} {n}", n + 1) for n in range(3)]
        assert [row.number for row in rows.read(2)] == [3]
        assert [row.number for row in load_rows(str(tmp_path / folder), split=f"{asked}[1:]")] == [2, 3]
    with pytest.raises(DataError, match="has no split 'dev'; it has train, test. Name one of them, or a file"):
        load_rows(str(tmp_path / "all"), split="dev")


def test_a_data_set_saved_alone_is_one_split_as_a_file_is(tmp_path):
    Dataset.from_list([{"text": "one"}]).save_to_disk(tmp_path)
    assert not has_splits(str(tmp_path))  # or a run would be evaluated on what it trains on
    assert len(load_rows(str(tmp_path), split=evaluation_split(str(tmp_path), "test"))) == 1
    with pytest.raises(DataError, match="has no split 'test'; it has train"):
        load_rows(str(tmp_path), split="test")
    with pytest.raises(DataError, match=r"save_to_disk wrote, which has no configuration 'main'\. Leave it out"):
        load_rows(str(tmp_path), name="main")
    with pytest.raises(DataError, match=r"save_to_disk wrote, which has no data_files 'a.jsonl'\. Leave it out"):
        load_rows(str(tmp_path), data_files="a.jsonl")


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("{}", {"data_files": "*json*"}),
        ("{}", {"data_files": {"train": ["a.jsonl", "b.ndjson"]}}),
        ("json", {"data_files": ["{}/a.jsonl", "{}/b.ndjson"]}),
        ("{}/..", {"data_dir": "inner", "data_files": ["a.jsonl", "b.ndjson"]}),
    ],
)
def test_files_may_be_named_as_datasets_takes_them(tmp_path, source, options):
    folder = tmp_path / "inner"
    for name in ("a.jsonl", "b.ndjson", "c.csv"):
        write_as(name, folder, [{"question": name, "answer": "x"}])
    options = {
        name: [file.format(folder) for file in value] if isinstance(value, list) else value
        for name, value in options.items()
    }
    rows = load_rows(source.format(folder), **options)
    assert [row.values["question"] for row in rows] == ["a.jsonl", "b.ndjson"]
    with pytest.raises(DataError, match=r"data_files 'no\*': no data file is there"):
        load_rows(str(folder), data_files="no*")


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (4, 4), (99, 6), (None, 6)])
def test_limit_bounds_length_and_rows_across_files(tmp_path, limit, count):
    for name in ("rows.csv", "rows.jsonl"):
        write_as(name, tmp_path)
    rows = open_source(DataSettings(dataset_name=str(tmp_path), max_samples=limit))
    assert len(rows) == len(list(rows)) == count
    for start in range(count):
        assert len(list(rows.read(start))) == count - start


def test_a_jsonl_row_is_numbered_by_its_line_and_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n   \n{"a": 2}\n')
    rows = load_rows(str(path))
    assert len(rows) == 2
    assert [row.number for row in rows] == [1, 4]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": 1', r"line 2 is not JSON \(Expecting ',' delimiter at column 8\)"),
        (b'{"a": "\xff"}', r"line 2 is not UTF-8 \(byte 8 of it\)"),
        (b"[" * 100_000, "line 2 is JSON nested too deeply"),
        (b"[1, 2]", "is a list, not an object with named fields"),
    ],
)
def test_a_line_that_cannot_be_read_is_one_bad_row_among_good_ones(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    good, bad, after = load_rows(str(path))
    assert (good.values, after.values, bad.number) == ({"a": 1}, {"a": 3}, 2)
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 2: {problem}"):
        raise bad.error(bad.problem)


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "lines.json", "rows.csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(KINDS[name](ROWS))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row.values for row in load_rows(str(path))] == ROWS


def test_csv_answers_may_be_long_and_numbers_stay_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"question,answer\nwhat,{'x' * 200_000}\nhow many,072\n")
    long, number = load_rows(str(path))
    assert len(long.values["answer"]) == 200_000
    assert number.values["answer"] == "072"


@pytest.mark.parametrize("record", ["x", "x,y,z"])
def test_a_csv_record_of_another_width_is_a_bad_row(tmp_path, record):
    path = tmp_path / "rows.csv"
    path.write_text(f"question,answer\na,b\n{record}\n")
    assert [row.problem for row in load_rows(str(path))] == [None, "has another number of cells than the header."]


BAD_FILES = {
    "unknown suffix": (
        "rows.txt",
        b"x",
        r"ends in '.txt', which is not read. Use one of .jsonl, .ndjson, .json, .parquet, .arrow, .csv, .tsv",
    ),
    "empty jsonl": ("rows.jsonl", b"", "rows.jsonl' has no rows. Name a file or split with at least one"),
    "header alone": ("rows.csv", b"question,answer\n", "has no rows"),
    "empty list": ("rows.json", b"[]", "has no rows"),
    "broken json": ("rows.json", b"{", "is not JSON .* at line 1.*, nor has it one object a line. Mend that line"),
    "json number": ("rows.json", b"3", "must hold a list of rows, an object with one list in it, or one object a line"),
    "two columns of a name": (
        "rows.csv",
        b"a,b,a\n1,2,3\n",
        "two columns named 'a', of which one would be lost. Rename",
    ),
    "torn gz": ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "is not a whole file .*fetch it again"),
    "no gz": ("rows.jsonl.gz", b'{"a": 1}\n', "is not a whole file"),
    "no arrow": ("rows.arrow", b"x" * 99, "is not an Arrow file"),
    "unknown gz": ("rows.gz", b"x", "ends in '.gz', which is not read"),
    "deep json": ("rows.json", b"[" * 100_000, "is JSON nested too deeply"),
    "latin json": ("rows.json", b'[{"a": "\xff"}]', r"is not UTF-8 \(byte 9\). Convert it first"),
    "latin csv": ("rows.csv", b"question\n\xff\n", "is not UTF-8"),
    "no parquet": ("rows.parquet", b"x", "is not a Parquet file .* Write or fetch it again, or name another"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_the_fix(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_rows(str(tmp_path / name))


@pytest.mark.parametrize("source", ["absent.jsonl", "rows.txt", "./absent", "/no/absent", "~/absent", "a/b/c", r"C:\a"])
def test_what_looks_like_a_path_is_not_asked_of_the_hub(source):
    with pytest.raises(DataError, match=r"does not exist. Check the path: a .jsonl, .ndjson, .json, .*or a folder"):
        load_rows(source)


def test_a_file_of_nearly_that_name_is_asked_about(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match=r"trian.jsonl' does not exist. Did you mean '.*/train.jsonl'\? Check the path"):
        load_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"rows.jsonl' does not exist. Check the path"):
        load_rows(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("source", ["nobody/nothing-of-this-name", "nobody/data-v1.5", "nothing_of_this_name"])
def test_a_hub_name_that_cannot_be_reached_is_refused_with_the_fix(source):
    with pytest.raises(
        DataError, match="no local file, and could not be loaded from the hub, split 'test' .*--dataset_co"
    ):
        load_rows(source, split="test")


def test_a_folder_without_data_files_is_refused_with_the_fix(tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(DataError, match=r"no data file is there .*Name a .jsonl, .ndjson, .*, or another folder"):
        load_rows(str(tmp_path))


def test_other_files_of_a_folder_are_left_to_datasets(tmp_path):
    (tmp_path / "train.txt").write_text("one\ntwo\n")
    rows = load_rows(str(tmp_path))
    assert [(row.values, row.number) for row in rows] == [({"text": "one"}, 1), ({"text": "two"}, 2)]


@pytest.mark.parametrize("split", ["validation", "tset", "train[", "train[:3", ""])
def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path, split):
    for name in ("train.jsonl", "test.jsonl"):
        write_as(name, tmp_path)
    with pytest.raises(DataError, match=rf"has no split '{re.escape(split)}'; it has train, test. Name one of them"):
        load_rows(str(tmp_path), split=split)


CHAT = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Four."}]}


@pytest.mark.parametrize(
    ("content", "rows"),
    [(CHAT, [CHAT]), ({"conversations": [CHAT, CHAT]}, [CHAT, CHAT]), ({"data": [CHAT]}, [CHAT])],
    ids=["a row", "rows called as chats are", "rows"],
)
def test_an_object_alone_is_a_row_or_holds_them(tmp_path, content, rows):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    assert [row.values for row in load_rows(str(path))] == rows


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_two_columns_of_a_name_are_refused_in_tables_too(tmp_path, kind):
    table = pyarrow.table([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["text", "text"])
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(DataError, match="has two columns named 'text', of which one would be lost. Rename one"):
        list(load_rows(str(path)))


@pytest.mark.parametrize(
    "line", ['{"question": "a", "question": "b"}', '{"messages": [{"role": "user", "role": "x"}]}']
)
def test_a_key_twice_in_one_object_is_a_problem_of_its_row(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' + line + "\n")
    fine, twice = load_rows(str(tmp_path / "rows.jsonl"))
    assert fine.problem is None
    assert re.match(r"has the key '(question|role)' twice in one object", twice.problem)
    (tmp_path / "rows.json").write_text(f'[{{"a": 1}}, {line}]')
    with pytest.raises(DataError, match=r"rows.json' has the key '(question|role)' twice in one object.*Mend that obj"):
        list(load_rows(str(tmp_path / "rows.json")))
