"""Settings that transformers and torch look at only once training has begun: each is tried here on a toy, before.

What they say of it is told in one line, and nothing has been read or written.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, get_scheduler

from profit_sft.errors import ConfigurationError, blamed_on
from profit_sft.train.config import ProFitConfig

# Of an evaluation without `compute_metrics`: transformers' own, and TRL's.
_MEASURED = (
    *("loss", "runtime", "samples_per_second", "steps_per_second"),
    *("entropy", "mean_token_accuracy", "num_tokens", "aux_loss"),
)
_OF_THE_LAYERS = ("selective", "every_n_layers", "offload")  # which TRL and transformers take for themselves


def try_settings(config: ProFitConfig) -> None:
    """Build what the settings ask for: optimizer, schedule, compiled function, checkpointed layer.

    Raises:
        ConfigurationError: One cannot be built; names the settings it is made of.
    """
    # What looks for its weights in the model itself, and DeepSpeed's own optimizer, are theirs to build.
    if not (config.optim_target_modules or config.deepspeed or "lomo" in str(config.optim)):
        _try_optimizer(config)
    if config.torch_compile:
        with _blamed_on(config, "torch_compile_backend", "torch_compile_mode"):
            torch.compile(
                _same, mode=config.torch_compile_mode or None, backend=config.torch_compile_backend or "inductor"
            )
    layers: dict[str, Any] = config.gradient_checkpointing_kwargs or {}
    with _blamed_on(config, "gradient_checkpointing_kwargs"):
        kwargs = {"use_reentrant": False, **{name: layers[name] for name in layers if name not in _OF_THE_LAYERS}}
        checkpoint(_same, torch.ones(1, requires_grad=True), **kwargs)
    _check_best_metric(config)


def _try_optimizer(config: ProFitConfig) -> None:
    layer = torch.nn.Linear(8, 8, bias=False)
    with _blamed_on(config, "optim", "optim_args"):
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(config, layer)  # type: ignore[arg-type]  # of any model
        if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
            return  # a factory, which wants the model
        optimizer = kind(layer.parameters(), **kwargs)
    steps = max(config.max_steps, 1)
    with _blamed_on(config, "lr_scheduler_type", "lr_scheduler_kwargs"):
        get_scheduler(
            config.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=config.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )


def _check_best_metric(config: ProFitConfig) -> None:
    name = (config.metric_for_best_model or "loss").removeprefix("eval_")
    if name not in _MEASURED:
        raise ConfigurationError(
            f"metric_for_best_model is '{config.metric_for_best_model}', and an evaluation measures "
            f"{', '.join(_MEASURED)}. Name one of them."
        )


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _blamed_on(config: ProFitConfig, *names: str) -> AbstractContextManager[None]:
    values = {name: getattr(config, name, None) for name in names}
    shown = ", ".join(f"{name} {getattr(value, 'value', value)!r}" for name, value in values.items())
    return blamed_on(f"{shown} cannot be used", "Change or leave out one of them.", ConfigurationError)
