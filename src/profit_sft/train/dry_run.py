"""What a run would do, without doing it: settings, token counts, kept share on a sample, estimated memory."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from profit_sft.data.prepare import PreparedData
from profit_sft.data.rows import means_a_file, near_name
from profit_sft.data.sources import mixture_parts
from profit_sft.errors import ConfigurationError
from profit_sft.head import selective_head
from profit_sft.mask.labels import MarkedRow, marked_rows, turn_ends
from profit_sft.models.pretrained import outline, pretrained_path
from profit_sft.scores.loop import label_examples, mean_figures, score_labels
from profit_sft.train.data import load_data
from profit_sft.train.engine import Engine, planned_device, planned_precision, planned_steps, step_of
from profit_sft.train.job import TrainJob
from profit_sft.train.memory import bytes_of, estimate_memory_gib, free_memory_gib
from profit_sft.train.run import build_trainer, load_tokenizer, settle, spread_batch
from profit_sft.train.start_report import parameter_counts
from profit_sft.train.trainer import ProFitTrainer

_SHOWN_ROWS = 2
_SAMPLE_TOKENS = 2048  # a forward pass of the 135M model over these takes a few seconds on two cores


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunReport:
    """What `profit train --dry-run` prints.

    Attributes:
        config: The resolved settings, YAML.
        data: The training data's report, and `turns_end_in` (`turn_ends`).
        examples: The first rows with their labels marked.
        optimizer_steps: Steps the run would take.
        parameters: All parameters of the model.
        trainable_parameters: Those with a gradient.
        sample_rows: Rows the mask was measured on.
        sample_label_tokens: Their label tokens.
        kept_share: Share of those with non-zero weight, in [0, 1].
        mean_p: Mean probability of the sample's label tokens.
        nll: Plain NLL of the sample, nats a token.
        engine: Whose memory is estimated, with its ranks.
        memory_gib: Estimated memory of one device in GiB by part; see `estimate_memory_gib`.
    """

    config: str
    data: dict[str, Any]
    examples: list[MarkedRow]
    optimizer_steps: int
    parameters: int
    trainable_parameters: int
    sample_rows: int
    sample_label_tokens: int
    kept_share: float
    mean_p: float
    nll: float
    engine: str
    memory_gib: dict[str, float]


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


def dry_run(job: TrainJob, *, progress: bool = True) -> DryRunReport | SettingsReport:
    """Load data and model, look at the mask on the first rows, and estimate the cost. Writes nothing.

    It takes one process and the model's weights in memory; steps and memory are those of the engine and ranks that
    `accelerate_config` names. Where the data or the model is on another machine, it looks at
    the settings, and at the memory if the model is here.

    Args: as `profit_sft.train.run.run_training`.
    """
    engine, config = settle(job), job.config
    if job.run.is_streamed:
        raise ConfigurationError(
            "a dry run counts rows and tokens, and streamed ones cannot be counted. Leave streaming out of it, with "
            "--max_samples where the data is large."
        )
    if job.run.accelerate_config is not None:
        engine = job.planned_engine()
    spread_batch(config, engine)
    settings = job.as_yaml()
    found = _settings_report(job, engine, settings)
    if found is not None:
        return found
    config.global_batch_size = None  # settled for those ranks; the trainer would settle it for this process alone
    config.report_to, config.push_to_hub = [], False
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder  # the trainer makes it
        return _report(job, engine, settings, progress=progress)


def _report(job: TrainJob, engine: Engine, settings: str, *, progress: bool) -> DryRunReport:
    config, tokenizer = job.config, load_tokenizer(job)
    train_data, eval_data = load_data(job, tokenizer, progress=progress)
    trainer = build_trainer(job, engine, tokenizer, train_data, eval_data, [])
    batches = len(trainer.get_train_dataloader())
    steps, _ = planned_steps(
        batches,
        ranks=engine.ranks,
        micro_batches=config.gradient_accumulation_steps,
        epochs=config.num_train_epochs,
        max_steps=config.max_steps,
    )
    parameters, trainable_parameters = parameter_counts(trainer.model.parameters())
    longest = (config.max_length if config.packing else None) or train_data.report.longest
    return DryRunReport(
        config=settings,
        data=dataclasses.asdict(train_data.report) | {"turns_end_in": turn_ends(train_data, tokenizer)},
        examples=marked_rows(train_data, tokenizer, _SHOWN_ROWS),
        optimizer_steps=steps,
        parameters=parameters,
        trainable_parameters=trainable_parameters,
        engine=str(engine),
        memory_gib=_memory_gib(trainer.model, job, engine, longest=longest),
        **_mask_on_sample(trainer, train_data),
    )


def _memory_gib(model: torch.nn.Module, job: TrainJob, engine: Engine, *, longest: int) -> dict[str, float]:
    """Estimate as `estimate_memory_gib`, of a run on the device and in the precision that its settings name."""
    config, file = job.config, job.run.accelerate_config
    launched_in, device = ("no", config.device) if file is None else (planned_precision(file), planned_device(file))
    return estimate_memory_gib(
        model,
        config,
        engine,
        longest=longest,
        mixed_precision=bool(config.bf16 or config.fp16 or launched_in != "no"),
        device=torch.device(device),
    )


def _mask_on_sample(trainer: ProFitTrainer, data: PreparedData) -> dict[str, Any]:
    """Look at the mask on the first rows."""
    rows, tokens = 0, 0
    while rows < len(data.dataset) and (rows == 0 or tokens < _SAMPLE_TOKENS):
        tokens += len(data.dataset[rows]["input_ids"])
        rows += 1
    objective = selective_head(trainer.model).objective
    examples = label_examples(data.dataset[:rows])
    scores = score_labels(trainer.model, examples, objective=objective)
    means = mean_figures(examples, scores)
    return {
        "sample_rows": rows,
        "sample_label_tokens": sum(found.log_probs.size for found in scores),
        **{name: means[name] for name in ("kept_share", "mean_p", "nll")},
    }


def _settings_report(job: TrainJob, engine: Engine, settings: str) -> SettingsReport | None:
    """Return what the settings say, or None where data and model are here, and the model fits into memory."""
    absent_model = _absent_model(job)
    model = None if absent_model else _outlined(job)
    reasons = [*_absent_data(job), *absent_model, *_larger_than_memory(model, job)]
    if not reasons:
        return None
    config = job.config
    memory_gib = None
    if model is not None and config.max_length is not None and not job.model_config.use_peft:
        memory_gib = _memory_gib(model, job, engine, longest=config.max_length)
    what = "rows, tokens, mask and memory" if memory_gib is None else "rows, tokens and mask"
    return SettingsReport(
        config=settings,
        engine=str(engine),
        batch=step_of(config, engine),
        not_checked=[f"{what}: {reason}" for reason in reasons],
        memory_gib=memory_gib,
    )


def _absent_data(job: TrainJob) -> list[str]:
    """Return a line for each file of the data that is not here."""
    parts = mixture_parts(job.run.datasets) if job.run.datasets else ()
    names = [part.path for part in parts] or [str(job.run.dataset_name)]
    evaluated = job.evaluation_data()
    if evaluated is not None and not evaluated.held_out:
        names.append(evaluated.dataset_name)
    return [
        f"'{name}' does not exist here.{near_name(name)}"
        for name in dict.fromkeys(names)
        if means_a_file(name) and not Path(name).expanduser().exists()
    ]


def _absent_model(job: TrainJob) -> list[str]:
    """Return why the model cannot be loaded on this machine, though it may be on another, or nothing."""
    name = str(job.model_config.model_name_or_path)
    path = pretrained_path(name)
    if not Path(path).is_dir():
        try:
            hf_hub_download(path, "config.json", revision=job.model_config.model_revision)
        except LocalEntryNotFoundError:
            return [f"the model '{name}' is not here, and the hub cannot be reached."]
        except (OSError, ValueError, EntryNotFoundError):
            return []  # loading it tells why
    return []


def _outlined(job: TrainJob) -> PreTrainedModel | None:
    """Return the model without its weights, or None where only loading it tells its shape."""
    model_config = job.model_config
    if job.config.trust_remote_code or model_config.load_in_4bit or model_config.load_in_8bit:
        return None
    try:
        model = outline(model_config.model_name_or_path, revision=model_config.model_revision)
    except ConfigurationError:
        return None  # loading it tells why, or does better
    if model_config.dtype not in (None, "float32"):
        model = model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers wraps it
    return model


def _larger_than_memory(model: PreTrainedModel | None, job: TrainJob) -> list[str]:
    """Return that the weights do not fit into the free memory, or nothing."""
    if model is None:
        return []
    size, free = bytes_of(model.parameters()) / 2**30, free_memory_gib(torch.device("cpu"))
    if size <= free:
        return []
    return [
        f"the weights of '{job.model_config.model_name_or_path}' take {size:.1f} GiB, and {free:.1f} GiB of "
        "memory are free here."
    ]
