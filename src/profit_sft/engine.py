"""The engine of a run: how many ranks there are and which of weights, gradients and Adam's moments they share out.

accelerate and transformers set engines up. Here they are read: from the settings of a run that has been launched, or
from the file that `accelerate launch --config_file` takes.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from profit_sft.errors import ConfigurationError
from profit_sft.trainer import ProFitConfig

_ALL = frozenset({"weights", "gradients", "optimizer"})
_SHARDED_BY_ZERO: tuple[frozenset[str], ...] = (frozenset(), frozenset({"optimizer"}), _ALL - {"weights"}, _ALL)
_CPU = (DistributedType.NO, DistributedType.MULTI_CPU)


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """How a run is spread over processes.

    Attributes:
        name: `one process`, `DDP`, `FSDP1`, `FSDP2`, or `ZeRO-1` to `ZeRO-3`.
        ranks: Processes.
        sharded: Which of `weights`, `gradients` and `optimizer` each rank holds only its share of while they are used.
    """

    name: str = "one process"
    ranks: int = 1
    sharded: frozenset[str] = frozenset()

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
    fsdp = _fsdp_settings(config)
    if fsdp is not None and state is not None and state.distributed_type in _CPU:
        raise ConfigurationError(
            "FSDP was asked for, but accelerate uses it on several accelerators only, and here it would be left out. "
            "Launch without it, or on accelerators."
        )
    if fsdp is not None:
        return _fsdp(ranks, fsdp)
    if config.deepspeed_plugin is not None:
        return _zero(ranks, config.deepspeed_plugin.zero_stage)
    return Engine(name="DDP", ranks=ranks) if ranks > 1 else Engine()


def _fsdp_settings(config: ProFitConfig) -> Mapping[str, Any] | None:
    """Return version and strategy as the flags (`--fsdp`) or else the launcher's environment give them, or None."""
    if config.fsdp_plugin_args is not None:
        found: Mapping[str, Any] = config.fsdp_plugin_args
        return found
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    names = ("fsdp_version", "fsdp_reshard_after_forward", "fsdp_sharding_strategy")
    return {name: os.environ[name.upper()] for name in names if name.upper() in os.environ}


def engine_of_file(path: str | Path) -> Engine:
    """Read a file of `accelerate launch --config_file`.

    Raises:
        ConfigurationError: It cannot be read, is none of accelerate's, or names an engine that is not known here.
    """
    try:
        found = load_config_from_file(str(path))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"accelerate_config: '{path}' is no file of `accelerate launch --config_file` ({error})."
        ) from None
    ranks = int(found.num_processes)
    kind = str(getattr(found.distributed_type, "value", found.distributed_type))
    if kind == DistributedType.FSDP.value:
        return _fsdp(ranks, found.fsdp_config)
    if kind == DistributedType.DEEPSPEED.value:
        return _zero(ranks, _zero_stage(found.deepspeed_config, path))
    if kind == DistributedType.NO.value or ranks == 1:
        return Engine()
    if kind.startswith("MULTI_"):
        return Engine(name="DDP", ranks=ranks)
    raise ConfigurationError(f"accelerate_config: '{path}' asks for {kind}; known are DDP, FSDP and DeepSpeed.")


def _zero_stage(settings: Mapping[str, Any], path: str | Path) -> int:
    file = settings.get("deepspeed_config_file")
    if file is None:
        return int(settings.get("zero_stage", 2))
    try:
        return int(json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"accelerate_config: '{path}' names '{file}', which cannot be read: {error}") from None


def _zero(ranks: int, stage: int) -> Engine:
    return Engine(name=f"ZeRO-{stage}", ranks=ranks, sharded=_SHARDED_BY_ZERO[stage])


def _fsdp(ranks: int, settings: Mapping[str, Any]) -> Engine:
    """Read version and strategy: weights count as whole where they stay gathered from forward to backward."""
    version = int(settings.get("fsdp_version", 1))
    reshard = settings.get("reshard_after_forward", settings.get("fsdp_reshard_after_forward", True))
    # FSDP1 has names and, in older files, numbers for it; in version 2 it is a bool.
    strategy = str(settings.get("fsdp_sharding_strategy", reshard) if version == 1 else reshard).upper()
    sharded = _ALL
    if strategy in ("FALSE", "SHARD_GRAD_OP", "HYBRID_SHARD_ZERO2", "2", "5"):
        sharded = _ALL - {"weights"}
    elif strategy in ("NO_SHARD", "3"):
        sharded = frozenset()
    return Engine(name=f"FSDP{version}", ranks=ranks, sharded=sharded)
