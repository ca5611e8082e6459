"""Which parts of an answer in GSM8K's form are core, style or neither; rows made up for the test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gsm8k_spans import answer_spans, marked_row


def marked(answer, *, notes):
    """The answer with core parts in square brackets and style parts in braces."""
    shown, end = "", 0
    for span in answer_spans(answer, notes=notes):
        opening, closing = "[]" if span["kind"] == "core" else "{}"
        text = answer[span["start"] : span["end"]]
        shown += f"{answer[end : span['start']]}{opening}{text}{closing}"
        end = span["end"]
    return shown + answer[end:]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (
            "Mia reads 3 * 4 = <<3*4=12>>12 pages a day.\n#### 12",
            "{Mia reads }3 * 4 = [<<3*4=12>>]12{ pages a day.\n}#### [12]",
        ),
        (
            "They cost $2.50+$1=$<<2.5+1=3.5>>3.50.\n#### 3.50",
            "{They cost }$2.50+$1=$[<<2.5+1=3.5>>]3.50{.\n}#### [3.50]",
        ),
        ("So 7\n#### 7", "{So }7\n#### [7]"),
    ],
)
def test_with_notes_core_is_the_notes_and_the_final_number(answer, wanted):
    assert marked(answer, notes=True) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Mia reads 3 * 4 = 12 pages a day.\n#### 12", "{Mia reads }[3 * 4 = 12]{ pages a day.\n}#### [12]"),
        ("50% of $1,200.50 is (2 + 3) x 4=", "[50%]{ of }[$1,200.50]{ is }[(2 + 3) x 4=]"),
        ("She has 3, or .5 more.", "{She has }[3]{, or }[.5]{ more.}"),
        ("The well-known 2-3 trick", "{The well-known }[2-3]{ trick}"),
        ("A two-way walk of five miles", "{A two-way walk of five miles}"),
        ("5 pounds * 2 boxes = 10", "[5]{ pounds }[*] [2]{ boxes }[=] [10]"),
        ("That leaves -4 or x = 3", "{That leaves }[-4]{ or x }[=] [3]"),
    ],
)
def test_without_notes_core_is_numbers_and_operators(answer, wanted):
    assert marked(answer, notes=False) == wanted


def test_a_row_loses_its_notes_and_keeps_its_question():
    row = {"question": "How many?", "answer": " It is 1+1 = <<1+1=2>>2.\n#### 2 "}
    assert marked_row(row, notes=True)["answer"] == "It is 1+1 = <<1+1=2>>2.\n#### 2"
    found = marked_row(row, notes=False)
    assert (found["question"], found["answer"]) == ("How many?", "It is 1+1 = 2.\n#### 2")
    texts = [found["answer"][span["start"] : span["end"]] for span in found["answer_spans"]]
    assert texts == ["It is ", "1+1 = 2", ".\n", "2"]
