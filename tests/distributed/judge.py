"""The errors of what a case's processes recorded, against one process with dense logits."""

import copy
import math

import torch

from distributed.cases import MICRO_BATCHES, LoopCase
from distributed.problem import (
    ROWS,
    after_adamw,
    evaluation_loss,
    make_problem,
    plain_name,
    reference_step,
    tiny_causal_lm,
    with_adapters,
)

# Zero but for rounding: the softmax does not see a shift of its logits.
ROUNDING = "k_proj.bias"


def errors_of(case, record):
    """Return relative errors by what they are of. Nothing that one process has may be missing."""
    problem = make_problem(tiny_causal_lm(case.family, tied=case.tied), masked=case.masked, unlabeled=case.unlabeled)
    micro_batches = MICRO_BATCHES if isinstance(case, LoopCase) else [(row,) for row in ROWS]
    errors = {}
    for number, step in enumerate(record["steps"], start=1):
        model = one_process(case, step["parameters"])
        computed = with_bf16_parameters(model) if case.bf16 == "parameters" else model
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.bf16 == "autocast", cache_enabled=False):
            if number == 2:
                expected = evaluation_loss(computed, problem, evaluated(case, problem))
                errors["evaluation loss"] = relative(record["evaluation"], expected)
            reference = reference_step(computed, problem, normalize=case.normalize, micro_batches=micro_batches)
        assert 0.1 < reference.kept_share < 0.8 or problem.masked.issuperset(ROWS)
        errors[f"step {number}: loss"] = relative(step["loss"], reference.loss)
        if "kept_share" in step:
            errors[f"step {number}: kept share"] = relative(step["kept_share"], reference.kept_share)
        if step["gradients"] is not None:
            errors.update(gradient_errors(f"step {number}", step["gradients"], reference.gradients))
        if number == 1:
            found = record["steps"][1]["parameters"]
            expected = after_adamw(model, reference.gradients, weight_decay=case.weight_decay)
            errors.update({f"{name} after step 1": tensor_error(found[name], expected[name]) for name in expected})
            if step["gradients"] is None:  # so it is these errors that have to show each gradient's scale
                doubled = {name: 2 * gradient for name, gradient in reference.gradients.items()}
                wrong = after_adamw(model, doubled, weight_decay=case.weight_decay)
                assert all(tensor_error(wrong[name], expected[name]) > case.bound for name in doubled)
    return errors


def evaluated(case, problem):
    """Return the groups of rows whose losses per label the evaluation's is the mean of."""
    if isinstance(case, LoopCase):
        return [rows for rows in MICRO_BATCHES if problem.labeled(rows)][:1]
    # transformers' Trainer divides by the labels of all ranks, TRL's by those of one.
    groups = MICRO_BATCHES if case.trainer == "transformers" else [(row,) for row in ROWS]
    return [rows for rows in groups if problem.labeled(rows)]


def one_process(case, parameters):
    """Make the case's model, whole, with the given parameters."""
    model = tiny_causal_lm(case.family, tied=case.tied)
    if case.lora is not None:
        model = with_adapters(model, case.lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[plain_name(name)])
    return model.train()


def with_bf16_parameters(model):
    """Round the parameters, as FSDP2's policy does, and not the rotary frequencies, which it leaves in fp32."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def gradient_errors(step, found, expected):
    whole = math.sqrt(sum(gradient.norm().item() ** 2 for gradient in expected.values())) or 1.0
    errors = {}
    for name in sorted({*found, *expected}):
        got, want = found.get(name), expected.get(name)
        label = f"{step}: gradient of {name}"
        if name.endswith(ROUNDING):
            errors[label] = got.norm().item() / whole
        elif want is None or want.norm() == 0:
            errors[label] = 0.0 if got is None else got.norm().item() / whole
        else:
            errors[label] = math.inf if got is None else tensor_error(got, want)
    return errors


def tensor_error(found, expected):
    if found.shape != expected.shape:
        return math.inf
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def relative(found, expected):
    return abs(found - expected) / (abs(expected) or 1.0)
