"""The cost estimate against hand-computed values."""

from pathlib import Path

import pytest

from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.settings import TASKS
from profit_sft.study.estimate import (
    TrainingData,
    _costliest,
    count_parameters,
    estimate_cell,
    planned_new_tokens,
    steps_and_tokens,
)
from profit_sft.study.plan import parse_plan
from tiny import tiny_model

EIGHT = str(Path(__file__).resolve().parents[2] / "recipes" / "accelerate" / "fsdp2_8gpu.yaml")
DATA = TrainingData(rows=1000, tokens=500_000, measured=True)


def plan_with(**changes):
    return parse_plan(
        {
            "model_name_or_path": "x",
            "dataset_name": "train.jsonl",
            "train": {"num_train_epochs": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            "evaluate": {"tasks": ["gsm8k", "aime24"]},
            "cells": [{"objective": "nll"}],
        }
        | changes
    )


@pytest.mark.parametrize(
    ("settings", "steps", "tokens"),
    [
        ({"num_train_epochs": 1, "per_device_train_batch_size": 8}, 125, 500_000),
        ({"num_train_epochs": 1, "per_device_train_batch_size": 3}, 334, 500_000),
        ({}, 375, 1_500_000),  # the trainer's defaults: 3 epochs of batch 8
        ({"max_steps": 25, "per_device_train_batch_size": 8}, 25, 100_000),
        ({"num_train_epochs": 1, "max_samples": 80}, 10, 40_000),
        ({"num_train_epochs": 1, "per_device_train_batch_size": 1, "accelerate_config": EIGHT}, 125, 500_000),
        (
            {
                "num_train_epochs": 1,
                "per_device_train_batch_size": 1,
                "global_batch_size": 32,
                "accelerate_config": EIGHT,
            },
            32,
            500_000,
        ),
        (
            {"num_train_epochs": 1, "per_device_train_batch_size": 1, "accelerate_config": EIGHT, "num_processes": 4},
            250,
            500_000,
        ),
    ],
)
def test_steps_and_tokens_of_a_run(settings, steps, tokens):
    assert steps_and_tokens(settings, DATA) == (steps, tokens)


def test_gpu_hours_by_the_formula():
    plan = plan_with(estimate={"peak_tflops": 1000, "mfu": 0.5, "mean_new_tokens": 100, "generation_batch": 10})
    untrained, trained = (estimate_cell(plan, cell, DATA, 2e9) for cell in plan.cells)
    assert trained.train_hours == pytest.approx(8 * 2e9 * 1e6 / (0.5 * 1e15) / 3600)
    assert trained.new_tokens == (1319 + 30) * 8 * 100
    # A step of decoding reads 4e9 bytes at half of 3.35e12 bytes a second and gives 10 tokens.
    assert trained.evaluate_hours == pytest.approx(trained.new_tokens / 10 * 4e9 / 1.675e12 / 3600)
    assert (untrained.steps, untrained.train_hours) == (0, 0)
    assert untrained.evaluate_hours == trained.evaluate_hours
    faster = plan_with(train={"gradient_checkpointing": False, "max_steps": 2000}, estimate={"mfu": 0.5})
    assert estimate_cell(faster, faster.cells[1], DATA, 2e9).train_hours == pytest.approx(
        6 * 2e9 * 8e6 / (0.5 * 989e12) / 3600
    )


def test_measured_speeds_replace_the_formula():
    plan = plan_with(estimate={"train_tokens_per_second": 100, "startup_seconds": 20, "evaluate_seconds": 30})
    untrained, trained = (estimate_cell(plan, cell, DATA, None) for cell in plan.cells)
    assert trained.train_hours == pytest.approx((1e6 / 100 + 20) / 3600)
    assert untrained.evaluate_hours == pytest.approx(30 / 3600)
    assert untrained.train_hours == 0


def test_a_try_costs_its_own_value_and_a_cell_the_costliest():
    tune = {"num_train_epochs": [1, 4], "evaluate": {"tasks": ["math500"], "greedy": True, "limit": 100}}
    settings = {"per_device_train_batch_size": 8}
    plan = plan_with(tune=tune, train=settings, estimate={"train_tokens_per_second": 100, "mean_new_tokens": 10})
    found = {cell.slug: _costliest(plan, cell, DATA, 2e9) for cell in plan.runs}
    assert {slug: cell.steps for slug, cell in found.items()} == {
        "nll-num_train_epochs1-s0-try": 125,
        "nll-num_train_epochs4-s0-try": 500,
        "untrained": 0,
        "nll-s0": 500,
    }
    assert found["nll-num_train_epochs1-s0-try"].new_tokens == 100 * 10
    assert found["nll-s0"].new_tokens == (1319 + 30) * 8 * 10


@pytest.mark.parametrize(
    ("evaluate", "tokens"),
    [
        ({"tasks": ["gsm8k"], "greedy": True, "limit": 100, "max_new_tokens": 40}, 100 * 40),
        ({"tasks": ["aime24", "gsm8k_paper"], "preset": "paper", "limit": 50}, 30 * 32 * 800 + 50 * 8 * 512),
        ({"tasks": ["aime24"], "limit": 100, "samples": 2}, 30 * 2 * 800),
        ({"tasks": ["generated"], "greedy": True}, 400 * 128),
        ({}, 0),
    ],
)
def test_new_tokens_of_an_evaluation(evaluate, tokens):
    assert planned_new_tokens(evaluate, plan_with().estimate) == tokens


@pytest.mark.parametrize("task", TASKS)
def test_the_size_of_every_task_is_known(task):
    assert planned_new_tokens({"tasks": [task], "samples": 1, "max_new_tokens": 1}, plan_with().estimate) >= 30


def test_problems_of_a_task_of_ones_own_are_counted(repo_root):
    evaluate = {"tasks": ["new_validation"], "task_dir": str(repo_root / "benchmarks" / "map"), "greedy": True}
    assert planned_new_tokens(evaluate, plan_with(estimate={"mean_new_tokens": 10}).estimate) == 200 * 10


def test_parameters_are_counted_without_weights(tmp_path):
    tiny_model().config.save_pretrained(tmp_path)
    assert count_parameters(str(tmp_path)) == sum(parameter.numel() for parameter in tiny_model().parameters())


@pytest.mark.parametrize(
    ("estimate", "message"),
    [
        ({"mfu": 0}, "estimate.mfu must be greater than 0, got 0."),
        ({"mfu": "1e-1"}, "estimate.mfu must be a number, got '1e-1'. YAML reads 1e-5 as text; write 1.0e-5."),
        ({"rows": 1.5}, "estimate.rows must be a whole number, got 1.5."),
        ({"mfu": float("inf")}, "estimate.mfu must be a finite number, got inf."),
        ({"gpus": 4}, "estimate.gpus is unknown."),
    ],
)
def test_a_bad_assumption_is_named(estimate, message):
    with pytest.raises(ConfigurationError, match=message.replace(".", r"\.")):
        plan_with(estimate=estimate)
