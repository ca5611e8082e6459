"""Cutting answers: as a generation with that limit, proved on the real model."""

import pytest
import torch

from profit_sft.errors import DataError
from profit_sft.evaluation import budgets
from profit_sft.evaluation.budgets import (
    accuracy_by_budget,
    budgets_up_to,
    read_budgets,
    write_budgets,
)
from profit_sft.evaluation.grading import grade_math
from profit_sft.evaluation.results import summarize
from tiny import chat_tokenizer


def test_budgets_double_up_to_the_limit():
    assert budgets_up_to(8192) == (128, 256, 512, 1024, 2048, 4096, 8192)
    assert budgets_up_to(128) == (128,)
    assert budgets_up_to(7) == (7,)


def record(tokenizer, problem, text, *, sample=0, truncated=False, extra=0, correct=True):
    tokens = len(tokenizer(text)["input_ids"]) + (not truncated) + extra
    return {
        "problem": problem,
        "sample": sample,
        "answer": text,
        "new_tokens": tokens,
        "truncated": truncated,
        "correct": correct,
        "rule": "boxed",
        "seconds": 0.0,
    }


LONG = "x" * 150 + " so \\boxed{7}. " + "y" * 400  # of a tokenizer whose tokens are letters


def graded(problem, text, truncated=True):
    return grade_math(text, "7", truncated=truncated).correct


def test_an_answer_counts_from_the_budget_on_that_holds_it():
    tokenizer = chat_tokenizer()
    records = [record(tokenizer, 0, LONG), record(tokenizer, 1, "The answer is 7")]
    seen = []

    def grade(problem, text):
        seen.append((problem, len(text)))
        return graded(problem, text)

    table = accuracy_by_budget(records, tokenizer, grade, max_new_tokens=600)
    assert [row.budget for row in table.rows] == [128, 256, 512, 600]
    assert [row.truncated_share for row in table.rows] == [0.5, 0.5, 0.5, 0.0]
    assert [row.accuracy.mean for row in table.rows] == [0.5, 1.0, 1.0, 1.0]
    assert table.accuracies[128] == [0.0, 1.0]
    assert [problem for problem, _ in seen] == [0, 0, 0]  # what was not cut keeps its grade
    assert seen[0] == (0, 128)
    assert table.inexact_cut_share == 0.0


def test_the_last_row_is_the_evaluation_itself():
    tokenizer = chat_tokenizer()
    records = [
        record(tokenizer, 0, "a" * 200, truncated=True, correct=False),
        record(tokenizer, 0, "b" * 20, sample=1),
        record(tokenizer, 1, "c" * 20, correct=None),
        record(tokenizer, 1, "d" * 20, sample=1, correct=None),
    ]
    table = accuracy_by_budget(records, tokenizer, graded, max_new_tokens=200)
    found = summarize("gsm8k", records, max_new_tokens=200)
    last = table.rows[-1]
    assert (last.budget, last.truncated_share, last.accuracy.mean) == (200, found.truncated_share, found.accuracy.mean)
    assert (last.accuracy.low, last.accuracy.high) == (found.accuracy.low, found.accuracy.high)
    assert table.accuracies[200] == [0.5, 0.5]  # a problem of which nothing is judged favors nobody


def test_an_end_token_at_the_budget_itself_ends_the_answer():
    tokenizer = chat_tokenizer()
    text = "z" * 117 + " \\boxed{7}"
    for padding, cut in ((0, False), (1, True)):
        one = record(tokenizer, 0, "z" * padding + text)
        assert one["new_tokens"] == 128 + padding
        table = accuracy_by_budget([one], tokenizer, graded, max_new_tokens=256)
        assert table.rows[0].truncated_share == float(cut)


def test_texts_of_other_tokens_than_were_generated_are_counted():
    tokenizer = chat_tokenizer()
    records = [record(tokenizer, 0, "a" * 5), record(tokenizer, 1, "a" * 5, extra=1)]
    assert accuracy_by_budget(records, tokenizer, graded, max_new_tokens=128).inexact_cut_share == 0.5


def test_accuracies_are_written_and_read(tmp_path):
    tokenizer = chat_tokenizer()
    table = accuracy_by_budget([record(tokenizer, 0, LONG)], tokenizer, graded, max_new_tokens=600)
    write_budgets(tmp_path / "by_budget" / "gsm8k.jsonl", table)
    read = read_budgets(tmp_path / "by_budget" / "gsm8k.jsonl")
    assert [(row.budget, row.truncated_share) for row in read] == [(r.budget, r.truncated_share) for r in table.rows]
    assert {row.budget: list(row.accuracies) for row in read} == table.accuracies
    assert [(row.budget, row.truncated_share, row.accuracies) for row in read][:2] == [
        (128, 1.0, (0.0,)),
        (256, 1.0, (1.0,)),
    ]
    (tmp_path / "other.jsonl").write_text('{"budget": 1}')
    with pytest.raises(DataError, match=r"other\.jsonl cannot be read .*Delete it"):
        read_budgets(tmp_path / "other.jsonl")


QUESTIONS = {
    "Ann has 3 boxes with 4 cups each. How many cups has she?": "12",
    "What is half of 18?": "9",
    "Write one sentence about a café, with an emoji, and then solve 7*8.": "56",
}


@pytest.mark.slow
@pytest.mark.model
def test_cutting_equals_generating_with_that_limit(smollm2_model, smollm2_tokenizer, monkeypatch):
    """Greedily, on the real model: the same texts, the same share cut off, the same figures."""
    monkeypatch.setattr(budgets, "FIRST_BUDGET", 6)  # from 128 on the model would generate for half a minute
    model, tokenizer = smollm2_model(), smollm2_tokenizer
    answers = list(QUESTIONS.values())

    def generate(problem, question, limit):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        truncated = new[-1] != tokenizer.eos_token_id
        grade = grade_math(text, answers[problem], truncated=truncated)
        ends = {"new_tokens": len(new), "truncated": truncated}
        return {
            "problem": problem,
            "answer": text,
            **ends,
            "correct": grade.correct,
            "rule": grade.rule,
            "seconds": 0.0,
        }

    limits = (6, 12, 24, 48)
    found = {limit: [generate(*item, limit) for item in enumerate(QUESTIONS)] for limit in limits}
    longest = found[limits[-1]]
    cut = []

    def grade(problem, text):
        cut.append(text)
        return grade_math(text, answers[problem], truncated=True).correct

    table = accuracy_by_budget(longest, tokenizer, grade, max_new_tokens=limits[-1])
    shorter = [found[limit][problem] for problem in range(len(answers)) for limit in limits[:-1]]
    assert cut == [answer["answer"] for answer in shorter if answer["truncated"]]
    assert [row.budget for row in table.rows] == list(limits)
    assert table.inexact_cut_share == 0.0
    for row in table.rows:
        expected = summarize("gsm8k", found[row.budget], max_new_tokens=row.budget)
        assert row.truncated_share == expected.truncated_share
        assert (row.accuracy.mean, row.accuracy.high) == (expected.accuracy.mean, expected.accuracy.high)
    assert {answer["truncated"] for answer in longest + found[6]} == {True, False}
