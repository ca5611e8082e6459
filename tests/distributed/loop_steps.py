"""Two steps of a plain loop around `apply_profit`, under torch's own wrappers. Run by test_engines.py.

One launch for all tables: starting its processes takes longer than most of their cases.
"""

import contextlib
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from distributed.cases import GATHERS, LOOPS, MICRO_BATCHES
from distributed.problem import adamw, make_problem, tiny_causal_lm, with_adapters
from distributed.recording import STEPS, gathers_counted, gradients_of, parameters_of, rank, record_cases
from profit_sft import ProFit, apply_profit, remove_profit


def fsdp2(case, model):
    """Shard each layer, the tail as the case says, and the rest."""
    low = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if case.bf16 else {}
    shard = partial(fully_shard, mesh=init_device_mesh("cpu", (2,)), mp_policy=MixedPrecisionPolicy(**low))
    base = model if case.lora is None else model.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    decoder = getattr(base.model, "decoder", base.model)
    for layer in decoder.layers:
        shard(layer, reshard_after_forward=case.reshard)
    alone = [head, embedding] if case.tied else [head]  # a shared parameter has one unit
    if case.unit == "own, embedding too":
        shard(embedding, reshard_after_forward=case.reshard)
    if case.unit.startswith("own"):
        shard(alone, reshard_after_forward=case.reshard)
    elif case.unit == "tail":
        shard([decoder.norm, *alone], reshard_after_forward=case.reshard)
    return shard(model, reshard_after_forward=case.reshard)


def fsdp1(case, model):
    own = {model.get_output_embeddings()} if case.unit == "own" else set()
    units = own | set(model.model.layers)
    policy = partial(lambda_auto_wrap_policy, lambda_fn=lambda module: module in units)
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), **case.options)


def ddp(case, model):
    return DistributedDataParallel(model, **case.options)


def tensor_parallel(case, model, folder):
    if rank() == 0:
        model.save_pretrained(folder)
    dist.barrier()
    return AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32).train()


def wrapped(case, model, apply, folder):
    if case.lora is not None:
        model = with_adapters(model, case.lora)
    if case.checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": case.checkpointing})
    if case.engine == "tp":
        return apply(tensor_parallel(case, model, folder))
    if case.apply == "before":
        apply(model)
    if case.compiled:
        model = torch.compile(model, backend="aot_eager")
    model = {"ddp": ddp, "fsdp1": fsdp1, "fsdp2": fsdp2}[case.engine](case, model)
    if case.apply == "after":
        apply(model)
    return model


@contextlib.contextmanager
def without_reduction(model):
    """Leave the gradients of a micro-batch on their rank."""
    if hasattr(model, "no_sync"):
        with model.no_sync():
            yield
    else:
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)


def step(case, model, problem):
    """Run the rank's micro-batches forward and backward, and return the global loss."""
    alike = case.engine == "tp"
    groups = MICRO_BATCHES if alike else MICRO_BATCHES[2 * rank() : 2 * rank() + 2]
    total = torch.zeros(())
    for index, rows in enumerate(groups):
        keep = not (case.sync_each or alike) and index < len(groups) - 1
        with without_reduction(model) if keep else contextlib.nullcontext():
            loss = model(**problem.batch(rows), num_items_in_batch=problem.num_items).loss
            # The engines average over ranks what is to be summed.
            (loss if alike else loss * dist.get_world_size()).backward()
        total += loss.detach()
    if not alike:
        dist.all_reduce(total)
    return total.item()


def run(case, record, folder):
    model = tiny_causal_lm(case.family, tied=case.tied)
    problem = make_problem(model, masked=case.masked, unlabeled=case.unlabeled)
    apply = partial(apply_profit, objective=ProFit(threshold=problem.threshold), chunk_size=case.chunk_size)
    model = wrapped(case, model, apply, folder)
    optimizer = adamw(model, weight_decay=case.weight_decay)
    for index in range(STEPS):
        entry = {"parameters": parameters_of(model)}
        if index:
            model.eval()
            with torch.no_grad():
                rows = next(rows for rows in MICRO_BATCHES if problem.labeled(rows))
                record["evaluation"] = model(**problem.batch(rows)).loss.item()
            model.train()
        entry["loss"] = step(case, model, problem)
        entry["gradients"] = gradients_of(model)
        record["steps"].append(entry)
        optimizer.step()
        optimizer.zero_grad()


def count_gathers(case, record, folder):
    """Count the all-gathers of a second step, with the loss in one chunk, in several, and with the model's own loss."""
    problem = make_problem(tiny_causal_lm(case.family, tied=case.tied))
    for name, chunk_size in (("one chunk", None), ("several chunks", 4)):
        apply = partial(apply_profit, objective=ProFit(threshold=problem.threshold), chunk_size=chunk_size)
        model = wrapped(case, tiny_causal_lm(case.family, tied=case.tied), apply, folder)
        step(case, model, problem)
        with gathers_counted(record, name):
            step(case, model, problem)
    remove_profit(model)
    with gathers_counted(record, "own loss"):
        step(case, model, problem)


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for table, cases in {**LOOPS, "gathers": GATHERS}.items():
        of_case = count_gathers if table == "gathers" else run
        record_cases(cases, of_case, Path(out) / table)
    dist.destroy_process_group()
