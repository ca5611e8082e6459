"""What tests of the evaluation share."""

import json
from contextlib import closing

import pytest

from profit_sft.evaluation.grading import MathJudge


@pytest.fixture(scope="session")
def judge():
    with closing(MathJudge()) as made:
        yield made


@pytest.fixture(scope="session")
def made_data(tmp_path_factory):
    """A folder with benchmark files of a few problems made up for these tests."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "gsm8k_test": [
            {
                "question": f"Ann has {n} cups and buys {n}. How many has she?",
                "answer": f"She has {n}+{n}.\n#### {2 * n}",
            }
            for n in range(1, 7)
        ],
        "math500": [{"problem": f"What is ${n}/7$?", "answer": rf"\frac{{{n}}}{{7}}"} for n in range(1, 5)],
        "aime24": [{"problem": f"How many primes are below {n}?", "answer": f"{n:03d}"} for n in (12, 40)],
        "ifeval": [
            {
                "key": n,
                "prompt": "Write a line.",
                "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
                "kwargs": [{}, {"relation": "at least", "num_words": n}],
            }
            for n in (1, 50)
        ],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return folder
