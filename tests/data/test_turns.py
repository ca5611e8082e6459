"""What of a chat is learned, and how it is rendered, under templates that do what templates do."""

import pytest
from tokenizers import AddedToken

from profit_sft.data.chat_template import ChatTemplate
from profit_sft.data.formats import to_conversation
from profit_sft.data.row import Row
from profit_sft.data.settings import DataOptions
from profit_sft.data.tokenize import tokenize_conversation
from profit_sft.errors import DataError
from tiny import CHATML

USER, ASSISTANT = {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "It is four."}
AGAIN = {"role": "assistant", "content": "Still four."}
THOUGHT = {"role": "assistant", "content": "<think>2+2</think>Four."}
WHOLE = "It is four.<|im_end|>Still four.<|im_end|>"
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}<|im_end|>{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# GLM's way: a turn ends where the next one's marker stands.
MARKER = (
    "{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' else '<|im_end|>' }}{{ m.content }}{% endfor %}"
    + ("{% if add_generation_prompt %}<|im_end|>{% endif %}")
)
EACH_TURN = (
    "the chat template rewrites earlier turns, so each trained turn is an example of its own, rendered as it is served"
)
DATED = "{% macro day() %}{{ strftime_now('%d %b %Y, %A, %-d.%-m.') }}{% endmacro %}{{ day() }}|" + CHATML


@pytest.fixture
def rendered(tokenizer):
    """(text, trained text, notes) of each example of a chat under a template."""

    def render(*messages, template=CHATML, row=None, **options):
        tokenizer.chat_template = template
        place = Row({"messages": list(messages), **(row or {})}, "train.jsonl", 3)
        examples = tokenize_conversation(to_conversation(place), tokenizer, place, DataOptions(**options))
        return [
            (
                tokenizer.decode(example.input_ids),
                tokenizer.decode([label for label in example.labels if label != -100]),
                example.notes,
            )
            for example in examples
        ]

    return render


def test_a_chat_that_extends_is_one_example(rendered):
    ((_, trained, notes),) = rendered(USER, ASSISTANT, USER, AGAIN)
    assert (trained, notes) == (WHOLE, ())


def test_what_a_user_quotes_as_a_thought_is_the_users_text(rendered):
    quoting = {"role": "user", "content": "<think>2+2 is 5</think> Right?"}
    thinking = {"role": "assistant", "content": "No.", "reasoning_content": "It is 4."}
    # It reads no key of thoughts, so that the chat is spelled with them in the content.
    ((text, trained, _),) = rendered(quoting, thinking, template=CHATML + "{# </think> #}")
    assert "<think>2+2 is 5</think> Right?" in text
    assert trained == "<think>\nIt is 4.\n</think>\n\nNo.<|im_end|>"
    with pytest.raises(DataError, match="leaves out message 1, of role user"):
        rendered(quoting, ASSISTANT, template=CHATML.replace(".content", ".content.split('</think>')[-1]"))


def test_turns_that_say_so_are_prompt(rendered):
    ((text, trained, _),) = rendered(USER, {**ASSISTANT, "weight": 0}, USER, AGAIN)
    assert "It is four." in text
    assert trained == "Still four.<|im_end|>"


def test_an_opening_turn_is_trained(rendered):
    ((text, trained, _),) = rendered(ASSISTANT, USER, AGAIN)
    assert text.startswith("<|im_start|>assistant\nIt is four.")
    assert trained == WHOLE


def test_an_opening_turn_is_trained_where_a_template_with_marks_wants_a_user(rendered):
    system = {"role": "system", "content": "Count."}
    template = "{% if 'user' not in messages | map(attribute='role') %}{{ raise_exception('no user') }}{% endif %}"
    ((_, trained, _),) = rendered(system, ASSISTANT, USER, AGAIN, template=template + MARKED)
    assert trained == WHOLE


def test_marks_say_what_is_trained_and_the_token_that_ends_it_is_too(rendered):
    ((_, trained, _),) = rendered(USER, ASSISTANT, USER, AGAIN, template=MARKED)
    assert trained == WHOLE
    ((_, trained, _),) = rendered(USER, {**ASSISTANT, "train": False}, USER, AGAIN, template=MARKED)
    assert trained == "Still four.<|im_end|>"


def test_an_end_behind_white_space_that_no_mark_has_is_trained_too(rendered):
    template = MARKED.replace("{% endgeneration %}<|im_end|>", "{% endgeneration %}{{ ' ' }}<|im_end|>")
    ((_, trained, _),) = rendered(USER, ASSISTANT, USER, AGAIN, template=template)
    assert trained == WHOLE.replace("<", " <")


def test_marks_of_another_number_than_turns_leave_each_turn_to_itself(rendered):
    last = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    examples = rendered(USER, ASSISTANT, USER, AGAIN, template=last)
    assert [trained for _, trained, _ in examples] == ["It is four.<|im_end|>", "Still four.<|im_end|>"]


def test_where_earlier_turns_are_rewritten_each_is_an_example_as_it_is_served(rendered, forgetful_tokenizer):
    template = forgetful_tokenizer.chat_template
    first, second = rendered(USER, THOUGHT, USER, THOUGHT, template=template)
    assert first[1] == second[1] == "<think>2+2</think>Four.<|im_end|>"
    assert second[0].count("<think>") == 1  # in the history the template drops it
    assert first[2] == second[2] == (EACH_TURN,)
    ((_, trained, notes),) = rendered(USER, THOUGHT, USER, THOUGHT, template=template, train_on="last")
    assert (trained, notes) == ("<think>2+2</think>Four.<|im_end|>", ())
    ((_, trained, _),) = rendered(USER, ASSISTANT, USER, AGAIN, template=template)  # nothing is dropped
    assert trained == WHOLE


def test_a_turn_is_learned_from_where_it_leaves_the_generation_prompt(rendered):
    opened = CHATML.replace("assistant\n{% endif", "assistant\n<t>{% endif")
    ((_, trained, notes),) = rendered(USER, ASSISTANT, template=opened)
    assert trained == "It is four.<|im_end|>"
    assert len(notes) == 1
    assert "ends its generation prompt in '<t>', which answers of this data do not begin with" in notes[0]
    ((_, trained, notes),) = rendered(USER, {**ASSISTANT, "content": "<t>hm</t>Four."}, template=opened)
    assert (trained, notes) == ("hm</t>Four.<|im_end|>", ())


def test_the_marker_of_the_next_turn_ends_a_turn_that_has_no_end(rendered):
    ((_, trained, _),) = rendered(USER, ASSISTANT, USER, template=MARKER)
    assert trained == "It is four.<|im_start|>"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (MARKER, "<|im_start|>"),
        (
            CHATML.replace("<|im_end|>", "{{ '<|im_end|>' if message.role == 'user' or not loop.last }}"),
            "<|im_end|>",
        ),
        (MARKED.replace("<|im_end|>{% else %}", "{{ '<|im_end|>' if not loop.last }}{% else %}"), "<|im_end|>"),
    ],
)
def test_a_last_answer_without_an_end_gets_the_one_it_has_once_the_chat_goes_on(rendered, template, end):
    for turns in ((ASSISTANT,), (ASSISTANT, USER, AGAIN)):
        ((text, trained, notes),) = rendered(USER, *turns, template=template)
        assert trained == "".join(turn["content"] + end for turn in turns if turn is not USER)
        assert text.endswith(turns[-1]["content"] + end)
        assert len(notes) == 1
        assert "the one is put there that follows it once the chat goes on" in notes[0]
    ((_, trained, _),) = rendered(USER, ASSISTANT, USER, template=template)
    assert trained == ASSISTANT["content"] + end


def test_a_last_answer_gets_an_end_where_a_template_wants_a_system_prompt(rendered):
    wants = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    template = wants + MARKER.replace("m.role == 'user'", "m.role != 'assistant'")
    ((text, trained, _),) = rendered({"role": "system", "content": "Count."}, USER, ASSISTANT, template=template)
    assert trained == ASSISTANT["content"] + "<|im_start|>"
    assert text.count("Count.") == 1


@pytest.mark.parametrize("think", ["<think>\n\n</think>\n\n", "<think></think>"])
def test_an_empty_thought_is_trained_or_ignored(rendered, think):
    template = CHATML.replace("\n{{ message", f"\n{{{{ '{think}' if message.role == 'assistant' }}}}{{{{ message")
    ((_, trained, _),) = rendered(USER, ASSISTANT, USER, AGAIN, template=template)
    assert trained == f"{think}It is four.<|im_end|>{think}Still four.<|im_end|>"
    ((text, trained, _),) = rendered(USER, ASSISTANT, USER, AGAIN, template=template, empty_think="ignore")
    assert text.count(think) == 2
    assert trained == WHOLE


def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day(rendered):
    ((text, trained, notes),) = rendered(USER, ASSISTANT, template=DATED)
    assert text.startswith("26 Jul 2024, Friday, 26.7.|<|im_start|>user")
    assert trained == "It is four.<|im_end|>"
    assert notes == ("the chat template writes today's date: rows are of 2024-07-26 on every day (--template_date)",)
    ((text, _, _),) = rendered(USER, ASSISTANT, template=DATED, template_date="2026-03-05")
    assert text.startswith("05 Mar 2026, Thursday, 5.3.|")


def test_what_the_template_does_not_use_is_named(rendered):
    tool = {"type": "function", "function": {"name": "add"}}
    row = {"tools": [tool], "chat_template_kwargs": {"style": "terse"}, "id": 1}
    ((_, _, notes),) = rendered(USER, {**ASSISTANT, "mood": "good"}, row=row)
    assert notes == (
        "column 'id' is not used",
        "'tools' are not used: the chat template writes none",
        "key 'mood' of messages is not used",
        "'style' of chat_template_kwargs is not used: the chat template does not read it",
    )


def test_keys_tools_and_options_reach_a_template_that_reads_them(rendered):
    template = (
        "{% for t in tools %}[{{ t.function.name }}]{% endfor %}{{ style }}|{% for m in messages %}{{ m.mood }}:"
        "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    row = {"tools": [{"name": "add"}], "chat_template_kwargs": {"style": "terse"}}
    ((text, trained, notes),) = rendered(USER, {**ASSISTANT, "mood": ""}, template=template, row=row)
    assert text == "[add]terse|:What is 2+2?<|im_end|>:It is four.<|im_end|>"
    assert trained == "It is four.<|im_end|>"
    assert notes == ()


def test_tools_that_only_a_call_names_are_not_used(rendered):
    row = {"tools": [{"name": "add"}]}
    template = CALLING.replace("ARGUMENTS", "{{ call.function.arguments }}")
    ((_, _, notes),) = rendered(USER, CALL, template=template, row=row)
    assert notes == ("'tools' are not used: the chat template writes none",)


def test_a_key_of_messages_is_not_used_where_only_calls_have_one_of_that_name(rendered):
    template = CALLING.replace("ARGUMENTS", "{{ call.function.arguments }}")
    ((_, _, notes),) = rendered({**USER, "name": "alice"}, CALL, template=template)
    assert notes == ("key 'name' of messages is not used",)


def test_a_developer_speaks_as_the_system_where_a_template_knows_none(rendered):
    developer, system = {"role": "developer", "content": "Add."}, {"role": "system", "content": "Count."}
    ((text, _, _),) = rendered(developer, USER, ASSISTANT)
    assert text.startswith("<|im_start|>system\nAdd.<|im_end|>")
    ((text, trained, _),) = rendered(system, developer, USER, ASSISTANT)
    assert text.startswith("<|im_start|>system\nCount.\n\nAdd.<|im_end|>")
    assert trained == "It is four.<|im_end|>"
    ((text, _, _),) = rendered(developer, USER, ASSISTANT, template="{# 'developer' #}" + CHATML)
    assert text.startswith("<|im_start|>developer\nAdd.<|im_end|>")


def test_content_is_a_list_of_parts_for_a_template_that_wants_one(rendered):
    template = CHATML.replace("message.content", "message.content[0]['text']")
    ((_, trained, _),) = rendered(USER, ASSISTANT, USER, AGAIN, template=template)
    assert trained == WHOLE


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": "zwei ü", "b": 3}}}]}
CALLING = CHATML.replace(
    "{{ message.content }}",
    "{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function.name }}ARGUMENTS{% endfor %}",
)


def test_a_key_of_a_call_that_the_template_does_not_read_is_named(rendered):
    call = {**CALL, "tool_calls": [{"name": "add", "arguments": {"a": 1}, "mood": "good", "id": "1"}]}
    template = CALLING.replace("ARGUMENTS", "{{ call.function.arguments }}")
    ((_, _, notes),) = rendered(USER, call, template=template)
    assert notes == ("key 'mood' of tool calls is not used",)


@pytest.mark.parametrize("arguments", ["{{ call.function.arguments | tojson }}", "{{ '' + call.function.arguments }}"])
def test_arguments_of_calls_are_an_object_or_text_as_the_template_wants(rendered, arguments):
    result = {"role": "tool", "content": "5"}
    template = CALLING.replace("ARGUMENTS", arguments)
    ((_, trained, _),) = rendered(USER, CALL, result, AGAIN, template=template)
    assert trained == 'add{"a": "zwei ü", "b": 3}<|im_end|>Still four.<|im_end|>'


@pytest.mark.parametrize(
    "written",
    [
        "{{ value | tojson }}",
        "'{{ value | replace('\n', '\\\\n') }}'",
        "{{ value | trim }}",
        "{{ value | tojson(ensure_ascii=True) }}",
    ],
)
def test_arguments_may_be_written_in_any_syntax(rendered, written):
    arguments = {"text": 'zwei\n"ü" <b> & \\nabla ', "n": 1.5}
    call = {**CALL, "tool_calls": [{"name": "add", "arguments": arguments}]}
    pairs = "{% for key, value in call.function.arguments.items() %}{{ key }}=WRITTEN;{% endfor %}"
    template = CALLING.replace("ARGUMENTS", pairs.replace("WRITTEN", written))
    ((_, trained, _),) = rendered(USER, call, template=template.replace("value |", "value | string |"))
    assert trained.startswith("addtext=")
    with pytest.raises(DataError, match="leaves out the call of 'add' of turn 2"):
        rendered(USER, call, template=template.replace("value |", "'' |"))


DROPPING = CHATML.replace("message.content }}", "message.content if message.role != DROPPED }}")


def test_a_choice_of_templates_needs_a_default(rendered, tokenizer):
    ((_, trained, _),) = rendered(USER, ASSISTANT, template={"default": CHATML, "tool_use": "{{ no }}"})
    assert trained == "It is four.<|im_end|>"
    with pytest.raises(DataError, match="row 3: has no chat template to be rendered by: .* --chat_template_path"):
        rendered(USER, ASSISTANT, template={"short": CHATML, "long": CHATML})


def test_tokens_that_are_added_later_end_turns_too(rendered, tokenizer):
    rendered(USER, ASSISTANT)
    tokenizer.add_tokens([AddedToken("<|over|>", special=True, normalized=False)])
    ((_, trained, _),) = rendered(USER, ASSISTANT, template=CHATML.replace("<|im_end|>", "<|over|>"))
    assert trained == "It is four.<|over|>"


REFUSED = {
    "an answer": (
        (USER, ASSISTANT),
        DROPPING.replace("DROPPED", "'assistant'"),
        "leaves out the text of turn 2, which would not be learned. Name another template with --chat_template_path",
    ),
    "a thought": ((USER, {**ASSISTANT, "reasoning": "hm"}), CHATML, "leaves out the thought of turn 2"),
    "a thought within": (
        (USER, THOUGHT),
        CHATML.replace("message.content", "message.content.split('</think>')[-1]"),
        "leaves out the thought of turn 2",
    ),
    "a call": ((USER, CALL, USER), CHATML, "leaves out the call of 'add' of turn 2"),
    "a system message": (
        ({"role": "system", "content": "Count."}, USER, ASSISTANT),
        DROPPING.replace("DROPPED", "'system'"),
        "leaves out message 1, of role system, so what follows would be learned without it",
    ),
    "a thought that the answer repeats": (
        (USER, {"role": "assistant", "content": "It is 2 + 2 = 4.", "reasoning": "2 + 2 = 4"}),
        CHATML,
        "leaves out the thought of turn 2",
    ),
    "a thought within that the answer repeats": (
        (USER, {"role": "assistant", "content": "<think>four</think>It is four."}),
        CHATML.replace("message.content", "message.content.split('</think>')[-1]"),
        "leaves out the thought of turn 2",
    ),
    "a call that the thought names": (
        (USER, {**CALL, "content": "I add a and b, zwei ü."}, USER),
        CHATML,
        "leaves out the call of 'add' of turn 2",
    ),
    "the second of two calls alike": (
        (USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}),
        CALLING.replace("ARGUMENTS", "{{ call.function.arguments | tojson }}").replace(
            "message.tool_calls or []", "(message.tool_calls or [])[:1]"
        ),
        "leaves out the call of 'add' of turn 2",
    ),
    "a system message that the answer repeats": (
        ({"role": "system", "content": "four"}, USER, ASSISTANT),
        DROPPING.replace("DROPPED", "'system'"),
        "leaves out message 1, of role system",
    ),
    "a system message that the question and an earlier turn repeat": (
        (
            {"role": "system", "content": "four"},
            {**USER, "content": "four?"},
            {**ASSISTANT, "train": False},
            USER,
            AGAIN,
        ),
        DROPPING.replace("DROPPED", "'system'"),
        "leaves out message 1, of role system",
    ),
    "no end": (
        (USER, ASSISTANT),
        CHATML.replace("<|im_end|>", ""),
        "ends turn 2 in no special token that the tokenizer has, so a model would not learn to stop.*add its end token",
    ),
    "an end that the vocabulary lacks": (
        (USER, ASSISTANT),
        CHATML.replace("<|im_end|>", "<|over|>"),
        "ends turn 2 in no special token that the tokenizer has",
    ),
    "another header": (
        (USER, ASSISTANT),
        CHATML.replace("assistant\n{% endif", "robot\n{% endif").replace("%}<|im_start|>robot", "%}robot"),
        "does not begin turn 2 as its generation prompt does, .*--chat_template_path",
    ),
    "what a template raises": (
        (USER, ASSISTANT),
        "{{ raise_exception('roles must alternate') }}",
        "the chat template refuses it: roles must alternate. Mend or drop",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused(rendered, case):
    messages, template, message = REFUSED[case]
    with pytest.raises(DataError, match=rf"^train\.jsonl, row 3: .*{message}"):
        rendered(*messages, template=template)


@pytest.mark.parametrize("again", ["four{}", "{}four", "four{}?"], ids=["behind", "before", "within"])
@pytest.mark.parametrize("written", ["", " | trim", " | tojson"])
@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_white_space_lets_no_message_take_the_place_of_another(rendered, again, written, role):
    asked = {"role": role, "content": "Is it four?" if again.endswith("{}?") else "Is it four"}
    padded = {"role": "user", "content": again.format(" \n" * 9)}
    ((text, _, _),) = rendered(asked, ASSISTANT, padded, AGAIN, template=CHATML.replace("content", f"content{written}"))
    assert "Is it four" in text


def test_the_template_is_named_where_it_has_a_name(rendered, tokenizer):
    tokenizer.name_or_path = "models/tiny"
    with pytest.raises(DataError, match="row 3: the chat template of 'models/tiny' leaves out the thought of turn 2"):
        rendered(USER, {**ASSISTANT, "thinking": "hm"})


@pytest.mark.parametrize("calls", [False, True], ids=["words", "calls"])
def test_a_long_chat_is_rendered_a_dozen_times(rendered, monkeypatch, calls):
    renderings, render = [], ChatTemplate.render

    def counted(self, *args, **options):
        renderings.append(1)
        return render(self, *args, **options)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    turns = [
        [USER, {**ASSISTANT, "content": f"It is {n}."}]
        if n % 2 or not calls
        else [USER, {**CALL, "content": "", "tool_calls": [{"name": f"add{n}"}]}, {"role": "tool", "content": str(n)}]
        for n in range(200)
    ]
    template = CALLING.replace("ARGUMENTS", "()")
    ((_, trained, _),) = rendered(*(message for turn in turns for message in turn), template=template)
    assert trained.count("<|im_end|>") == 200
    assert len(renderings) <= 12


def test_turns_of_a_long_chat_are_those_of_their_beginnings(rendered, tokenizer):
    result, call = {"role": "tool", "content": "5"}, {**CALL, "content": ""}
    kinds = [
        (USER, ASSISTANT),
        (USER, call, result, AGAIN),
        ({**USER, "content": " and? \n"}, {**ASSISTANT, "content": "  Five.\n"}),
        (USER, {**ASSISTANT, "content": "<|im_end|> is a token."}),
        (USER, {**ASSISTANT, "weight": 0}),
        (USER, USER, ASSISTANT, AGAIN),
    ]
    chat = [message for turn in range(24) for message in kinds[turn * 5 % len(kinds)]]
    template = CALLING.replace("ARGUMENTS", "{{ call.function.arguments | tojson }}")
    ((text, trained, _),) = rendered(*chat, template=template)
    expected = ""
    for turn, message in enumerate(chat):
        if message["role"] == "assistant" and message.get("weight") != 0:
            expected += rendered(*chat[: turn + 1], template=template, train_on="last")[0][1]
    assert trained == expected
    assert text.count("<|im_start|>") == len(chat)
