"""Where an answer is found in a text, and where none is."""

import pytest

from profit_sft.evaluation.answers import find_answer

FOUND = [
    # boxed
    (r"So \boxed{12}.", "12", "boxed"),
    (r"First \boxed{3}, no: \boxed{4}.", "4", "boxed"),
    (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}", "boxed"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
    (r"\fbox{7}", "7", "boxed"),
    (r"\boxed 7", "7", "boxed"),
    (r"\boxed{5} and then \boxed{6", "5", "boxed"),
    (r"The roots are $\boxed{1}$ and $\boxed{-2}$.", "1, -2", "boxed"),
    (r"\boxed{1}, \boxed{2}, \text{ and } \boxed{3}", "1, 2, 3", "boxed"),
    ("The answer is 3.\n#### 4\n\\boxed{5}", "5", "boxed"),
    # hashes
    ("It is 5.\n#### 6", "6", "hashes"),
    ("#### 6\nThe answer is 7.", "6", "hashes"),
    ("#### $1,200 \nmore", "$1,200", "hashes"),
    # stated
    ("The answer is 12 dollars. I hope this helps!", "12 dollars", "stated"),
    ("So the final answer is: 3.5.", "3.5", "stated"),
    ("**Answer:** 42", "42", "stated"),
    ("**Answer**: 42\nDone", "42", "stated"),
    ("Answer = 1/2", "1/2", "stated"),
    ("The correct answer to this problem would be $\\frac{2}{3}$.", "$\\frac{2}{3}$", "stated"),
    ("The answer is 3. Wait. The answer is 4.", "4", "stated"),
    ("Answer:\n\n17", "17", "stated"),
    ("the answers are 3 and 4!", "3 and 4", "stated"),
    (r"The answer is $11,\! 111$.", r"$11,\! 111$", "stated"),
    (r"\boxed{} but the answer is 6.", "6", "stated"),
    (r"\boxed{}, \boxed{} but the answer is 6.", "6", "stated"),
    # fallback
    ("She has 1,250 stamps in the end.", "1,250", "fallback"),
    ("Thus $x = 3$ and $y = 4$.", "y = 4", "fallback"),
    (r"We get \(a\) and \[ b + 1 \]", "b + 1", "fallback"),
    ("We get $a+b$, that is 7", "7", "fallback"),
    ("It is 204. -user2010", "204", "fallback"),
    ("It cost $5 and then 6.", "6", "fallback"),
    # thinking is left out
    (r"<think>\boxed{1}</think>The answer is 2.", "2", "stated"),
]


@pytest.mark.parametrize(("text", "answer", "rule"), FOUND)
def test_the_first_rule_that_finds_something_decides(text, answer, rule):
    found = find_answer(text)
    assert found is not None
    assert (found.text, found.rule) == (answer, rule)


@pytest.mark.parametrize(
    "text", ["", "   \n", "I do not know.", "The answer is", r"\boxed{}", "<think>12</think>", "####"]
)
def test_a_text_without_an_answer(text):
    assert find_answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "She has 12 apples, so 12 times",  # the last number so far
        "The answer is 1",  # of 15, perhaps
        "#### 1",
        r"So it is \boxed{12",
        r"So it is \boxed 12",
        r"We get $x = 4$ and",
    ],
)
def test_a_text_that_was_cut_off_has_no_answer_unless_it_is_complete(text):
    assert find_answer(text, truncated=True) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"It is \boxed{12}. To check", "12"),
        ("The answer is 15. To check", "15"),
        ("The answer is 15\nTo check", "15"),
        ("#### 15\nTo check", "15"),
        ("The answer is 15. So the answer is", "15"),
    ],
)
def test_a_complete_answer_counts_though_the_text_was_cut_off(text, answer):
    found = find_answer(text, truncated=True)
    assert found is not None
    assert found.text == answer


def test_many_markers_and_braces_are_read_quickly():
    # Both would take minutes with a pattern that backtracks.
    assert find_answer("answer " * 3000 + "\\boxed{" * 3000) is None
