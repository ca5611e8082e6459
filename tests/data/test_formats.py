"""Every format becomes one conversation, or a message with file, row, field, value and fix."""

import json

import pytest

from profit_sft.data.formats import REQUIRED_FIELDS, detect_format, to_conversation
from profit_sft.data.row import Row
from profit_sft.data.settings import FORMATS, DataOptions, DataSettings
from profit_sft.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Four."}
SYSTEM = {"role": "system", "content": "Count."}
SHAREGPT = [
    {"from": "system", "value": "Count."},
    {"from": "human", "value": "2+2?"},
    {"from": "gpt", "value": "Four."},
]


def converted(values, dataset_format="auto", **options):
    return to_conversation(Row(values, "train.jsonl", 3), DataOptions(dataset_format=dataset_format, **options))


CHATS = {
    "messages": ("messages", {"messages": [SYSTEM, USER, ASSISTANT]}),
    "messages as JSON text": ("messages", {"messages": json.dumps([SYSTEM, USER, ASSISTANT])}),
    "capitals": ("question_answer", {"Question": "2+2?", "Answer": "Four.", "System": "Count."}),
    "lists of keys": (
        "messages",
        {"messages": {"role": ["system", "user", "assistant"], "content": ["Count.", "2+2?", "Four."]}},
    ),
    "a system message that is null": (
        "messages",
        {"messages": [{"role": "system", "content": None}, USER, ASSISTANT], "system": "Count."},
    ),
    "conversation": ("messages", {"conversation": [SYSTEM, USER, ASSISTANT]}),
    "messages and a system column": ("messages", {"messages": [USER, ASSISTANT], "system": "Count."}),
    "sharegpt": ("sharegpt", {"conversations": SHAREGPT}),
    "sharegpt and a system column": ("sharegpt", {"conversations": SHAREGPT[1:], "system_prompt": "Count."}),
    "sharegpt in openai's spelling": ("sharegpt", {"conversations": [SYSTEM, USER, ASSISTANT]}),
    "alpaca": ("alpaca", {"instruction": "2+2?", "output": "Four.", "system": "Count."}),
    "alpaca with the question as input": (
        "alpaca",
        {"instruction": "", "input": "2+2?", "output": "Four.", "system": "Count."},
    ),
    "alpaca with empty input": ("alpaca", {"instruction": "2+2?", "input": " ", "output": "Four.", "system": "Count."}),
    "dolly": ("alpaca", {"instruction": "2+2?", "context": "", "response": "Four.", "system": "Count."}),
    "chat prompt and completion": ("prompt_completion", {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}),
    "chat prompt and an answer": ("question_answer", {"prompt": [SYSTEM, USER], "answer": "Four."}),
    "question and answer": ("question_answer", {"question": "2+2?", "answer": "Four.", "system": "Count."}),
    "messages of a merged table": (
        "question_answer",
        {"question": "2+2?", "answer": "Four.", "system": "Count.", "messages": None},
    ),
    "a chat in JSON text": (
        "prompt_completion",
        {"prompt": json.dumps([SYSTEM, USER]), "completion": json.dumps([ASSISTANT])},
    ),
    "a chat in JSON text and an answer": ("question_answer", {"prompt": json.dumps([SYSTEM, USER]), "answer": "Four."}),
    "parts in JSON text": (
        "messages",
        {"messages": [SYSTEM, {"role": "user", "content": '[{"type": "text", "text": "2+2?"}]'}, ASSISTANT]},
    ),
    "a worked response beside a bare answer": (
        "question_answer",
        {"question": "2+2?", "answer": "Four", "response": "Four.", "system": "Count."},
    ),
    "an empty solution beside an answer": (
        "question_answer",
        {"question": "2+2?", "solution": "", "answer": "Four.", "system": "Count."},
    ),
    "query and response": ("question_answer", {"query": "2+2?", "response": "Four.", "system_prompt": "Count."}),
    "prompt and response": ("question_answer", {"prompt": "2+2?", "response": "Four.", "system": "Count."}),
    "input and output": ("question_answer", {"input": "2+2?", "output": "Four.", "system": "Count."}),
    "problem and solution": ("question_answer", {"problem": "2+2?", "solution": "Four.", "system": "Count."}),
    "a worked solution beside a bare answer": (
        "question_answer",
        {"question": "2+2?", "solution": "Four.", "answer": 4, "system": "Count."},
    ),
}


@pytest.mark.parametrize("case", CHATS)
def test_chats_of_every_format_become_the_same_messages(case):
    name, values = CHATS[case]
    assert detect_format(values) == name
    for dataset_format in ("auto", name):
        conversation = converted(values, dataset_format)
        assert conversation.messages == (SYSTEM, USER, ASSISTANT)
        assert conversation.trained == (2,)
        assert conversation.prompt is None


def test_question_and_answer_go_by_default_or_named_columns():
    expected = converted({"question": "2+2?", "answer": "Four."})
    assert expected.messages == (USER, ASSISTANT)
    assert converted({"task": "2+2?", "answer": "Four."}, prompt_column="task") == expected
    values = {"task": "2+2?", "steps": "Four.", "messages": "not these", "question": "nor this"}
    found = converted(values, prompt_column="task", response_column="steps")
    assert found.messages == expected.messages
    assert found.notes == ("column 'messages' is not used", "column 'question' is not used")


def test_alpaca_input_follows_the_instruction():
    found = converted({"instruction": "Add.", "input": "2 2", "output": "4"})
    assert found.messages[0]["content"] == "Add.\n\n2 2"

    found = converted({"instruction": "double", "input": 5, "output": 10})
    assert [message["content"] for message in found.messages] == ["double\n\n5", "10"]
    assert converted({"instruction": "Add.", "input": float("nan"), "output": "4"}).messages[0]["content"] == "Add."


@pytest.mark.parametrize(
    ("question", "answer"),
    [("instruction", "output"), ("prompt", "completion"), ("question", "answer"), ("Input", "Solution")],
)
def test_a_question_without_its_answer_is_not_trained_as_the_text_beside_it(question, answer):
    """As of Alpaca's own table, which has the whole prompt in a column of text."""
    row = {question: "2+2?", answer: None, "text": "Below is an instruction. 2+2?"}
    with pytest.raises(DataError, match=rf"'{answer.lower()}' must be text that is not empty, got None"):
        converted(row)
    for nothing in (None, "", " "):
        assert converted({**row, question: None, answer: nothing}).completion == row["text"]  # of a merged table
    assert detect_format(row, DataSettings(dataset_name="x", dataset_text_field="body")) == "text"


def test_the_context_of_a_question_follows_it():
    found = converted({"question": "How many?", "context": "Two and two.", "answer": "4"})
    assert (found.messages[0]["content"], found.notes) == ("How many?\n\nTwo and two.", ())


@pytest.mark.parametrize("nothing", [None, float("nan"), "", " "], ids=repr)
def test_a_weight_may_be_absent(nothing):
    assert converted({"question": "x", "answer": "y", "weight": nothing}).weights == (1.0,)
    assert converted({"messages": [USER, {**ASSISTANT, "weight": nothing}]}).weights == (1.0,)


@pytest.mark.parametrize(
    "values",
    [
        {"question": "x", "answer": "y", "weight": 0},
        {"question": "x", "answer": "y", "train": False},
        {"prompt": "x", "completion": "y", "weight": "0"},
        {"messages": [USER, {**ASSISTANT, "train": False}]},
        {"messages": [USER, {**ASSISTANT, "mask": True}]},
    ],
    ids=str,
)
def test_what_has_the_weight_0_has_nothing_to_train(values):
    assert converted(values).weights == ()


def test_other_keys_of_parts_and_a_second_spelling_stay_to_be_named():
    part = {"type": "text", "text": "2+2?", "cache_control": {"type": "ephemeral"}}
    found = converted({"messages": [{"role": "user", "content": [part], "value": "other"}, ASSISTANT]})
    assert found.messages[0] == {**USER, "value": "other", "content[].cache_control": {"type": "ephemeral"}}


def test_history_comes_before_the_instruction_and_is_trained_too():
    again, six = {"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "Six."}
    for history in ([["2+2?", "Four."]], '[["2+2?", "Four."]]', [USER, ASSISTANT]):
        found = converted({"instruction": "3+3?", "output": "Six.", "history": history})
        assert found.messages == (USER, ASSISTANT, again, six)
        assert found.trained == (1, 3)


def test_a_number_is_an_answer():
    assert converted({"question": "2+2?", "answer": 4}).messages[1]["content"] == "4"


def test_text_alone_is_trained_whole_and_said_to_be():
    found = converted({"text": "Two and two is four."})
    assert (found.prompt, found.completion, found.messages) == ("", "Two and two is four.", ())
    assert found.notes == ("rows of 'text' do not say where an answer begins, so every token is trained",)


def test_what_is_not_used_is_named():
    values = {"messages": [USER, ASSISTANT], "id": 7, "tags": [], "source": None, "answer_spans": []}
    assert converted(values).notes == ("column 'id' is not used",)
    assert converted({"messages": [SYSTEM, USER, ASSISTANT], "system": "Other."}).notes == (
        "column 'system' is not used",
    )


def test_tools_are_read_in_every_spelling_and_without_the_nulls_of_parquet():
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
    bare = {"name": "add", "parameters": {"type": "object", "properties": {"a": {}, "b": None}}, "strict": None}
    in_text = {**tool, "function": json.dumps({**bare, "parameters": json.dumps(tool["function"]["parameters"])})}
    in_text["function"] = in_text["function"].replace(', "strict": null', "")
    for tools in ([tool], json.dumps([tool]), [json.dumps(tool)], [bare], [in_text]):
        assert converted({"messages": [USER, ASSISTANT], "tools": tools}).tools == (tool,)
    assert converted({"messages": [USER, ASSISTANT], "functions": [bare]}).tools == (tool,)
    assert converted({"messages": [USER, ASSISTANT], "tools": [tool], "functions": [bare]}).tools == (tool,)
    nothing = {"type": "function", "function": {"name": "add", "default": None}}
    assert converted({"messages": [USER, ASSISTANT], "tools": json.dumps([nothing])}).tools == (nothing,)
    for tools in (None, "", "null", "[]", {}, []):
        assert converted({"messages": [USER, ASSISTANT], "tools": tools}).tools == ()


def test_a_row_says_more_to_the_template_than_the_flag():
    row = {"messages": [USER, ASSISTANT], "chat_template_kwargs": '{"enable_thinking": true, "depth": null}'}
    found = converted(row, chat_template_kwargs='{"enable_thinking": false, "style": "terse"}')
    assert found.template_options == {"enable_thinking": True, "style": "terse"}


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
    assert [found.messages[turn] for turn in found.trained] == [ASSISTANT]
    assert converted({"messages": [SYSTEM, USER, ASSISTANT]}, system_prompt="Given.").messages[0] == SYSTEM


def test_a_system_prompt_has_no_place_in_plain_text():
    with pytest.raises(DataError, match="row 3: is plain text, which has no place for --system_prompt. Write it in"):
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
    "empty list": ({"messages": []}, r"'messages' must be a list of messages that is not empty, got \[\]"),
    "lists of keys, one of them shorter": (
        {"messages": {"role": ["user", "assistant", "user", "assistant"], "content": ["2+2?", "Four.", "3+3?"]}},
        "'messages' has lists of different lengths: 4 of 'role', 3 of 'content'. Mend or drop the row",
    ),
    "not a list": ({"messages": "hello"}, "'messages' must be a list of messages that is not empty, got 'hello'"),
    "text and list": ({"prompt": [USER], "completion": "x"}, "'completion' must be a list of messages .* got 'x'"),
    "unknown role": (
        {"messages": [USER, {"role": "robot", "content": "x"}]},
        r"'messages\[1\]' has role 'robot'; known are system, developer, user, assistant, tool, human and gpt. Re",
    ),
    "no role": ({"messages": [{"content": "x"}]}, r"'messages\[0\]' has role None"),
    "image content": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]},
        r"'messages\[0\]' has a part that is no text, \{'type': 'image'\}. Only text is trained on",
    ),
    "call without a name": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": "1"}]}]},
        r"'messages\[1\]' has a tool call without the name of a function, \{'id': '1'\}. Give name and arguments",
    ),
    "calls no list": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": "add"}]},
        r"'messages\[1\]' has 'tool_calls' that are no list, 'add'",
    ),
    "another thought in the content": (
        {"messages": [USER, {"role": "assistant", "content": "<think>hm</think>Four.", "thinking": "aha"}]},
        r"'messages\[1\]' has two different thoughts, 'aha' and 'hm'. Keep one",
    ),
    "a user's thought": (
        {"messages": [{**USER, "reasoning_content": "hm"}, ASSISTANT]},
        r"'messages\[0\]' has 'reasoning_content', but is of role user: only an assistant has it. Leave it out",
    ),
    "a tool's calls": (
        {"messages": [USER, {"role": "tool", "content": "x", "tool_calls": [1]}, ASSISTANT]},
        r"'messages\[1\]' has 'tool_calls', but is of role tool",
    ),
    "tool whose function is no object": (
        {"messages": [USER, ASSISTANT], "tools": [{"type": "function", "function": "add"}]},
        "'tools' must hold descriptions of tools",
    ),
    "two calls": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [{"name": "add"}], "function_call": {"name": "sub"}}]},
        r"'messages\[1\]' has a 'function_call' and other 'tool_calls', .* Keep one",
    ),
    "two thoughts": (
        {"messages": [USER, {**ASSISTANT, "reasoning": "hm", "thinking": "aha"}]},
        r"'messages\[1\]' has two different thoughts, 'aha' and 'hm'. Keep one",
    ),
    "thought no text": (
        {"messages": [USER, {**ASSISTANT, "reasoning": {"effort": "high"}}]},
        r"has \{'effort': 'high'\} as 'reasoning', which must be text",
    ),
    "weight below 0": (
        {"messages": [USER, {**ASSISTANT, "weight": -0.5}]},
        r"'messages\[1\]' has weight -0.5, which must be a number from 0 on: 0 is not trained, 1 counts in full",
    ),
    "weight of a row": (
        {"question": "x", "answer": "y", "weight": "half"},
        "the row has weight 'half', which must",
    ),
    "images": (
        {"messages": [USER, ASSISTANT], "images": ["a.png"]},
        "the row has 'images', and only text is trained on: the model would not see them. Leave",
    ),
    "tools no list": ({"messages": [USER, ASSISTANT], "tools": "add"}, "'tools' must be a list or JSON text of one"),
    "tool no object": ({"messages": [USER, ASSISTANT], "tools": ["add"]}, "'tools' must hold descriptions of tools"),
    "template options": (
        {"messages": [USER, ASSISTANT], "chat_template_kwargs": {"tools": []}},
        "'chat_template_kwargs' has 'tools', which a row says otherwise. Leave it out",
    ),
    "history": (
        {"instruction": "x", "output": "y", "history": [["a"]]},
        r"'history' must be pairs of a question and an answer, got \['a'\]",
    ),
    "empty answer": ({"messages": [USER, {"role": "assistant", "content": " "}]}, "is an empty assistant turn"),
    "message no object": ({"messages": ["hi"]}, r"'messages\[0\]' must be an object with role and content, got 'hi'"),
    "truth as answer": (
        {"question": "2+2?", "answer": True},
        "'answer' must be text that is not empty, got True. Mend",
    ),
    "empty completion": ({"prompt": "x", "completion": ""}, "'completion' must be text that is not empty, got ''"),
    "null output": ({"instruction": "x", "output": None}, "'output' must be text that is not empty, got None"),
    "alpaca input": (
        {"instruction": "x", "input": [3], "output": "y"},
        r"'input' must be text or absent, got \[3\]. Mend",
    ),
    "a system prompt of plain text": (
        {"prompt": "x", "completion": "y", "system": "Count."},
        "is plain text, which has no place for its system prompt, 'Count.'. Write it into 'prompt'",
    ),
    "images of a message": (
        {"messages": [{**USER, "images": ["a.png"]}, ASSISTANT]},
        r"'messages\[0\]' has 'images', and only text is trained on",
    ),
    "an image beside the text of a part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "image": "DATA"}]}, ASSISTANT]},
        r"'messages\[0\]' in a part has 'image', and only text",
    ),
    "a weight of a part": (
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "x", "weight": 0}]}]},
        r"'messages\[1\]' has a part with 'weight', which is of whole messages. Give 'token_weights'",
    ),
    "long value": ({"question": "x", "answer": ["y"] * 99}, r"'answer' must be text .* got \['y', .*\.\.\.\. Mend"),
    "empty text": ({"text": " "}, "'text' must be text that is not empty, got ' '"),
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
    assert tuple(REQUIRED_FIELDS) == FORMATS
