"""Reading the benchmarks' files, and what is said when they cannot be had."""

import json

import pytest

from profit_sft.data.generated import generate_problems
from profit_sft.errors import DataError, DownloadError
from profit_sft.evaluation.problems import SOURCES, generated_problems, load_problems


@pytest.mark.parametrize(("task", "count"), [("gsm8k", 1319), ("math500", 500), ("aime24", 30), ("ifeval", 540)])
def test_the_benchmarks_files_are_read(shared_data, task, count):
    assert len(load_problems(task, shared_data)) == count


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"gsm8k needs .*gsm8k_test\.jsonl, which cannot be read \(No such file"):
        load_problems("gsm8k", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": "a", "answer": "1"}\n{"problem": ', "math500.jsonl, line 2: not JSON"),
        ("[1]\n", "line 1: expected a JSON object, got list"),
        (
            '{"problem": "a", "solution": "1"}\n',
            "line 1: no column 'answer'. math500 needs problem, answer; this row has",
        ),
        ("", "math500 has no problems"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, content, message):
    (tmp_path / "math500.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        load_problems("math500", tmp_path)


def test_a_line_may_hold_unicode_separators(tmp_path):
    row = {"problem": "a\u2028b", "answer": "1"}
    (tmp_path / "math500.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load_problems("math500", tmp_path) == [row]


# The tests run with the hub switched off, as on a machine that reaches none.
def test_without_the_hub_a_folder_is_named_as_the_way_out():
    with pytest.raises(
        DownloadError, match=r"openai/gsm8k could not be loaded.*holds gsm8k_test.jsonl with --data_dir"
    ):
        load_problems("gsm8k", None)


def test_gpqa_comes_from_the_hub_only(tmp_path):
    assert SOURCES["gpqa_diamond"].file is None
    with pytest.raises(DownloadError, match=r"from the hub only.*Idavidrein/gpqa.*hf auth login"):
        load_problems("gpqa_diamond", tmp_path)


def test_the_generated_problems_begin_with_the_quickstarts():
    found = generated_problems()
    quickstart = generate_problems(48, seed=1, split="test")
    assert [row["question"] for row in found[:48]] == [problem.question for problem in quickstart]
    assert [row["answer"] for row in found[:48]] == [str(problem.final_answer) for problem in quickstart]
