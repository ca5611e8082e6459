"""Where rows come from, what they know of their place, and what is said of a source that cannot be read."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from profit_sft.data import load_rows
from profit_sft.errors import DataError

ROWS = [{"question": f"What is {index}?", "answer": f'It is "{index}",\nno more: ü.'} for index in range(3)]


def write_as(suffix, path):
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif suffix == "json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, ["question", "answer"])
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_every_file_type_gives_the_same_numbered_rows_each_time_they_are_read(tmp_path, suffix):
    path = write_as(suffix, tmp_path / f"rows.{suffix}")
    rows = load_rows(str(path))
    assert len(rows) == 3
    for _ in range(2):
        assert [row.values for row in rows] == ROWS
    assert [(row.file, row.number, row.problem) for row in rows] == [(str(path), number, None) for number in (1, 2, 3)]


def test_a_folder_is_read_in_order_of_its_file_names(tmp_path):
    for suffix in ("parquet", "csv", "jsonl"):
        write_as(suffix, tmp_path / f"rows.{suffix}")
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".rows.json").write_text("not read")
    rows = load_rows(str(tmp_path))
    assert len(rows) == 9
    assert [row.file.rsplit(".")[-1] for row in rows] == ["csv"] * 3 + ["jsonl"] * 3 + ["parquet"] * 3
    assert [row.number for row in rows] == [1, 2, 3] * 3


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (4, 4), (99, 6), (None, 6)])
def test_limit_bounds_length_and_rows_across_files(tmp_path, limit, count):
    for suffix in ("csv", "jsonl"):
        write_as(suffix, tmp_path / f"rows.{suffix}")
    rows = load_rows(str(tmp_path), limit=limit)
    assert len(rows) == len(list(rows)) == count


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


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, suffix):
    path = write_as(suffix, tmp_path / f"rows.{suffix}")
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
        r"ends in '.txt', which is not read. Use one of .jsonl, .json, .parquet, .csv",
    ),
    "empty jsonl": ("rows.jsonl", b"", "rows.jsonl' has no rows. Name a file or split with at least one"),
    "header alone": ("rows.csv", b"question,answer\n", "has no rows"),
    "empty list": ("rows.json", b"[]", "has no rows"),
    "broken json": ("rows.json", b"{", "is not JSON .* at line 1.*A file with one object a line is named .jsonl"),
    "jsonl in json": ("rows.json", b'{"a": 1}\n{"a": 2}\n', "A file with one object a line is named .jsonl"),
    "json number": ("rows.json", b"3", "must hold a list of rows, or an object with one list in it"),
    "deep json": ("rows.json", b"[" * 100_000, "is JSON nested too deeply"),
    "latin json": ("rows.json", b'[{"a": "\xff"}]', r"is not UTF-8 \(byte 9\). Convert it first"),
    "latin csv": ("rows.csv", b"question\n\xff\n", "is not UTF-8"),
    "no parquet": ("rows.parquet", b"x", "is not a Parquet file .* Write it again, or name another"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_the_fix(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_rows(str(tmp_path / name))


@pytest.mark.parametrize("source", ["absent.jsonl", "rows.txt", "./absent", "/no/absent", "~/absent", "a/b/c", r"C:\a"])
def test_what_looks_like_a_path_is_not_asked_of_the_hub(source):
    with pytest.raises(
        DataError, match=r"does not exist. Check the path: a .jsonl, .json, .parquet, .csv file or a fol"
    ):
        load_rows(source)


@pytest.mark.parametrize("source", ["nobody/nothing-of-this-name", "nobody/data-v1.5", "nothing_of_this_name"])
def test_a_hub_name_that_cannot_be_reached_is_refused_with_the_fix(source):
    with pytest.raises(
        DataError, match="no local file, and could not be loaded from the hub, split 'test' .*--dataset_co"
    ):
        load_rows(source, split="test")


def test_a_folder_without_data_files_is_refused_with_the_fix(tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(
        DataError, match=r"holds no .jsonl, .json, .parquet, .csv file. Folders inside it are not searched"
    ):
        load_rows(str(tmp_path))


def test_a_folder_of_save_to_disk_is_refused_with_the_fix(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="was written by save_to_disk. Write its split with to_parquet"):
        load_rows(str(tmp_path / "saved"))
