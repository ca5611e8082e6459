"""Flags of `trl sft` that have no meaning here: each is refused in one line that says what to use instead."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from profit_sft.errors import ConfigurationError
from profit_sft.train.config import ProFitConfig
from profit_sft.train.job import TrainJob


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which values of a flag are refused, and what to use instead."""

    refuses: Callable[[Any], object]
    instead: str


def _names_head(modules: Any) -> bool:
    names = [modules] if isinstance(modules, str) else modules or ()
    return any(name.split(".")[-1] in ("lm_head", "embed_out") for name in names)


REFUSED = {
    "completion_only_loss": Refusal(
        lambda value: value is False,
        "prompts are not trained. Leave it out, or write prompt and answer into one column 'text', which is trained "
        "whole.",
    ),
    "dataset_kwargs": Refusal(
        lambda value: set(value or ()) - {"skip_prepare_dataset"},
        "rows are prepared here, and 'skip_prepare_dataset' is the only key that TRL knows. Leave it out.",
    ),
    "use_liger_kernel": Refusal(
        bool, "the selective loss takes the place of Liger's, which would leave the objective out. Leave it out."
    ),
    "liger_kernel_config": Refusal(bool, "Liger's kernels are not used. Leave it out."),
    "lora_target_modules": Refusal(
        _names_head,
        "an adapter of the head would not be trained, since the loss reads the head's own matrix. Leave it out here, "
        "and to train the head as a whole add --lora_modules_to_save lm_head.",
    ),
    "lora_task_type": Refusal(lambda value: value != "CAUSAL_LM", "a causal language model is trained: CAUSAL_LM."),
    "ignore_bias_buffers": Refusal(bool, "`trl sft` does not read it either. Leave it out."),
    "label_names": Refusal(bool, "the labels are named 'labels'. Leave it out."),
    **dict.fromkeys(
        ("include_for_metrics", "include_inputs_for_metrics", "batch_eval_metrics"),
        Refusal(bool, "an evaluation here computes no metrics beside the loss's. Leave it out."),
    ),
    "length_column_name": Refusal(
        lambda value: value != "length", "rows are prepared here, and their lengths counted. Leave it out."
    ),
    "do_predict": Refusal(bool, "there is nothing to predict on; see `profit eval`. Leave it out."),
    "pad_token": Refusal(bool, "set it in the model's tokenizer_config.json instead."),
}
# Without its switch each of these does nothing, in TRL as well. A switch of two words is a setting and its value.
NEEDS = {
    **dict.fromkeys(
        (
            *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
            *("lora_modules_to_save", "use_rslora", "use_dora", "load_in_8bit", "load_in_4bit"),
        ),
        "use_peft",
    ),
    **dict.fromkeys(("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"), "load_in_4bit"),
    **dict.fromkeys(
        ("hub_model_id", "hub_revision", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push"),
        "push_to_hub",
    ),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), "report_to trackio"),
    "optim_target_modules": "optim galore_adamw",
    "ignore_data_skip": "resume_from_checkpoint",
    "load_best_model_at_end": "eval_strategy epoch",
}
# Other values of the switch that is a setting's.
_AS_WELL = {
    "optim galore_adamw": ("galore", "apollo"),
    "report_to trackio": ("trackio", "all"),
    "eval_strategy epoch": ("epoch", "steps"),
}


def refuse_flags(job: TrainJob) -> None:
    """Raise ConfigurationError at the first flag that would be ignored, or would train something else."""
    values = job.values
    for name, refusal in REFUSED.items():
        if name in values and refusal.refuses(values[name]):
            raise ConfigurationError(f"{name} is {values[name]!r}: {refusal.instead}")
    for entry in (*dataclasses.fields(job.config), *dataclasses.fields(job.model_config)):
        needed = NEEDS.get(entry.name)
        if needed is None or values[entry.name] == entry.default or _is_on(needed, values):
            continue
        shown = "a secret" if entry.name == "hub_token" else repr(values[entry.name])
        raise ConfigurationError(
            f"{entry.name} is {shown}, which does nothing without {needed}. Add --{needed}, or leave it out."
        )


def _is_on(switch: str, values: dict[str, Any]) -> bool:
    name = switch.split()[0]
    value = getattr(values[name], "value", values[name])
    return any(word in str(value) for word in _AS_WELL[switch]) if switch in _AS_WELL else bool(value)


def settle_done_flags(config: ProFitConfig) -> None:
    """Take out of `config` what the preparation of the data has done: TRL would do it once more, or refuse it."""
    config.chat_template_path = None  # the tokenizer has it
    config.completion_only_loss = None  # the labels say so
    config.assistant_only_loss = False
    config.dataset_text_field = "text"
    if config.padding_free and not config.packing:
        config.max_length = None  # which TRL wants to enforce, and cannot without padding; the rows are cut
    if not (config.packing or config.eval_packing):
        # The rows are tokenized and have labels; without this TRL would truncate and filter them once more.
        config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}
