"""The task files: problems, prompts, grades, data that cannot be had, and the harness running them alone."""

import dataclasses
import json

import pytest
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from profit_sft.data.generated import generate_problems
from profit_sft.errors import ConfigurationError, DataError, DownloadError
from profit_sft.evaluation.generator import Answer
from profit_sft.evaluation.grading import grade_math
from profit_sft.evaluation.harness_tasks import fingerprint, generation_arguments, load_task
from profit_sft.evaluation.runner import evaluate
from profit_sft.evaluation.settings import DEFAULT_LONGEST, TASK_FOLDER, TASKS, EvalSettings, task_file, task_limits
from profit_sft.evaluation.tasks import own


def settings(data_dir=None, **changes):
    return EvalSettings(
        **{"model_name_or_path": "x", "tasks": ("generated",), "output_dir": "x", "data_dir": data_dir, **changes}
    )


def graded(task, problem, *texts):
    return task.process_results(problem, [list(texts)])["accuracy"]


def test_every_file_is_a_task_the_harness_finds():
    index = TaskManager(include_path=TASK_FOLDER, include_defaults=False).task_index
    tasks = {entry.yaml_path.stem: name for name, entry in index.items() if entry.yaml_path}
    assert set(tasks) == set(TASKS)
    for name in ("gsm8k", "math500", "aime24", "ifeval", "gpqa_diamond", "generated"):
        assert tasks[name] == f"profit_{name}"


@pytest.mark.parametrize(
    ("name", "count", "expected", "prompt"),
    [
        ("gsm8k", 6, "2", "Ann has 1 cups and buys 1. How many has she?\n\nThink step by step."),
        ("math500", 4, r"\frac{1}{7}", "What is $1/7$?\n\nThink step by step. Put your final answer in \\boxed{}."),
        ("aime24", 2, "012", "How many primes are below 12?\n\nThink step by step."),
        ("ifeval", 2, "punctuation:no_comma, length_constraints:number_words", "Write a line."),
    ],
)
def test_a_task_of_a_folder(made_data, punkt, name, count, expected, prompt):
    task = load_task(name, settings(made_data))
    first = task.eval_docs[0]
    assert len(task.eval_docs) == count
    assert task.doc_to_target(first) == expected
    assert task.doc_to_text(first).startswith(prompt)
    assert task.config.generation_kwargs == {**settings().generation_arguments, "until": [], "max_gen_toks": 8192}
    assert (task.config.repeats, task.config.description) == (8, "")


@pytest.mark.parametrize(("name", "count"), [("gsm8k", 1319), ("math500", 500), ("aime24", 30), ("ifeval", 540)])
def test_the_benchmarks_files_are_read(shared_data, punkt, name, count):
    assert len(load_task(name, settings(shared_data)).eval_docs) == count


def test_a_grade_knows_its_problem_and_whether_the_answer_was_cut_off(made_data):
    task = load_task("gsm8k", settings(made_data))
    first, second = task.eval_docs[0], task.eval_docs[1]
    cut_off = Answer("That makes 2", 3, truncated=True)
    grades = graded(task, first, "That makes 2", cut_off, r"\boxed{2}")
    assert [grade["correct"] for grade in grades] == [True, False, True]
    assert [grade["rule"] for grade in grades] == ["fallback", None, "boxed"]
    assert grades[0].keys() == {"correct", "extracted", "rule"}
    assert not graded(task, second, "That makes 2")[0]["correct"]


def test_the_generated_task_asks_as_the_quickstart_does():
    task = load_task("generated", settings())
    assert task.config.generation_kwargs["max_gen_toks"] == 128
    assert task.config.description == "Solve."
    quickstart = generate_problems(48, seed=1, split="test")
    problems = list(task.eval_docs)
    assert len(problems) == 400
    assert [task.doc_to_text(problem) for problem in problems[:48]] == [made.question for made in quickstart]
    assert [task.doc_to_target(problem) for problem in problems[:48]] == [str(made.final_answer) for made in quickstart]


def gpqa_like(count):
    rows = [
        {
            "Question": f" Which is {n}? ",
            "Correct Answer": f"it is {n}\n",
            **{f"Incorrect Answer {wrong}": f"wrong {wrong}" for wrong in (1, 2, 3)},
        }
        for n in range(count)
    ]
    return own.gpqa_problems(Dataset.from_list(rows))


def test_choices_are_in_an_order_that_belongs_to_the_problem():
    problems = list(gpqa_like(40))
    assert {problem["answer"] for problem in problems} == set("ABCD")
    for number, problem in enumerate(problems):
        assert problem["question"] == f"Which is {number}?"
        letter = problem["answer"]
        assert f"({letter}) it is {number}" in problem["choices"].splitlines()
        assert own.gpqa_results(problem, [[f"The answer is ({letter})."]])["accuracy"][0]["correct"]
    # Written down: another order would make the samples of earlier evaluations those of other prompts.
    assert "".join(problem["answer"] for problem in problems[:12]) == "BBDBBDDBCCCA"
    assert list(gpqa_like(1)) == problems[:1]


def test_a_fingerprint_changes_with_a_prompt_and_an_answer(made_data, tmp_path):
    rows = (made_data / "gsm8k_test.jsonl").read_text().splitlines(keepends=True)

    def of(*lines):
        (tmp_path / "gsm8k_test.jsonl").write_text("".join(lines))
        return fingerprint(load_task("gsm8k", settings(tmp_path)))

    first = of(*rows)
    assert first == fingerprint(load_task("gsm8k", settings(made_data)))
    changed = (rows[0].replace("#### 2", "#### 3"), *rows[1:])
    asked = (rows[0].replace("Ann", "Bob"), *rows[1:])
    assert len({first, of(*changed), of(*asked), of(*rows[:-1]), of(*rows[::-1])}) == 5


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"gsm8k needs .*gsm8k_test\.jsonl, which cannot be read \(No such file"):
        load_task("gsm8k", settings(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": "a", "answer": "1"}\n{"problem": ', "math500.jsonl cannot be used .*JSON parse error.*in row 1"),
        ('{"problem": "a", "solution": "1"}\n', "cannot be used .*answer"),
        ('{"question": "a", "answer": "1"}\n', "cannot be used .*'problem' is undefined"),
        ('{"problem": "a", "answer": null}\n', "a row has no answer"),
        ("", "math500.jsonl cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, content, message):
    (tmp_path / "math500.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        load_task("math500", settings(tmp_path))


def test_a_line_may_hold_unicode_separators(tmp_path):
    row = {"problem": "a\u2028b", "answer": "1"}
    (tmp_path / "math500.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(load_task("math500", settings(tmp_path)).eval_docs) == [row]


# The tests run with the hub switched off, as on a machine that reaches none.
def test_without_the_hub_a_folder_is_named_as_the_way_out():
    with pytest.raises(DownloadError, match=r"openai/gsm8k could not be loaded.*gsm8k_test.jsonl with --data_dir"):
        load_task("gsm8k", settings())


def test_gpqa_comes_from_the_hub_only(tmp_path):
    with pytest.raises(DownloadError, match=r"from the hub only.*Idavidrein/gpqa.*hf auth login"):
        load_task("gpqa_diamond", settings(tmp_path))


PLAIN = """
task: plain_gsm8k
dataset_path: openai/gsm8k
dataset_name: main
test_split: test
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{answer.split('#### ')[1]}}"
generation_kwargs: {until: ["Q:"], max_gen_toks: 5}
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "(\\\\d+)"}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, data_files: {test: gsm8k_test.jsonl}}
"""


@pytest.fixture
def plain(tmp_path):
    """A folder of tasks with one of the harness's own kind, which knows nothing of samples."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "plain.yaml").write_text(PLAIN)
    return {"task_dir": tmp_path / "tasks", "tasks": ("plain",)}


def test_a_plain_task_of_the_harness_is_one_too(plain, tiny_folder, made_data, tmp_path):
    report = evaluate(settings(made_data, model_name_or_path=tiny_folder, output_dir=tmp_path, greedy=True, **plain))
    rows = [json.loads(line) for line in (tmp_path / "samples" / "plain.jsonl").read_text().splitlines()]
    assert (report.task("plain").num_problems, report.task("plain").max_new_tokens) == (6, 5)
    assert [row["expected"] for row in rows] == ["2", "4", "6", "8", "10", "12"]
    assert {row["correct"] for row in rows} <= {True, False}
    assert rows[0]["prompt"].startswith("<|im_start|>user\nQ: Ann has 1 cups")


def test_a_plain_task_cannot_tell_samples_apart(plain, made_data):
    with pytest.raises(ConfigurationError, match="plain: its task file gives one grade a problem.*--samples 1"):
        load_task("plain", settings(made_data, **plain))


@pytest.mark.parametrize("changed", ["{until: [w], max_gen_toks: 5}", "{until: ['Q:'], num_beams: 1, max_gen_toks: 5}"])
def test_answers_with_other_stop_strings_are_not_taken_for_those_of_the_task(
    plain, tiny_folder, made_data, tmp_path, changed
):
    asked = settings(made_data, model_name_or_path=tiny_folder, output_dir=tmp_path, greedy=True, limit=2, **plain)
    evaluate(asked)
    (plain["task_dir"] / "plain.yaml").write_text(PLAIN.replace('{until: ["Q:"], max_gen_toks: 5}', changed))
    with pytest.raises(ConfigurationError, match="plain: generation_kwargs"):
        evaluate(asked)


def test_what_changes_neither_prompts_nor_grades_leaves_answers_and_grades_alone(
    plain, tiny_folder, made_data, tmp_path, monkeypatch
):
    asked = settings(made_data, model_name_or_path=tiny_folder, output_dir=tmp_path, greedy=True, limit=2, **plain)
    written = PLAIN.replace('["Q:"]', "['Q:', '\\n']")
    (plain["task_dir"] / "plain.yaml").write_text(written)
    evaluate(asked)
    (plain["task_dir"] / "another.yaml").write_text(PLAIN.replace("task: plain_gsm8k", "task: another"))
    monkeypatch.setattr("profit_sft.evaluation.runner.start_generator", lambda settings: pytest.fail("asks again"))
    for same in (written, f"# A note.\n{written}", PLAIN.replace('["Q:"]', "['\\n', 'Q:']")):
        (plain["task_dir"] / "plain.yaml").write_text(same)
        assert evaluate(asked).task("plain").num_problems == 2


@pytest.mark.parametrize(("one", "same"), [("'Q:'", "['Q:']"), ("['Q:', a]", "[a, 'Q:']"), ("[a, a]", "a")])
def test_stop_strings_are_the_same_however_they_are_written(plain, made_data, one, same):
    found = []
    for until in (one, same):
        (plain["task_dir"] / "plain.yaml").write_text(PLAIN.replace('["Q:"]', until))
        found.append(generation_arguments(load_task("plain", settings(made_data, greedy=True, **plain))))
    assert found[0] == found[1]


def test_answers_are_graded_again_once_a_task_of_ones_own_grades_otherwise(plain, tiny_folder, made_data, tmp_path):
    rated = {}
    for value in ("0", "1"):
        for row in with_metric(plain, tiny_folder, made_data, tmp_path, value, limit=None if value == "0" else 4):
            rated.setdefault(row["problem"], []).append((row["answer"], row.get("correct")))
    assert all(first[0] == second[0] for first, second in rated.values())
    grades = [tuple(grade for _, grade in rated[problem]) for problem in range(6)]
    assert grades == [(False, True)] * 4 + [(False, None)] * 2, "what was not asked for is to be graded again"
    assert {row["correct"] for row in with_metric(plain, tiny_folder, made_data, tmp_path, "1")} == {True}
    noted = json.loads((tmp_path / "job.json").read_text())["tasks"]["plain"]["grading"]
    for name in ("rate.rate", "rate.other"):
        (plain["task_dir"] / "plain.yaml").write_text(PLAIN + f"process_results: !function {name}\n")
        rate = "def rate(doc, results):\n    return {'exact_match': 1}\n"
        (plain["task_dir"] / "rate.py").write_text(rate + rate.replace("rate(", "other("))
        evaluate(settings(made_data, model_name_or_path=tiny_folder, output_dir=tmp_path, greedy=True, **plain))
        before, noted = noted, json.loads((tmp_path / "job.json").read_text())["tasks"]["plain"]["grading"]
        assert before != noted, f"another function grades: {name}"
    job = json.loads((tmp_path / "job.json").read_text())
    assert set(job["tasks"]["plain"]) >= {"grading", "lowered_max_new_tokens"}


@pytest.mark.parametrize(("value", "right"), [("1.0", True), ("False", False), ("0.0", False)])
def test_a_metric_of_a_plain_task_is_right_or_wrong(plain, tiny_folder, made_data, tmp_path, value, right):
    assert {row["correct"] for row in with_metric(plain, tiny_folder, made_data, tmp_path, value)} == {right}


@pytest.mark.parametrize("value", ["0.5", "-1.0", "2", "'yes'", "None", "float('nan')", "(1, 0)", "[1, 0]"])
def test_a_metric_that_is_neither_right_nor_wrong_is_refused_and_its_answers_stay(
    plain, tiny_folder, made_data, tmp_path, value
):
    with pytest.raises(ConfigurationError, match="plain: rating of problem 0 is .*, but an answer is right"):
        with_metric(plain, tiny_folder, made_data, tmp_path, value)
    assert {row["correct"] for row in with_metric(plain, tiny_folder, made_data, tmp_path, "1")} == {True}


def with_metric(plain, model, data, folder, value, **changes):
    """Evaluate with a metric that is the same for every answer; return the samples' records."""
    written = PLAIN.replace("exact_match", "rating") + "process_results: !function rate.rate\n"
    (plain["task_dir"] / "plain.yaml").write_text(written)
    module = plain["task_dir"] / "rate.py"
    module.write_text(f"def rate(doc, results):\n    return {{'rating': {value}, 'characters': len(results[0])}}\n")
    evaluate(settings(data, model_name_or_path=model, output_dir=folder, greedy=True, **plain, **changes))
    return [json.loads(line) for line in (folder / "samples" / "plain.jsonl").read_text().splitlines()]


def test_a_task_of_ones_own_has_a_limit_and_may_include_another_file(plain, made_data):
    written = plain["task_dir"] / "plain.yaml"
    (plain["task_dir"] / "_shared.yaml").write_text(PLAIN + "generation_kwargs: {do_sample: false}\n")
    written.write_text("include: _shared.yaml\ntask: plain\n")
    asked = settings(made_data, **plain, greedy=True)
    assert load_task("plain", asked).config.generation_kwargs["max_gen_toks"] == DEFAULT_LONGEST
    assert task_limits(asked, "plain") == (1, DEFAULT_LONGEST)
    written.write_text("include: _shared.yaml\ntask: plain\ngeneration_kwargs:\nmetadata:\n")
    assert task_limits(asked, "plain") == (1, DEFAULT_LONGEST), "what is left empty is not said"
    assert "metadata" not in task_file("plain", plain["task_dir"])
    written.write_text("include: _shared.yaml\ntask: plain\ngeneration_kwargs: {max_gen_toks: 7}\nrepeats: 3\n")
    assert load_task("plain", asked).config.generation_kwargs["max_gen_toks"] == 7
    assert task_limits(asked, "plain") == (1, 7)
    of_paper = dataclasses.replace(asked, greedy=False, preset="paper")
    assert task_limits(of_paper, "plain") == (3, 7)
    written.rename(written.with_name("aime24.yaml"))
    assert task_limits(dataclasses.replace(of_paper, tasks=("aime24",)), "aime24") == (3, 7)


def test_a_task_of_ones_own_reads_the_file_beside_it_and_goes_before_ours(plain, made_data):
    folder = plain["task_dir"]
    (folder / "plain.yaml").rename(folder / "gsm8k.yaml")
    (folder / "gsm8k_test.jsonl").write_text('{"question": "2+2?", "answer": "#### 4"}\n')
    own_task = {"task_dir": folder, "tasks": ("gsm8k", "generated"), "greedy": True}
    task = load_task("gsm8k", settings(**own_task))
    assert [task.doc_to_text(problem) for problem in task.eval_docs] == ["Q: 2+2?\nA:"]
    assert len(load_task("gsm8k", settings(made_data, **own_task)).eval_docs) == 6
    assert len(load_task("generated", settings(**own_task)).eval_docs) == 400
    (folder / "gsm8k.yaml").write_text("output_type: generate_until\n")
    with pytest.raises(ConfigurationError, match=r"gsm8k\.yaml is no task of lm-evaluation-harness: it has no name"):
        load_task("gsm8k", settings(**own_task))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"plain.yaml": "task: [x\n"}, r"task file '.*plain\.yaml' cannot be read \(while parsing"),
        ({"plain.yaml": "- x\n"}, r"task file '.*plain\.yaml' cannot be read"),
        ({"plain.yaml": "include: absent.yaml\ntask: x\n"}, r"task file '.*absent\.yaml' cannot be read \(.*No such"),
        ({"plain.yaml": "group: x\ntask: [y]\n"}, "it has no name under `task`"),
        (
            {"a.yaml": PLAIN},
            r"plain\.yaml and .*a\.yaml have the same name under `task`, 'plain_gsm8k'\. Give one of them",
        ),
    ],
)
def test_a_task_of_ones_own_that_cannot_be_loaded_is_told_why(plain, files, message):
    for name, content in files.items():
        (plain["task_dir"] / name).write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        load_task("plain", settings(**plain))


def test_a_missing_file_of_a_task_of_ones_own_is_asked_for_beside_it(plain):
    with pytest.raises(
        DataError, match=r"plain needs .*tasks/gsm8k_test\.jsonl, .* Put the file there, or name its fold"
    ):
        load_task("plain", settings(**plain))


def test_the_harness_runs_the_files_by_itself_with_the_same_answers_and_grades(tiny_folder, tmp_path):
    common = {"tasks": ("generated",), "greedy": True, "max_new_tokens": 8, "limit": 12, "dtype": "float32"}
    evaluate(settings(model_name_or_path=tiny_folder, output_dir=tmp_path, **common))
    ours = [json.loads(line) for line in (tmp_path / "samples" / "generated.jsonl").read_text().splitlines()]
    alone = simple_evaluate(
        model="hf",
        model_args={"pretrained": tiny_folder, "dtype": "float32"},
        tasks=["profit_generated"],
        task_manager=TaskManager(include_path=str(TASK_FOLDER), include_defaults=False),
        apply_chat_template=True,
        gen_kwargs={"max_gen_toks": 8, "do_sample": False, "temperature": 0.0},
        limit=12,
        batch_size=4,
        device="cpu",
    )
    rows = alone["samples"]["profit_generated"]
    assert [row["arguments"][0][0] for row in rows] == [row["prompt"] for row in ours]
    assert [[text.strip() for text in row["resps"][0]] for row in rows] == [[row["answer"]] * 8 for row in ours]
    assert all(len(row["accuracy"]) == 8 for row in rows)
    grades = [grade_math(row["answer"], row["expected"]) for row in ours]  # the harness does not know of cut-off ones
    assert [row["accuracy"][7]["extracted"] for row in rows] == [grade.extracted for grade in grades]
    share = sum(bool(grade.correct) for grade in grades) / 12
    assert alone["results"]["profit_generated"]["accuracy,every-sample"] == share
