"""Settings of the trainer: every field of TRL's, the objective, and what is refused before a model is loaded."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import is_deepspeed_available, parse_flag_from_env
from trl import SFTConfig

from profit_sft.errors import ConfigurationError, brief, first_line
from profit_sft.files import read_json
from profit_sft.head_forward import SelectiveHead
from profit_sft.objectives import OBJECTIVES, Objective, make_objective
from profit_sft.ranges import check_values
from profit_sft.train.collapse_probe import LEAST_ROWS

# Of `accelerate launch`, `no` unless it is told. Read once: transformers 4 writes a configuration's own into it.
_LAUNCHED_PRECISION = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
REFERENCE_COLUMN = "reference_log_probs"
_NAMES = ", ".join(OBJECTIVES)


@dataclass
class ProFitConfig(SFTConfig):
    """Everything `trl.SFTConfig` has, and the token-level objective.

    Differences from its defaults: where no accelerator is present bf16 is off, and processes that a launcher started
    train together, as with `use_cpu`; activations are computed again in the backward only where they may not fit; TRL's
    telemetry is off.

    Attributes:
        objective: Name of the token objective, a key of `OBJECTIVES` or a plug-in's.
        objective_kwargs: Its fields by name, as a dict or a JSON string.
        threshold: Shorthand for the field of that name: ProFit's tau, a probability in [0, 1], or the mask beside the
            weight of dft and power.
        threshold_direction: Shorthand for ProFit's direction: higher, lower, middle or random.
        normalize: `"all"` divides by all label tokens of the optimizer step, `"kept"` by those of non-zero weight.
            Both are exact under gradient accumulation and data parallelism. None: as the objective's source does,
            `"kept"` for stm, else `"all"`.
        global_batch_size: Rows of an optimizer step over all ranks. Sets `gradient_accumulation_steps`, whatever the
            number of ranks. None: what the two make.
        gradient_accumulation_steps: As in transformers, where 1 is the default; here it is None, which is 1 or what
            `global_batch_size` asks for.
        gradient_budget: Share of the loss's gradient mass that may be left out of its backward products, in [0, 1); see
            `selective_linear_cross_entropy` for None and 0.
        skip_padding: Run the layers on no padding where that changes nothing, see `apply_profit`.
        gradient_checkpointing: As in TRL, where True is the default; here it is None, and then False on one process or
            under DDP where a step is estimated to fit into half of the memory that is free, else True. It is also True
            where `gradient_checkpointing_kwargs` are given.
        loss_chunk_size: Tokens whose logits are held at once. None: chosen.
        probe_rows: Training rows whose plain NLL is measured again and again, to warn of a collapse; 0: none.
        probe_measurements: How often that is done after the start. None: 20 times, or fewer, so that it costs at most
            about 5% of the training.
        max_skipped_steps: So many steps in a row that loss scaling has skipped stop the run. Without loss scaling the
            first step does whose loss or gradient norm is not finite.
        trl_telemetry: Let TRL send its usage ping.

    Raises:
        ValueError: A value is unknown, out of range, or contradicts another.
    """

    objective: str = field(
        default="profit",
        metadata={"help": f"Token objective: {_NAMES}, or a plug-in's name."},
    )
    objective_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The objective's fields as JSON, such as '{\"alpha\": 1.0}'."}
    )
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "The objective's threshold, a probability in [0, 1] (of profit 0.1, stm 0.4, dft and power 0)."
        },
    )
    threshold_direction: str | None = field(
        default=None, metadata={"help": "ProFit's direction: higher (its default), lower, middle or random."}
    )
    normalize: str | None = field(
        default=None,
        metadata={
            "help": "Divide by all label tokens of the optimizer step, or by the kept ones: all or kept (default: all, "
            "but kept for stm)."
        },
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows of an optimizer step over all ranks: sets gradient_accumulation_steps by the number of ranks "
            "and per_device_train_batch_size."
        },
    )
    gradient_accumulation_steps: int = field(
        default=None,  # type: ignore[assignment]  # a number once it is made
        metadata={"help": "Micro-batches of a rank accumulated for an optimizer step (default: 1)."},
    )
    gradient_budget: float | None = field(
        default=None,
        metadata={
            "help": "Share of the loss's gradient mass to leave out, in [0, 1); 0.003 is fast (default: none, but CPUs "
            "with bf16 round small columns; 0: none, all in fp32)."
        },
    )
    skip_padding: bool = field(
        default=True, metadata={"help": "Run the layers on no padding, where the loss and its gradients stay the same."}
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Compute activations again in the backward, for a third more time and less memory (default: where "
            "they may not fit).",
            "nargs": "?",  # the bare flag means True
            "const": True,
        },
    )
    loss_chunk_size: int | None = field(
        default=None, metadata={"help": "Tokens whose logits are held at once (default: chosen from the vocabulary)."}
    )
    probe_rows: int = field(
        default=16,
        metadata={"help": "Training rows whose NLL is measured again and again, to warn of a collapse; 0: none."},
    )
    probe_measurements: int | None = field(
        default=None,
        metadata={
            "help": "How often they are measured (default: 20 times, or fewer for at most 5 percent of the time)."
        },
    )
    max_skipped_steps: int = field(
        default=3, metadata={"help": "Steps in a row that loss scaling (fp16) may skip before the run is stopped."}
    )
    trl_telemetry: bool = field(default=False, metadata={"help": "Let TRL send its usage ping."})

    def __post_init__(self) -> None:
        check_values(self, unlimited=("threshold",))
        if self.output_dir == "":  # a shell's variable that is not set
            raise ValueError("output_dir is empty. Name a folder, or leave it out.")
        self._settle_precision()
        if _launched_on_cpus() and not (self.deepspeed or self.fsdp):
            self.use_cpu = True  # or accelerate lets each process train by itself
        self._read_mappings()
        self._check_files()
        if self.deepspeed and not is_deepspeed_available():
            raise ValueError("deepspeed: DeepSpeed is not installed. Run pip install deepspeed, or leave it out.")
        if self.fsdp_config and not self.fsdp and not parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise ValueError(
                f"fsdp_config is {brief(repr(self.fsdp_config), 80)}, which does nothing without fsdp. Add --fsdp "
                "full_shard, or leave it out."
            )
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.ddp_backend and on_cpu and "LOCAL_RANK" not in os.environ:  # accelerate would look for other processes
            raise ValueError(
                f"ddp_backend is {self.ddp_backend!r}, but this is one process, which talks to no other. Launch "
                "several with torchrun or accelerate launch, or leave it out."
            )
        if self.global_batch_size is not None and self.auto_find_batch_size:
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}, which auto_find_batch_size would change: it makes "
                "micro-batches smaller and accumulates as many as before. Leave one of them out."
            )
        self._asked_accumulation = self.gradient_accumulation_steps
        self.gradient_accumulation_steps = self._asked_accumulation or 1
        # Before transformers hands it on to DeepSpeed. How many ranks a launcher is yet to start is not known here.
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self.spread_batch(ranks, is_final="WORLD_SIZE" in os.environ)
        names = ("gradient_checkpointing", "activation_checkpointing")  # the second is the name in transformers 5
        flagged = any(getattr(self, name, None) is not None for name in names)
        # Who says how to compute them again wants it done.
        described = any(getattr(self, f"{name}_kwargs", None) for name in names)
        self.checkpointing = "as asked" if flagged or described else "open"
        if not flagged:
            self.gradient_checkpointing = True  # where it is open until the model is known, see `settle_checkpointing`
        counts_over_ranks = self.average_tokens_across_devices  # transformers 4 switches it off for a single rank
        with self._named_engine():
            super().__post_init__()
        # TRL 1.9 to 1.14 call plain NLL, computed in chunks, by a name of its own.
        if self.loss_type not in ("nll", "chunked_nll"):
            raise ValueError(
                f"loss_type={self.loss_type!r} is TRL's own switch; write objective={self.loss_type!r} instead."
            )
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor changes the loss under the objective; set it to 0.")
        objective = self.make_objective()
        if self.normalize is None:
            self.normalize = getattr(objective, "normalize", "all")
        # What the head takes, it checks: here, before the model has been loaded.
        options: dict[str, Any] = {"normalize": self.normalize, "gradient_budget": self.gradient_budget}
        SelectiveHead(objective=objective, **options)
        if self.normalize == "kept" and not counts_over_ranks:
            raise ValueError("normalize='kept' counts over all ranks; leave average_tokens_across_devices on.")
        if self.probe_rows and self.probe_rows < LEAST_ROWS:
            raise ValueError(f"probe_rows must be 0 for no probe, or at least {LEAST_ROWS}, got {self.probe_rows}.")
        if self.probe_measurements is not None and self.probe_measurements < 1:
            raise ValueError(
                f"probe_measurements must be at least 1, got {self.probe_measurements}. For none, set probe_rows to 0."
            )

    def spread_batch(self, ranks: int, *, is_final: bool = True) -> None:
        """Accumulate as many micro-batches as make `global_batch_size` rows on so many ranks; without it do nothing.

        Args:
            ranks: Processes that train on rows of their own.
            is_final: A launcher will not start more of them, so that a number of micro-batches that was asked for is
                held against it.

        Raises:
            ValueError: The rows cannot be shared out evenly, or not as was asked for.
        """
        if self.global_batch_size is None:
            return
        rows = self.per_device_train_batch_size * ranks
        one_each = f"per_device_train_batch_size {self.per_device_train_batch_size} x {ranks} ranks"
        steps, rest = divmod(self.global_batch_size, rows)
        if steps < 1 or rest:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of {rows} rows ({one_each}). Change one "
                "of them."
            )
        asked = self._asked_accumulation
        if asked is not None and (asked != steps if is_final else steps % asked):
            raise ValueError(
                f"global_batch_size {self.global_batch_size} with {one_each} needs {steps} accumulated micro-batches, "
                f"and gradient_accumulation_steps is {asked}. Leave that out."
            )
        self.gradient_accumulation_steps = steps

    def _read_mappings(self) -> None:
        """Read the settings that are mappings where they are JSON, and refuse what is none."""
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if not entry.name.endswith("_kwargs") or value is None:
                continue
            if isinstance(value, str):
                try:
                    value = json.loads(value)
                except (ValueError, RecursionError) as error:
                    raise ValueError(
                        f"{entry.name} is not JSON: {brief(repr(value), 80)} ({error}). Write '{{\"name\": 1}}'."
                    ) from None
                setattr(self, entry.name, value)
            if not isinstance(value, dict):
                raise TypeError(
                    f"{entry.name} must be a mapping such as '{{\"name\": 1}}', got {brief(repr(value), 80)}."
                )

    @contextmanager
    def _named_engine(self) -> Iterator[None]:
        """Name the settings of the engine in what transformers and accelerate say of them without a name."""
        names = ("accelerator_config", "deepspeed", "fsdp", "fsdp_config", "parallelism_config")
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        try:
            yield
        except Exception as error:
            if not given or any(str(error).startswith(entry.name) for entry in dataclasses.fields(self)):
                raise
            shown = ", ".join(f"{name} {brief(repr(value), 80)}" for name, value in given.items())
            raise ValueError(f"{shown} cannot be used ({first_line(error)}). Change or leave it out.") from error

    def _check_files(self) -> None:
        """Refuse the names of JSON files where there is none, or something else."""
        for name in ("accelerator_config", "fsdp_config", "deepspeed"):
            value = getattr(self, name)
            is_text = isinstance(value, str) and (value.startswith("{") or not value)
            # DeepSpeed also takes base64.
            if not isinstance(value, str) or is_text or (name == "deepspeed" and not os.path.exists(value)):
                continue
            try:
                read_json(value, "Name a file of JSON, or write the JSON itself.", ConfigurationError)
            except ConfigurationError as error:
                raise ValueError(f"{name}: {error}") from None

    def _settle_precision(self) -> None:
        """Take the launcher's mixed precision where the flags name none, and refuse flags that say otherwise."""
        launched, flags = _LAUNCHED_PRECISION, vars(self)
        bf16, fp16 = flags["bf16"], bool(flags["fp16"])
        if launched not in ("no", "bf16", "fp16"):
            raise ValueError(f"the launcher's mixed precision {launched!r} has not been tried; take no, bf16 or fp16.")
        # transformers follows a flag that is on against the launcher, but the launcher against one that is off.
        if bf16 is False and not fp16 and launched == "bf16":
            raise ValueError("bf16 is False, but the launcher's mixed_precision is bf16. Change one of the two.")
        if not bf16 and not fp16 and launched != "no":
            bf16, fp16 = launched == "bf16", launched == "fp16"
        elif bf16 is None:
            bf16 = not fp16 and torch.accelerator.is_available()
        self.bf16, self.fp16 = bf16, fp16

    def make_objective(self) -> Objective:
        """Build the objective these settings name, or raise ValueError or TypeError."""
        kwargs = dict(self.objective_kwargs or {})  # type: ignore[arg-type]  # a string was parsed in __post_init__
        if self.threshold is not None:
            kwargs["threshold"] = self.threshold
        if self.threshold_direction is not None:
            kwargs["direction"] = self.threshold_direction
        return make_objective(self.objective, **kwargs)


def _launched_on_cpus() -> bool:
    """Say whether a launcher started several processes on a machine without accelerators, to train as they are."""
    wants_engine = any(parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available() and not wants_engine
