"""What `profit train` tells of its flags: the first ones by what one wants to do, and all of them by subject.

Imports no parser, so that the short help and the shell's completion need no TRL.
"""

import argparse
import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping

from profit_sft.cli.options import SHORT_FORMS, underscored
from profit_sft.data.settings import DataOptions
from profit_sft.train.arguments import RunArguments

_WIDTH = 78  # typer leaves a column free to either side of a terminal's 80
_COLUMN = 34  # where texts begin
_WHOLE_HELP = 160  # characters; of a longer text its first sentences are shown

# Flags that are no settings.
OF_THE_COMMAND = {
    "--config FILE": "YAML with any of the flags; flags on the command line win.",
    "--dry-run": "Print settings, token counts, kept share on a sample and estimated memory; train nothing.",
    "--json": "Print the result as JSON.",
    "--help": "The flags to begin with.",
    "--help-all": "Every flag with its default, by subject.",
}
FIRST_FLAGS = {
    "Train a model on data": ("--model NAME", "--data NAME", "--out FOLDER", "--config FILE", "--skip-bad-rows"),
    "Choose what is learned": (
        *("--objective NAME", "--threshold P", "--threshold_direction WORD", "--normalize WORD"),
        "--reference_scores FOLDER",
    ),
    "Fit it to the machine": (
        *("--global_batch_size N", "--per_device_train_batch_size N", "--learning_rate RATE", "--use_peft"),
        "--accelerate_config FILE",
    ),
    "Look first, go on, see more": ("--dry-run", "--resume_from_checkpoint latest", "--help-all"),
}
# Of those the settings that are declared beside TRL's, which the short help must not load; the texts of all others are
# the settings' own.
_BESIDE_TRL = {
    "model_name_or_path": "Hub name, folder, or embedded (SmolLM2-135M-Instruct, which needs no hub).",
    "output_dir": "The run folder (default: profit-output).",
    "objective": "nll (plain SFT), profit, trsft, dft, deft, power, eaft, entropy, focal, given, stm, psft, asft or "
    "rho (default: profit).",
    "threshold": "The objective's threshold, a probability (of profit by default: 0.1).",
    "threshold_direction": "higher, lower, middle or random (default: higher).",
    "normalize": "Divide by all label tokens, or by the kept ones: all or kept (default: all, but kept for stm).",
    "global_batch_size": "Rows of an optimizer step over all ranks, in place of gradient_accumulation_steps.",
    "per_device_train_batch_size": "Rows of a forward pass (default: 8).",
    "learning_rate": "Of the optimizer (default: 2e-05; LoRA takes about ten times as much).",
    "use_peft": "Train a LoRA adapter.",
    "resume_from_checkpoint": "Go on with an interrupted run.",
}

_SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "Objective and mask": (
        *("objective", "objective_kwargs", "threshold", "threshold_direction", "normalize", "reference_scores"),
        *("given_weights", "gradient_budget", "loss_chunk_size", "label_smoothing_factor", "neftune_noise_alpha"),
    ),
    "Data": (
        *("dataset_name", "dataset_config", "dataset_train_split", "datasets", "dataset_text_field", "shuffle_dataset"),
        *("dataset_streaming", "streaming", "dataset_num_proc", "remove_unused_columns"),
    ),
    "Chats and labels": (
        *("system_prompt", "chat_template_path", "chat_template_kwargs", "template_date", "train_on", "empty_think"),
        *("assistant_only_loss", "completion_only_loss", "eos_token"),
    ),
    "Length and packing": (
        *("max_length", "truncation_mode", "drop_long_rows", "packing", "packing_strategy", "eval_packing"),
        *("padding_free", "pad_to_multiple_of"),
    ),
    "Model": (
        *("model_name_or_path", "model_revision", "dtype", "attn_implementation", "trust_remote_code"),
        *("allow_missing_weights", "model_init_kwargs", "router_aux_loss_coef", "use_cache"),
    ),
    "LoRA and quantization": (
        *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
        *("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora", "load_in_8bit", "load_in_4bit"),
        *("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
    ),
    "Optimizer and schedule": (
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps"),
        *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("max_grad_norm", "max_skipped_steps"),
    ),
    "Batch and memory": (
        *("per_device_train_batch_size", "global_batch_size", "gradient_accumulation_steps", "auto_find_batch_size"),
        *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "activation_offloading", "skip_padding", "torch_empty_cache_steps"),
        *("train_sampling_strategy", "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory"),
        *("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        "dataloader_in_order",
    ),
    "Precision and devices": (
        *("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "use_cpu", "torch_compile"),
        *("torch_compile_backend", "torch_compile_mode"),
    ),
    "Several devices": (
        *("accelerate_config", "num_processes", "accelerator_config", "parallelism_config", "fsdp", "fsdp_config"),
        *("deepspeed", "ddp_backend", "ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
        *("ddp_broadcast_buffers", "ddp_static_graph", "average_tokens_across_devices", "local_rank"),
    ),
    "Evaluating": (
        *("eval_dataset_name", "dataset_test_split", "test_split_size", "eval_strategy", "eval_steps", "eval_delay"),
        *("eval_on_start", "per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches"),
        *("eval_use_gather_object", "prediction_loss_only", "load_best_model_at_end", "metric_for_best_model"),
        "greater_is_better",
    ),
    "Saving and resuming": (
        *("output_dir", "overwrite_output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model"),
        *("save_on_each_node", "enable_jit_checkpoint", "resume_from_checkpoint", "allow_changes"),
        *("ignore_data_skip", "restore_callback_states_from_checkpoint", "seed", "data_seed", "full_determinism"),
    ),
    "Logging and trackers": (
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"),
        *("log_level", "log_level_replica", "disable_tqdm", "include_num_input_tokens_seen", "skip_memory_metrics"),
        *("probe_rows", "probe_measurements", "report_to", "run_name", "project", "trackio_space_id"),
        *("trackio_bucket_id", "trackio_static_space_id", "trl_telemetry", "debug"),
    ),
    "Hub": (
        *("push_to_hub", "hub_model_id", "hub_revision", "hub_strategy", "hub_token", "hub_private_repo"),
        "hub_always_push",
    ),
    "Of `trl sft`, with nothing to do here": (
        *("loss_type", "use_liger_kernel", "liger_kernel_config", "dataset_kwargs", "ignore_bias_buffers"),
        *("label_names", "include_for_metrics", "batch_eval_metrics", "length_column_name", "pad_token", "do_train"),
        *("do_eval", "do_predict"),
    ),
}
_PLACED = {name for names in _SUBJECTS.values() for name in names}
_DATA_OPTIONS = (entry.name for entry in dataclasses.fields(DataOptions))
# Every setting of the parser is in exactly one of these. A data option is in "Data", unless a subject names it.
GROUPS: Mapping[str, tuple[str, ...]] = {
    **_SUBJECTS,
    "Data": (*_SUBJECTS["Data"], *(name for name in _DATA_OPTIONS if name not in _PLACED)),
}
OTHERS = "Others, of the versions of TRL and transformers that are installed"


def first_help() -> str:
    """Return the short help, in rich's markup."""
    parts = ["Fine-tune a causal language model with a token-level objective."]
    parts.append("Takes every flag of TRL's `trl sft`, spelled the same. Those to begin with:")
    for title, flags in FIRST_FLAGS.items():
        parts.append(
            "\n".join([f"[bold]{title}[/]", *(line for flag in flags for line in _lines(flag, _text_of(flag)))])
        )
    return "\n\n".join(parts)


def _text_of(flag: str) -> str:
    """Return what a flag of the short help means."""
    name = flag.split()[0]
    setting = SHORT_FORMS[name][0] if name in SHORT_FORMS else underscored(name[2:])
    own = {entry.name: entry.metadata["help"] for entry in dataclasses.fields(RunArguments)}
    return OF_THE_COMMAND.get(flag) or _BESIDE_TRL.get(setting) or str(own[setting])


def help_all(parser: argparse.ArgumentParser) -> str:
    """Return every flag with its default and what it means, by subject.

    Args:
        parser: Has the flags. One that is in no group, since another version of a library brings it, comes last.
    """
    by_setting: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        by_setting.setdefault(action.dest, []).append(action)
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, OTHERS: tuple(name for name in by_setting if name not in grouped)}
    text = ["Every flag of profit train, long explanations shortened.", "", "The command"]
    text += [line for flag in OF_THE_COMMAND.items() for line in _lines(*flag)]
    for title, names in groups.items():
        there = [name for name in names if name in by_setting]
        if there:
            text += ["", title, *(line for name in there for line in _setting_lines(by_setting[name]))]
    return "\n".join(text) + "\n"


def flags_to_complete() -> Iterator[str]:
    """Yield the flags of `profit train` for a shell: those of the table, which needs no TRL."""
    for flag in OF_THE_COMMAND:
        yield flag.split()[0]
    yield from SHORT_FORMS
    for names in GROUPS.values():
        yield from (f"--{name}" for name in names)


def _setting_lines(actions: Iterable[argparse.Action]) -> Iterator[str]:
    """Yield the lines on a setting: what sets it and what unsets it, its meaning, and the default it has."""
    setting, *_ = actions
    short = [spelling for spelling, names in SHORT_FORMS.items() if setting.dest in names]
    names = [name for action in actions for name in action.option_strings if "-" not in name[2:]]
    text = _shortened((setting.help or "") % {"default": setting.default})
    if setting.choices and not all(str(choice) in text for choice in setting.choices):
        text += f" One of {', '.join(map(str, setting.choices))}."
    default = getattr(setting.default, "value", setting.default)
    if default not in (None, False, "", []) and "default" not in text:
        text += f" (default: {default})"
    return _lines(", ".join([*short, *names]), text)


def _shortened(text: str) -> str:
    """Return a text on one line; of a long one as many whole sentences as there is room for, and one at least."""
    text = " ".join(text.split())
    if len(text) <= _WHOLE_HELP:
        return text
    ends = [found.end(1) for found in re.finditer(r"(?<!\be\.g)(?<!\bi\.e)([.!?])(?=\s[A-Z`']|$)", text)]
    fitting = [end for end in ends if end <= _WHOLE_HELP] or ends[:1]
    return text[: fitting[-1]] if fitting else text


def _lines(flag: str, text: str) -> Iterator[str]:
    """Yield a flag and its text in two columns; where the flag is too long for its own, the text begins below."""
    left = f"  {flag}"
    lines = textwrap.wrap(text, _WIDTH - _COLUMN, break_long_words=False, break_on_hyphens=False) or [""]
    if len(left) > _COLUMN - 2:
        yield left
        left = ""
    for line in lines:
        yield f"{left:<{_COLUMN}}{line}".rstrip()
        left = ""
