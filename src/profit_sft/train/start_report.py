"""What a run has before it starts, in words: settings at once, counts when they are known."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from profit_sft.data.prepare import DataReport
from profit_sft.data.settings import DataSettings
from profit_sft.loss.devices import cpu_multiplies_bf16
from profit_sft.scores.store import load_scores
from profit_sft.train.engine import Engine, step_of
from profit_sft.train.job import TrainJob

OnFacts = Callable[[Mapping[str, str]], None]


def settled_facts(job: TrainJob, engine: Engine) -> dict[str, str]:
    """Return what is known before anything is read: model, objective, data, batch, device and output folder."""
    run, config, model_config = job.run, job.config, job.model_config
    divisor = "all label tokens" if config.normalize == "all" else "the kept tokens"
    compute = "bf16" if config.bf16 else "fp16" if config.fp16 else None
    facts = {
        "model": f"{model_config.model_name_or_path}, {model_config.dtype or 'float32'}"
        + (f", computed in {compute}" if compute else "")
        + (", LoRA" if model_config.use_peft else ""),
        "objective": f"{config.make_objective()}, divided by {divisor}",
    }
    if run.reference_scores is not None:
        facts["scores"] = (
            f"{run.reference_scores}, under {load_scores(run.reference_scores).manifest.model_name_or_path}"
        )
    facts["data"] = _name(job.training_data()) + (", streamed" if run.is_streamed else "")
    to_evaluate = job.evaluation_data()
    if to_evaluate is not None:
        facts["evaluation"] = _name(to_evaluate)
    facts["batch"] = step_of(config, engine)
    facts["device"] = f"{device_name(config.device)}, {engine}"
    in_fp32 = compute is None and model_config.dtype in (None, "float32")
    if in_fp32 and config.device.type == "cpu" and cpu_multiplies_bf16():
        facts["device"] += "; --bf16 true would be faster here"
    facts["output"] = str(config.output_dir)
    return facts


def _name(data: DataSettings) -> str:
    if data.test_split_size is None:
        return data.dataset_name
    part = f"{data.test_split_size:.1%}" if data.test_split_size < 1 else f"{data.test_split_size:.0f} rows"
    return f"{data.dataset_name}, " + (part if data.held_out else f"all but {part}")


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class CountsReport(TrainerCallback):
    """Report tokens, parameters and optimizer steps on the first rank, once, before the first step.

    Args:
        data: What became of the training data.
        parameters: The model's, before an engine has sharded it.
        trained_end: The token that ends a trained answer and that the saved model stops at, or None.
        checkpointing: What `settle_checkpointing` has left in the configuration.
        on_facts: Called with the facts by name.
    """

    def __init__(
        self,
        data: DataReport,
        parameters: Iterable[torch.Tensor],
        *,
        trained_end: str | None,
        checkpointing: str,
        on_facts: OnFacts,
    ) -> None:
        self._data, self._trained_end, self._checkpointing = data, trained_end, checkpointing
        self._total, self._trained = parameter_counts(parameters)
        self._on_facts = on_facts

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report."""
        if not state.is_world_process_zero:
            return
        data = self._data
        trained = "all" if self._trained == self._total else f"{self._trained:,}"
        from_step = f", from step {state.global_step:,}" if state.global_step else ""
        facts = {"parameters": f"{self._total:,}, {trained} trained"}
        if self._checkpointing != "as asked":
            why = "a step is estimated to fit" if self._checkpointing == "kept" else "a step may not fit otherwise"
            facts["memory"] = f"activations are {self._checkpointing}: {why}"
        if data.rows_used:
            facts["tokens"] = f"{data.total_tokens:,}, {data.label_tokens:,} of them labels, in {data.rows_used:,} rows"
        if data.rows_truncated:
            share = data.rows_truncated / data.rows_used
            facts["cut"] = f"{data.rows_truncated:,} rows ({share:.1%}) lost their end to max_length"
        left_out = {"are longer than max_length": data.rows_too_long, "have the weight 0": data.rows_of_no_weight}
        reasons = [f"{n:,} rows ({n / data.rows_read:.1%}) {why}" for why, n in left_out.items() if n]
        if reasons:
            facts["left out"] = ", ".join(reasons)
        if self._trained_end is not None:
            facts["end"] = f"{self._trained_end}, where the saved model stops"
        if data.notes:
            facts["notes"] = "; ".join(data.notes)
        self._on_facts({**facts, "steps": f"{state.max_steps:,}{from_step}"})


def parameter_counts(parameters: Iterable[torch.Tensor]) -> tuple[int, int]:
    """Return the number of all parameters and of those with a gradient, of which ZeRO-3 may hold a part here."""
    total = trained = 0
    for parameter in parameters:
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        total += count
        trained += count if parameter.requires_grad else 0
    return total, trained
