"""Every format becomes one conversation, or a message with file, row, field, value and fix."""

import pytest

from profit_sft.data import FORMATS, Row, detect_format, to_conversation
from profit_sft.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Four."}
SYSTEM = {"role": "system", "content": "Count."}
SHAREGPT = [
    {"from": "system", "value": "Count."},
    {"from": "human", "value": "2+2?"},
    {"from": "gpt", "value": "Four."},
]


def converted(values, dataset_format="auto", **options):
    return to_conversation(Row(values, "train.jsonl", 3), dataset_format, **options)


CHATS = {
    "messages": ("messages", {"messages": [SYSTEM, USER, ASSISTANT]}, 0),
    "sharegpt": ("sharegpt", {"conversations": SHAREGPT}, 0),
    "sharegpt in openai's spelling": ("sharegpt", {"conversations": [SYSTEM, USER, ASSISTANT]}, 0),
    "alpaca": ("alpaca", {"instruction": "2+2?", "output": "Four.", "system": "Count."}, 2),
    "alpaca with empty input": (
        "alpaca",
        {"instruction": "2+2?", "input": " ", "output": "Four.", "system": "Count."},
        2,
    ),
    "chat prompt and completion": ("prompt_completion", {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, 2),
}


@pytest.mark.parametrize("case", CHATS)
def test_chats_of_every_format_become_the_same_messages(case):
    name, values, trained_from = CHATS[case]
    assert detect_format(values, prompt_column=None, response_column=None) == name
    for dataset_format in ("auto", name):
        conversation = converted(values, dataset_format)
        assert conversation.messages == (SYSTEM, USER, ASSISTANT)
        assert conversation.trained_from == trained_from
        assert conversation.prompt is None


def test_question_and_answer_go_by_default_or_named_columns():
    expected = converted({"question": "2+2?", "answer": "Four."})
    assert expected.messages == (USER, ASSISTANT)
    assert converted({"problem": "2+2?", "answer": "Four."}, prompt_column="problem") == expected
    values = {"problem": "2+2?", "solution": "Four.", "messages": "not these", "question": "nor this"}
    assert converted(values, prompt_column="problem", response_column="solution") == expected


def test_alpaca_input_follows_the_instruction():
    found = converted({"instruction": "Add.", "input": "2 2", "output": "4"})
    assert found.messages[0]["content"] == "Add.\n\n2 2"


def test_text_prompt_and_completion_stay_plain_text():
    found = converted({"prompt": "2+2 =", "completion": " 4"})
    assert (found.prompt, found.completion, found.messages) == ("2+2 =", " 4", ())


def test_an_explicit_format_wins_over_the_one_auto_would_find():
    values = {"messages": [USER, ASSISTANT], "question": "3+3?", "answer": "Six."}
    assert converted(values).messages[1]["content"] == "Four."
    assert converted(values, "question_answer").messages[1]["content"] == "Six."


def test_system_prompt_goes_before_chats_that_have_none():
    found = converted({"prompt": [USER], "completion": [ASSISTANT]}, system_prompt="Given.")
    assert found.messages[0] == {"role": "system", "content": "Given."}
    assert found.messages[found.trained_from] == ASSISTANT
    assert converted({"messages": [SYSTEM, USER, ASSISTANT]}, system_prompt="Given.").messages[0] == SYSTEM


def test_a_system_prompt_has_no_place_in_plain_text():
    with pytest.raises(
        DataError, match="row 3: 'prompt' and 'completion' are plain text, .*--system_prompt. Write it in"
    ):
        converted({"prompt": "2+2 =", "completion": " 4"}, system_prompt="Given.")


def test_messages_after_the_last_answer_and_tool_results_are_kept():
    tool = {"role": "tool", "content": "4"}
    assert converted({"messages": [USER, tool, ASSISTANT, USER]}).messages == (USER, tool, ASSISTANT, USER)


def test_keys_that_parquet_fills_with_null_are_no_tool_calls():
    assert converted({"messages": [USER, {**ASSISTANT, "tool_calls": None}]}).messages == (USER, ASSISTANT)


BAD_ROWS = {
    "no assistant": ({"messages": [USER]}, r"'messages' has no assistant turn, nothing to train on. .*--skip-bad-rows"),
    "system and user": ({"conversations": SHAREGPT[:2]}, "'conversations' has no assistant turn"),
    "only the prompt answers": (
        {"prompt": [USER, ASSISTANT], "completion": [USER]},
        "'completion' has no assistant turn",
    ),
    "assistant first": (
        {"messages": [ASSISTANT, USER, ASSISTANT]},
        "'messages' begins with an assistant turn, .* Put a u",
    ),
    "assistant first in prompt": (
        {"prompt": [ASSISTANT], "completion": [ASSISTANT]},
        "'prompt' begins with an assistant",
    ),
    "empty list": ({"messages": []}, r"'messages' must be a list of messages that is not empty, got \[\]"),
    "not a list": ({"messages": "hello"}, "'messages' must be a list of messages that is not empty, got 'hello'"),
    "text and list": ({"prompt": [USER], "completion": "x"}, "'completion' must be a list of messages .* got 'x'"),
    "unknown role": (
        {"messages": [USER, {"role": "robot", "content": "x"}]},
        r"'messages\[1\]' has role 'robot'; known are system, user, assistant, tool, human and gpt. Rename",
    ),
    "no role": ({"messages": [{"content": "x"}]}, r"'messages\[0\]' has role None"),
    "image content": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]},
        r"'messages\[0\]' must have text as content, got \[\{'type': 'image'\}\]. Only text",
    ),
    "tool calls": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": "1"}]}]},
        r"'messages\[1\]' has 'tool_calls', which would not be trained on. Write it into the content",
    ),
    "reasoning apart": (
        {"messages": [USER, {**ASSISTANT, "reasoning_content": "hm"}]},
        "has 'reasoning_content', which",
    ),
    "empty answer": ({"messages": [USER, {"role": "assistant", "content": " "}]}, "is an empty assistant turn"),
    "late system": ({"messages": [USER, ASSISTANT, SYSTEM]}, "has a system message that is not the first. Move it to"),
    "message no object": ({"messages": ["hi"]}, r"'messages\[0\]' must be an object with role and content, got 'hi'"),
    "number as answer": ({"question": "2+2?", "answer": 4}, "'answer' must be text that is not empty, got 4. Mend"),
    "empty completion": ({"prompt": "x", "completion": ""}, "'completion' must be text that is not empty, got ''"),
    "null output": ({"instruction": "x", "output": None}, "'output' must be text that is not empty, got None"),
    "alpaca input": ({"instruction": "x", "input": 3, "output": "y"}, "'input' must be text or absent, got 3. Mend"),
    "long value": ({"question": "x", "answer": ["y"] * 99}, r"'answer' must be text .* got \['y', .*\.\.\.\. Mend"),
    "text alone": (
        {"text": "x"},
        "does not say where the prompt ends .* every token would be .* 'prompt' and 'completion'",
    ),
    "unknown columns": ({"foo": "x"}, r"its columns \('foo'\) fit no known format.*--prompt_column"),
    "surrogate": (
        {"question": "x", "answer": "ok \ud83d"},
        r"'answer' has a lone surrogate, '\\ud83d', at character 4",
    ),
    "surrogate in chat": (
        {"messages": [{**USER, "content": "\ud83d"}, ASSISTANT]},
        r"'messages\[0\]' has a lone surrog",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_field_and_fix(case):
    values, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=rf"^train\.jsonl, row 3: .*{message}"):
        converted(values)


def test_an_explicit_format_names_the_field_that_is_missing():
    with pytest.raises(DataError, match="has no field 'output'; its fields are 'instruction'. Add it, or name another"):
        converted({"instruction": "x"}, "alpaca")


def test_a_row_that_could_not_be_read_says_so_and_how_to_go_on():
    with pytest.raises(DataError, match="row 3: is not JSON. .*--skip-bad-rows"):
        to_conversation(Row({}, "train.jsonl", 3, "is not JSON."))


def test_format_names_are_the_command_lines():
    assert FORMATS == ("messages", "sharegpt", "prompt_completion", "alpaca", "question_answer")
