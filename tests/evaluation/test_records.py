"""The folder of an evaluation: what survives a kill, and what is refused."""

import json

import pytest

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.evaluation.records import (
    EvalFolder,
    SampleFile,
    refuse_answers_of_another_model,
    unsolved_share,
)

JOB = {"model": "a", "model_fingerprint": "1", "seed": 0, "temperature": 0.7}
TASKS = {"gsm8k": {"fingerprint": "x", "problems": 3}}


def record(problem, sample=0, **more):
    return {"problem": problem, "sample": sample, "answer": "é\u2028\n", **more}


def opened(folder, job=JOB, tasks=TASKS):
    made = EvalFolder(folder, job, tasks)
    for name in tasks:
        made.start(name)
        made.samples(name).add([record(99)])
    return made


def test_samples_are_there_again_and_are_sorted_as_they_are_graded(tmp_path):
    samples = SampleFile(tmp_path / "samples" / "gsm8k.jsonl")
    samples.add([record(2), record(0)])
    samples.add([record(1)])
    again = SampleFile(tmp_path / "samples" / "gsm8k.jsonl")
    assert again.get((1, 0)) == record(1)
    assert again.get((1, 1)) is None
    assert not again.is_complete(3, 1)
    again.grade({(problem, 0): {"correct": problem == 1} for problem in range(3)})
    assert again.is_complete(3, 1)
    assert not again.is_complete(3, 2)
    graded = [record(problem, correct=problem == 1) for problem in range(3)]
    assert again.select(3, 1) == graded
    lines = (tmp_path / "samples" / "gsm8k.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines if line] == graded


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path):
    path = tmp_path / "samples" / "gsm8k.jsonl"
    SampleFile(path).add([record(0)])
    whole = path.read_bytes()
    torn = whole + b'{"problem": 1, "answer": "\xc3'
    path.write_bytes(torn)
    samples = SampleFile(path, "Run it again.")
    assert samples.get((1, 0)) is None
    with pytest.raises(DataError, match=r"gsm8k.jsonl ends within a line. Run it again."):
        samples.by_problem()
    assert path.read_bytes() == torn, "to read writes nothing"
    samples.add([record(1)])
    samples.add([record(2)])
    assert SampleFile(path).select(3, 1) == [record(0), record(1), record(2)]
    assert samples.by_problem() == [[record(0)], [record(1)], [record(2)]]


def test_samples_are_there_by_problem_in_order(tmp_path):
    samples = SampleFile(tmp_path / "gsm8k.jsonl", "Run it again.")
    with pytest.raises(DataError, match=r"gsm8k.jsonl holds no samples. Run it again."):
        samples.by_problem()
    samples.add([record(10, 1), record(2), record(10, 0)])
    assert SampleFile(tmp_path / "gsm8k.jsonl").by_problem() == [[record(2)], [record(10, 0), record(10, 1)]]


def test_a_line_nobody_wrote_is_named(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text('{"problem": 0, "sample": 0}\nwhat\n')
    with pytest.raises(DataError, match="gsm8k.jsonl, line 2: not a sample's record"):
        SampleFile(path)


@pytest.mark.parametrize(
    ("job", "tasks", "message"),
    [
        ({**JOB, "seed": 1}, TASKS, "seed 0, not 1"),
        ({**JOB, "temperature": 1.0, "model": "b"}, TASKS, "model 'a', not 'b'; temperature 0.7, not 1.0"),
        (JOB, {"gsm8k": {"fingerprint": "y", "problems": 3}}, "gsm8k: fingerprint 'x', not 'y'"),
    ],
)
def test_another_job_is_refused_by_the_name_of_what_differs(tmp_path, job, tasks, message):
    opened(tmp_path)
    with pytest.raises(ConfigurationError, match=f"{message}. Choose another folder"):
        EvalFolder(tmp_path, job, tasks)


def test_further_tasks_join_and_earlier_ones_stay(tmp_path):
    opened(tmp_path).start("gsm8k", room=5)
    both = opened(tmp_path, tasks={"ifeval": {"fingerprint": "z"}})
    assert both.noted("gsm8k", "room") == 5
    with pytest.raises(ConfigurationError, match="gsm8k: problems 3, not 4"):
        EvalFolder(tmp_path, JOB, {"gsm8k": {"fingerprint": "x", "problems": 4}})


def test_a_job_of_which_nothing_was_answered_binds_nobody(tmp_path):
    EvalFolder(tmp_path, JOB, TASKS).start("gsm8k")
    other = EvalFolder(tmp_path, {**JOB, "seed": 1}, TASKS)
    other.start("gsm8k")
    assert json.loads((tmp_path / "job.json").read_text())["job"]["seed"] == 1


def test_samples_without_a_job_are_not_trusted(tmp_path):
    SampleFile(tmp_path / "samples" / "gsm8k.jsonl").add([record(0)])
    with pytest.raises(ConfigurationError, match="holds samples but no job.json"):
        EvalFolder(tmp_path, JOB, TASKS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no job file"),
        ("nothing", "no job file"),
        ("[]", "no job file"),
        ('{"format": 1, "jo', "no job file"),
        ('{"format": 1}', "no job file"),
        ('{"format": 1, "job": "a", "tasks": {}}', "no job file"),
        ('{"format": 9}', "format 9"),
    ],
)
def test_a_job_file_that_cannot_be_read_is_named(tmp_path, content, message):
    opened(tmp_path)
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(DataError, match=message):
        EvalFolder(tmp_path, JOB, TASKS)
    with pytest.raises(DataError, match=message):
        refuse_answers_of_another_model(tmp_path, "a", "1")


@pytest.mark.parametrize(
    "line", [b'{"problem": 0, "sam', b"{}", b"[]", b"7", b"null", b'{"problem": [], "sample": 0}', b'"\xff"']
)
def test_samples_that_cannot_be_read_are_named_with_what_to_do(tmp_path, line):
    (tmp_path / "one.jsonl").write_bytes(json.dumps(record(0)).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=r"one.jsonl, line 2: not a sample's record. Run it again."):
        SampleFile(tmp_path / "one.jsonl", "Run it again.")


def graded(folder, task, *problems):
    """Write a task's graded samples; a problem is a text of 1 (right), 0 and ? (not judged)."""
    lines = [
        record(number, sample, correct={"1": True, "0": False, "?": None}[mark])
        for number, marks in enumerate(problems)
        for sample, mark in enumerate(marks)
    ]
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_unsolved_share_is_over_the_first_tries_of_all_tasks_problems(tmp_path):
    graded(tmp_path, "one", "0001", "0000", "????", "?00?")
    graded(tmp_path, "two", "1000")
    assert unsolved_share(tmp_path, tries=4) == 2 / 4
    assert unsolved_share(tmp_path, tries=3) == 3 / 4


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ("000", "problem 0 has 3 graded samples, 4 are needed. Run profit eval with --samples 4"),
        (None, "holds no answers of profit eval"),
    ],
)
def test_too_few_samples_for_an_unsolved_share_are_refused(tmp_path, marks, message):
    if marks:
        graded(tmp_path, "one", marks)
    with pytest.raises(DataError, match=message):
        unsolved_share(tmp_path, tries=4)


def test_samples_not_yet_graded_do_not_count(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "one.jsonl").write_text(json.dumps(record(0)) + "\n")
    with pytest.raises(DataError, match="has 0 graded samples, 1 are needed"):
        unsolved_share(tmp_path, tries=1)
