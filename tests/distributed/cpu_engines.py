"""Let accelerate build FSDP and DeepSpeed on CPUs with gloo; by itself it does so on accelerators only.

accelerate launch ... cpu_engines.py MODULE [arguments]       e.g. cpu_engines.py profit_sft.cli train ...

What is changed is which backend accelerate chooses, for which devices it takes up FSDP, and what FSDP1 and DeepSpeed
ask of a CPU before they start. Nothing that computes is touched.
"""

import os
import runpy
import sys

import torch
from accelerate import state
from accelerate.utils import DistributedType


def choose_gloo():
    """Start the processes' group with gloo, and let accelerate take up FSDP and tensor parallelism on it.

    It does for the types of accelerators alone; ENGINE_PARALLELISM in the environment asks for it without FSDP.
    """
    own_backend, own_init = state.PartialState._prepare_backend, state.PartialState.__init__

    def prepare_backend(self, cpu=False, sagemaker_dp=False, backend=None):
        if "LOCAL_RANK" in os.environ:
            return "gloo", DistributedType.MULTI_CPU
        return own_backend(self, cpu, sagemaker_dp, backend)

    def init(self, cpu=False, **kwargs):
        fresh = not self.initialized
        own_init(self, cpu, **kwargs)
        sharded = wants("ACCELERATE_USE_FSDP") or wants("ENGINE_PARALLELISM")
        if fresh and sharded and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = prepare_backend
    state.PartialState.__init__ = init


def give_fsdp1_its_device():
    """FSDP1 wants "cpu" where accelerate says "cpu:0"."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    own_init = FullyShardedDataParallel.__init__

    def init(self, *args, **kwargs):
        own_init(self, *args, **{**kwargs, "device_id": torch.device("cpu")})

    FullyShardedDataParallel.__init__ = init


def skip_shared_memory_op():
    """Let DeepSpeed start without the shared-memory collective that it compiles for CPUs; gloo does without."""
    import deepspeed.comm.torch  # noqa: F401

    # By its full name: the package has torch itself under that attribute.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None


def wants(variable):
    return os.environ.get(variable, "false").lower() in ("1", "true")


def install():
    """Do what the environment, which `accelerate launch` sets, asks for. Before anything makes an accelerator."""
    choose_gloo()
    if wants("ACCELERATE_USE_FSDP"):
        give_fsdp1_its_device()
    if wants("ACCELERATE_USE_DEEPSPEED"):
        skip_shared_memory_op()


if __name__ == "__main__":
    install()
    target, sys.argv = sys.argv[1], sys.argv[1:]
    runpy.run_module(target, run_name="__main__", alter_sys=True)
