"""One message in every spelling: roles, content, thoughts, calls, and whether it is trained."""

import json

import pytest

from profit_sft.data.formats import to_conversation
from profit_sft.data.row import Row

USER = {"role": "user", "content": "2+3?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
THINKING = {"role": "assistant", "content": "Five.", "reasoning_content": "Two and three."}
SAID = {"role": "assistant", "content": "Five."}
RESULT = {"role": "tool", "content": "5"}
TEXT_CALL = json.dumps(CALL["function"])

SPELLINGS = {
    "openai": ({"role": "assistant", "content": "Five."}, SAID),
    "sharegpt": ({"from": "gpt", "value": "Five."}, SAID),
    "capitals": ({"role": "Assistant", "content": "Five."}, SAID),
    "parts": (
        {"role": "assistant", "content": [{"type": "text", "text": "Fi"}, {"type": "text", "text": "ve."}]},
        SAID,
    ),
    "parts of another API": ({"role": "assistant", "content": [{"type": "output_text", "text": "Five."}]}, SAID),
    "parts with parquet's nulls": (
        {"role": "assistant", "content": [{"type": "text", "text": "Five.", "image": None}], "tool_calls": None},
        SAID,
    ),
    "a number": ({"role": "assistant", "content": 5}, {"role": "assistant", "content": "5"}),
    "reasoning_content": (THINKING, THINKING),
    "thinking": ({**SAID, "thinking": "Two and three."}, THINKING),
    "reasoning": ({**SAID, "reasoning": "Two and three.", "reasoning_content": None}, THINKING),
    "thought": ({**SAID, "thought": "Two and three.", "thinking": ""}, THINKING),
    "one thought under two names": ({**THINKING, "reasoning": "Two and three."}, THINKING),
    "a thought in the content too": (
        {**THINKING, "content": "<think>\nTwo and three.\n</think>\n\nFive."},
        THINKING,
    ),
    "a user with an assistant's keys, empty": ({**USER, "tool_calls": "[]", "thinking": "", "function_call": {}}, USER),
    "a part that thinks": (
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "Two and three."}, {"type": "text", "text": "Five."}],
        },
        THINKING,
    ),
    "call": ({"role": "assistant", "content": None, "tool_calls": [CALL]}, CALLING),
    "call beside empty content": ({**CALLING, "content": ""}, {**CALLING, "content": ""}),
    "arguments as JSON text": (
        {**CALLING, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}]},
        CALLING,
    ),
    "calls as JSON text": ({**CALLING, "tool_calls": json.dumps([CALL])}, CALLING),
    "flat call": ({**CALLING, "tool_calls": [CALL["function"]]}, CALLING),
    "LangChain's args": ({**CALLING, "tool_calls": [{"name": "add", "args": {"a": 2, "b": 3}}]}, CALLING),
    "Anthropic's input": (
        {**CALLING, "tool_calls": [{"type": "tool_use", "name": "add", "input": {"a": 2, "b": 3}}]},
        CALLING,
    ),
    "no arguments as empty text": (
        {**CALLING, "tool_calls": [{"function": {"name": "add", "arguments": ""}}]},
        {**CALLING, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]},
    ),
    "other keys of a call": (
        {**CALLING, "tool_calls": [{**CALL, "mood": "good"}]},
        {**CALLING, "tool_calls": [{**CALL, "mood": "good"}]},
    ),
    "one function_call beside the same tool_calls": ({**CALLING, "function_call": CALL["function"]}, CALLING),
    "no function_call beside tool_calls": ({**CALLING, "function_call": {}}, CALLING),
    "sharegpt's function_call as an object": ({"from": "function_call", "value": CALL["function"]}, CALLING),
    "call with parquet's nulls": (
        {
            **CALLING,
            "tool_calls": [
                {"id": None, "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3, "c": None}}}
            ],
        },
        CALLING,
    ),
    "a null in JSON text": (
        {**CALLING, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": null}'}}]},
        {**CALLING, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": None}}}]},
    ),
    "one function_call": ({"role": "assistant", "content": None, "function_call": CALL["function"]}, CALLING),
    "sharegpt's function_call": ({"from": "function_call", "value": TEXT_CALL}, CALLING),
    "tool": ({"role": "tool", "content": "5"}, RESULT),
    "function": ({"role": "function", "content": "5"}, RESULT),
    "sharegpt's observation": ({"from": "observation", "value": "5"}, RESULT),
    "sharegpt's tool_response": ({"from": "tool_response", "value": "5"}, RESULT),
    "a result that is an object": ({"role": "tool", "content": {"sum": 5}}, {"role": "tool", "content": '{"sum": 5}'}),
    "a result that is a list": ({"role": "tool", "content": [{"sum": 5}]}, {"role": "tool", "content": '[{"sum": 5}]'}),
    "a result in parts": ({"role": "tool", "content": [{"type": "text", "text": "5"}]}, RESULT),
    "no result": ({"role": "tool", "content": None}, {"role": "tool", "content": ""}),
    "developer": ({"role": "developer", "content": "Add."}, {"role": "developer", "content": "Add."}),
    "human": ({"from": "human", "value": "2+3?"}, USER),
    "keys of its own": ({**RESULT, "tool_call_id": "c1", "name": None}, {**RESULT, "tool_call_id": "c1"}),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_a_message_is_the_same_in_every_spelling(case):
    given, expected = SPELLINGS[case]
    conversation = to_conversation(Row({"messages": [USER, given, SAID]}, "train.jsonl", 1))
    assert conversation.messages[1] == expected


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize(
    ("value", "trained"),
    [(0, False), (1, True), (False, False), (True, True), (0.0, False), ("1", True), (None, True)],
    ids=str,
)
def test_a_turn_may_say_that_it_is_not_trained(key, value, trained):
    values = {"messages": [USER, {**SAID, key: value}, USER, SAID]}
    conversation = to_conversation(Row(values, "train.jsonl", 1))
    assert conversation.trained == ((1, 3) if trained else (3,))
    assert conversation.messages[1] == SAID


@pytest.mark.parametrize(
    "turns", [[{"human": "2+3?", "assistant": "Five."}], [{"human": "2+3?"}, {"assistant": "Five.", "human": None}]]
)
def test_keys_may_say_who_speaks(turns):
    assert to_conversation(Row({"conversations": turns}, "rows.jsonl", 1)).messages == (USER, SAID)


def test_calls_that_follow_each_other_are_made_by_one_turn():
    call = {"from": "function_call", "value": TEXT_CALL}
    turns = [{"from": "human", "value": "2+3?"}, call, call, {"from": "observation", "value": "5"}, call]
    messages = to_conversation(Row({"conversations": turns}, "rows.jsonl", 1)).messages
    assert messages == (USER, {**CALLING, "tool_calls": [CALL, CALL]}, RESULT, CALLING)
