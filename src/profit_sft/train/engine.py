"""The engine of a run, its ranks and steps: of this process, as launched, or of an accelerate file, as planned."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, is_deepspeed_available, parse_flag_from_env
from pydantic import BaseModel, PositiveInt, ValidationError

from profit_sft.errors import ConfigurationError
from profit_sft.train.config import ProFitConfig

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
    def zero_stage(self) -> int | None:
        """DeepSpeed's stage, or None for other engines."""
        return int(self.name.removeprefix("ZeRO-")) if self.name.startswith("ZeRO-") else None

    @property
    def is_fsdp(self) -> bool:
        """True for both versions of FSDP."""
        return self.name.startswith("FSDP")

    @property
    def shards_gradients(self) -> bool:
        """True where a rank keeps its share of the gradients."""
        return self.is_fsdp or (self.zero_stage or 0) >= 2

    @property
    def shards_weights(self) -> bool:
        """True where a rank keeps its share of the weights."""
        return self.is_fsdp or self.zero_stage == 3


def step_of(config: ProFitConfig, engine: Engine) -> str:
    """Say in words what the rows of an optimizer step are made of."""
    rows, micro_batches, ranks = config.per_device_train_batch_size, config.gradient_accumulation_steps, engine.ranks
    return f"{rows * micro_batches * ranks} rows: {rows} a device x {micro_batches} accumulated x {ranks} ranks"


def planned_steps(
    batches: int, *, epochs: float, ranks: int = 1, micro_batches: int = 1, max_steps: int = -1
) -> tuple[int, float]:
    """Return the optimizer steps and the epochs they are, as transformers' Trainer counts them.

    Args:
        batches: Of one device and epoch, all ranks' together.
        epochs: As `num_train_epochs`.
        ranks: Processes that share them.
        micro_batches: Accumulated by each rank for a step.
        max_steps: In place of the epochs, where it is positive.

    Example:
        >>> planned_steps(9, ranks=2, epochs=0.5)
        (3, 0.5)
    """
    a_epoch = max(1, math.ceil(math.ceil(batches / ranks) / micro_batches))
    if max_steps > 0:
        return max_steps, max_steps / a_epoch
    return math.ceil(epochs * a_epoch), epochs


def check_installed(engine: Engine) -> None:
    """Raise ConfigurationError where an engine is to be launched whose package is missing."""
    if engine.zero_stage is not None and not is_deepspeed_available():
        raise ConfigurationError(f"{engine} needs DeepSpeed, which is not installed. Run pip install deepspeed.")


def check_has_launcher(engine: Engine) -> None:
    """Raise ConfigurationError where DeepSpeed is to train in a process that no launcher started."""
    if engine.zero_stage is not None and not torch.distributed.is_initialized():
        raise ConfigurationError(
            f"{engine} wants accelerators, and a launcher, also for one process. Start it with --accelerate_config "
            "FILE, by `accelerate launch` or by `deepspeed`."
        )


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
        if config.deepspeed_plugin.zero_stage == 0:
            raise ConfigurationError(
                "DeepSpeed without ZeRO (stage 0) has not been tried here. Take stage 1 to 3, or DDP."
            )
        return Engine(name=f"ZeRO-{config.deepspeed_plugin.zero_stage}", ranks=ranks)
    return Engine(name="DDP", ranks=ranks) if ranks > 1 else Engine()


def _fsdp_version(config: ProFitConfig) -> int | None:
    """Return the version as the flags (`--fsdp`) or else the launcher's environment give it, or None without FSDP."""
    plugin = getattr(config, "fsdp_plugin_args", None)
    if plugin is None and config.fsdp:  # transformers 4
        plugin = {"fsdp_version": (config.fsdp_config or {}).get("version", 1)}
    if plugin is not None:
        return int(plugin.get("fsdp_version", 1))
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    return int(os.environ.get("FSDP_VERSION", 1))


class _Fsdp(BaseModel):
    fsdp_version: Literal[1, 2] = 1


class _DeepSpeed(BaseModel):
    zero_stage: Literal[1, 2, 3] = 2
    deepspeed_config_file: str | None = None


class _Plan(BaseModel):
    """What of accelerate's file decides the engine; the rest is for `accelerate launch`."""

    distributed_type: Literal["NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "FSDP", "DEEPSPEED"]
    num_processes: PositiveInt
    num_machines: PositiveInt = 1
    use_cpu: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    fsdp_config: _Fsdp = _Fsdp()
    deepspeed_config: _DeepSpeed = _DeepSpeed()


def check_launched_as_planned(engine: Engine, accelerate_config: str, num_processes: int | None = None) -> None:
    """Refuse a run whose settings name one engine and whose launcher started another.

    Args: as `planned_engine`, after the engine that was launched.

    Raises:
        ConfigurationError: They differ, which changes the batch or the memory of a device.
    """
    planned = planned_engine(accelerate_config, num_processes)
    if engine != planned:
        raise ConfigurationError(
            f"accelerate_config: '{accelerate_config}' asks for {planned}, and launched is {engine}. Launch it as the "
            "file says, name another --num_processes, or leave --accelerate_config out. (On CPUs accelerate starts one "
            "process a machine; torchrun starts more.)"
        )


def planned_engine(accelerate_config: str, num_processes: int | None = None) -> Engine:
    """Return the engine that `accelerate launch --config_file` would start.

    Args:
        accelerate_config: A file that `accelerate config` writes.
        num_processes: In place of the file's, on all machines together.

    Raises:
        ConfigurationError: The file cannot be read, or names an engine that `profit train` has not been tried on.
    """
    plan = _plan(accelerate_config, num_processes)
    ranks = plan.num_processes
    if plan.distributed_type == "DEEPSPEED":
        return Engine(name=f"ZeRO-{_zero_stage(plan.deepspeed_config, accelerate_config)}", ranks=ranks)
    if plan.distributed_type in ("NO", "MULTI_CPU") and ranks > plan.num_machines:
        raise ConfigurationError(
            f"accelerate_config: '{accelerate_config}' asks for {ranks} processes under {plan.distributed_type}, for "
            "which accelerate starts one a machine. Write MULTI_GPU; on CPUs use torchrun, without the file."
        )
    if plan.distributed_type == "FSDP" and ranks == 1:
        raise ConfigurationError(
            f"accelerate_config: '{accelerate_config}' asks for FSDP, which accelerate leaves out of a single process. "
            "Name more with --num_processes, or another file."
        )
    if plan.distributed_type == "FSDP":
        return Engine(name=f"FSDP{plan.fsdp_config.fsdp_version}", ranks=ranks)
    return Engine(name="DDP", ranks=ranks) if ranks > 1 else Engine()


def planned_precision(accelerate_config: str) -> str:
    """Return the mixed precision that the file names, `no` where it names none; raises as `planned_engine`."""
    plan = _plan(accelerate_config)
    if plan.deepspeed_config.deepspeed_config_file is None:
        return plan.mixed_precision or "no"
    settings = _of_deepspeed(plan.deepspeed_config.deepspeed_config_file, accelerate_config)
    asked = (name for name in ("bf16", "fp16") if settings.get(name, {}).get("enabled") is True)
    return next(asked, plan.mixed_precision or "no")


def planned_device(accelerate_config: str) -> str:
    """Return the kind of device the file means, `cpu` or `cuda`, which stands for every accelerator."""
    plan = _plan(accelerate_config)
    return "cpu" if plan.use_cpu or plan.distributed_type == "MULTI_CPU" else "cuda"


def _plan(path: str, num_processes: int | None = None) -> _Plan:
    if not Path(path).is_file():
        raise ConfigurationError(f"accelerate_config: there is no file '{path}'.")
    try:
        settings = load_config_from_file(path).to_dict()
        if num_processes is not None:
            settings["num_processes"] = num_processes
        elif settings.get("num_processes") == -1:  # what accelerate puts where the file has none
            raise ConfigurationError(f"accelerate_config: '{path}' names no num_processes. Add it, or pass the flag.")
        return _Plan.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(
            f"accelerate_config: '{path}' with {'.'.join(map(str, first['loc']))} = {first['input']!r} cannot be "
            f"used: {first['msg']}."
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise ConfigurationError(
            f"accelerate_config: '{path}' cannot be read as a configuration of accelerate: {message}"
        ) from None


def _zero_stage(settings: _DeepSpeed, path: str) -> int:
    """Return the stage, which may lie in a file of DeepSpeed's own."""
    file = settings.deepspeed_config_file
    if file is None:
        return settings.zero_stage
    try:
        return _DeepSpeed(zero_stage=_of_deepspeed(file, path)["zero_optimization"]["stage"]).zero_stage
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"accelerate_config: '{path}' names DeepSpeed's configuration '{file}', whose zero_optimization.stage is "
            "not 1, 2 or 3."
        ) from None


def _of_deepspeed(file: str, path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"accelerate_config: '{path}' names DeepSpeed's configuration '{file}', which cannot be read: {error}"
        ) from None
