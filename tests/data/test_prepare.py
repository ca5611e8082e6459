"""From files of every format to labels: what is trained on, what is refused, and what a report says."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from profit_sft.data import IGNORE_INDEX, TOKEN_KINDS, DataSettings, prepare_dataset
from profit_sft.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "It is four."}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare(tokenizer, source, **settings):
    return prepare_dataset(DataSettings(dataset_name=str(source), **settings), tokenizer)


def trained_text(tokenizer, example):
    return tokenizer.decode([label for label in example["labels"] if label != IGNORE_INDEX])


CHATS = {
    "messages": {"messages": [USER, ASSISTANT]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "It is four."}]
    },
    "alpaca": {"instruction": "What is 2+2?", "input": "", "output": "It is four."},
    "question_answer": {"question": "What is 2+2?", "answer": "It is four."},
    "prompt_completion": {"prompt": [USER], "completion": [ASSISTANT]},
}


@pytest.mark.parametrize("dataset_format", CHATS)
def test_every_chat_format_gives_the_same_tokens_and_labels(tokenizer, tmp_path, dataset_format):
    found = prepare(tokenizer, write(tmp_path / "rows.jsonl", [CHATS[dataset_format]]))
    expected = prepare(tokenizer, write(tmp_path / "expected.jsonl", [CHATS["messages"]]))
    assert found.dataset["input_ids"] == expected.dataset["input_ids"]
    assert found.dataset["labels"] == expected.dataset["labels"]
    assert found.report.dataset_format == dataset_format
    assert trained_text(tokenizer, found.dataset[0]) == "It is four.<|im_end|>"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_every_file_type_gives_the_same_rows(tokenizer, tmp_path, suffix):
    rows = [{"question": f"What is {index}?", "answer": f'It is "{index}",\nno more.'} for index in range(3)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        write(path, rows)
    elif suffix == "json":
        path.write_text(json.dumps({"data": rows}))
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, ["question", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    found = prepare(tokenizer, path)
    assert [trained_text(tokenizer, example) for example in found.dataset] == [
        f'It is "{index}",\nno more.<|im_end|>' for index in range(3)
    ]
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / path.name)
    assert prepare(tokenizer, folder).report.fingerprint == found.report.fingerprint


def test_plain_text_is_labelled_from_where_the_prompt_ends(tokenizer, tmp_path):
    found = prepare(tokenizer, write(tmp_path / "rows.jsonl", [{"prompt": "2+2 =", "completion": " four"}]))
    assert tokenizer.decode(found.dataset[0]["input_ids"]) == "2+2 = four<|im_end|>"
    assert trained_text(tokenizer, found.dataset[0]) == " four<|im_end|>"


def test_all_assistant_turns_are_trained_or_the_last_alone(tokenizer, tmp_path):
    again = {"role": "assistant", "content": "Still four."}
    source = write(tmp_path / "rows.jsonl", [{"messages": [USER, ASSISTANT, USER, again, USER]}])
    assert (
        trained_text(tokenizer, prepare(tokenizer, source).dataset[0]) == "It is four.<|im_end|>Still four.<|im_end|>"
    )
    last = prepare(tokenizer, source, train_on="last").dataset[0]
    assert trained_text(tokenizer, last) == "Still four.<|im_end|>"
    assert tokenizer.decode(last["input_ids"]).rstrip().endswith("Still four.<|im_end|>")


def test_only_the_completion_of_a_chat_prompt_is_trained(tokenizer, tmp_path):
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [{"role": "assistant", "content": "Four."}]}
    found = prepare(tokenizer, write(tmp_path / "rows.jsonl", [row]))
    assert trained_text(tokenizer, found.dataset[0]) == "Four.<|im_end|>"


def test_a_template_that_rewrites_history_is_refused_unless_the_last_turn_is_trained(forgetful_tokenizer, tmp_path):
    thought = {"role": "assistant", "content": "<think>2+2</think>Four."}
    source = write(tmp_path / "rows.jsonl", [{"messages": [USER, thought, USER, thought]}])
    with pytest.raises(DataError, match=r"row 1: .* turn 2 otherwise .*--train_on last"):
        prepare(forgetful_tokenizer, source)
    found = prepare(forgetful_tokenizer, source, train_on="last")
    assert trained_text(forgetful_tokenizer, found.dataset[0]) == "<think>2+2</think>Four.<|im_end|>"


def test_system_prompt_goes_before_chats_that_have_none(tokenizer, tmp_path):
    own = [{"role": "system", "content": "Own."}, USER, ASSISTANT]
    source = write(tmp_path / "rows.jsonl", [{"messages": [USER, ASSISTANT]}, {"messages": own}])
    texts = [tokenizer.decode(ids) for ids in prepare(tokenizer, source, system_prompt="Given.").dataset["input_ids"]]
    assert texts[0].startswith("<|im_start|>system\nGiven.<|im_end|>")
    assert texts[1].startswith("<|im_start|>system\nOwn.<|im_end|>")


def test_named_columns_are_used(tokenizer, tmp_path):
    source = write(tmp_path / "rows.jsonl", [{"problem": "2+2?", "solution": "4", "messages": "not these"}])
    found = prepare(tokenizer, source, prompt_column="problem", response_column="solution")
    assert trained_text(tokenizer, found.dataset[0]) == "4<|im_end|>"


def test_answer_spans_become_token_kinds(tokenizer, tmp_path):
    row = {
        "messages": [USER, {"role": "assistant", "content": "So 2+2 = 4."}],
        "answer_spans": [
            {"start": 0, "end": 3, "kind": "style"},
            {"start": 3, "end": 10, "kind": "core"},
            {"start": 10, "end": 11, "kind": "style"},
        ],
    }
    example = prepare(tokenizer, write(tmp_path / "rows.jsonl", [row])).dataset[0]
    of_kind = {
        kind: tokenizer.decode([i for i, k in zip(example["input_ids"], example["token_kinds"], strict=True) if k == n])
        for kind, n in TOKEN_KINDS.items()
    }
    assert of_kind["core"].replace(" ", "") == "2+2=4"
    assert of_kind["style"].replace(" ", "") == "So."
    assert "<|im_end|>" in of_kind["none"]


def test_truncated_rows_are_counted_and_the_end_is_lost(tokenizer, tmp_path):
    source = write(tmp_path / "rows.jsonl", [CHATS["messages"]])
    whole = prepare(tokenizer, source)
    length = whole.report.longest
    cut = prepare(tokenizer, source, max_length=length - 4)
    assert cut.dataset[0]["input_ids"] == whole.dataset[0]["input_ids"][: length - 4]
    assert (whole.report.rows_truncated, cut.report.rows_truncated) == (0, 1)


def test_report_counts_tokens_and_tells_data_apart(tokenizer, tmp_path):
    first = prepare(tokenizer, write(tmp_path / "a.jsonl", [CHATS["messages"]] * 2))
    other = prepare(tokenizer, write(tmp_path / "b.jsonl", [CHATS["messages"], CHATS["prompt_completion"]]))
    ids, labels = first.dataset["input_ids"], first.dataset["labels"]
    assert first.report.total_tokens == sum(map(len, ids))
    assert first.report.label_tokens == sum(label != IGNORE_INDEX for row in labels for label in row)
    assert first.report.fingerprint == other.report.fingerprint
    longer = prepare(tokenizer, write(tmp_path / "c.jsonl", [CHATS["messages"]] * 3))
    assert longer.report.fingerprint != first.report.fingerprint
    before = first.report.tokenizer_fingerprint
    tokenizer.chat_template = "{# another #}" + tokenizer.chat_template
    assert prepare(tokenizer, tmp_path / "a.jsonl").report.tokenizer_fingerprint != before


BAD_ROWS = {
    "no assistant": ({"messages": [USER]}, "'messages' has no assistant turn, nothing to train on"),
    "empty list": ({"messages": []}, r"'messages' must be a list of messages that is not empty, got \[\]"),
    "not a list": ({"messages": "hello"}, "'messages' must be a list of messages that is not empty, got 'hello'"),
    "unknown role": (
        {"messages": [USER, {"role": "robot", "content": "x"}]},
        r"'messages\[1\]' has role 'robot'; known are system, user, assistant, tool, human and gpt",
    ),
    "image content": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]},
        r"'messages\[0\]' must have text as content, got \[\{'type': 'image'\}\]",
    ),
    "empty answer": ({"messages": [USER, {"role": "assistant", "content": " "}]}, "is an empty assistant turn"),
    "late system": ({"messages": [USER, ASSISTANT, {"role": "system", "content": "x"}]}, "Move it to the front"),
    "message no object": ({"messages": ["hi"]}, r"'messages\[0\]' must be an object with role and content, got 'hi'"),
    "number as answer": ({"question": "2+2?", "answer": 4}, "'answer' must be text that is not empty, got 4"),
    "empty completion": ({"prompt": "x", "completion": ""}, "'completion' must be text that is not empty, got ''"),
    "text alone": ({"text": "x"}, "does not say where the prompt ends .* 'prompt' and 'completion'"),
    "unknown columns": ({"foo": "x"}, r"its columns \('foo'\) fit no known format.*--prompt_column"),
    "bad spans": ({**CHATS["messages"], "answer_spans": [{"start": 0}]}, "'answer_spans' must be a list of objects"),
    "bad kind": (
        {**CHATS["messages"], "answer_spans": [{"start": 0, "end": 1, "kind": "odd"}]},
        "'answer_spans' has kind 'odd'; known are 'core' and 'style'",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_field_and_fix(tokenizer, tmp_path, case):
    row, message = BAD_ROWS[case]
    source = write(tmp_path / "train.jsonl", [CHATS["messages"], row])
    with pytest.raises(DataError, match=rf"train\.jsonl, row 2: .*{message}"):
        prepare(tokenizer, source)


def test_skipped_rows_are_counted_and_listed(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [json.dumps(CHATS["messages"]), json.dumps({"messages": [USER]}), "{not json", "[1]", "", "{}"]
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match="row 2"):
        prepare(tokenizer, path)
    report = prepare(tokenizer, path, skip_bad_rows=True).report
    assert (report.rows_read, report.rows_used, report.rows_skipped) == (5, 1, 4)
    assert [skipped.row for skipped in report.skipped] == [2, 3, 4, 6]
    assert "is not JSON" in report.skipped[1].reason
    assert "is a list, not an object" in report.skipped[2].reason


def test_a_row_that_truncation_leaves_without_labels_is_refused(tokenizer, tmp_path):
    source = write(
        tmp_path / "train.jsonl", [CHATS["messages"], {"messages": [{**USER, "content": "x" * 99}, ASSISTANT]}]
    )
    with pytest.raises(DataError, match=r"row 2: its \d+ tokens are cut to max_length=60, before the first answer"):
        prepare(tokenizer, source, max_length=60)
    assert prepare(tokenizer, source, max_length=60, skip_bad_rows=True).report.rows_skipped == 1


def test_a_source_where_no_row_is_good_is_refused_even_when_skipping(tokenizer, tmp_path):
    source = write(tmp_path / "train.jsonl", [{"messages": [USER]}] * 3)
    with pytest.raises(DataError, match="none of its 3 rows can be used. The first: .*row 1"):
        prepare(tokenizer, source, skip_bad_rows=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "'.*absent.jsonl' does not exist. Check the path"),
        ("rows.txt", "x", r"ends in '.txt', which is not read. Use one of .jsonl, .json, .parquet, .csv"),
        ("empty.jsonl", "", "has no rows"),
        ("rows.json", "{", "is not JSON .* A file with one object a line is named .jsonl"),
        ("rows.json", "3", "must hold a list of rows"),
        ("rows.parquet", "x", "is not a Parquet file"),
        ("rows.csv", "question,answer\nx\n", "row 1: has another number of cells than the header"),
        ("rows.jsonl", b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_bad_source_is_refused_with_the_fix(tokenizer, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        prepare(tokenizer, path)


def test_a_hub_name_that_cannot_be_reached_is_refused_with_the_fix(tokenizer):
    with pytest.raises(DataError, match="is no local file, and could not be loaded from the hub, split 'train'"):
        prepare(tokenizer, "nobody/nothing-of-this-name")


def test_chat_rows_need_a_template(tokenizer, tmp_path):
    tokenizer.chat_template = None
    source = write(tmp_path / "train.jsonl", [CHATS["messages"]])
    with pytest.raises(DataError, match="has no chat template. Name one with --chat_template_path"):
        prepare(tokenizer, source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_format": "chatml"}, "dataset_format must be one of auto, messages, .* got 'chatml'"),
        ({"train_on": "some"}, "train_on must be one of all, last, got 'some'"),
        ({"truncation_mode": "keep_end"}, "truncation_mode must be one of keep_start, got 'keep_end'"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
    ],
)
def test_settings_are_checked_when_made(settings, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(dataset_name="x", **settings)


@pytest.mark.model
def test_real_rows_with_the_real_tokenizer(smollm2_tokenizer, shared_data):
    found = prepare(smollm2_tokenizer, shared_data / "gsm8k_train.jsonl", max_samples=50)
    with (shared_data / "gsm8k_train.jsonl").open() as lines:
        for example, line in zip(found.dataset, lines, strict=False):
            answer = json.loads(line)["answer"]
            assert trained_text(smollm2_tokenizer, example) == answer + smollm2_tokenizer.eos_token
    assert found.report.rows_used == 50
