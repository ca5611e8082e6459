import pytest

from made_scores import made_example, write_scores
from profit_sft.mask.final_answer import final_answer_mask
from tiny import chat_tokenizer


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ("so 12+3=15.", "        xx "),
        ("1,250.50 in all.", "xxxxxxxx        "),
        ("7", "x"),
        ("it is four", "          "),
        ("3 or 4 %", "     x  "),
    ],
)
def test_without_kinds_it_is_the_last_number(tmp_path, texts, wanted):
    scores = write_scores(tmp_path, [made_example(0, [-1.0] * len(texts), texts=texts)])
    found = final_answer_mask(scores)
    assert "".join("x" if chosen else " " for chosen in found) == wanted


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ([1, 1, 2, 1, 1, 0], [False, False, False, True, True, False]),
        ([1, 1, 1, 1, 1, 1], [True] * 6),
        ([2, 2, 2, 1, 2, 2], [False, False, False, True, False, False]),
    ],
)
def test_with_core_spans_it_is_their_last_run(tmp_path, kinds, wanted):
    scores = write_scores(tmp_path, [made_example(0, [-1.0] * 6, texts="1 23 4", kinds=kinds)])
    assert final_answer_mask(scores).tolist() == wanted


def test_a_row_without_core_spans_goes_by_its_last_number(tmp_path):
    examples = [
        made_example(0, [-1.0] * 2, texts="1a", kinds=[2, 1]),
        made_example(1, [-1.0] * 2, texts="2b", kinds=[0, 0]),
    ]
    assert final_answer_mask(write_scores(tmp_path, examples)).tolist() == [False, True, True, False]


def test_a_digit_in_a_special_token_is_no_answer(tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_7|>"]})
    reserved = tokenizer.convert_tokens_to_ids("<|reserved_7|>")
    example = made_example(0, [-1.0] * 2, texts="4x")
    example.input_ids[-1] = reserved
    assert final_answer_mask(write_scores(tmp_path, [example], tokenizer=tokenizer)).tolist() == [True, False]
