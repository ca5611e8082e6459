"""What a case's processes write for the test: parameters, gradients and losses of two steps, or what was raised."""

import contextlib
import os
import traceback
import warnings

import torch
import torch.distributed as dist

from distributed.problem import plain_name

STEPS = 2


def rank():
    return int(os.environ["RANK"])


def record_cases(cases, run, out):
    """Write `INDEX.pt` a case from the first rank; go on after one that raises.

    Args:
        cases: Rows of a table.
        run: Called with a case, its record, and a folder of its own that is not there yet.
        out: Folder of the table.
    """
    out.mkdir(parents=True, exist_ok=True)
    for index, case in enumerate(cases):
        record = {"steps": []}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a micro-batch without kept tokens warns, and is meant to be there
                run(case, record, out / f"model-{index}")
        except Exception as error:
            record["raised"] = f"{type(error).__name__}: {error}"
            record["trace"] = traceback.format_exc()
        if rank() == 0:
            partial = out / f"{index}.partial"
            torch.save(record, partial)
            partial.rename(partial.with_suffix(".pt"))
        dist.barrier()


def whole(tensor):
    """Return a copy of the tensor on its own, gathered over the ranks that hold parts of it."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def parameters_of(model):
    with _summoned(model):
        return {plain_name(name): whole(parameter) for name, parameter in model.named_parameters()}


def gradients_of(model):
    """Return the gradients by plain name, or None where FSDP1 keeps them flat."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    if isinstance(model, FullyShardedDataParallel) and not model._use_orig_params:
        return None
    with _summoned(model, with_grads=True):
        named = model.named_parameters()
        return {plain_name(name): whole(parameter.grad) for name, parameter in named if parameter.grad is not None}


def _summoned(model, **options):
    from torch.distributed.fsdp import FullyShardedDataParallel

    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model, writeback=False, **options)
    return contextlib.nullcontext()


@contextlib.contextmanager
def gathers_counted(record, name):
    """Count the all-gathers of this rank, whichever engine asks for them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield
    events = profile.key_averages()
    record.setdefault("gathers", {})[name] = sum(
        event.count for event in events if event.key.startswith("c10d::") and "allgather" in event.key.replace("_", "")
    )
