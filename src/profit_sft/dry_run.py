"""What a run would do, without doing it: settings, token counts, kept share on a sample, estimated memory."""

import dataclasses
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import ModelConfig

from profit_sft.data import PreparedData
from profit_sft.head import selective_head
from profit_sft.loss.devices import default_chunk_size
from profit_sft.run import build_trainer, load_data, load_tokenizer, resolved_config, settle
from profit_sft.run_arguments import RunArguments
from profit_sft.start_report import parameter_counts
from profit_sft.trainer import REFERENCE_COLUMN, ProFitConfig, ProFitTrainer

_SAMPLE_TOKENS = 2048  # a forward pass of the 135M model over these takes a few seconds on two cores


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunReport:
    """What `profit train --dry-run` prints.

    Attributes:
        config: The resolved settings, YAML.
        data: The training data's report.
        optimizer_steps: Steps the run would take.
        parameters: All parameters of the model.
        trainable_parameters: Those with a gradient.
        sample_rows: Rows the mask was measured on.
        sample_label_tokens: Their label tokens.
        kept_share: Share of those with non-zero weight, in [0, 1].
        mean_p: Mean probability of the sample's label tokens.
        nll: Plain NLL of the sample, nats a token.
        memory_gib: Estimated memory in GiB by part; see `estimate_memory_gib`.
    """

    config: str
    data: dict[str, Any]
    optimizer_steps: int
    parameters: int
    trainable_parameters: int
    sample_rows: int
    sample_label_tokens: int
    kept_share: float
    mean_p: float
    nll: float
    memory_gib: dict[str, float]


def dry_run(
    run: RunArguments, config: ProFitConfig, model_config: ModelConfig, *, progress: bool = True
) -> DryRunReport:
    """Load data and model, look at the mask on the first rows, and estimate the cost. Writes nothing.

    Args: as `profit_sft.run.run_training`.
    """
    settle(run, config, model_config)
    settings = resolved_config(run, config, model_config)
    config.report_to, config.push_to_hub = [], False
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder  # the trainer makes it
        return _report(settings, run, config, model_config, progress=progress)


def _report(
    settings: str, run: RunArguments, config: ProFitConfig, model_config: ModelConfig, *, progress: bool
) -> DryRunReport:
    tokenizer = load_tokenizer(model_config, config)
    train_data, eval_data = load_data(run, config, model_config, tokenizer, progress=progress)
    trainer = build_trainer(config, model_config, tokenizer, train_data, eval_data, [])
    batches = len(trainer.get_train_dataloader())
    steps_per_epoch = max(1, -(-batches // config.gradient_accumulation_steps))
    steps = config.max_steps if config.max_steps > 0 else round(steps_per_epoch * config.num_train_epochs)
    parameters, trainable_parameters = parameter_counts(trainer.model.parameters())
    return DryRunReport(
        config=settings,
        data=dataclasses.asdict(train_data.report),
        optimizer_steps=steps,
        parameters=parameters,
        trainable_parameters=trainable_parameters,
        memory_gib=estimate_memory_gib(trainer, longest=train_data.report.longest),
        **_mask_on_sample(trainer, train_data),
    )


def _mask_on_sample(trainer: ProFitTrainer, data: PreparedData) -> dict[str, Any]:
    """Run the loss over the first rows and read the mask off it."""
    rows, tokens = 0, 0
    while rows < len(data.dataset) and (rows == 0 or tokens < _SAMPLE_TOKENS):
        tokens += len(data.dataset[rows]["input_ids"])
        rows += 1
    columns = [name for name in ("input_ids", "labels", REFERENCE_COLUMN) if name in data.dataset.column_names]
    sample: Dataset = data.dataset.select(range(rows)).select_columns(columns)
    head = selective_head(trainer.model)
    head.statistics = "all"
    labels = kept = 0
    total_p = total_nll = 0.0
    trainer.model.train()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for row in range(rows):
            batch = trainer._prepare_inputs(trainer.data_collator([sample[row]]))
            found = trainer.model(**batch)["selective"]
            labels += int(found.num_labels)
            kept += int(found.num_kept)
            total_p += float(found.log_probs[found.label_mask].exp().sum())
            total_nll -= float(found.log_probs.sum())
    return {
        "sample_rows": rows,
        "sample_label_tokens": labels,
        "kept_share": kept / labels,
        "mean_p": total_p / labels,
        "nll": total_nll / labels,
    }


def estimate_memory_gib(trainer: ProFitTrainer, *, longest: int) -> dict[str, float]:
    """Estimate the memory of one device in GiB, without sharding. A guide, not a measurement.

    Weights and gradients as stored; 8 bytes a trainable parameter for Adam's two moments; the loss's chunk of fp32
    logits and its head gradient; activations at the longest sequence: 34 bytes a token, layer and hidden unit in
    16-bit (Korthikanti et al. 2022, arXiv:2205.05198, without attention scores), twice that in fp32; with gradient
    checkpointing one such layer and 2 or 4 bytes for the input of every other.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PreTrainedModel) or hasattr(model, "get_base_model")
    text_config = model.config.get_text_config()
    hidden_size, layers = text_config.hidden_size, text_config.num_hidden_layers
    vocab_size = model.get_output_embeddings().weight.shape[0]
    width = 2 if args.bf16 or args.fp16 else 4
    tokens = args.per_device_train_batch_size * min(longest, args.max_length or longest)
    layer = 17 * width * tokens * hidden_size
    chunk = min(tokens, default_chunk_size(trainer.accelerator.device, vocab_size))
    activations = layers * layer
    if args.gradient_checkpointing:
        activations = layer + layers * width * tokens * hidden_size
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    head_is_trained = model.get_output_embeddings().weight.requires_grad
    parts = {
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "gradients": sum(parameter.numel() * parameter.element_size() for parameter in trainable),
        "adam": sum(8 * parameter.numel() for parameter in trainable),
        "loss": chunk * vocab_size * 4 + (vocab_size * hidden_size * 4 if head_is_trained else 0),
        "activations": activations,
    }
    return {name: size / 2**30 for name, size in parts.items()}
