"""What settings are refused, and what stands in for those left out."""

from pathlib import Path

import pytest

from profit_sft.evaluation.settings import TASKS, EvalSettings


def settings(**changes):
    return EvalSettings(**{"model_name_or_path": "embedded", "tasks": ("generated",), "output_dir": "out", **changes})


def test_the_defaults_are_the_papers_decoding():
    found = settings()
    assert found.decoding == {"greedy": False, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert found.samples_per_problem == 8
    assert found.output_dir == Path("out")


def test_greedy_takes_one_sample_and_no_temperature():
    found = settings(greedy=True)
    assert found.samples_per_problem == 1
    assert found.decoding == {"greedy": True}


def test_a_task_named_twice_is_one():
    assert settings(tasks=("ifeval", "gsm8k", "ifeval")).tasks == ("ifeval", "gsm8k")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("gsm8k", "gsm9k")}, "gsm9k.*Known are aime24, "),
        ({"tasks": ()}, "none given"),
        ({"task_dir": "absent"}, "task_dir: there is no folder 'absent'"),
        ({"dtype": "int4"}, "dtype must be one of float32"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"samples": 4, "greedy": True}, "samples is 4, but greedy decoding gives the same answer each time"),
        ({"temperature": 0.0}, "temperature must be above 0.*greedy"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"top_p": 80}, "top_p must be a probability"),
        ({"top_p": 0}, "top_p must be a probability"),
        ({"top_k": -1}, "top_k must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_decoding_as_the_harness_calls_it():
    assert settings(greedy=True).generation_arguments == {"do_sample": False, "temperature": 0.0}
    sampled = {"do_sample": True, "temperature": 0.7}
    assert settings().generation_arguments == {**sampled, "top_p": 0.8, "top_k": 20}
    assert settings(top_p=1.0, top_k=0).generation_arguments == sampled  # a server may not know top_k


def test_engine_arguments_are_a_mapping():
    with pytest.raises(TypeError, match="engine_args must be a mapping"):
        settings(engine_args="max_length=5")


def test_a_text_is_no_list_of_tasks():
    with pytest.raises(TypeError, match=r"Write \('gsm8k',\)"):
        settings(tasks="gsm8k")


def test_every_task_can_be_named():
    assert settings(tasks=TASKS).tasks == TASKS
