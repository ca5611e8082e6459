"""Weights that come with the data: of a row, a turn, tokens, or parts of the answer; and those that are none."""

import dataclasses
import json
import math

import pytest

from profit_sft.cli.app import run_app
from profit_sft.data.formats import to_conversation
from profit_sft.data.prepare import prepare_dataset, stream_dataset
from profit_sft.data.row import Row
from profit_sft.data.settings import DataOptions, DataSettings
from profit_sft.data.tokenize import tokenize_conversation
from profit_sft.errors import DataError
from tiny import CHATML, FORGETFUL, chat_tokenizer, save_tiny_chat_model

USER = {"role": "user", "content": "What is two plus two?"}
ANSWER = {"role": "assistant", "content": "It is four."}
AGAIN = {"role": "assistant", "content": "Still four."}


def examples_of(values, tokenizer=None):
    tokenizer = tokenizer or chat_tokenizer()
    row = Row(values, "train.jsonl", 3)
    return tokenize_conversation(to_conversation(row), tokenizer, row), tokenizer


def weighted_text(values):
    """The text of the label tokens of each weight, in the order of the weights."""
    (example,), tokenizer = examples_of(values)
    if example.token_weights is None:
        return None
    found = {}
    for label, weight in zip(example.labels, example.token_weights, strict=True):
        if label != -100:
            found.setdefault(weight, []).append(label)
    return {weight: tokenizer.decode(tokens) for weight, tokens in sorted(found.items())}


def chat(*messages, **columns):
    return {"messages": list(messages), **columns}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (chat(USER, ANSWER), None),
        (chat(USER, {**ANSWER, "weight": 1}, weight=1.0), None),
        (chat(USER, {**ANSWER, "weight": 0}, USER, AGAIN), None),  # a label, or none
        (
            chat(USER, {**ANSWER, "weight": 0.5}, USER, AGAIN),
            {0.5: "It is four.<|im_end|>", 1.0: "Still four.<|im_end|>"},
        ),
        (
            chat(USER, {**ANSWER, "weight": "0.5"}, USER, {**AGAIN, "weight": 3}, weight=2),
            {1.0: "It is four.<|im_end|>", 6.0: "Still four.<|im_end|>"},
        ),
        ({"question": "2+2?", "answer": "It is four.", "weight": 0.25}, {0.25: "It is four.<|im_end|>"}),
        ({"prompt": "2+2? ", "completion": "It is four.", "weight": 2}, {2.0: " It is four.<|im_end|>"}),
        (
            chat(USER, ANSWER, USER, AGAIN, token_weights=[{"start": 0, "end": 5, "weight": 0}]),
            {0.0: "Still", 1.0: "It is four.<|im_end|> four.<|im_end|>"},
        ),
        (
            chat(USER, {**ANSWER, "weight": 0.5}, token_weights=json.dumps([{"start": 5, "end": 10, "weight": 4}])),
            {0.5: "It is.<|im_end|>", 2.0: " four"},
        ),
        (
            {"prompt": "2+2? ", "completion": "It is four.", "token_weights": [{"start": 5, "end": 10, "weight": 0}]},
            {0.0: " four", 1.0: " It is.<|im_end|>"},
        ),
    ],
)
def test_weights_of_rows_turns_and_characters(values, expected):
    assert weighted_text(values) == expected


@pytest.mark.parametrize(
    "answer",
    [
        {"reasoning_content": "four or so"},
        {"tool_calls": [{"name": "four", "arguments": {}}]},
        {"reasoning_content": "four or so", "tool_calls": [{"name": "four", "arguments": {}}]},
    ],
    ids=["thought", "call", "both"],
)
def test_stretches_of_an_answer_are_not_placed_in_its_thought_or_call(answer):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = CHATML.replace(
        "{{ message.content }}",
        "{% if message.reasoning_content %}thought {{ message.reasoning_content }}:{% endif %} {{ message.content }}"
        "{% if message.tool_calls %} calls {{ message.tool_calls[0].function.name }}{% endif %}",
    )
    values = chat(
        USER, {"role": "assistant", "content": "four", **answer}, token_weights=[{"start": 0, "end": 4, "weight": 0}]
    )
    (example,), _ = examples_of(values, tokenizer)
    (place,) = [index for index, weight in enumerate(example.token_weights) if weight == 0]
    said = tokenizer.decode(example.input_ids[:place])
    assert said.endswith("thought four or so:" if "reasoning_content" in answer else "assistant\n")
    assert tokenizer.decode(example.input_ids[place]) == " four"


@pytest.mark.parametrize("values", [chat(USER, ANSWER), {"prompt": "2+2? ", "completion": "It is four."}], ids=str)
def test_a_number_for_every_token_or_for_every_label(values):
    (plain,), _ = examples_of(values)
    places = [index for index, label in enumerate(plain.labels) if label != -100]
    every = [index / 2 for index in range(len(plain.labels))]
    for numbers in (every, [every[place] for place in places]):
        ((example,), _) = examples_of({**values, "token_weights": numbers})
        assert [example.token_weights[place] for place in places] == [every[place] for place in places]
        assert example.labels == plain.labels
    ((ones,), _) = examples_of({**values, "token_weights": [1] * len(places)})
    assert ones.token_weights == [1.0] * len(plain.labels)  # weights all the same, so the objective has what it reads


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0], r"train.jsonl, row 3: 'token_weights\[1\]' is -1.0, which must be a number from 0 on"),
        ([math.nan], r"'token_weights\[0\]' is nan, which must be a number"),
        ([math.inf], r"'token_weights\[0\]' is inf, which must be a number"),
        ([None], r"'token_weights\[0\]' is None, which must be a number"),
        (["high"], r"'token_weights\[0\]' is 'high', which must be a number"),
        (
            [1.0, 0.0],
            r"'token_weights' has 2 entries, and the row has \d+ tokens, \d+ of them labels. Give",
        ),
        ("heavy", "'token_weights' must be a list or JSON text of one, got 'heavy'"),
        (
            [{"start": 3, "end": 3, "weight": 1}],
            r"'token_weights\[0\]' must have start, end and weight, start",
        ),
        ([{"start": 0, "end": 3}], r"'token_weights\[0\]' has weight None, which must be a number"),
        (
            [{"start": 0, "end": 99, "weight": 1}],
            r"'token_weights\[0\]' ends at 99, but the last answer has 11",
        ),
        ([1.0, {"start": 0, "end": 1, "weight": 1}], "'token_weights' has numbers and objects"),
    ],
    ids=str,
)
@pytest.mark.parametrize("values", [chat(USER, ANSWER), {"prompt": "2+2? ", "completion": "It is four."}], ids=str)
def test_wrong_weights_are_refused_with_file_row_and_entry(values, weights, message):
    with pytest.raises(DataError, match=message):
        examples_of({**values, "token_weights": weights})


def test_numbers_for_tokens_need_a_row_that_is_one_example():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = FORGETFUL
    thoughtful = {"role": "assistant", "content": "<think>hm</think>It is four."}
    values = chat(USER, thoughtful, USER, AGAIN)
    assert len(examples_of(values, tokenizer)[0]) == 2
    with pytest.raises(DataError, match="a number a token, but the row gives 2 examples, one a turn"):
        examples_of({**values, "token_weights": [1.0]}, tokenizer)
    first, last = examples_of({**values, "token_weights": [{"start": 0, "end": 5, "weight": 0}]}, tokenizer)[0]
    assert first.token_weights is None
    assert 0.0 in last.token_weights


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_weights_lie_beside_the_labels_of_all_rows_and_are_not_cut(tmp_path):
    rows = [chat(USER, ANSWER), chat(USER, {**ANSWER, "weight": 0.5})]
    settings = {"dataset_name": write(tmp_path / "train.jsonl", rows)}
    dataset = prepare_dataset(DataSettings(**settings), chat_tokenizer()).dataset
    assert [set(row["token_weights"]) for row in dataset] == [{1.0}, {0.5, 1.0}]
    assert all(len(row["token_weights"]) == len(row["labels"]) for row in dataset)
    plain = DataSettings(dataset_name=write(tmp_path / "plain.jsonl", rows[:1]))
    assert "token_weights" not in prepare_dataset(plain, chat_tokenizer()).dataset.column_names
    with pytest.raises(DataError, match="row 2: has weights other than 0 and 1, which a stream does not carry"):
        list(stream_dataset(DataSettings(**settings), chat_tokenizer()).dataset)


def test_a_row_with_token_weights_is_not_cut(tmp_path):
    row = chat(USER, ANSWER, token_weights=[{"start": 0, "end": 2, "weight": 0}])
    file = write(tmp_path / "train.jsonl", [chat(USER, ANSWER), row])
    length = len(examples_of(row)[0][0].input_ids)
    whole = DataSettings(dataset_name=file, max_length=length)
    assert prepare_dataset(whole, chat_tokenizer()).report.rows_used == 2
    cut = dataclasses.replace(whole, max_length=length - 1)
    with pytest.raises(DataError, match=f"row 2: 'token_weights' are of a row that is cut to max_length={length - 1}"):
        prepare_dataset(cut, chat_tokenizer())
    with pytest.raises(DataError, match="none of its 2 rows can be used"):
        prepare_dataset(dataclasses.replace(cut, drop_long_rows=True), chat_tokenizer())


@pytest.mark.parametrize("more", [["--dry-run", "--json"], ["--packing", "True", "--max_length", "128"]], ids=str)
@pytest.mark.filterwarnings("ignore")  # TRL's advice about attention kernels, which nothing runs here
def test_a_run_reads_them(tmp_path, capsys, more):
    model = save_tiny_chat_model(tmp_path / "model")
    rows = [chat(USER, ANSWER, token_weights=[{"start": 0, "end": 5, "weight": 0}])] * 8
    named = ["--model_name_or_path", model, "--dataset_name", write(tmp_path / "train.jsonl", rows)]
    flags = ["--output_dir", str(tmp_path / "run"), "--objective", "given", "--max_steps", "1", "--use_cpu", "True"]
    assert run_app(["train", *named, *flags, "--logging_steps", "1", *more]) == 0
    out = capsys.readouterr().out if "--json" in more else (tmp_path / "run" / "metrics.jsonl").read_text()
    found = json.loads(out.splitlines()[0])
    assert 0.2 < found["kept_share"] < 0.9


@pytest.mark.filterwarnings("default:.*has weights:UserWarning")
def test_weights_and_objective_must_fit_each_other(tmp_path, capsys):
    model = save_tiny_chat_model(tmp_path / "model")
    plain = write(tmp_path / "plain.jsonl", [chat(USER, ANSWER)] * 2)
    weighted = write(tmp_path / "weighted.jsonl", [chat(USER, ANSWER, weight=2)] * 2)
    flags = ["--model_name_or_path", model, "--max_steps", "1", "--use_cpu", "True", "--dry-run"]
    assert run_app(["train", *flags, "--dataset_name", plain, "--objective", "given"]) == 2
    assert "Given() reads weights, and" in capsys.readouterr().err
    assert run_app(["train", *flags, "--dataset_name", weighted, "--objective", "nll"]) == 0
    assert "does not read them: every label counts in full. To use them: --objective given" in capsys.readouterr().err


def kinds_text(values, weights, tokenizer=None):
    """The text of the label tokens of each weight, in the order of the weights."""
    tokenizer = tokenizer or chat_tokenizer()
    row = Row(values, "train.jsonl", 3)
    (example,) = tokenize_conversation(
        to_conversation(row), tokenizer, row, DataOptions(given_weights=json.dumps(weights))
    )
    found = {}
    for label, weight in zip(example.labels, example.token_weights, strict=True):
        if label != -100:
            found.setdefault(weight, []).append(label)
    return {weight: tokenizer.decode(tokens) for weight, tokens in sorted(found.items())}


def test_weights_by_kind_multiply_with_all_others():
    assert kinds_text(chat(USER, ANSWER), {"content": 3.0}) == {1.0: "<|im_end|>", 3.0: "It is four."}
    weighed = chat(USER, {**ANSWER, "weight": 2}, token_weights=[{"start": 0, "end": 5, "weight": 0.5}])
    assert kinds_text(weighed, {"content": 3.0}) == {2.0: "<|im_end|>", 3.0: "It is", 6.0: " four."}
    pair = {"prompt": "2+2? ", "completion": "It is four."}
    assert kinds_text(pair, {"content": 3.0}) == {1.0: "<|im_end|>", 3.0: " It is four."}
    spans = [{"start": 0, "end": 6, "kind": "style"}, {"start": 6, "end": 11, "kind": "core"}]
    for values in ({**pair, "answer_spans": spans}, chat(USER, ANSWER, answer_spans=spans)):
        found = kinds_text(values, {"style": 0.0, "core": 2.0})
        assert found[0.0].strip() == "It is"
        assert found[2.0].strip() == "four.", "a token that begins in the style is core where it reaches into the core"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"thoughts": 1}', "given_weights has unknown kind 'thoughts'. Kinds are thought, content, tool_call"),
        ('{"thought": -1}', "given_weights of thought must be a finite number, 0 or more, got -1"),
        ('{"thought": NaN}', "given_weights of thought must be a finite number, 0 or more, got NaN"),
        ('{"thought": true}', "given_weights of thought must be a finite number, 0 or more, got true"),
        ('["thought"]', "given_weights must be a JSON object from kinds to weights"),
        ("thought=1", "given_weights must be a JSON object from kinds to weights, got 'thought=1'"),
    ],
)
def test_weights_of_kinds_that_mean_nothing_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        DataSettings(dataset_name="train.jsonl", given_weights=given)


def test_weights_by_kind_reach_the_training_data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(chat(USER, ANSWER)) + "\n")
    made = {}
    for given in (None, '{"content": 0.5}', {"content": 0.25}):
        settings = DataSettings(dataset_name=str(path), max_length=None, given_weights=given)
        made[str(given)] = prepare_dataset(settings, chat_tokenizer()).dataset
    assert "token_weights" not in made["None"].column_names
    weights = [set(of[0]["token_weights"]) for name, of in made.items() if name != "None"]
    assert weights == [{1.0, 0.5}, {1.0, 0.25}], "data that was cached under other weights is not taken"
