"""The tasks: prompts, expected answers, the order of choices, and the harness running them by itself."""

import pytest

from profit_sft.evaluation.settings import EvalSettings
from profit_sft.evaluation.tasks import _choice_task, load_task


def settings(data_dir=None, **changes):
    return EvalSettings(
        **{
            "model_name_or_path": "embedded",
            "tasks": ("generated",),
            "output_dir": "x",
            "data_dir": data_dir,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("name", "count", "expected", "in_prompt"),
    [
        ("gsm8k", 6, "2", "Ann has 1 cups and buys 1. How many has she?\n\nThink step by step."),
        ("math500", 4, r"\frac{1}{7}", "What is $1/7$?\n\nThink step by step. Put your final answer in \\boxed{}."),
        ("aime24", 2, "012", "How many primes are below 12?\n\nThink step by step."),
        ("ifeval", 2, "punctuation:no_comma, length_constraints:number_words", "Write a line."),
    ],
)
def test_a_task_of_a_folder(made_data, judge, punkt, name, count, expected, in_prompt):
    task = load_task(name, settings(made_data), judge)
    assert len(task.problems) == count
    first = task.problems[0]
    assert task.expected(first) == expected
    assert in_prompt in task.prompt(first)
    assert (task.max_new_tokens, task.system_prompt) == (8192, None)


def test_a_grade_knows_its_problem_and_whether_the_answer_was_cut_off(made_data, judge):
    task = load_task("gsm8k", settings(made_data), judge)
    assert task.grade(task.problems[0], "That makes 2", False).correct
    assert not task.grade(task.problems[1], "That makes 2", False).correct
    assert not task.grade(task.problems[0], "That makes 2", True).correct


def test_the_generated_task_asks_as_the_quickstart_does(judge):
    task = load_task("generated", settings(), judge)
    assert (task.system_prompt, task.max_new_tokens) == ("Solve.", 128)
    assert task.prompt(task.problems[0]) == task.problems[0]["question"]


def gpqa_like(count):
    return [
        {
            "Question": f" Which is {n}? ",
            "Correct Answer": f"it is {n}\n",
            **{f"Incorrect Answer {wrong}": f"wrong {wrong}" for wrong in (1, 2, 3)},
        }
        for n in range(count)
    ]


def test_choices_are_in_an_order_of_the_problem_and_the_seed():
    task, same, other = (_choice_task("gpqa_diamond", gpqa_like(40), seed) for seed in (0, 0, 1))
    letters = [task.expected(problem) for problem in task.problems]
    assert set(letters) == set("ABCD")
    assert [same.expected(problem) for problem in same.problems] == letters
    assert [other.expected(problem) for problem in other.problems] != letters
    for number, (problem, letter) in enumerate(zip(task.problems, letters, strict=True)):
        prompt = task.prompt(problem)
        assert prompt.startswith(f"Which is {number}?\n\n(A) ")
        assert f"({letter}) it is {number}\n" in prompt
        assert task.grade(problem, f"The answer is ({letter}).", False).correct
    # The first problem keeps its order when there are fewer.
    assert _choice_task("gpqa_diamond", gpqa_like(1), 0).problems[0] == task.problems[0]


def test_a_fingerprint_changes_with_a_prompt_and_an_answer(made_data, judge):
    first = load_task("gsm8k", settings(made_data), judge)
    assert first.fingerprint() == load_task("gsm8k", settings(made_data), judge).fingerprint()
    changed = [{**first.problems[0], "answer": "3"}, *first.problems[1:]]
    for other in (changed, first.problems[:-1], first.problems[::-1]):
        assert type(first)(**{**vars(first), "problems": other}).fingerprint() != first.fingerprint()


def test_the_harness_runs_a_task_by_itself_with_the_same_answers(tiny_folder, made_data, judge):
    from lm_eval import simple_evaluate

    from profit_sft.evaluation.engine import Request
    from profit_sft.evaluation.hf_engine import HFEngine

    engine = HFEngine(settings(made_data, model_name_or_path=tiny_folder, greedy=True, dtype="float32"))
    task = load_task("gsm8k", settings(made_data), judge)
    prompts = [engine.apply_chat_template([{"role": "user", "content": task.prompt(row)}]) for row in task.problems]
    ours = [engine.generate([Request(prompt, 0)], 8)[0].text for prompt in prompts]
    engine.rows = [Request(prompt, 0) for prompt in prompts]  # here the harness makes the batch itself
    engine.batch_size_per_gpu = 1
    engine.tok_batch_encode = super(HFEngine, engine).tok_batch_encode
    found = simple_evaluate(
        model=engine,
        tasks=[task.harness_task()],
        apply_chat_template=True,
        gen_kwargs={"max_gen_toks": 8},
        bootstrap_iters=0,
    )
    assert [row["filtered_resps"][0].strip() for row in found["samples"]["gsm8k"]] == ours
    assert found["results"]["gsm8k"]["correct,none"] == 0.0
