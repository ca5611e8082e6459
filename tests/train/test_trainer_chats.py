"""Of raw chats `ProFitTrainer` trains what `profit train` trains, or says that it trains every turn."""

import json

import pytest
from datasets import Dataset, IterableDataset
from transformers import ByT5Tokenizer
from trl import SFTConfig, SFTTrainer

from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.errors import DataError
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer
from tiny import CHATML, FORGETFUL, chat_tokenizer, tiny_model

CHATS = [
    [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "What is two plus two?"},
        {"role": "assistant", "content": "It is four."},
        {"role": "user", "content": "And three plus four?"},
        {"role": "assistant", "content": "Seven."},
    ],
    [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello! How are you?"}],
]
# TRL finds the assistant's turns by these marks, and would train the newline after the turn as well.
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
EVERY_TURN = "every turn of the train data set will be trained"


def trainer(folder, dataset, tokenizer=None, eval_dataset=None, formatting_func=None, **overrides):
    tokenizer = chat_tokenizer() if tokenizer is None else tokenizer
    settings = {
        "per_device_train_batch_size": len(CHATS),
        "max_steps": 1,
        "threshold": 0.003,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **overrides,
    }
    return ProFitTrainer(
        tiny_model(vocab_size=len(tokenizer)),
        ProFitConfig(str(folder / "run"), **settings),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        formatting_func=formatting_func,
    )


def trained_rows(dataloader):
    """{tokens of a row: its labels}, without padding."""
    found = {}
    for batch in dataloader:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            found[tuple(ids[mask.bool()].tolist())] = labels[mask.bool()].tolist()
    return found


def rows_of_the_command(folder, **settings):
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    prepared = prepare_dataset(DataSettings(dataset_name=str(file), **settings), chat_tokenizer()).dataset
    return {tuple(row["input_ids"]): row["labels"] for row in prepared}


def sharegpt(chat):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in chat]


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.from_dict({"messages": CHATS, "source": ["a", "b"]}),
        Dataset.from_dict({"conversations": [sharegpt(chat) for chat in CHATS]}),
        IterableDataset.from_generator(lambda: ({"messages": chat} for chat in CHATS)),
    ],
    ids=["messages", "conversations", "streamed"],
)
def test_rows_and_labels_are_those_of_the_command(tmp_path, dataset):
    run = trainer(tmp_path, dataset)
    expected = rows_of_the_command(tmp_path)
    assert sum(label != -100 for labels in expected.values() for label in labels[1:]) > 0
    assert any(label == -100 for labels in expected.values() for label in labels[1:])
    assert trained_rows(run.get_train_dataloader()) == expected
    run.train()


def test_rows_for_evaluation_are_labeled_alike(tmp_path):
    dataset = Dataset.from_dict({"messages": CHATS})
    run = trainer(tmp_path, dataset, eval_dataset=dataset, per_device_eval_batch_size=2)
    assert trained_rows(run.get_eval_dataloader()) == rows_of_the_command(tmp_path)


def test_a_limit_of_the_length_cuts_rows_and_labels_alike(tmp_path):
    run = trainer(tmp_path, Dataset.from_dict({"messages": CHATS}), max_length=60)
    expected = rows_of_the_command(tmp_path, max_length=60)
    assert max(map(len, expected)) == 60
    assert trained_rows(run.get_train_dataloader()) == expected


def test_packed_chats_have_the_same_labels(tmp_path):
    dataset = Dataset.from_dict({"messages": CHATS})
    run = trainer(tmp_path, dataset, packing=True, packing_strategy="wrapped", max_length=4096)
    packed = [label for row in trained_rows(run.get_train_dataloader()).values() for label in row]
    expected = [label for labels in rows_of_the_command(tmp_path).values() for label in labels]
    assert sorted(packed) == sorted(expected)


def test_a_row_that_cannot_be_labeled_is_refused_by_its_place(tmp_path):
    dataset = Dataset.from_dict({"messages": [CHATS[0], CHATS[1][:1]]})
    with pytest.raises(
        DataError, match="train data set, row 2: 'messages' has no assistant turn.*assistant_only_loss=True"
    ):
        trainer(tmp_path, dataset)


def test_tools_reach_the_prompt_and_a_turn_may_be_an_example_of_its_own(tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}" + FORGETFUL
    thought = {"role": "assistant", "content": "<think>2+2</think>Four."}
    chats = [[CHATS[1][0], thought, CHATS[1][0], thought], CHATS[1]]
    dataset = Dataset.from_dict({"messages": chats, "tools": ['[{"name": "add"}]', None], "id": [1, 2]})
    rows = trained_rows(trainer(tmp_path, dataset, tokenizer).get_train_dataloader())
    texts = sorted(tokenizer.decode(ids) for ids in rows)
    assert [text.count("add;") for text in texts] == [0, 1, 1]
    learned = [tokenizer.decode([label for label in labels if label != -100]) for labels in rows.values()]
    assert sorted(learned) == ["<think>2+2</think>Four.<|im_end|>"] * 2 + ["Hello! How are you?<|im_end|>"]


@pytest.mark.parametrize(
    "columns",
    [
        {"question": ["Say hello."], "answer": ["Hello! How are you?"]},
        {"instruction": ["Say hello."], "input": [""], "output": ["Hello! How are you?"]},
        {"messages": [json.dumps(CHATS[1])]},
    ],
    ids=["question and answer", "instruction and output", "JSON text"],
)
def test_other_shapes_of_chats_are_read_as_by_the_command(tmp_path, columns):
    run = trainer(tmp_path, Dataset.from_dict(columns))
    (labels,) = trained_rows(run.get_train_dataloader()).values()
    assert run.processing_class.decode([label for label in labels if label != -100]) == "Hello! How are you?<|im_end|>"


BESIDE_TEXT = {
    "question and answer": {"question": ["2+2?"], "answer": ["Four."]},
    "alpaca": {"instruction": ["2+2?"], "input": [""], "output": ["Four."]},
    "instruction and response": {"instruction": ["2+2?"], "response": ["Four."]},
    "JSON text": {"messages": [json.dumps(CHATS[1])]},
    "messages": {"messages": CHATS[1:]},
    "conversations": {"conversations": [sharegpt(CHATS[1])]},
}


@pytest.mark.parametrize("field", ["text", "body"])
@pytest.mark.parametrize("case", BESIDE_TEXT)
def test_text_that_trl_would_train_is_trained_whatever_columns_are_beside_it(tmp_path, case, field):
    dataset = Dataset.from_dict({**BESIDE_TEXT[case], field: ["## My own format: Hello!"]})
    options = {"dataset_text_field": field, "max_length": 60, "report_to": [], "bf16": False, "use_cpu": True}
    tokenizer = chat_tokenizer()
    theirs = SFTTrainer(
        tiny_model(vocab_size=len(tokenizer)),
        SFTConfig(str(tmp_path), **options),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    expected = trained_rows(theirs.get_train_dataloader())
    found = trained_rows(trainer(tmp_path, dataset, **options).get_train_dataloader())
    assert (found == expected) == (case not in ("messages", "conversations"))  # of which TRL trains every turn
    texts = [[tokenizer.decode(ids) for ids in rows] for rows in (expected, found)]
    assert ["My own" in text for (text,) in texts] == [case not in ("messages", "conversations")] * 2


def test_chats_for_a_slow_tokenizer_are_trained_whole_after_a_warning(tmp_path):
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHATML
    with pytest.warns(UserWarning, match=f"{EVERY_TURN}.*as its tokenizer is a slow one.*assistant_only_loss=True"):
        run = trainer(tmp_path, Dataset.from_dict({"messages": CHATS}), tokenizer)
    for ids, labels in trained_rows(run.get_train_dataloader()).items():
        assert list(ids) == labels


def test_data_that_says_what_to_train_is_left_to_trl_without_a_word(tmp_path):
    marked = chat_tokenizer()
    marked.chat_template = MARKED
    pairs = {"prompt": [chat[:-1] for chat in CHATS], "completion": [chat[-1:] for chat in CHATS]}
    labeled = {"input_ids": [[5, 6, 7], [8, 9]], "labels": [[-100, 6, 7], [-100, 9]]}
    for folder, dataset, options in (
        ("masked", {"messages": CHATS}, {"assistant_only_loss": True, "tokenizer": marked}),
        ("pairs", pairs, {}),
        ("labeled", labeled, {}),
        ("text", {"text": ["Hello there.", "It is four."]}, {}),
    ):
        run = trainer(tmp_path / folder, Dataset.from_dict(dataset), **options)  # a warning would be an error here
        rows = trained_rows(run.get_train_dataloader())
        assert any(label != -100 for labels in rows.values() for label in labels), folder


def test_packing_keeps_given_labels_or_is_refused(tmp_path):
    rows = {"input_ids": [[5, 6, 7], [8, 9, 10]], "labels": [[-100, 6, 7], [-100, -100, 10]]}
    options = {"packing": True, "packing_strategy": "wrapped", "max_length": 64}
    try:
        run = trainer(tmp_path, Dataset.from_dict(rows), **options)
    except ValueError as error:  # TRL below 1.9 packs the ids alone
        assert "drops the labels of the train data set" in str(error)  # noqa: PT017
    else:
        packed = [label for row in trained_rows(run.get_train_dataloader()).values() for label in row]
        assert sorted(packed) == [-100, -100, -100, 6, 7, 10]
