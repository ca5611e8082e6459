"""The engine of a run and its ranks, read from what accelerate and transformers have set up."""

import os
from dataclasses import dataclass

from accelerate.utils import DistributedType

from profit_sft.errors import ConfigurationError
from profit_sft.trainer import ProFitConfig

_CPU = (DistributedType.NO, DistributedType.MULTI_CPU)


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """How a run is spread over processes.

    Attributes:
        name: `one process`, `DDP`, `FSDP1`, `FSDP2`, or `ZeRO-1` to `ZeRO-3`.
        ranks: Processes.
    """

    name: str = "one process"
    ranks: int = 1

    def __str__(self) -> str:
        return self.name if self.ranks == 1 else f"{self.ranks} ranks, {self.name}"

    @property
    def is_deepspeed(self) -> bool:
        """True for ZeRO of any stage."""
        return self.name.startswith("ZeRO")

    @property
    def is_fsdp(self) -> bool:
        """True for both versions of FSDP."""
        return self.name.startswith("FSDP")


def launched_engine(config: ProFitConfig) -> Engine:
    """Return the engine that this process was launched with, or refuse one that would not be used.

    Raises:
        ConfigurationError: A launcher started several processes, or asked for FSDP or DeepSpeed, and they would train
            without each other or without it.
    """
    state, ranks = config.distributed_state, int(config.world_size)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and ranks == 1:
        raise ConfigurationError(
            f"a launcher started {launched} processes, but this one sees no other, so each would train a model of its "
            "own in the same folder. On CPUs pass --use_cpu True, without FSDP or DeepSpeed, which want accelerators; "
            "with accelerators check that torch sees them."
        )
    fsdp = _fsdp_version(config)
    if fsdp is not None and state is not None and state.distributed_type in _CPU:
        raise ConfigurationError(
            "FSDP was asked for, but accelerate uses it on several accelerators only, and here it would be left out. "
            "Launch without it, or on accelerators."
        )
    if fsdp is not None:
        return Engine(name=f"FSDP{fsdp}", ranks=ranks)
    if config.deepspeed_plugin is not None:
        return Engine(name=f"ZeRO-{config.deepspeed_plugin.zero_stage}", ranks=ranks)
    return Engine(name="DDP", ranks=ranks) if ranks > 1 else Engine()


def _fsdp_version(config: ProFitConfig) -> int | None:
    """Return the version as the flags (`--fsdp`) or else the launcher's environment give it, or None without FSDP."""
    if config.fsdp_plugin_args is not None:
        return int(config.fsdp_plugin_args.get("fsdp_version", 1))
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    return int(os.environ.get("FSDP_VERSION", 1))
