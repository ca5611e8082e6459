"""From a source to a data set and its report: what is used, cut, skipped, counted and fingerprinted."""

import csv
import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
import psutil
import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from forks import run_ranks
from profit_sft.data.prepare import prepare_dataset, stream_dataset, tokenizer_fingerprint
from profit_sft.data.settings import DataSettings
from profit_sft.data.sources import mixture_parts
from profit_sft.data.tokenize import IGNORE_INDEX, TOKEN_KINDS
from profit_sft.errors import DataError
from tiny import CHATML, chat_tokenizer

USER, ASSISTANT = {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "It is four."}
CHAT = {"messages": [USER, ASSISTANT]}
FORMATS = {
    "messages": CHAT,
    "sharegpt": {
        "conversations": [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "It is four."}]
    },
    "alpaca": {"instruction": "What is 2+2?", "input": "", "output": "It is four."},
    "question_answer": {"question": "What is 2+2?", "answer": "It is four."},
    "prompt_completion": {"prompt": [USER], "completion": [ASSISTANT]},
}


@pytest.mark.parametrize("dataset_format", FORMATS)
def test_every_chat_format_gives_the_same_tokens_and_labels(tokenizer, write, prepare, trained_text, dataset_format):
    found = prepare(tokenizer, write(FORMATS[dataset_format]))
    expected = prepare(tokenizer, write(CHAT))
    assert found.report.fingerprint == expected.report.fingerprint
    assert found.dataset["input_ids"] == expected.dataset["input_ids"]
    assert found.report.dataset_format == dataset_format
    assert trained_text(tokenizer, found.dataset[0]["labels"]) == "It is four.<|im_end|>"


def test_the_data_set_holds_ids_labels_and_the_row_they_came_from(tokenizer, write, prepare):
    found = prepare(tokenizer, write(CHAT, {"messages": [USER]}, CHAT), skip_bad_rows=True)
    assert found.dataset.column_names == ["input_ids", "labels", "row"]
    assert found.dataset["row"][:] == [1, 3]
    assert {type(value) for name in ("input_ids", "labels") for value in found.dataset[0][name]} == {int}


@pytest.mark.parametrize("processes", [1, 2, 9])
def test_rows_of_several_blocks_and_processes_stay_in_order(tokenizer, write, prepare, monkeypatch, processes):
    monkeypatch.setattr("profit_sft.data.prepare._BLOCK_ROWS", 3)
    rows = [{"question": "x" * (index + 1), "answer": "y"} for index in range(7)]
    found = prepare(tokenizer, write(*rows), dataset_num_proc=processes)
    assert found.dataset["row"][:] == list(range(1, 8))
    assert [len(ids) for ids in found.dataset["input_ids"]] == sorted(len(ids) for ids in found.dataset["input_ids"])
    assert found.report.total_tokens == sum(map(len, found.dataset["input_ids"]))


def test_what_was_prepared_is_found_again_and_made_anew_when_anything_about_it_changes(tokenizer, write, prepare):
    source = write(CHAT, {"messages": [USER]}, CHAT)
    options = {"skip_bad_rows": True}

    def files(**more):
        return [file["filename"] for file in prepare(tokenizer, source, **options, **more).dataset.cache_files]

    first, made = prepare(tokenizer, source, **options), files()
    assert prepare(tokenizer, source, **options).report == first.report
    assert files() == files(dataset_num_proc=2) == made
    stamps = [os.stat(file).st_mtime_ns for file in made]
    assert [os.stat(file).st_mtime_ns for file in files()] == stamps
    others = [files(max_length=40), files(max_samples=1), files(system_prompt="Be brief.")]
    tokenizer.chat_template += "{# another #}"
    others.append(files())
    write(CHAT, CHAT, CHAT)
    others.append(files())
    assert len({*made, *(file for found in others for file in found)}) == 6


@pytest.mark.parametrize("package", ["transformers", "tokenizers", "jinja2", "trl"])
def test_with_another_version_of_what_renders_and_tokenizes_rows_are_prepared_anew(
    tokenizer, write, prepare, monkeypatch, package
):
    source = write(CHAT)
    made = prepare(tokenizer, source).dataset.cache_files
    monkeypatch.setattr("profit_sft.files.version", lambda name: "0.1" if name == package else version(name))
    assert prepare(tokenizer, source).dataset.cache_files != made


def test_a_preparation_that_failed_or_was_broken_off_leaves_nothing_to_be_found(tokenizer, write, prepare):
    source = write(CHAT, {"messages": [USER]})
    with pytest.raises(DataError, match="row 2"):
        prepare(tokenizer, source)
    folders = Path(datasets.config.HF_DATASETS_CACHE, "profit_sft")
    before = {folder for folder in folders.iterdir() if folder.is_dir()}
    made = prepare(tokenizer, source, skip_bad_rows=True)
    (folder,) = {folder for folder in folders.iterdir() if folder.is_dir()} - before
    (folder / "report.json").unlink()
    next(folder.glob("*.arrow")).write_bytes(b"torn")
    again = prepare(tokenizer, source, skip_bad_rows=True)
    assert again.report == made.report
    assert again.dataset[0]["input_ids"] == prepare(tokenizer, write(CHAT)).dataset[0]["input_ids"]


def test_of_a_preparation_that_failed_no_file_is_held_while_the_error_is(tokenizer, write, prepare):
    source = write(CHAT, {"messages": [USER]}, CHAT)
    for settings in ({}, {"max_samples": 3}):
        with pytest.raises(DataError, match="row 2") as told:
            prepare(tokenizer, source, **settings)
        assert source not in {file.path for file in psutil.Process().open_files()}, told


PREPARE = """
import os, time
from profit_sft.data import blocks
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from tiny import chat_tokenizer
original = blocks.label_row
def counted(row, *arguments, **options):
    with open(told, "a") as lines:
        lines.write(f"{os.getpid()}\\n")
    time.sleep(0.05)
    return original(row, *arguments, **options)
blocks.label_row = counted
print(prepare_dataset(DataSettings(dataset_name=source), chat_tokenizer()).report.fingerprint)
"""


def test_of_processes_that_ask_at_once_one_prepares_and_all_get_it(tokenizer, write, prepare, tmp_path):
    source, told = write(*[CHAT] * 5, name="ranks.jsonl"), tmp_path / "told"
    statuses, printed = run_ranks(exec, PREPARE, {"source": source, "told": str(told)}, folder=tmp_path / "printed")
    assert statuses == [0, 0], printed
    assert printed.split() == [prepare(tokenizer, source).report.fingerprint] * 2
    assert len(told.read_text().splitlines()) == 5


@pytest.mark.parametrize("rows", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_ten_million_tokens_take_less_than_200_mib(tmp_path, rows):
    path = tmp_path / "large.jsonl"
    with path.open("w") as lines:
        for _ in range(rows):
            lines.write(json.dumps({"prompt": "w2", "completion": "w3 w4 " * 2500}) + "\n")
    code = f"""
import resource, sys
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from tokenizers.pre_tokenizers import WhitespaceSplit
from tiny import tiny_tokenizer
def prepared(name):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    return prepare_dataset(DataSettings(dataset_name=name, max_length=None), tokenizer)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
prepared({str(tmp_path / "small.jsonl")!r})
before = peak()
data = prepared({str(path)!r})
print(data.report.total_tokens, peak() - before)
"""
    (tmp_path / "small.jsonl").write_text(json.dumps({"prompt": "w2", "completion": "w3"}) + "\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    tokens, peak_mib = map(int, done.stdout.split())
    assert tokens >= 5000 * rows
    assert peak_mib < (200 if rows > 1000 else 100), (tokens, peak_mib)


def test_long_rows_are_left_out_and_counted_where_that_is_asked_for(tokenizer, write, prepare):
    long = {"messages": [USER, {**ASSISTANT, "content": "two " * 50}]}
    source = write(CHAT, long, CHAT)
    length = prepare(tokenizer, write(CHAT, name="one.jsonl")).report.longest
    report = prepare(tokenizer, source, max_length=length, drop_long_rows=True).report
    assert (report.rows_used, report.rows_too_long, report.rows_truncated, report.rows_skipped) == (2, 1, 0, 0)
    with pytest.raises(DataError, match=rf"none of its 3 rows .*All are longer than max_length={length - 1}"):
        prepare(tokenizer, source, max_length=length - 1, drop_long_rows=True)


@pytest.mark.parametrize("skip", [False, True])
def test_streamed_rows_are_the_prepared_ones(tokenizer, write, prepare, skip):
    source = write(CHAT, *([{"messages": [USER]}] if skip else []), FORMATS["alpaca"])
    settings = DataSettings(dataset_name=source, max_length=45, skip_bad_rows=skip)
    streamed = stream_dataset(settings, tokenizer)
    prepared = prepare(tokenizer, source, max_length=45, skip_bad_rows=skip).dataset
    for _ in range(2):
        assert [dict(row) for row in streamed.dataset] == list(prepared.remove_columns("row"))
    with pytest.raises(DataError, match="row 1"):
        stream_dataset(DataSettings(dataset_name=write({"messages": [USER]})), tokenizer)


def test_settings_reach_the_rows(tokenizer, write, prepare, trained_text):
    source = write({"problem": "2+2?", "solution": "4"}, {"problem": "3+3?", "solution": "6"})
    settings = {"prompt_column": "problem", "response_column": "solution", "system_prompt": "Given."}
    found = prepare(tokenizer, source, max_samples=1, **settings)
    assert (found.report.rows_read, len(found.dataset)) == (1, 1)
    assert tokenizer.decode(found.dataset[0]["input_ids"]).startswith("<|im_start|>system\nGiven.<|im_end|>")
    assert trained_text(tokenizer, found.dataset[0]["labels"]) == "4<|im_end|>"


TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Four."}]
BESIDE_TEXT = {  # columns beside one that is named as text, and whether that is read: as by `trl sft`
    "alpaca": ({"instruction": "2+2?", "input": "", "output": "Four."}, True),
    "instruction and response": ({"instruction": "2+2?", "response": "Four."}, True),
    "question and answer": ({"question": "2+2?", "answer": "Four."}, True),
    "problem and solution": ({"problem": "2+2?", "solution": "Four.", "text": "Other."}, True),
    "messages": ({"messages": TURNS}, False),
    "prompt and completion": ({"prompt": "2+2?", "completion": "Four."}, False),
}


@pytest.mark.parametrize("case", BESIDE_TEXT)
def test_a_column_that_is_named_as_text_is_read_where_trl_would_read_it(tokenizer, write, prepare, case):
    columns, is_text = BESIDE_TEXT[case]
    source = write({**columns, "body": "All of this."})
    for field in ("body", "text"):  # the second is no name that anyone gave
        prepared = prepare(tokenizer, source, dataset_text_field=field)
        whole = tokenizer.decode(prepared.dataset["input_ids"][0]) == "All of this.<|im_end|>"
        assert whole == (is_text and field == "body"), (field, prepared.report.notes)
        if whole:
            assert {f"column '{name}' is not used" for name in columns if columns[name] and name != "text"} <= {
                *prepared.report.notes
            }


def test_rows_of_a_mixture_without_the_column_that_is_named_as_text_are_read_as_they_are(tokenizer, write, prepare):
    parts = (
        write({"question": "2+2?", "answer": "Four.", "text": "Other."}, name="a.jsonl"),
        write({"body": "All of this."}, name="b.jsonl"),
    )
    mixture = mixture_parts(parts)
    found = prepare(tokenizer, "mixture", datasets=mixture, dataset_text_field="body").dataset["input_ids"]
    chat, text = map(tokenizer.decode, found)
    assert "assistant\nFour." in chat
    assert text == "All of this.<|im_end|>"


MERGED = [  # rows of several tables in one: each has its own columns, and nothing in those of the others
    {"messages": json.dumps(TURNS)},
    {"question": "2+2?", "answer": "Four."},
    {"instruction": "2+2?", "output": "Four.", "weight": 0.5},
    {"prompt": "2+2?", "completion": "Four."},
    {"text": "Four."},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet", "jsonl", "saved"])
def test_rows_of_merged_tables_are_read_alike_from_every_kind_of_file(
    tokenizer, tmp_path, write, prepare, trained_text, kind
):
    path, names = tmp_path / f"merged.{kind}", dict.fromkeys(name for row in MERGED for name in row)
    rows = [dict.fromkeys(names) | row for row in MERGED]
    if kind == "jsonl":
        write(*rows, name=path.name)
    elif kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        with (gzip.open if kind.endswith("gz") else open)(path, "wt", newline="") as file:
            table = csv.DictWriter(file, names, delimiter="\t" if kind == "tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    found = prepare(tokenizer, path).dataset
    expected = prepare(tokenizer, write(*MERGED)).dataset
    assert [trained_text(tokenizer, labels) for labels in found["labels"]] == ["Four.<|im_end|>"] * len(MERGED)
    for column in ("input_ids", "labels", "token_weights"):
        assert list(found[column]) == list(expected[column])


PART = {"type": "text", "text": "Four."}
CALL = {"function": {"name": "add", "arguments": {"a": 2}}}
CALLING = {"role": "assistant", "content": "Four.", "tool_calls": [CALL]}
MIXED = {  # rows that `datasets` writes as JSON text, in whole or in part, as their values are of several kinds
    "text and parts": [TURNS, [TURNS[0], {**TURNS[1], "content": [PART]}]],
    "text and numbers": [TURNS, [TURNS[0], {**TURNS[1], "content": 4}]],
    "text that is JSON": [TURNS, [{**TURNS[0], "content": [PART]}, {**TURNS[1], "content": '{"four": 4}'}]],
    "text with quotes": [
        [TURNS[0], {**TURNS[1], "content": 'Say "four".\n'}],
        [{**TURNS[0], "content": [PART]}, TURNS[1]],
    ],
    "arguments": [[TURNS[0], CALLING], [TURNS[0], json.loads(json.dumps(CALLING).replace("2", '"two"'))]],
}


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets has no such columns")
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("case", MIXED)
def test_values_of_mixed_kinds_that_datasets_wrote_as_json_are_what_they_were(tokenizer, tmp_path, prepare, case, kind):
    tokenizer.chat_template = CHATML.replace(
        "<|im_end|>", "{{ message.tool_calls[0].function if message.tool_calls }}<|im_end|>"
    )
    rows = [{"messages": chat, "note": index} for index, chat in enumerate(MIXED[case])]
    source = tmp_path / "train.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert "Json(" in repr(table.features)
    if kind == "parquet":
        path = tmp_path / "rows.parquet"
        table.to_parquet(path)
    else:
        table.save_to_disk(tmp_path / "saved")
        (path,) = (tmp_path / "saved").glob("*.arrow")
    found, expected = (prepare(tokenizer, place).dataset for place in (path, source))
    assert [*map(tokenizer.decode, found["input_ids"])] == [*map(tokenizer.decode, expected["input_ids"])]
    assert list(found["labels"]) == list(expected["labels"])


def test_train_on_last_reaches_the_labels(tokenizer, write, prepare, trained_text):
    again = {"role": "assistant", "content": "Still four."}
    found = prepare(tokenizer, write({"messages": [USER, ASSISTANT, USER, again]}), train_on="last")
    assert trained_text(tokenizer, found.dataset[0]["labels"]) == "Still four.<|im_end|>"


def test_token_kinds_are_a_column_once_one_row_has_spans_and_are_cut_with_it(tokenizer, write, prepare):
    marked = {**CHAT, "answer_spans": [{"start": 0, "end": 5, "kind": "core"}]}
    assert "token_kinds" not in prepare(tokenizer, write(CHAT, CHAT)).dataset.column_names
    length = prepare(tokenizer, write(CHAT)).report.longest - 4
    plain, kinds = prepare(tokenizer, write(CHAT, marked), max_length=length).dataset["token_kinds"]
    assert set(plain) == {TOKEN_KINDS["none"]}
    assert TOKEN_KINDS["core"] in kinds
    assert len(plain) == len(kinds) == length


def test_truncated_rows_are_counted_and_the_end_is_lost(tokenizer, write, prepare):
    source = write(CHAT)
    whole = prepare(tokenizer, source)
    length = whole.report.longest
    cut = prepare(tokenizer, source, max_length=length - 4)
    assert cut.dataset[0]["input_ids"] == whole.dataset[0]["input_ids"][: length - 4]
    assert cut.dataset[0]["labels"] == whole.dataset[0]["labels"][: length - 4]
    assert (whole.report.rows_truncated, cut.report.rows_truncated) == (0, 1)
    assert prepare(tokenizer, source, max_length=length).report.rows_truncated == 0
    assert prepare(tokenizer, source, max_length=None).report == whole.report


def test_a_row_that_truncation_leaves_without_labels_is_refused(tokenizer, write, prepare):
    source = write(CHAT, {"messages": [{**USER, "content": "x" * 99}, ASSISTANT]})
    with pytest.raises(
        DataError, match=r"row 2: its \d+ tokens are cut to max_length=60, before the first answer token"
    ):
        prepare(tokenizer, source, max_length=60)
    report = prepare(tokenizer, source, max_length=60, skip_bad_rows=True).report
    assert (report.rows_used, report.rows_skipped, report.rows_truncated) == (1, 1, 0)
    assert "Raise --max_length or drop the row" in report.skipped[0].reason


@pytest.mark.parametrize("extra", [0, 1])
def test_a_row_is_used_from_its_first_label_on(tokenizer, write, prepare, extra):
    source = write(CHAT)
    labels = prepare(tokenizer, source).dataset[0]["labels"]
    before = next(index for index, label in enumerate(labels) if label != IGNORE_INDEX)
    if extra == 0:
        with pytest.raises(DataError, match=rf"cut to max_length={before}, before .* \(number {before + 1}\)"):
            prepare(tokenizer, source, max_length=before)
    else:
        assert prepare(tokenizer, source, max_length=before + 1).report.label_tokens == 1


def test_report_counts_tokens_and_tells_data_apart(tokenizer, write, prepare):
    first = prepare(tokenizer, write(CHAT, CHAT))
    ids, labels = first.dataset["input_ids"], first.dataset["labels"]
    assert first.report.total_tokens == sum(map(len, ids))
    assert first.report.longest == max(map(len, ids))
    assert first.report.label_tokens == sum(label != IGNORE_INDEX for row in labels for label in row)
    other = {"messages": [USER, {**ASSISTANT, "content": "It is five."}]}
    unlike = [prepare(tokenizer, write(*rows)) for rows in ([CHAT] * 3, [CHAT, other], [other, CHAT])]
    prompt_too = prepare(tokenizer, write({"messages": [USER, ASSISTANT, USER, ASSISTANT]}))
    last_alone = prepare(tokenizer, write({"messages": [USER, ASSISTANT, USER, ASSISTANT]}), train_on="last")
    assert prompt_too.dataset["input_ids"] == last_alone.dataset["input_ids"]
    prints = {found.report.fingerprint for found in (first, *unlike, prompt_too, last_alone)}
    assert len(prints) == 6
    assert all(len(fingerprint) == 64 for fingerprint in prints)


def test_the_fingerprint_of_data_is_the_same_in_every_version(tokenizer, write, prepare):
    # Stored beside per-token scores: a change of this value makes every stored score unusable.
    example = prepare(tokenizer, write(CHAT))
    row = example.dataset[0]
    numbers = [len(row["input_ids"]), *row["input_ids"], *row["labels"]]
    assert example.report.fingerprint == hashlib.sha256(struct.pack(f"={len(numbers)}q", *numbers)).hexdigest()


def change_normalizer(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def change_template(tokenizer):
    tokenizer.chat_template = "{# another #}" + tokenizer.chat_template


def split_special_tokens(tokenizer):
    tokenizer.split_special_tokens = True


@pytest.mark.parametrize(
    "change",
    [change_normalizer, change_template, split_special_tokens, lambda tokenizer: tokenizer.add_tokens(["<new>"])],
)
def test_the_tokenizer_fingerprint_tells_tokenizers_apart(tokenizer, change):
    before = tokenizer_fingerprint(tokenizer)
    assert before == tokenizer_fingerprint(chat_tokenizer())
    change(tokenizer)
    assert tokenizer_fingerprint(tokenizer) != before


def test_the_tokenizer_fingerprint_outlives_saving_and_calls(tokenizer, tmp_path):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["two", "two plus two"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_skipped_rows_are_counted_and_listed(tokenizer, tmp_path, prepare):
    path = tmp_path / "train.jsonl"
    rows = [json.dumps(CHAT), json.dumps({"messages": [USER]}), "{not json", "[1]", "", "{}"]
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match="row 2"):
        prepare(tokenizer, path)
    report = prepare(tokenizer, path, skip_bad_rows=True).report
    assert (report.rows_read, report.rows_used, report.rows_skipped) == (5, 1, 4)
    assert [(skipped.file, skipped.row) for skipped in report.skipped] == [(str(path), row) for row in (2, 3, 4, 6)]
    assert "is not JSON" in report.skipped[1].reason
    assert "is a list, not an object" in report.skipped[2].reason


def test_the_list_of_skipped_rows_is_bounded_and_their_count_is_not(tokenizer, write, prepare):
    report = prepare(tokenizer, write(CHAT, *[{"messages": [USER]}] * 150), skip_bad_rows=True).report
    assert (report.rows_skipped, len(report.skipped)) == (150, 100)


def test_a_row_that_lacks_a_field_of_the_files_format_is_told_which(tokenizer, write, prepare):
    with pytest.raises(DataError, match="row 2: has no field 'output'; its fields are 'instruction'"):
        prepare(tokenizer, write(FORMATS["alpaca"], {"instruction": "x"}))


def test_a_source_where_no_row_is_good_is_refused_even_when_skipping(tokenizer, write, prepare):
    with pytest.raises(DataError, match="none of its 3 rows can be used. The first: .*row 1"):
        prepare(tokenizer, write(*[{"messages": [USER]}] * 3), skip_bad_rows=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_name": ""}, "dataset_name is empty: name a jsonl, json, parquet or csv file, or a hub data set"),
        ({"dataset_format": "chatml"}, "dataset_format must be one of auto, messages, .* got 'chatml'"),
        ({"train_on": "some"}, "train_on must be one of all, last, got 'some'"),
        ({"truncation_mode": "keep_end"}, "truncation_mode must be one of keep_start, got 'keep_end'"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"max_samples": -1}, "max_samples must be at least 1, got -1"),
        ({"max_length": "64"}, "max_length must be a whole number, got '64'"),
        (
            {"dataset_format": "messages", "prompt_column": "problem"},
            r"prompt_column \('problem'\) is for question_answer rows, but dataset_format is 'messages'. Leave one",
        ),
    ],
)
def test_settings_are_checked_when_made(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DataSettings(**{"dataset_name": "x", **settings})


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "progress"), [(Terminal, True), (Terminal, False), (io.StringIO, True)])
def test_a_bar_is_shown_when_asked_for_and_stderr_is_a_terminal(tokenizer, write, monkeypatch, stream, progress):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setenv("TERM", "xterm")
    settings = DataSettings(dataset_name=write(CHAT, CHAT))
    assert prepare_dataset(settings, tokenizer, progress).report.rows_used == 2
    assert ("tokenizing rows" in sys.stderr.getvalue()) == (progress and stream is Terminal)


@pytest.mark.model
def test_real_rows_with_the_real_tokenizer(smollm2_tokenizer, shared_data, prepare, trained_text):
    found = prepare(smollm2_tokenizer, shared_data / "gsm8k_train.jsonl", max_samples=50)
    with (shared_data / "gsm8k_train.jsonl").open() as lines:
        for example, line in zip(found.dataset, lines, strict=False):
            answer = json.loads(line)["answer"]
            assert trained_text(smollm2_tokenizer, example["labels"]) == answer + smollm2_tokenizer.eos_token
    assert found.report.rows_used == 50


def test_rows_of_weight_0_are_counted_and_left_out(tokenizer, write, prepare):
    row = {"question": "2+2?", "answer": "Four."}
    report = prepare(tokenizer, write(row, {**row, "weight": 0}, {**row, "weight": None})).report
    assert (report.rows_read, report.rows_used, report.rows_of_no_weight, report.rows_skipped) == (3, 2, 1, 0)
    with pytest.raises(DataError, match="none of its 1 rows can be used. 1 have the weight 0"):
        prepare(tokenizer, write({**row, "weight": 0}, name="none.jsonl"))
