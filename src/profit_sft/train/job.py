"""A training job: all that the flags of `profit train` say, and what follows from it before anything is read."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer_pt_utils import AcceleratorConfig
from trl import ModelConfig

from profit_sft.data.rows import has_splits
from profit_sft.data.settings import DataSettings
from profit_sft.data.sources import data_to_evaluate, data_to_train
from profit_sft.scores.settings import ScoreSettings, command_line
from profit_sft.train.arguments import RunArguments
from profit_sft.train.config import ProFitConfig
from profit_sft.train.engine import Engine, planned_engine

_NOT_WRITTEN = {
    *("resume_from_checkpoint", "overwrite_output_dir", "allow_changes"),  # decided anew by each run
    "logging_dir",  # of the time at which it was made
    "hub_token",  # a secret
    # transformers 5 copies gradient_checkpointing into these, which would then win over it.
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
}
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


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What is trained, on what, and how.

    Attributes:
        run: Data and run-folder settings.
        config: Trainer settings; what they leave open is settled in them as it becomes known.
        model_config: Model, precision and LoRA settings, TRL's own.
    """

    run: RunArguments
    config: ProFitConfig
    model_config: ModelConfig

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(str(self.config.output_dir))

    @property
    def values(self) -> dict[str, Any]:
        """Every setting by its name."""
        return {**vars(self.model_config), **vars(self.config), **vars(self.run)}

    @property
    def evaluates(self) -> bool:
        """Whether the run is evaluated while it goes on."""
        return bool(plain(self.config.eval_strategy) != "no")

    def training_data(self) -> DataSettings:
        """Return how the training data is read, or raise ConfigurationError."""
        return data_to_train(self.values)

    def evaluation_data(self) -> DataSettings | None:
        """Return how the evaluation data is read: what is named, what is held out, or the test split; or None."""
        run, name = self.run, self.run.eval_dataset_name
        if not self.evaluates:
            return None
        if name is None and run.test_split_size is not None:
            return dataclasses.replace(self.training_data(), held_out=True)
        if name is None and run.dataset_name is not None and has_splits(run.dataset_name):
            name = run.dataset_name
        return None if name is None else data_to_evaluate(self.values, name)

    def score_command(self) -> str:
        """Return the command that scores this job's data under the model it starts from."""
        data, model_config = self.training_data(), self.model_config
        if data.datasets:  # a command has no flag for a list, but it reads the file that has it
            data = dataclasses.replace(data, dataset_name="CONFIG.yaml", datasets=None)
        scoring = ScoreSettings(
            model_name_or_path=str(model_config.model_name_or_path),
            data=data,
            output_dir=Path("FOLDER"),
            chat_template_path=self.config.chat_template_path,
            model_revision=None if model_config.model_revision == "main" else model_config.model_revision,
        )
        return command_line(scoring)

    def planned_engine(self) -> Engine:
        """Return the engine that `accelerate_config`, which must be named, would start; raises as `planned_engine`."""
        assert self.run.accelerate_config is not None
        return planned_engine(self.run.accelerate_config, self.run.num_processes)

    def as_yaml(self) -> str:
        """Return every setting that differs from its default, and all of `run`, as YAML that `--config` reads back."""
        settings: dict[str, Any] = {}
        for source in (self.run, self.config, self.model_config):
            for entry in dataclasses.fields(source):
                if not entry.init or entry.name in _NOT_WRITTEN:
                    continue
                if entry.name == "gradient_checkpointing" and self.config.checkpointing != "as asked":
                    continue
                value = plain(getattr(source, entry.name))
                # From the field, not from an instance: making a second TrainingArguments resets accelerate's state.
                default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
                if entry.name == "accelerator_config":
                    default = AcceleratorConfig()  # what transformers makes of its default, None
                if source is self.run or value != plain(default):
                    settings[entry.name] = value
        settings.update({name: plain(getattr(self.config, name)) for name in _ALWAYS_WRITTEN})
        settings["model_name_or_path"] = self.model_config.model_name_or_path
        return yaml.safe_dump({name: value for name, value in settings.items() if value is not None}, sort_keys=True)


def plain(value: Any) -> Any:
    """Turn enums, tuples and dataclasses into what YAML can hold; leave out objects it cannot."""
    value = getattr(value, "value", value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else None
