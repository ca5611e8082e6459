"""One training run: data, model, trainer, and the folder it leaves behind.

output_dir/
  config.yaml        every setting, resolved; `profit train --config` runs it again
  environment.json   versions, device, command line, commit of nothing outside the run
  data.json          what was read, used, skipped and truncated, with a fingerprint of the tokens
  metrics.jsonl      one line a log
  checkpoint-N/      TRL's checkpoints
  README.md          model card
  model.safetensors, tokenizer files
"""

import dataclasses
import json
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, get_peft_config, get_quantization_config

from profit_sft import pretrained
from profit_sft.atomic_write import write_text
from profit_sft.callbacks import SafeStop
from profit_sft.data import DataSettings, PreparedData, prepare_dataset
from profit_sft.errors import ConfigurationError
from profit_sft.output_folder import check_output_folder
from profit_sft.pretrained import EMBEDDED, pretrained_path
from profit_sft.reference_scores import add_reference_log_probs, settle_reference
from profit_sft.scoring import ScoreSettings, command_line
from profit_sft.trainer import ProFitConfig, ProFitTrainer
from profit_sft.versions import package_versions


@dataclass(kw_only=True)
class RunArguments:
    """Which data, in which format, and what to do about trouble. The names are flags of `profit train`."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Training data: a jsonl, json, parquet or csv file, a folder, or a hub name."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a hub data set to train on."})
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Evaluation data, a file or hub name. Needs --eval_strategy."}
    )
    dataset_test_split: str = field(default="test", metadata={"help": "Split of a hub data set to evaluate on."})
    dataset_format: str = field(
        default="auto",
        metadata={
            "help": "auto, messages, prompt_completion, sharegpt, alpaca or question_answer. auto looks at the columns."
        },
    )
    prompt_column: str | None = field(default=None, metadata={"help": "Column with the question (default: question)."})
    response_column: str | None = field(default=None, metadata={"help": "Column with the answer (default: answer)."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message put before rows without one."})
    train_on: str = field(default="all", metadata={"help": "Assistant turns that carry labels: all or last."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Count and list rows that cannot be used; go on."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first N rows."})
    reference_scores: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `profit score` wrote from the same data: the objective's reference log-probabilities. "
            "With profit, the mask is taken from them."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete what an earlier run left there."})


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        output_dir: The run folder.
        stopped_by: Number of the signal that stopped it, or None.
        global_step: Optimizer steps done.
        train_runtime_seconds: Wall-clock time of training in this process.
        last_log: The last training log, or None.
        data: The training data's report, as written to data.json.
    """

    output_dir: Path
    stopped_by: int | None
    global_step: int
    train_runtime_seconds: float
    last_log: dict[str, Any] | None
    data: dict[str, Any]


def run_training(
    run: RunArguments,
    config: ProFitConfig,
    model_config: ModelConfig,
    *,
    callbacks: list[TrainerCallback] | None = None,
    progress: bool = True,
) -> RunResult:
    """Train as the settings say.

    Args:
        run: Data and run-folder settings.
        config: Trainer settings.
        model_config: Model, precision and LoRA settings, TRL's own.
        callbacks: Further callbacks, such as a progress display.
        progress: Show a bar while the data is tokenized.

    Returns:
        How it ended. The model is saved unless a signal stopped the run, which leaves a checkpoint instead.

    Raises:
        ConfigurationError: The output folder is taken, or there is nothing to resume.
        DataError: A row cannot be used.
    """
    settle(run, config, model_config)
    checkpoint = prepare_output_dir(run, config)
    settings = resolved_config(run, config, model_config)  # before what follows puts its own marks on `config`
    tokenizer = load_tokenizer(model_config, config)
    train_data, eval_data = load_data(run, config, model_config, tokenizer, progress=progress)
    trainer = build_trainer(config, model_config, tokenizer, train_data, eval_data, callbacks or [])
    stop = SafeStop()
    trainer.add_callback(stop)
    if trainer.is_world_process_zero():
        write_run_files(settings, config, train_data)
    output = trainer.train(resume_from_checkpoint=checkpoint)
    if stop.signal_number is None:
        trainer.save_model(str(config.output_dir))
        trainer.create_model_card(dataset_name=run.dataset_name)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return RunResult(
        output_dir=Path(str(config.output_dir)),
        stopped_by=stop.signal_number,
        global_step=trainer.state.global_step,
        train_runtime_seconds=float(output.metrics.get("train_runtime", 0.0)),
        last_log=logs[-1] if logs else None,
        data=dataclasses.asdict(train_data.report),
    )


def prepare_output_dir(run: RunArguments, config: ProFitConfig) -> str | None:
    """Return the checkpoint to resume from, or None for a new run; refuse a folder that is taken.

    `resume_from_checkpoint` may be a folder, or `latest`, `true` or True for the last one in the output folder.
    """
    output_dir = Path(str(config.output_dir))
    check_output_folder(output_dir)
    wanted = config.resume_from_checkpoint
    if wanted is not None and str(wanted).lower() != "false":
        if str(wanted).lower() not in ("true", "latest"):
            if not (Path(wanted) / "trainer_state.json").is_file():
                raise ConfigurationError(
                    f"resume_from_checkpoint: '{wanted}' is no checkpoint (it has no trainer_state.json). Name a "
                    "checkpoint-N folder, or 'latest'."
                )
            return str(wanted)
        last = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
        if last is None:
            raise ConfigurationError(
                f"resume_from_checkpoint: '{output_dir}' holds no checkpoint. Leave the flag out to start a new run."
            )
        return str(last)
    taken = output_dir.is_dir() and (get_last_checkpoint(str(output_dir)) or (output_dir / "config.json").is_file())
    if taken and not run.overwrite_output_dir:
        raise ConfigurationError(
            f"output_dir: '{output_dir}' holds an earlier run. Go on with it by --resume_from_checkpoint latest, "
            "choose another folder, or pass --overwrite_output_dir."
        )
    if taken:
        for old in output_dir.glob("checkpoint-*"):
            shutil.rmtree(old)
    return None


def load_tokenizer(model_config: ModelConfig, config: ProFitConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, or raise ConfigurationError with what to do."""
    return pretrained.load_tokenizer(
        model_config.model_name_or_path,
        revision=model_config.model_revision,
        trust_remote_code=config.trust_remote_code,
        chat_template_path=config.chat_template_path,
    )


def settle(run: RunArguments, config: ProFitConfig, model_config: ModelConfig) -> None:
    """Make the settings agree before anything is read: the objective, and where its reference comes from."""
    command = _score_command(run, config, model_config)
    settle_reference(config, given=run.reference_scores is not None, command=command)


def _score_command(run: RunArguments, config: ProFitConfig, model_config: ModelConfig) -> str:
    """Return the command that scores this run's data under the model it starts from."""
    scoring = ScoreSettings(
        model_name_or_path=model_config.model_name_or_path or EMBEDDED,
        data=_data_settings(run, config, run.dataset_name or "DATA", run.dataset_train_split),
        output_dir=Path("FOLDER"),
        chat_template_path=config.chat_template_path,
        model_revision=None if model_config.model_revision == "main" else model_config.model_revision,
    )
    return command_line(scoring)


def load_data(
    run: RunArguments,
    config: ProFitConfig,
    model_config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: bool,
) -> tuple[PreparedData, PreparedData | None]:
    """Tokenize the training data, with reference scores if there are any, and the evaluation data."""
    if run.dataset_name is None:
        raise ConfigurationError("dataset_name is missing: name a jsonl, json, parquet or csv file, or a hub data set.")
    evaluating = str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no"
    if evaluating and run.eval_dataset_name is None:
        raise ConfigurationError(
            f"eval_strategy is '{getattr(config.eval_strategy, 'value', config.eval_strategy)}' but there is nothing "
            "to evaluate on. Name it with --eval_dataset_name, or set --eval_strategy no."
        )
    if run.eval_dataset_name is not None and not evaluating:
        raise ConfigurationError(
            f"eval_dataset_name is '{run.eval_dataset_name}' but eval_strategy is 'no', so it would not be looked at. "
            "Set --eval_strategy epoch or steps, or leave it out."
        )
    settings = _data_settings(run, config, run.dataset_name, run.dataset_train_split)
    train = prepare_dataset(settings, tokenizer, progress)
    if run.reference_scores is not None:
        command = _score_command(run, config, model_config)
        train = add_reference_log_probs(train, settings, run.reference_scores, command=command)
    if not evaluating:
        return train, None
    assert run.eval_dataset_name is not None
    settings = _data_settings(run, config, run.eval_dataset_name, run.dataset_test_split)
    return train, prepare_dataset(settings, tokenizer, progress)


def _data_settings(run: RunArguments, config: ProFitConfig, name: str, split: str) -> DataSettings:
    try:
        return _checked_settings(run, config, name, split)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _checked_settings(run: RunArguments, config: ProFitConfig, name: str, split: str) -> DataSettings:
    return DataSettings(
        dataset_name=name,
        dataset_config=run.dataset_config,
        dataset_split=split,
        dataset_format=run.dataset_format,
        prompt_column=run.prompt_column,
        response_column=run.response_column,
        system_prompt=run.system_prompt,
        max_length=config.max_length,
        truncation_mode=config.truncation_mode,
        train_on=run.train_on,
        skip_bad_rows=run.skip_bad_rows,
        max_samples=run.max_samples,
    )


def build_trainer(
    config: ProFitConfig,
    model_config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    train_data: PreparedData,
    eval_data: PreparedData | None,
    callbacks: list[TrainerCallback],
) -> ProFitTrainer:
    """Load the model and put the trainer together, as `trl sft` does."""
    model_init_kwargs: dict[str, Any] = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype or "float32",
        **(config.model_init_kwargs or {}),
    }
    config.model_init_kwargs = model_init_kwargs
    config.chat_template_path = None  # the tokenizer has it; the trainer would look for it once more
    if not config.packing:
        # The rows are tokenized and have labels; without this TRL would truncate and filter them once more.
        config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}
    trainer = ProFitTrainer(
        pretrained_path(model_config.model_name_or_path),
        config,
        train_dataset=train_data.dataset,
        eval_dataset=None if eval_data is None else eval_data.dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    if config.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # the stand-in for the bar, which prints every log on stdout
    return trainer


def write_run_files(settings: str, config: ProFitConfig, train_data: PreparedData) -> None:
    """Write config.yaml, environment.json and data.json, each completely or not at all."""
    output_dir = Path(str(config.output_dir))
    write_text(output_dir / "config.yaml", settings)
    environment = {
        "argv": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "world_size": config.world_size,
        "packages": package_versions(_PACKAGES),
    }
    write_text(output_dir / "environment.json", json.dumps(environment, indent=2) + "\n")
    write_text(output_dir / "data.json", json.dumps(dataclasses.asdict(train_data.report), indent=2) + "\n")


def resolved_config(run: RunArguments, config: ProFitConfig, model_config: ModelConfig) -> str:
    """Return every setting that differs from its default, and all of the run's, as YAML that `--config` reads back."""
    settings: dict[str, Any] = {}
    for source in (run, config, model_config):
        for entry in dataclasses.fields(source):
            if not entry.init or entry.name in _NOT_WRITTEN:
                continue
            value = _plain(getattr(source, entry.name))
            # From the field, not from an instance: making a second TrainingArguments resets accelerate's state.
            default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
            if source is run or value != _plain(default):
                settings[entry.name] = value
    settings.update({name: _plain(getattr(config, name)) for name in _ALWAYS_WRITTEN})
    settings["model_name_or_path"] = model_config.model_name_or_path or EMBEDDED
    return yaml.safe_dump({name: value for name, value in settings.items() if value is not None}, sort_keys=True)


_PACKAGES = ("profit-sft", "torch", "transformers", "trl", "datasets", "peft")

# Decided anew by each run, or set by this module on the way.
_NOT_WRITTEN = {"resume_from_checkpoint", "overwrite_output_dir", "model_init_kwargs", "dataset_kwargs", "logging_dir"}
_ALWAYS_WRITTEN = (
    "output_dir",
    "objective",
    "objective_kwargs",
    "threshold",
    "threshold_direction",
    "normalize",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "bf16",
    "seed",
)


def _plain(value: Any) -> Any:
    """Turn enums and tuples into what YAML can hold; leave out objects it cannot."""
    value = getattr(value, "value", value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else None
