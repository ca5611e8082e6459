"""The generated problems: seeded, disjoint between splits, right, and worded in many ways around one core."""

import hashlib
import json
import math
import re
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from random import Random
from typing import Any

import pytest

from profit_sft.data import generated
from profit_sft.data.generated import GeneratedProblem, generate_problems, to_row, write_jsonl

STEPS = [1, 2, 3]
PINNED_SHA256 = "3e309e378c864bc98eec2956307b869edd529d17d1a295bbc298d234e35c1672"


def numbers(problem: GeneratedProblem) -> tuple[tuple[int, ...], tuple[str, ...]]:
    values = (problem.steps[0].left, *(step.right for step in problem.steps))
    return tuple(sorted(values)), tuple(sorted(step.operation for step in problem.steps))


def core_texts(solution: str, spans: tuple[generated.AnswerSpan, ...]) -> tuple[str, ...]:
    return tuple(solution[span.start : span.end] for span in spans if span.kind == "core")


def count_wordings(problem: GeneratedProblem) -> int:
    return math.prod(len(options) for _, options in generated._slots(problem.steps))


def test_rows_of_a_seed_never_change(tmp_path: Path) -> None:
    """A change here is a change of the data set: it needs a changelog entry."""
    path = tmp_path / "rows.jsonl"
    write_jsonl([*generate_problems(50, seed=7), *generate_problems(50, seed=7, steps=2)], path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == PINNED_SHA256


def test_rows_do_not_depend_on_hash_randomization() -> None:
    code = "from profit_sft.data.generated import generate_problems as g; print(g(40, seed=3, steps=2, split='test'))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{generate_problems(40, seed=3, steps=2, split='test')}\n"}


def test_seeds_differ() -> None:
    assert generate_problems(20, seed=0) != generate_problems(20, seed=1)


@pytest.mark.parametrize("steps", STEPS)
def test_splits_share_no_numbers_whatever_the_seeds(steps: int) -> None:
    train = {numbers(problem) for seed in range(4) for problem in generate_problems(300, seed=seed, steps=steps)}
    test = {
        numbers(problem) for seed in range(4) for problem in generate_problems(80, seed=seed, steps=steps, split="test")
    }
    assert not train & test


@pytest.mark.parametrize("steps", STEPS)
def test_problems_of_a_set_differ_in_their_numbers(steps: int) -> None:
    problems = generate_problems(400, seed=5, steps=steps)
    assert len({problem.steps for problem in problems}) == 400


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_spans_partition_the_solution_into_alternating_kinds(steps: int, split: generated.Split) -> None:
    for problem in generate_problems(100, seed=1, steps=steps, split=split):
        ends = [0, *(span.end for span in problem.spans)]
        assert [span.start for span in problem.spans] == ends[:-1]
        assert ends[-1] == len(problem.solution)
        assert all(span.end > span.start for span in problem.spans)
        kinds = [span.kind for span in problem.spans]
        assert all(first != second for first, second in pairwise(kinds))
        style = "".join(problem.solution[span.start : span.end] for span in problem.spans if span.kind == "style")
        assert not re.search(r"[0-9+*=]", style)


@pytest.mark.parametrize("steps", STEPS)
def test_equations_in_the_core_are_right_and_chain_to_the_answer(steps: int) -> None:
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    seen = set()
    for problem in generate_problems(200, seed=2, steps=steps):
        *equations, last = core_texts(problem.solution, problem.spans)
        assert len(equations) == steps
        previous = None
        for equation in equations:
            parts = re.fullmatch(r"(\d+) ([+*-]) (\d+) = (\d+)", equation)
            assert parts is not None
            left, operation, right, result = parts.groups()
            assert previous in (None, left)
            assert operations[operation](int(left), int(right)) == int(result) > 0
            assert right in re.findall(r"\d+", problem.question)
            previous = result
            seen.add(operation)
        assert previous == last == str(problem.final_answer)
    assert seen == set(operations)


@pytest.mark.parametrize("steps", STEPS)
def test_rewording_changes_the_words_and_never_the_core(steps: int) -> None:
    for problem in generate_problems(10, seed=4, steps=steps):
        known = problem.steps, problem.name, problem.item
        reworded = [generated._solve(Random(seed), *known) for seed in range(20)]
        assert len({solution for solution, _ in reworded}) >= 15
        assert {core_texts(*other) for other in reworded} == {core_texts(problem.solution, problem.spans)}
        assert count_wordings(problem) >= 300


def test_every_counted_wording_is_a_different_text() -> None:
    problem = generate_problems(1, seed=0)[0]
    slots = [[before + core + after for before, after in options] for core, options in generated._slots(problem.steps)]
    assert len({"".join(parts) for parts in product(*slots)}) == count_wordings(problem)


def test_row_is_a_chat_with_spans_in_the_assistant_message() -> None:
    problem = generate_problems(1, seed=9, steps=2)[0]
    row = to_row(problem)
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    answer = row["messages"][1]["content"]
    core = tuple(answer[span["start"] : span["end"]] for span in row["answer_spans"] if span["kind"] == "core")
    assert core == core_texts(problem.solution, problem.spans)
    assert row["final_answer"] == problem.final_answer


def test_system_prompt_comes_first() -> None:
    row = to_row(generate_problems(1, seed=9)[0], system_prompt="Solve.")
    assert row["messages"][0] == {"role": "system", "content": "Solve."}


def test_file_holds_one_row_a_line(tmp_path: Path) -> None:
    problems = generate_problems(5, seed=0)
    write_jsonl(problems, tmp_path / "new" / "rows.jsonl")
    lines = (tmp_path / "new" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [to_row(problem) for problem in problems]


@pytest.mark.parametrize(
    "options",
    [
        {"count": -1},
        {"count": 1, "steps": 0},
        {"count": 1, "steps": 4},
        {"count": 1, "largest": 9},
        {"count": 1, "split": "validation"},
    ],
    ids=str,
)
def test_setting_out_of_range_is_refused_with_its_value(options: dict[str, Any]) -> None:
    name, value = list(options.items())[-1]
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        generate_problems(**{"seed": 0, **options})


def test_more_problems_than_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"different problems of the test split .* 500 were asked for"):
        generate_problems(500, seed=0, split="test", largest=10)
