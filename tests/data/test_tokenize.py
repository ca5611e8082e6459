"""Which tokens carry labels, under which templates, and what kind each token is."""

import pytest
from tokenizers import AddedToken, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Metaspace

from profit_sft.data import tokenize
from profit_sft.data.formats import to_conversation
from profit_sft.data.row import Row
from profit_sft.data.settings import DataOptions
from profit_sft.data.tokenize import IGNORE_INDEX, TOKEN_KINDS, tokenize_conversation, tokenize_texts
from profit_sft.data.turns import Rendered
from profit_sft.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "It is four."}
AGAIN = {"role": "assistant", "content": "Still four."}
SPACED = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TRIMMING = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
GENERATION_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def tokenized(tokenizer, values, train_on="all"):
    row = Row(values, "train.jsonl", 3)
    (example,) = tokenize_conversation(to_conversation(row), tokenizer, row, DataOptions(train_on=train_on))
    return example


def chat(*messages, spans=None):
    return {"messages": list(messages), "answer_spans": spans}


def text_of_kind(tokenizer, example, kind):
    pairs = zip(example.input_ids, example.token_kinds, strict=True)
    return tokenizer.decode([token for token, number in pairs if number == TOKEN_KINDS[kind]])


def test_labels_are_the_input_ids_of_the_answer_up_to_its_end_token(tokenizer, trained_text):
    example = tokenized(tokenizer, chat(USER, ASSISTANT))
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(example.input_ids, example.labels, strict=True))
    assert trained_text(tokenizer, example.labels) == "It is four.<|im_end|>"
    assert example.labels[-1] == IGNORE_INDEX  # the newline after <|im_end|>
    assert example.labels[-2] == tokenizer.eos_token_id


def test_input_ids_are_those_of_the_chat_template(tokenizer):
    example = tokenized(tokenizer, chat(USER, ASSISTANT, USER, AGAIN))
    whole = tokenizer.apply_chat_template([USER, ASSISTANT, USER, AGAIN], tokenize=True, return_dict=False)
    assert example.input_ids == whole


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [("all", "It is four.<|im_end|>Still four.<|im_end|>"), ("last", "Still four.<|im_end|>")],
)
def test_all_assistant_turns_are_trained_or_the_last_alone(tokenizer, trained_text, train_on, expected):
    example = tokenized(tokenizer, chat(USER, ASSISTANT, USER, AGAIN, USER), train_on)
    assert trained_text(tokenizer, example.labels) == expected


def test_only_the_completion_of_a_chat_prompt_is_trained(tokenizer, trained_text):
    example = tokenized(tokenizer, {"prompt": [USER, ASSISTANT, USER], "completion": [AGAIN]})
    assert trained_text(tokenizer, example.labels) == "Still four.<|im_end|>"


def test_the_newline_after_a_turn_is_not_trained_when_its_end_token_is_not_eos(tokenizer, trained_text):
    tokenizer.eos_token = "<pad>"
    example = tokenized(tokenizer, chat(USER, ASSISTANT, USER, AGAIN))
    assert trained_text(tokenizer, example.labels) == "It is four.<|im_end|>Still four.<|im_end|>"


def test_white_space_that_the_answer_itself_ends_in_is_trained(tokenizer, trained_text):
    example = tokenized(tokenizer, chat(USER, {**ASSISTANT, "content": "Four.\n"}))
    assert trained_text(tokenizer, example.labels) == "Four.\n<|im_end|>"


def test_the_first_word_is_trained_where_it_has_the_space_that_the_prompt_ends_in(tokenizer, trained_text):
    tokenizer.chat_template = SPACED
    example = tokenized(tokenizer, chat(USER, {**ASSISTANT, "content": "two and two"}, USER, AGAIN))
    assert "two" in trained_text(tokenizer, example.labels).split()
    assert trained_text(tokenizer, example.labels).strip() == "two and two<|im_end|>Still four.<|im_end|>"


def test_chat_rows_need_a_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(
        DataError, match="has no chat template. Name one with --chat_template_path, or give text in 'promp"
    ):
        tokenized(tokenizer, chat(USER, ASSISTANT))


def test_tokens_of_spaces_are_trained_where_offsets_are_trimmed(tokenizer, trained_text):
    code = {"role": "assistant", "content": "def f():\n    return   4"}
    expected = tokenized(tokenizer, chat(USER, code))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    example = tokenized(tokenizer, chat(USER, code))
    assert example == expected
    assert trained_text(tokenizer, example.labels) == "def f():\n    return   4<|im_end|>"


@pytest.mark.parametrize("content", ["\nFour", "Four  ", "  \n Four \n  "])
def test_spaces_at_the_edges_of_an_answer_are_labelled_alike_where_offsets_are_trimmed(tokenizer, content):
    tokenizer.chat_template = SPACED
    rows = chat(USER, {**ASSISTANT, "content": content}, {**USER, "content": "  and?"}, {**AGAIN, "content": "\nSo."})
    expected = tokenized(tokenizer, rows)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    assert tokenized(tokenizer, rows) == expected


ANSWERING = " It  is\n  four.\t 🙂 two "


@pytest.mark.parametrize("processor", ["byte level", "in a sequence", "RoBERTa's"])
@pytest.mark.parametrize("column", ["token_weights", "answer_spans"])
@pytest.mark.parametrize(
    "row",
    [chat(USER, {**ASSISTANT, "content": ANSWERING}), {"prompt": "What is two?", "completion": ANSWERING}],
    ids=["chat", "completion"],
)
def test_every_stretch_of_an_answer_has_its_tokens_where_offsets_are_trimmed(tokenizer, row, column, processor):
    options = {"trim_offsets": True, "add_prefix_space": False}
    trimming = {
        "byte level": processors.ByteLevel(**options),
        "in a sequence": processors.Sequence([processors.ByteLevel(**options)]),
        "RoBERTa's": processors.RobertaProcessing(("<pad>", 2), ("<pad>", 2), **options),
    }[processor]
    if processor == "RoBERTa's" and "prompt" in row:
        pytest.skip("it puts tokens of its own around a text")
    rows = [
        {**row, column: [{"start": start, "end": end, "weight": 0.5, "kind": "core"}]}
        for start in range(len(ANSWERING))
        for end in range(start + 1, len(ANSWERING) + 1)
    ]
    expected = [tokenized(tokenizer, values) for values in rows]
    tokenizer.backend_tokenizer.post_processor = trimming
    assert [tokenized(tokenizer, values) for values in rows] == expected


def test_every_byte_of_a_character_is_trained(tokenizer, trained_text):
    example = tokenized(tokenizer, chat(USER, {**ASSISTANT, "content": "Vier 🙂 ü"}))
    assert trained_text(tokenizer, example.labels) == "Vier 🙂 ü<|im_end|>"


def test_plain_text_is_labelled_from_where_the_prompt_ends_to_eos(tokenizer, trained_text):
    example = tokenized(tokenizer, {"prompt": "2+2 =", "completion": " four"})
    assert tokenizer.decode(example.input_ids) == "2+2 = four<|im_end|>"
    assert trained_text(tokenizer, example.labels) == " four<|im_end|>"


def test_eos_is_not_added_to_a_completion_that_has_it(tokenizer):
    once = tokenized(tokenizer, {"prompt": "2+2 =", "completion": " four<|im_end|>"})
    assert once == tokenized(tokenizer, {"prompt": "2+2 =", "completion": " four"})


def test_a_token_across_prompt_and_completion_is_trained_as_in_trl(tokenizer, trained_text):
    prompt, completion = "What is tw", "o plus"  # " two" is one token of this vocabulary
    example = tokenized(tokenizer, {"prompt": prompt, "completion": completion})
    alone, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion + "<|im_end|>")["input_ids"]
    assert whole[: len(alone)] != alone
    first = next(index for index, label in enumerate(example.labels) if label != IGNORE_INDEX)
    assert whole[:first] == alone[:first]
    assert whole[first] != alone[first]
    assert example.labels[first:] == whole[first:]


@pytest.mark.parametrize("bos", [False, True], ids=["no BOS", "BOS"])
def test_every_token_of_text_alone_is_trained(tokenizer, trained_text, bos):
    if bos:
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
        )
    example = tokenized(tokenizer, {"text": "Two and two."})
    assert tokenizer.decode(example.input_ids) == bos * "<|im_start|>" + "Two and two.<|im_end|>"
    assert trained_text(tokenizer, example.labels) == "Two and two.<|im_end|>"


SPANS = [
    {"start": 0, "end": 3, "kind": "style"},
    {"start": 3, "end": 10, "kind": "core"},
    {"start": 10, "end": 11, "kind": "style"},
]


def test_answer_spans_become_token_kinds(tokenizer):
    example = tokenized(tokenizer, chat(USER, {**ASSISTANT, "content": "So 2+2 = 4."}, spans=SPANS))
    assert text_of_kind(tokenizer, example, "core").replace(" ", "") == "2+2=4"
    assert text_of_kind(tokenizer, example, "style").replace(" ", "") == "So."
    assert "<|im_end|>" in text_of_kind(tokenizer, example, "none")


def test_spans_are_of_the_last_answer_and_of_completions_too(tokenizer):
    first = {**ASSISTANT, "content": "So 2+2 = 4."}
    example = tokenized(tokenizer, chat(USER, first, USER, {**first, "content": "Is 3+3 = 6."}, spans=SPANS))
    assert text_of_kind(tokenizer, example, "core").replace(" ", "") == "3+3=6"
    example = tokenized(tokenizer, {"prompt": "Add:", "completion": "Is 3+3 = 6.", "answer_spans": SPANS})
    assert text_of_kind(tokenizer, example, "core").replace(" ", "") == "3+3=6"
    assert len(example.token_kinds) == len(example.labels)


def test_a_token_that_overlaps_a_core_span_is_core(tokenizer):
    assert len(tokenizer("tw")["input_ids"]) == 1
    spans = [{"start": 0, "end": 1, "kind": "style"}, {"start": 1, "end": 2, "kind": "core"}]
    example = tokenized(tokenizer, chat(USER, {**ASSISTANT, "content": "tw"}, spans=spans))
    assert text_of_kind(tokenizer, example, "core") == "tw"
    assert text_of_kind(tokenizer, example, "style") == ""


def test_spans_follow_the_answer_where_a_template_moves_it(tokenizer):
    spans = [{"start": 3, "end": 4, "kind": "core"}]
    answer = {**ASSISTANT, "content": "   4 is it"}
    tokenizer.chat_template = TRIMMING + GENERATION_PROMPT
    assert text_of_kind(tokenizer, tokenized(tokenizer, chat(USER, answer, spans=spans)), "core") == "4"
    thoughtful = TRIMMING.replace("{{ m.content", "{{ '<t></t>' if m.role == 'assistant' }}{{ m.content")
    tokenizer.chat_template = thoughtful + GENERATION_PROMPT
    assert text_of_kind(tokenizer, tokenized(tokenizer, chat(USER, answer, spans=spans)), "core") == "4"


def test_spans_are_refused_where_a_template_changes_the_answer(tokenizer):
    tokenizer.chat_template = TRIMMING.replace("| trim", "| replace(' is', '  is')") + GENERATION_PROMPT
    with pytest.raises(DataError, match="row 3: 'answer_spans' cannot be placed, since the chat template changes the"):
        tokenized(tokenizer, chat(USER, ASSISTANT, spans=[{"start": 0, "end": 1, "kind": "core"}]))


@pytest.mark.parametrize("spans", [None, []])
def test_without_spans_there_are_no_kinds(tokenizer, spans):
    assert tokenized(tokenizer, chat(USER, ASSISTANT, spans=spans)).token_kinds is None


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start": 0}, r"must be a list of objects with start, end and kind, got \[\{'start': 0\}\]"),
        ({"start": 0, "end": 1, "kind": "odd"}, "has kind 'odd'; known are 'core' and 'style'"),
        ({"start": 5, "end": 12, "kind": "core"}, "has start 5 and end 12, but the last answer has 11 characters"),
        ({"start": 5, "end": 5, "kind": "core"}, "has start 5 and end 5"),
        ({"start": -1, "end": 5, "kind": "core"}, "has start -1 and end 5"),
        ({"start": "0", "end": 5, "kind": "core"}, "has start '0' and end 5"),
    ],
)
def test_bad_spans_are_refused_with_value_and_fix(tokenizer, span, message):
    with pytest.raises(DataError, match=rf"train\.jsonl, row 3: 'answer_spans' {message}"):
        tokenized(tokenizer, chat(USER, ASSISTANT, spans=[span]))


@pytest.mark.model
def test_the_real_template_and_tokenizer_train_the_answers_alone(smollm2_tokenizer, trained_text):
    example = tokenized(smollm2_tokenizer, chat(USER, ASSISTANT, USER, AGAIN))
    assert trained_text(smollm2_tokenizer, example.labels) == "It is four.<|im_end|>Still four.<|im_end|>"


PREPARED = {
    "byte level": lambda backend: None,
    "first word": lambda backend: setattr(backend, "pre_tokenizer", Metaspace(replacement="_", prepend_scheme="first")),
    "all words": lambda backend: setattr(backend, "pre_tokenizer", Metaspace(replacement="_", prepend_scheme="always")),
    "prefix space": lambda backend: setattr(backend, "pre_tokenizer", ByteLevel(add_prefix_space=True)),
    "trimmed": lambda backend: setattr(backend, "post_processor", processors.ByteLevel(trim_offsets=True)),
    "stripped": lambda backend: setattr(backend, "normalizer", normalizers.Strip()),
    "prepended": lambda backend: setattr(backend, "normalizer", normalizers.Prepend("_")),
}
GREEDY = AddedToken("<|im_start|>user", lstrip=True, rstrip=True, special=True, normalized=False)


@pytest.mark.parametrize("greedy", [(), (GREEDY,)], ids=["plain", "greedy"])
@pytest.mark.parametrize("prepared", PREPARED)
def test_a_text_in_pieces_has_the_tokens_of_the_whole(tokenizer, monkeypatch, prepared, greedy):
    PREPARED[prepared](tokenizer.backend_tokenizer)
    tokenizer.add_tokens(list(greedy))
    whole = tokenizer.apply_chat_template([USER, {**ASSISTANT, "content": " Gr\u00fc\u00dfe \n"}] * 9, tokenize=False)
    text = Rendered(whole, ((20, 60), (90, 200)), (1.0, 0.5), "", None)
    found = {}
    for length in (1, 10, 10_000):
        monkeypatch.setattr(tokenize, "_LONG_PIECE", length)
        found[length] = tokenize_texts([text, text], tokenizer)
    assert found[1] == found[10] == found[10_000]
    monkeypatch.setattr(tokenize, "_LONG_PIECE", 10)
    assert len(tokenize.pieces(whole, tokenizer)) > 9
