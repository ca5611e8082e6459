"""The tasks in the paper's form: what each rule takes for the answer, and plain lm-evaluation-harness running them."""

import re

import pytest
import yaml
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.settings import TASK_FOLDER, task_file
from profit_sft.evaluation.tasks.paper import (
    arc_docs,
    choice_prompt,
    gpqa_docs,
    grade_box,
    grade_last_number,
    grade_letter,
    hellaswag_docs,
    mmlu_pro_chemistry_docs,
    mmlu_pro_history_docs,
)
from profit_sft.models.pretrained import load_model, load_tokenizer


@pytest.mark.parametrize(
    ("text", "extracted", "correct"),
    [
        ("She pays 9*2=18.\nThe answer is 18", "18", True),
        ("The answer is 18.0 dollars", "18.0", True),
        ("The answer is 18. That took her 3 days.", "3", False),
        ("The answer is 18\n\nQuestion: 7 boys have 2 cups each. How many cups?", "18", True),
        ("It costs $1,018", "018", True),  # no thousands separators, as shipped
        ("It is -18", "-18", False),
        ("no number", None, False),
    ],
)
def test_the_last_number_counts_even_of_a_text_that_was_cut_off(text, extracted, correct):
    for truncated in (False, True):
        grade = grade_last_number({"answer": "9*2=18\n#### 18"}, text, truncated)
        assert (grade.extracted, grade.correct) == (extracted, correct)


def test_expected_numbers_lose_their_separators():
    assert grade_last_number({"answer": "#### 1,200"}, "The answer is 1200").correct


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (r"so $x = \boxed{\frac{1}{2}}$, which is 7", True),
        (r"\boxed{3} no: \boxed{0.5}", True),
        ("The answer is 1/2", False),
        ("#### 0.5", False),
        (r"\boxed{\frac{1}{2", False),
    ],
)
def test_a_box_counts_and_nothing_else(text, correct):
    assert grade_box({"answer": r"\frac{1}{2}"}, text).correct is correct


@pytest.mark.parametrize(
    ("text", "extracted"),
    [
        ("ANSWER: C", "C"),
        ("answer : b because", "B"),
        ("ANSWER: A. No, wait. ANSWER: C", "A"),
        ("The answer is C", None),
        ("ANSWER: F", None),  # of four choices
    ],
)
def test_the_first_letter_named_counts(text, extracted):
    grade = grade_letter({"choices": list("abcd"), "answer": "C"}, text)
    assert (grade.extracted, grade.correct) == (extracted, extracted == "C")


def test_choices_rotate_by_the_number_of_the_question():
    rows = [
        {"Question": f"q{n} ", "Correct Answer": "right", **{f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}}
        for n in range(5)
    ]
    docs = gpqa_docs(Dataset.from_list(rows))
    assert docs["answer"] == ["D", "C", "B", "A", "D"]
    assert docs[1]["choices"] == ["wrong 2", "wrong 3", "right", "wrong 1"]
    prompt = choice_prompt(docs[0])
    assert "LETTER is one of ABCD." in prompt
    assert prompt.endswith("\n\nq0\n\nA) wrong 1\nB) wrong 2\nC) wrong 3\nD) right")


def test_other_benchmarks_become_questions_with_choices():
    arc = [
        {"question": "q", "choices": {"text": list("wxyz"), "label": list("1234")}, "answerKey": "3"},
        {"question": "q", "choices": {"text": list("xyz"), "label": list("ABC")}, "answerKey": "C"},
    ]
    assert arc_docs(Dataset.from_list(arc)).to_list() == [{"question": "q", "choices": list("wxyz"), "answer": "C"}]
    mmlu = [
        {"question": "q", "options": list("abcdefghij"), "answer": "J", "category": name, "cot_content": ""}
        for name in ("history", "chemistry", "law")
    ]
    for docs in (mmlu_pro_history_docs, mmlu_pro_chemistry_docs):
        (row,) = docs(Dataset.from_list(mmlu))
        assert row == {"question": "q", "choices": list("abcdefghij"), "answer": "J"}
        assert "one of ABCDEFGHIJ." in choice_prompt(row)
    swag = {
        "activity_label": "Baking",
        "ctx_a": "A man",
        "ctx_b": "he [x] mixes",
        "endings": list("abcd"),
        "label": "2",
    }
    (row,) = hellaswag_docs(Dataset.from_list([swag]))
    assert (row["answer"], row["question"][-23:]) == ("C", "\nBaking: A man He mixes")


def test_worked_examples_are_right_by_their_own_rule():
    examples = task_file("gsm8k_paper")["fewshot_config"]["samples"]
    assert len(examples) == 4
    for example in examples:
        for left, right in re.findall(r"([\d.*+/-]+)=([\d.]+)", example["solution"]):
            assert eval(left) == float(right), example
        answer = example["solution"].rpartition("The answer is ")[2]
        assert grade_last_number({"answer": f"#### {answer}"}, example["solution"]).correct


LIKE = {
    "gsm8k_paper": ("test", {"question": "Ann has 2 cups.", "answer": "1+1=2\n#### 2"}),
    "math500_paper": ("test", {"problem": "What is $1/7$?", "answer": r"\frac{1}{7}"}),
    "aime24_paper": ("train", {"problem": "How many primes are below 12?", "answer": "005"}),
    "gpqa_paper": (
        "train",
        {"Question": "q", "Correct Answer": "r", **{f"Incorrect Answer {k}": f"w{k}" for k in (1, 2, 3)}},
    ),
    "hellaswag_paper": (
        "validation",
        {"activity_label": "x", "ctx_a": "A", "ctx_b": "b", "endings": list("abcd"), "label": "2"},
    ),
    "arc_challenge_paper": (
        "validation",
        {"question": "q", "choices": {"text": list("wxyz"), "label": list("ABCD")}, "answerKey": "C"},
    ),
    "mmlu_pro_history_paper": (
        "test",
        {"question": "q", "options": list("ab"), "answer": "B", "category": "history"},
    ),
    "mmlu_pro_chemistry_paper": (
        "test",
        {"question": "q", "options": list("ab"), "answer": "B", "category": "chemistry"},
    ),
    "humaneval_paper": (
        "test",
        {
            "task_id": "x",
            "prompt": 'def one() -> int:\n    """Return 1."""\n',
            "entry_point": "one",
            "test": "def check(f):\n    assert f() == 1",
            "canonical_solution": "    return 1",
        },
    ),
}


@pytest.fixture
def manager(tmp_path):
    """Return a task manager that has a task under its name, with rows made up for these tests in place of its data."""

    def make(name, **changes):
        split, row = LIKE[name]
        Dataset.from_list([row] * 2).to_json(tmp_path / f"{name}.jsonl")
        data = {"dataset_path": "json", "dataset_name": None}
        data["dataset_kwargs"] = {"data_files": {split: str(tmp_path / f"{name}.jsonl")}}
        config = {"include": str(TASK_FOLDER / f"{name}.yaml"), "task": name, **data, **changes}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        # Without the harness's own thousands, which take it seven seconds to list.
        return TaskManager(include_path=[str(TASK_FOLDER), str(tmp_path)], include_defaults=False)

    return make


def test_every_task_has_data_to_be_tested_on():
    names = {load_yaml(path, resolve_func=False)["task"] for path in TASK_FOLDER.glob("*_paper.yaml")}
    assert names == set(LIKE)
    assert names <= set(TaskManager(include_path=str(TASK_FOLDER), include_defaults=False).all_tasks)


@pytest.fixture(scope="module")
def harness_model(tiny_folder):
    return HFLM(pretrained=load_model(tiny_folder), tokenizer=load_tokenizer(tiny_folder), batch_size=4)


@pytest.mark.filterwarnings("ignore")  # the harness's own, and those of transformers at its calls
@pytest.mark.parametrize("name", sorted(set(LIKE) - {"humaneval_paper"}))
def test_the_harness_runs_a_task_by_itself(name, manager, harness_model):
    found = simple_evaluate(
        model=harness_model,
        tasks=[name],
        task_manager=manager(name, repeats=3),
        apply_chat_template=True,
        gen_kwargs={"max_gen_toks": 6},
        bootstrap_iters=0,
    )
    rows = found["samples"][name]
    assert [len(row["filtered_resps"][0]) for row in rows] == [3, 3]
    right = [bool(sample["correct"]) for row in rows for sample in row["accuracy"]]
    assert len(right) == 6
    assert found["results"][name]["accuracy,every-sample"] == sum(right) / 6
    prompt = rows[0]["arguments"][0][0]
    assert prompt.count("<|im_start|>user") == (5 if name == "gsm8k_paper" else 1)
    assert prompt.endswith("<|im_start|>assistant\n")


def right(task, doc, *texts):
    return [grade["correct"] for grade in task.process_results(doc, [list(texts)])["accuracy"]]


def test_the_harness_grades_every_sample(manager):
    task = manager("gsm8k_paper").load(["gsm8k_paper"])["tasks"]["gsm8k_paper"]
    doc = task.eval_docs[0]
    assert right(task, doc, "It is 2", "It is 3") == [True, False]
    assert task.doc_to_text(doc) == "Question: Ann has 2 cups.\nLet's think step by step\nAnswer:"
    assert (task.config.repeats, task.config.generation_kwargs["max_gen_toks"]) == (8, 512)


def test_the_harness_asks_for_a_box_and_grades_it(manager):
    task = manager("aime24_paper").load(["aime24_paper"])["tasks"]["aime24_paper"]
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc) == (
        "How many primes are below 12?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert right(task, doc, r"\boxed{5}", r"\boxed{7}") == [True, False]
    assert (task.config.repeats, task.config.generation_kwargs["max_gen_toks"]) == (32, 32768)


@pytest.mark.filterwarnings("ignore")
def test_untrusted_code_is_refused_by_name(manager, harness_model, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    arguments = {
        "model": harness_model,
        "tasks": ["humaneval_paper"],
        "task_manager": manager("humaneval_paper", repeats=1),
        "gen_kwargs": {"max_gen_toks": 4},
        "bootstrap_iters": 0,
    }
    with pytest.raises(ValueError, match="humaneval_paper which is marked as unsafe"):
        simple_evaluate(**arguments)
    with pytest.raises(ConfigurationError, match="humaneval_paper runs code that the model wrote"):
        simple_evaluate(**arguments, confirm_run_unsafe_code=True)
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    found = simple_evaluate(**arguments, confirm_run_unsafe_code=True)
    assert found["results"]["humaneval_paper"]["accuracy,every-sample"] == 0.0
