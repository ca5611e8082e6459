"""Labels under every chat template in TRL's package, against the masks of TRL's training templates.

Tokens and labels are TRL's but for what is listed: what we leave out of the labels, and which chats are refused.
"""

import json
import re
from datetime import date
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from tokenizers import AddedToken

from profit_sft.data.chat_dataset import assistant_turns
from profit_sft.data.formats import to_conversation
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.row import Row
from profit_sft.data.settings import DataOptions, DataSettings
from profit_sft.data.tokenize import IGNORE_INDEX, tokenize_conversation
from profit_sft.errors import DataError
from tiny import chat_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))


def deepseek(words):
    return f"<\uff5c{words}\uff5c>".replace(" ", "\u2581")


DEEPSEEK = tuple(
    deepseek(f"tool {what} {edge}") for what in ("calls", "call", "outputs", "output") for edge in ("begin", "end")
)
DEEPSEEK += (deepseek("tool sep"), deepseek("User"), deepseek("Assistant"))
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
GEMMA = ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>")
GEMMA += ("<|tool_response>", "<tool_response|>")
COHERE = ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
COHERE += ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
# How a family's name begins: BOS, EOS, special tokens, other added tokens.
FAMILIES = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", COHERE, ()),
    "deepseek": (
        deepseek("begin of sentence"),
        deepseek("end of sentence"),
        (),
        (*DEEPSEEK, *TAGS[:2]),
    ),
    "diffusion_gemma": ("<bos>", "<eos>", GEMMA, ()),
    "gemma4": ("<bos>", "<eos>", GEMMA, ()),
    "gemma": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), ()),
    "glm": (None, "<|endoftext|>", GLM, TAGS),
    "gptoss": ("<|startoftext|>", "<|return|>", ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"), ()),
    "idefics3": ("<|begin_of_text|>", "<end_of_utterance>", (), ()),
    "lfm2": ("<|startoftext|>", "<|im_end|>", ("<|im_start|>", "<|tool_call_start|>", "<|tool_call_end|>"), TAGS[:2]),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"), ()),
    "llava": ("<s>", "</s>", (), ()),
    "muse": ("<|begin_of_text|>", "<|eot|>", ("<|start|>", "<|message|>", "<|end|>", "<|eom|>"), ()),
    "nemotron": (None, "<|im_end|>", ("<|im_start|>",), TAGS),
    "phi": ("<s>", "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), ()),
    "qwen": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), TAGS),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>", (), ()),
}
THOUGHTS_WITHIN = ("deepseek_r1_distill",)  # knows thoughts by their tags alone
# Read a list of parts alone.
PARTS = ("idefics3", "llava_next", "qwen2_5_vl", "smolvlm")


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


NUMBER = {"type": "integer", "description": "a number"}
PARAMETERS = {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]}
OTHER = {"type": "object", "properties": {"c": NUMBER}, "required": ["c"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": PARAMETERS}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "add", "content": "the sum 5"}
SYSTEM = {"role": "system", "content": "Be brief."}
THINKING = [user("2+2?"), assistant("Four.", reasoning_content="Two and two.")]
THINKING_AGAIN = [*THINKING, user("3+3?"), assistant("Six.", reasoning_content="Three twice.")]
CHATS = {
    "one turn": {"messages": [user("2+2?"), assistant("Four.")]},
    "several": {"messages": [user("2+2?"), assistant("Four."), user("3+3?"), assistant("Six.")]},
    "system": {"messages": [SYSTEM, user("2+2?"), assistant("Four."), user("3+3?"), assistant("Six.")]},
    "developer": {"messages": [{**SYSTEM, "role": "developer"}, user("2+2?"), assistant("Four.")]},
    "thought": {"messages": THINKING},
    "thoughts": {"messages": THINKING_AGAIN},
    "tools": {"messages": [user("2+2?"), assistant("Four.")], "tools": TOOLS},
    "call": {"messages": [user("2+3?"), CALLING, RESULT, assistant("It is 5.")], "tools": TOOLS},
}
# What TRL labels and we do not: what the generation prompt brings, and what follows the token that ends a turn. A model
# is not asked for either.
BROUGHT_BY_THE_PROMPT = ("", "\n", "<think>", "<think>\n", "<think>\n\n</think>\n\n", "<|start|>assistant")
BROUGHT_BY_THE_PROMPT += (deepseek("Assistant"), deepseek("Assistant") + "<think>\n", deepseek("tool outputs end"))
BEHIND_THE_END = ("", "\n")
# And what we label and TRL does not: the token at which a model stops to be given the result of its call, and what the
# generation prompt then leaves to the model.
AROUND_A_RESULT = {"diffusion_gemma": "<|tool_response><|turn>model\n"}
# Templates under which a kind of chat is refused, as they do not write what it says.
NO_THOUGHTS = (
    "cohere",
    "cohere2",
    "deepseekv3",
    "gemma",
    "gemma3",
    "idefics3",
    "lfm2",
    "lfm2_v2",
    "llama3",
    "llama3_1",
)
NO_THOUGHTS += ("llama3_2", "llava_next", "phi3", "phi3_5", "qwen2_5", "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl")
NO_THOUGHTS += ("smolvlm", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4")
NO_CALLS = ("cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next")
NO_CALLS += ("phi3", "phi3_5", "qwen2_5_vl", "smolvlm")
REFUSED = {"thought": NO_THOUGHTS, "thoughts": NO_THOUGHTS, "call": NO_CALLS, "system": ("gemma",)}
REFUSED["developer"] = ("gemma",)
# Those that leave out earlier thoughts, or would leave them out: each turn is an example of its own.
TURN_BY_TURN = ("diffusion_gemma", "gemma4_v5", "glm4moe", "gptoss", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl")
TURN_BY_TURN += ("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra")
# An earlier answer ends in another token than the one that is generated, `<|return|>`.
ENDS_OTHERWISE = ("gptoss",)


def tokenizer_of(name):
    """A tiny tokenizer with the special tokens of a family, and its template."""
    made = chat_tokenizer()
    bos, eos, special, plain = next(tokens for family, tokens in FAMILIES.items() if name.startswith(family))
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in (bos, eos, *special) if token])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    made.eos_token = made.pad_token = eos
    made.bos_token = bos
    made.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return made


def ours(tokenizer, chat):
    row = Row(chat, "chats.jsonl", 1)
    return tokenize_conversation(
        to_conversation(row), tokenizer, row, DataOptions(template_date=date.today().isoformat())
    )


def of_trl(tokenizer, name, chat):
    """Tokens and labels by TRL's training template; None where there is none, or it refuses the chat."""
    path = TEMPLATES / f"{name}_training.jinja"
    if not path.exists():
        return None
    # TRL gives a developer as one to templates that know none; we, as the system.
    known = "'developer'" in tokenizer.chat_template or '"developer"' in tokenizer.chat_template
    messages = [SYSTEM if m["role"] == "developer" and not known else m for m in chat["messages"]]
    if name in THOUGHTS_WITHIN:
        messages = [
            {**m, "content": f"<think>\n{m.get('reasoning_content')}\n</think>\n\n{m['content']}"} if len(m) > 2 else m
            for m in messages
        ]
    if name in PARTS:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    found = tokenizer.apply_chat_template(
        messages,
        tools=chat.get("tools"),
        chat_template=path.read_text(encoding="utf-8"),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return found["input_ids"], [bool(mark) for mark in found["assistant_masks"]]


def left_out(tokenizer, example, marks):
    """What TRL labels and we do not, of each stretch that it labels: (at its beginning, at its end)."""
    found, index = set(), 0
    while index < len(marks):
        stop = index
        while stop < len(marks) and marks[stop]:
            stop += 1
        ours = [place for place in range(index, stop) if example.labels[place] != IGNORE_INDEX]
        if ours:
            assert example.labels[ours[0] : ours[-1] + 1] == example.input_ids[ours[0] : ours[-1] + 1]
            before, after = example.input_ids[index : ours[0]], example.input_ids[ours[-1] + 1 : stop]
            found.add((tokenizer.decode(before), tokenizer.decode(after)))
        else:
            assert stop == index
        index = stop + 1
    return found


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_those_of_trl_but_for_what_is_listed(name):
    tokenizer = tokenizer_of(name)
    for kind, chat in CHATS.items():
        if name in REFUSED.get(kind, ()):
            with pytest.raises(DataError, match=r"row 1: the chat template (leaves out|refuses it)"):
                ours(tokenizer, chat)
            continue
        examples = ours(tokenizer, chat)
        said = [message["content"] for message in chat["messages"] if message["role"] == "assistant"]
        by_turn = (name in TURN_BY_TURN and kind == "thoughts") or name in ENDS_OTHERWISE
        assert len(examples) == (len(said) if by_turn and kind != "call" else 1), kind
        trained = "".join(
            tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX]) for example in examples
        )
        for message in chat["messages"]:
            answers = message["role"] == "assistant"
            for words in (
                message["content"],
                message.get("reasoning_content"),
                answers * "add" * ("tool_calls" in message),
            ):
                assert not words or (words in trained) == answers, (kind, words)
        expected = of_trl(tokenizer, name, chat) if len(examples) == 1 else None
        if expected is None:
            continue
        (example,) = examples
        assert example.input_ids == expected[0], kind
        more = [
            label for label, mark in zip(example.labels, expected[1], strict=True) if label != IGNORE_INDEX and not mark
        ]
        assert tokenizer.decode(more) == (AROUND_A_RESULT.get(name, "") if kind == "call" else ""), kind
        for before, after in left_out(tokenizer, example, expected[1]):
            assert before in BROUGHT_BY_THE_PROMPT, kind
            assert after in BEHIND_THE_END, kind


def test_a_template_like_one_that_trl_ends_in_the_next_marker_is_ended_alike():
    tokenizer = tokenizer_of("glm4moe")
    for kind, chat in CHATS.items():
        known = ours(tokenizer_of("glm4moe"), chat)
        tokenizer.chat_template = (TEMPLATES / "glm4moe.jinja").read_text(encoding="utf-8") + "{# as a later GLM's #}"
        unknown = ours(tokenizer, chat)
        assert [(one.input_ids, one.labels) for one in unknown] == [(one.input_ids, one.labels) for one in known], kind
        assert tokenizer.decode(unknown[-1].labels[-1:]) == "<|user|>", kind


@pytest.mark.parametrize("name", NAMES)
def test_the_raw_data_set_of_a_trainer_gives_what_the_file_of_a_command_gives(name, tmp_path):
    tokenizer = tokenizer_of(name)
    other = {"type": "function", "function": {"name": "sub", "description": "Subtract.", "parameters": OTHER}}
    calling = assistant("", tool_calls=[{"type": "function", "function": {"name": "sub", "arguments": {"c": 7}}}])
    chats = dict(CHATS)
    # In one Arrow table with the others, each tool has the other's properties, and each call its arguments, as null.
    chats["two tools"] = {"messages": [user("7?"), calling, {**RESULT, "name": "sub"}, assistant("It is 5.")]}
    chats["two tools"]["tools"] = [*TOOLS, other]
    refused = {**REFUSED, "two tools": NO_CALLS}
    rows = [{"tools": None, **chat} for kind, chat in chats.items() if name not in refused.get(kind, ())]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = prepare_dataset(DataSettings(dataset_name=str(file), max_length=None), tokenizer).dataset
    raw = assistant_turns(Dataset.from_list(rows), tokenizer, name="train")
    assert list(raw["input_ids"]) == list(expected["input_ids"])
    labeled = [[int(label != IGNORE_INDEX) for label in labels] for labels in expected["labels"]]
    assert list(raw["assistant_masks"]) == labeled


def test_gpt_oss_is_trained_on_its_calls_and_answers_as_it_is_asked_for_them():
    tokenizer = tokenizer_of("gptoss")
    calling = {**CALLING, "reasoning_content": "Call it."}
    thinking = assistant("It is 5.", reasoning_content="So it says.")
    chat = {"messages": [user("2+3?"), calling, RESULT, calling, RESULT, thinking, *THINKING], "tools": TOOLS}
    called = "<|channel|>analysis<|message|>Call it.<|end|><|start|>assistant to=functions.add<|channel|>commentary "
    called += 'json<|message|>{"a": 2, "b": 3}<|call|>'
    final = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>"
    learned = [called, called, final.format("So it says.", "It is 5."), final.format("Two and two.", "Four.")]
    for marks in (False, True):  # TRL's training template is the same with marks
        if marks:
            tokenizer.chat_template = (TEMPLATES / "gptoss_training.jinja").read_text(encoding="utf-8")
        examples = ours(tokenizer, chat)
        assert len(examples) == len(learned)
        for index, example, words in zip((1, 3, 5, 7), examples, learned, strict=True):
            asked = tokenizer.apply_chat_template(
                [{**m, "thinking": m.get("reasoning_content", "")} for m in chat["messages"][:index]],
                tools=TOOLS,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )["input_ids"]
            assert example.input_ids[: len(asked)] == asked
            assert set(example.labels[: len(asked)]) == {IGNORE_INDEX}
            assert example.labels[len(asked) :] == example.input_ids[len(asked) :]
            assert tokenizer.decode(example.input_ids[len(asked) :]) == words


def test_gpt_oss_is_refused_two_calls_in_a_turn_and_takes_them_in_two():
    tokenizer = tokenizer_of("gptoss")
    twice = {**CALLING, "tool_calls": [CALL, CALL]}
    with pytest.raises(DataError, match=r"the call of 'add' of turn 2.* make a turn of each call"):
        ours(tokenizer, {"messages": [user("2+3?"), twice, RESULT, RESULT, assistant("It is 5.")], "tools": TOOLS})
    each = {"messages": [user("2+3?"), CALLING, RESULT, CALLING, RESULT, assistant("It is 5.")], "tools": TOOLS}
    (example,) = ours(tokenizer, each)  # one, as there are no thoughts to be left out
    learned = tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX])
    assert (learned.count("functions.add"), learned.count("It is 5.")) == (2, 1)


@pytest.mark.parametrize("turns", [1, 2])
def test_a_prompt_that_opens_a_thought_which_answers_lack_is_said(turns):
    said = [user("2+2?"), assistant("Four.")] * turns
    opened = "ends its generation prompt in '<think>.*', which answers of this data do not begin with"
    for name, chat in (("deepseek_r1_distill", said), ("deepseek_r1_distill", THINKING), ("qwen3_5_think", said)):
        notes = "; ".join(note for example in ours(tokenizer_of(name), {"messages": chat}) for note in example.notes)
        assert bool(re.search(opened, notes)) == (name == "deepseek_r1_distill" and chat is said), (name, notes)


@pytest.mark.parametrize("kind", ["thought", "content", "tool_call"])
@pytest.mark.parametrize("name", NAMES)
def test_the_kinds_of_a_turn_are_weighed_where_they_stand(name, kind):
    tokenizer = tokenizer_of(name)
    chats = {"thought": THINKING, "content": THINKING, "tool_call": CHATS["call"]["messages"]}
    more = {"tools": TOOLS} if kind == "tool_call" else {}
    if name in (NO_CALLS if kind == "tool_call" else NO_THOUGHTS):
        chats, more = {key: [user("2+2?"), assistant("Four.")] for key in chats}, {}
    row = Row({"messages": chats[kind], **more}, "chats.jsonl", 1)
    try:
        examples = tokenize_conversation(
            to_conversation(row), tokenizer, row, DataOptions(given_weights=json.dumps({kind: 0.5}))
        )
    except DataError as error:
        pytest.skip(f"not rendered: {str(error)[:80]}")
    text = ""
    for example in examples:
        weights = example.token_weights or [1.0] * len(example.labels)
        halved = [token for token, weight in zip(example.labels, weights, strict=True) if weight == 0.5 and token >= 0]
        text += tokenizer.decode(halved)
    if kind == "tool_call" and name not in NO_CALLS:
        assert "add" in text
        assert "2" in text
        assert "the sum 5" not in text
    elif kind == "thought" and name not in NO_THOUGHTS:
        assert text.strip() == "Two and two."
    elif kind == "content":
        assert text.strip() == "Four."
    else:
        assert text == ""
