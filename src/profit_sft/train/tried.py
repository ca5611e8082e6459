"""Settings that transformers and torch look at only once training has begun: each is tried here on a toy, before.

What they say of it is told in one line, and nothing has been read or written.
"""

import copy
import inspect
import re
import sys
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.trainer_utils import SchedulerType
from trl import ModelConfig, get_quantization_config

from profit_sft.errors import ConfigurationError, blamed_on, brief, first_line
from profit_sft.models.pretrained import outline
from profit_sft.train.config import ProFitConfig

# Of an evaluation without `compute_metrics`: transformers' own, and TRL's.
_MEASURED = (
    *("loss", "runtime", "samples_per_second", "steps_per_second"),
    *("entropy", "mean_token_accuracy", "num_tokens", "aux_loss"),
)
_OF_THE_LAYERS = ("selective", "every_n_layers", "offload")  # which TRL and transformers take for themselves


def try_settings(config: ProFitConfig, model_config: ModelConfig) -> None:
    """Build what the settings ask for: optimizer, schedule, compiled function, checkpointed layer, the model's outline.

    Raises:
        ConfigurationError: One cannot be built, or a setting names what is not there; names the settings.
    """
    with _blamed_on(config, "report_to"):
        _try_trackers(config)
    with _blamed_on(model_config, "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_quant_storage"):
        quantization = get_quantization_config(model_config)
        if quantization is not None:
            AutoHfQuantizer.from_config(quantization).validate_environment()
    if not config.deepspeed:  # which may have an optimizer of its own
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
    _check_module_names(config, model_config)


def _try_trackers(config: ProFitConfig) -> None:
    """Make each, which looks for its package then."""
    error = None
    hook = sys.unraisablehook
    # MLflow's and Neptune's, half made, fail once more when they are deleted, which is here: no traceback keeps them.
    sys.unraisablehook = lambda unraisable: None
    try:
        for tracker in get_reporting_integration_callbacks(config.report_to):
            tracker()
    except Exception as found:
        error = ImportError(first_line(found))
    finally:
        sys.unraisablehook = hook
    if error is not None:
        raise error


def _try_optimizer(config: ProFitConfig) -> None:
    layer = torch.nn.Linear(8, 8, bias=False)
    if config.optim_target_modules or "lomo" in str(getattr(config.optim, "value", config.optim)):
        # It is made of the model itself; that its library is missing can be told before.
        with _blamed_on(config, "optim"), suppress(ValueError, TypeError):
            Trainer.get_optimizer_cls_and_kwargs(config, layer)  # type: ignore[arg-type]  # of any model
        return
    with _blamed_on(config, "optim", "optim_args"):
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(config, layer)  # type: ignore[arg-type]  # of any model
        if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
            return  # a factory, which wants the model
        optimizer = kind(layer.parameters(), **kwargs)
    _check_optimizer_arguments(config, layer)
    _check_schedule_arguments(config)
    steps = max(config.max_steps, 1)
    with _blamed_on(config, "lr_scheduler_type", "lr_scheduler_kwargs"):
        get_scheduler(
            config.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=config.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,
        )


def _check_schedule_arguments(config: ProFitConfig) -> None:
    """Refuse an argument that this schedule does not take, which transformers leaves out of some without a word."""
    kind = SchedulerType(config.lr_scheduler_type)
    own = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    taken: Any = TYPE_TO_SCHEDULER_FUNCTION[kind]  # which transformers calls no callable
    known = [name for name in inspect.signature(taken).parameters if name not in own]
    odd = next((name for name in config.lr_scheduler_kwargs or () if name not in known), None)
    if odd is not None:
        raise ConfigurationError(
            f"lr_scheduler_kwargs: '{odd}' is no argument of lr_scheduler_type '{kind.value}'. It has "
            f"{', '.join(known) or 'none'}."
        )


def _check_optimizer_arguments(config: ProFitConfig, layer: torch.nn.Module) -> None:
    """Refuse an argument that this optimizer does not read: whatever its value, nothing changes."""
    for argument in (config.optim_args or "").replace(" ", "").split(","):
        name, _, given = argument.partition("=")
        if not name:
            continue
        found = set()
        for value in (given, "0.5", "1", "true", "float16"):
            tried = copy.copy(config)
            tried.optim_args = f"{name}={value}"
            try:
                found.add(str(Trainer.get_optimizer_cls_and_kwargs(tried, layer)[1]))  # type: ignore[arg-type]
            except Exception as error:  # it reads the value, and takes none of this kind
                found.add(repr(error))
        if len(found) == 1:
            raise ConfigurationError(
                f"optim_args: '{name}' is no argument that optim '{getattr(config.optim, 'value', config.optim)}' "
                "reads. Leave it out; adam_beta1, adam_beta2, adam_epsilon and weight_decay are flags of their own."
            )


def _check_module_names(config: ProFitConfig, model_config: ModelConfig) -> None:
    """Refuse names of modules, parameters or attentions that the model has none of; without any, look at nothing."""
    named = {
        "lora_target_modules": model_config.lora_target_modules,
        "lora_target_parameters": model_config.lora_target_parameters,
        "lora_modules_to_save": model_config.lora_modules_to_save,
        "optim_target_modules": config.optim_target_modules,
    }
    # Of a model with code of its own there is no outline without running it; PEFT will have to tell.
    attention = model_config.attn_implementation
    if not (any(named.values()) or attention) or config.trust_remote_code:
        return
    model = outline(model_config.model_name_or_path, revision=model_config.model_revision, attention=attention)
    modules = [name for name, _ in model.named_modules() if name]
    for setting, names in named.items():
        known = [name for name, _ in model.named_parameters()] if setting == "lora_target_parameters" else modules
        for name in [names] if isinstance(names, str) else names or ():
            if name.replace("_", "-") == "all-linear" or _is_named(setting, name, known, is_pattern=names == name):
                continue
            last = dict.fromkeys(part.rsplit(".", 1)[-1] for part in known if not part.rsplit(".", 1)[-1].isdigit())
            what = "parameter" if known is not modules else "module"
            raise ConfigurationError(
                f"{setting}: no {what} of '{model_config.model_name_or_path}' is named {name!r}. It has "
                f"{brief(', '.join(last))}."
            )


def _is_named(setting: str, name: str, known: list[str], *, is_pattern: bool) -> bool:
    """Say whether a name would be found, by the rules of PEFT and, of `optim_target_modules`, of transformers."""
    try:
        by_pattern = (is_pattern or setting.startswith("optim")) and any(re.fullmatch(name, other) for other in known)
    except re.error:
        by_pattern = False
    if by_pattern or is_pattern:
        return by_pattern
    if setting == "optim_target_modules":
        return any(name in other for other in known)
    if setting == "lora_modules_to_save":
        return any(other.endswith(name) for other in known)
    return any(other == name or other.endswith(f".{name}") for other in known)


def _check_best_metric(config: ProFitConfig) -> None:
    name = (config.metric_for_best_model or "loss").removeprefix("eval_")
    if name not in _MEASURED:
        raise ConfigurationError(
            f"metric_for_best_model is '{config.metric_for_best_model}', and an evaluation measures "
            f"{', '.join(_MEASURED)}. Name one of them."
        )


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _blamed_on(config: ProFitConfig | ModelConfig, *names: str) -> AbstractContextManager[None]:
    values = {name: getattr(config, name, None) for name in names}
    shown = ", ".join(f"{name} {getattr(value, 'value', value)!r}" for name, value in values.items())
    return blamed_on(f"{shown} cannot be used", "Change or leave out one of them.", ConfigurationError)
