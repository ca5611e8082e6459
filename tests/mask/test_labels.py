"""Which tokens carry labels, as text: the whole row, its labels apart, and what its turns end in."""

import io
import json

import pytest
from rich.console import Console

from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.mask.labels import marked_rows, print_marked_rows, turn_ends

TURNS = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "It is 4, naïve one 🧮."},
    {"role": "user", "content": "And 3+3?"},
    {"role": "assistant", "content": "\x1b[2JIt is 6."},
]


@pytest.fixture
def prepare(tmp_path, smollm2_tokenizer):
    def made(*rows, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return prepare_dataset(DataSettings(dataset_name=str(path), **settings), smollm2_tokenizer)

    return made


def test_stretches_are_the_whole_text_and_the_answers_carry_the_labels(prepare, smollm2_tokenizer):
    data = prepare({"messages": TURNS})
    (found,) = marked_rows(data, smollm2_tokenizer, 5)
    assert "".join(text for text, _ in found.stretches) == smollm2_tokenizer.decode(data.dataset[0]["input_ids"])
    assert [text for text, labeled in found.stretches if labeled] == [
        f"{turn['content']}<|im_end|>" for turn in TURNS[1::2]
    ]
    assert found.ends_in == ("<|im_end|>", "<|im_end|>")
    assert (found.row, found.tokens, found.label_tokens) == (1, data.report.total_tokens, data.report.label_tokens)


def test_a_row_that_is_cut_off_does_not_end_in_the_token_that_ends_turns(prepare, smollm2_tokenizer):
    data = prepare({"messages": TURNS}, {"messages": TURNS[:2]}, max_length=45)
    whole, cut = data.report.label_tokens, turn_ends(data, smollm2_tokenizer)
    assert data.report.rows_truncated == 2
    assert sum(cut.values()) == 2
    assert cut.get("<|im_end|>", 0) < sum(turn_ends(prepare({"messages": TURNS}), smollm2_tokenizer).values())
    assert whole > 0
    assert turn_ends(prepare({"messages": TURNS}, {"messages": TURNS[:2]}), smollm2_tokenizer) == {"<|im_end|>": 3}


def test_what_is_printed_marks_labels_without_color_and_steers_no_terminal(prepare, smollm2_tokenizer):
    out = Console(file=io.StringIO(), width=200)
    print_marked_rows(marked_rows(prepare({"messages": TURNS}), smollm2_tokenizer, 1), out)
    printed = out.file.getvalue()
    assert "⟦It is 4, naïve one 🧮.<|im_end|>⟧" in printed
    assert "⟦␛[2JIt is 6.<|im_end|>⟧" in printed
    assert "\x1b" not in printed
    assert "row 1: " in printed
