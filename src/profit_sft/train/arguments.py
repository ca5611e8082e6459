"""The settings of a run that are neither the trainer's nor the model's. Imports nothing heavy, for the short help."""

from dataclasses import dataclass, field
from typing import Any

from profit_sft.data.settings import TEST_SPLIT, DataOptions
from profit_sft.ranges import check_values

# What a resumed run must not change unless it says so; see `fixed.py`.
FIXED = ("data", "tokenizer", "reference", "objective", "seed", "model", "precision", "optimizer", "batch")


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Where the rows to train and to evaluate on are."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Training data: a file (jsonl, csv, parquet, ...), a folder or a hub name."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a folder or hub data set."})
    datasets: list[Any] | None = field(
        default=None,
        metadata={
            "help": "In place of dataset_name, a mixture: a list in YAML, each part with path, and where wanted name, "
            "data_dir, data_files, split, columns and fraction."
        },
    )
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Prepare rows while they are trained on. Needs --max_steps."}
    )
    streaming: bool = field(default=False, metadata={"help": "The same."})
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Evaluation data, where it is not dataset_name's test split or held out. Needs --eval_strategy."
        },
    )
    dataset_test_split: str = field(default=TEST_SPLIT, metadata={"help": "Split to evaluate on."})
    ignore_bias_buffers: bool = field(default=False, metadata={"help": "Refused: `trl sft` does not read it either."})

    @property
    def is_streamed(self) -> bool:
        """Whether rows are prepared while they are trained on."""
        return self.dataset_streaming or self.streaming


@dataclass(frozen=True, kw_only=True)
class RunArguments(DataOptions, _Sources):
    """Which data, in which format, and what to do about trouble. The names are flags of `profit train`."""

    reference_scores: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `profit score` wrote from the same data: the objective's reference log-probabilities. "
            "With profit, the mask is taken from them."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete what an earlier run left there."})
    allow_changes: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What a resumed run may change of {', '.join(FIXED)}, with commas or spaces between, in YAML also "
            "a list; other changes of these are refused."
        },
    )
    allow_missing_weights: bool = field(
        default=False,
        metadata={"help": "Load a model whose files lack weights, or hold others: what is missing is random."},
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={
            "help": "File of `accelerate config`, such as recipes/accelerate/fsdp2_8gpu.yaml: train under accelerate "
            "launch as it says. With --dry-run, estimate the memory for it."
        },
    )
    num_processes: int | None = field(
        default=None, metadata={"help": "In place of the number of processes in accelerate_config."}
    )

    @property
    def allowed_changes(self) -> tuple[str, ...]:
        """Names in `allow_changes`."""
        named: list[str] | str = self.allow_changes or []  # in YAML or of Python it may be one word
        words = [named] if isinstance(named, str) else named
        return tuple(name.strip() for word in words for name in word.split(",") if name.strip())

    def __post_init__(self) -> None:
        check_values(self)
        for name in self.allowed_changes:
            if name not in FIXED:
                raise ValueError(f"allow_changes: {name!r} is none of {', '.join(FIXED)}.")
        if self.num_processes is not None and self.accelerate_config is None:
            raise ValueError(
                f"num_processes is {self.num_processes}, which stands in place of a number in accelerate_config, and "
                "there is none. Name a file of accelerate's, such as recipes/accelerate/fsdp2_8gpu.yaml."
            )
