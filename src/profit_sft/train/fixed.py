"""What a run that is resumed must not change: recorded in every checkpoint, compared before the run goes on."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from profit_sft.data.prepare import PreparedData
from profit_sft.errors import ConfigurationError
from profit_sft.models.fingerprint import model_fingerprint
from profit_sft.scores.store import load_scores
from profit_sft.train.arguments import FIXED
from profit_sft.train.job import TrainJob

_OPTIMIZER = (
    *("learning_rate", "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
)
_BATCH = (
    *("packing", "packing_strategy", "padding_free", "max_length", "shuffle_dataset", "dataloader_drop_last"),
    *("group_by_length", "train_sampling_strategy", "accelerator_config"),
)
_QUANTIZATION = ("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")

Fixed = Mapping[str, Mapping[str, Any]]


def fixed_by_settings(job: TrainJob, ranks: int) -> Fixed:
    """Return what the settings alone say, by name and setting.

    Args:
        job: Its settings, before a trainer has put its marks on them.
        ranks: Processes of the run.
    """
    config, model_config = job.config, job.model_config
    objective = config.make_objective()
    # A plug-in's may have no text of its own but its address.
    told = str(objective) if dataclasses.is_dataclass(objective) else f"{config.objective} {config.objective_kwargs}"
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * ranks
    lora = [entry.name for entry in dataclasses.fields(model_config) if entry.name.startswith(("lora_", "use_"))]
    found = {
        "objective": {"objective": told, **_values(config, "normalize", "gradient_budget", "neftune_noise_alpha")},
        "seed": _values(config, "seed", "data_seed"),
        "model": {
            **_values(model_config, *(lora if model_config.use_peft else ["use_peft"])),
            **_values(config, "model_init_kwargs", "router_aux_loss_coef"),
        },
        "precision": {
            **_values(config, "bf16", "fp16", "tf32"),
            **_values(model_config, *_QUANTIZATION),
            "dtype": model_config.dtype or "float32",
        },
        "optimizer": _values(config, *_OPTIMIZER),
        "batch": {"rows_a_step": rows, **_values(config, *_BATCH)},
    }
    return dict(json.loads(json.dumps(found, default=lambda value: getattr(value, "__dict__", None) or str(value))))


def fixed_by_data(data: PreparedData, job: TrainJob) -> Fixed:
    """Return what has to be read: the tokens and their weights, the tokenizer, the model, whose reference scores."""
    scores, model_config = job.run.reference_scores, job.model_config
    reference = None if scores is None else load_scores(scores).manifest.model_fingerprint
    model = model_fingerprint(model_config.model_name_or_path, revision=model_config.model_revision)
    return {
        "data": {"fingerprint": data.report.fingerprint, "token_weights": _weights_digest(data)},
        "tokenizer": {"fingerprint": data.report.tokenizer_fingerprint},
        "reference": {"model_fingerprint": reference},
        "model": {"fingerprint": model},
    }


def _weights_digest(data: PreparedData) -> str | None:
    """Tell the weights that come with the data from others; None where it has none. The tokens' own does not."""
    if "token_weights" not in (data.dataset.column_names or ()):
        return None
    digest = hashlib.sha256()
    for chunk in data.dataset.data.table["token_weights"].chunks:
        digest.update(chunk.flatten().to_numpy())
    return digest.hexdigest()[:12]


def _values(settings: object, *names: str) -> dict[str, Any]:
    values = {name: getattr(settings, name, None) for name in names}
    return {name: getattr(value, "value", value) for name, value in values.items()}


def together(first: Fixed, second: Fixed) -> Fixed:
    """Return both."""
    return {name: {**first.get(name, {}), **second.get(name, {})} for name in FIXED}


def check_unchanged(checkpoint: str | Path, recorded: Fixed, now: Fixed, allowed: Collection[str]) -> None:
    """Refuse to go on with a run otherwise than it was begun.

    Args:
        checkpoint: Where it goes on, for the message.
        recorded: What its manifest says.
        now: What is known of this run; the rest is not compared.
        allowed: Names of what may differ.

    Raises:
        ConfigurationError: Something else does; says what, how it was and how it is.
    """
    names, parts = [], []
    for name in FIXED:
        before = recorded.get(name, {})
        differing = [key for key, value in now.get(name, {}).items() if key in before and before[key] != value]
        if differing and name not in allowed:
            names.append(name)
            parts += [_difference(name, key, before[key], now[name][key]) for key in differing]
    if parts:
        raise ConfigurationError(
            f"resume_from_checkpoint: '{checkpoint}' is of a run that was not as this one: {'; '.join(parts)}. Give it "
            f"what it was begun with, or say that you mean the change: --allow_changes {','.join(names)}"
        )


def _difference(name: str, key: str, before: object, now: object) -> str:
    if key.endswith("fingerprint"):
        return f"another {name}"
    return f"{name if key == name else f'{name}, {key}'}: {before} before, {now} now"
