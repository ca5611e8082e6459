"""What can be said of a run whose data or model are not at hand: that its settings agree, and perhaps its memory."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import PreTrainedModel
from trl import ModelConfig

from profit_sft.data.rows import means_a_file, near_name
from profit_sft.data.sources import mixture_parts
from profit_sft.errors import ConfigurationError
from profit_sft.models.pretrained import outline, pretrained_path
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.data import evaluation_settings
from profit_sft.train.engine import Engine, step_of
from profit_sft.train.memory import bytes_of, free_memory_gib, planned_memory_gib


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingsReport:
    """What a dry run tells where there is nothing else to look at.

    Attributes:
        config: The resolved settings, YAML.
        engine: Which one would run, with its ranks.
        batch: What the rows of an optimizer step are made of.
        not_checked: What was not looked at, and why; one line for each reason.
        memory_gib: As in `DryRunReport`, for rows of `max_length`; None where the model's shape is not known.
    """

    config: str
    engine: str
    batch: str
    not_checked: list[str]
    memory_gib: dict[str, float] | None


def settings_report(
    run: RunArguments, config: ProFitConfig, model_config: ModelConfig, engine: Engine, settings: str
) -> SettingsReport | None:
    """Return what the settings say, or None where data and model are here, and the model fits into memory.

    Args:
        run: Data and run-folder settings.
        config: Trainer settings, with the micro-batches of a step settled.
        model_config: Model, precision and LoRA settings.
        engine: Which one would run.
        settings: All of them, resolved, YAML.
    """
    absent_model = _absent_model(model_config)
    model = None if absent_model else _outlined(config, model_config)
    reasons = [*_absent_data(run, config), *absent_model, *_larger_than_memory(model, model_config)]
    if not reasons:
        return None
    rows, micro_batches = config.per_device_train_batch_size, config.gradient_accumulation_steps
    memory_gib = None
    if model is not None and config.max_length is not None and not model_config.use_peft:
        memory_gib = planned_memory_gib(model, run, config, engine, longest=config.max_length)
    what = "rows, tokens, mask and memory" if memory_gib is None else "rows, tokens and mask"
    return SettingsReport(
        config=settings,
        engine=str(engine),
        batch=f"{rows * micro_batches * engine.ranks} rows: {step_of(rows, micro_batches, engine.ranks)}",
        not_checked=[f"{what}: {reason}" for reason in reasons],
        memory_gib=memory_gib,
    )


def _absent_data(run: RunArguments, config: ProFitConfig) -> list[str]:
    """Return a line for each file of the data that is not here."""
    parts = mixture_parts(run.datasets) if run.datasets else ()
    names = [part.path for part in parts] or [str(run.dataset_name)]
    evaluated = evaluation_settings(run, config)
    if evaluated is not None and not evaluated.held_out:
        names.append(evaluated.dataset_name)
    return [
        f"'{name}' does not exist here.{near_name(name)}"
        for name in dict.fromkeys(names)
        if means_a_file(name) and not Path(name).expanduser().exists()
    ]


def _absent_model(model_config: ModelConfig) -> list[str]:
    """Return why the model cannot be loaded on this machine, though it may be on another, or nothing."""
    name = str(model_config.model_name_or_path)
    path = pretrained_path(name)
    if not Path(path).is_dir():
        try:
            hf_hub_download(path, "config.json", revision=model_config.model_revision)
        except LocalEntryNotFoundError:
            return [f"the model '{name}' is not here, and the hub cannot be reached."]
        except (OSError, ValueError, EntryNotFoundError):
            return []  # loading it tells why
    return []


def _outlined(config: ProFitConfig, model_config: ModelConfig) -> PreTrainedModel | None:
    """Return the model without its weights, or None where only loading it tells its shape."""
    if config.trust_remote_code or model_config.load_in_4bit or model_config.load_in_8bit:
        return None
    try:
        model = outline(model_config.model_name_or_path, revision=model_config.model_revision)
    except ConfigurationError:
        return None  # loading it tells why, or does better
    if model_config.dtype not in (None, "float32"):
        model = model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers wraps it
    return model


def _larger_than_memory(model: PreTrainedModel | None, model_config: ModelConfig) -> list[str]:
    """Return that the weights do not fit into the free memory, or nothing."""
    if model is None:
        return []
    size, free = bytes_of(model.parameters()) / 2**30, free_memory_gib(torch.device("cpu"))
    if size <= free:
        return []
    return [
        f"the weights of '{model_config.model_name_or_path}' take {size:.1f} GiB, and {free:.1f} GiB of "
        "memory are free here."
    ]
