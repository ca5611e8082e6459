"""TRL's SFTTrainer with a token-level objective: configuration, exact normalization, metrics, model card.

The loss itself is in `profit_sft.loss`; nothing here computes one.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import IntervalStrategy
from trl import SFTConfig, SFTTrainer

from profit_sft.atomic_write import write_text
from profit_sft.callbacks import CollapseWarning, MetricsFile
from profit_sft.collapse_probe import LEAST_ROWS, CollapseProbe
from profit_sft.head import apply_profit, selective_head
from profit_sft.loss import SelectiveLoss
from profit_sft.model_card import render_model_card
from profit_sft.objectives import Objective, make_objective

REFERENCE_COLUMN = "reference_log_probs"


@dataclass
class ProFitConfig(SFTConfig):
    """Everything `trl.SFTConfig` has, and the token-level objective.

    Differences from its defaults: bf16 is off where no accelerator is present, and TRL's telemetry is off.

    Attributes:
        objective: Name of the token objective: nll, profit, dft, eaft, power, focal, asft, rho, or a plug-in's.
        objective_kwargs: Its fields by name, as a dict or a JSON string.
        threshold: Shorthand for the field of that name; ProFit's tau, a probability in [0, 1].
        threshold_direction: Shorthand for ProFit's direction: higher, lower, middle or random.
        normalize: `"all"` divides by all label tokens of the optimizer step, `"kept"` by those of non-zero weight.
            Both are exact under gradient accumulation and data parallelism.
        gradient_budget: Share of the loss's gradient mass that may be left out of its backward products, in [0, 1).
        loss_chunk_size: Tokens whose logits are held at once. None: chosen.
        probe_rows: Training rows whose plain NLL is measured again and again, to warn of a collapse; 0: none.
        probe_measurements: How often that is done after the start. None: 20 times, or fewer, so that it costs at most
            about 5% of the training.
        trl_telemetry: Let TRL send its usage ping.

    Raises:
        ValueError: A value is unknown, out of range, or contradicts another.
    """

    objective: str = field(
        default="profit",
        metadata={"help": "Token objective: nll, profit, dft, eaft, power, focal, asft, rho, or a plug-in's name."},
    )
    objective_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The objective's fields as JSON, such as '{\"alpha\": 1.0}'."}
    )
    threshold: float | None = field(
        default=None, metadata={"help": "ProFit's threshold, a probability in [0, 1] (its default: 0.1)."}
    )
    threshold_direction: str | None = field(
        default=None, metadata={"help": "ProFit's direction: higher (its default), lower, middle or random."}
    )
    normalize: str = field(
        default="all",
        metadata={"help": "Divide by all label tokens of the optimizer step, or by the kept ones: all or kept."},
    )
    gradient_budget: float = field(
        default=0.0,
        metadata={"help": "Share of the loss's gradient mass that may be left out, in [0, 1); 0 is exact, 0.003 fast."},
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
    trl_telemetry: bool = field(default=False, metadata={"help": "Let TRL send its usage ping."})

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16: bool | None = not self.fp16 and torch.accelerator.is_available()
        if isinstance(self.objective_kwargs, str):
            try:
                self.objective_kwargs = json.loads(self.objective_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(f"objective_kwargs is not JSON: {self.objective_kwargs!r} ({error}).") from None
        super().__post_init__()
        if self.loss_type != "nll":
            raise ValueError(
                f"loss_type={self.loss_type!r} is TRL's own switch; write objective={self.loss_type!r} instead."
            )
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor changes the loss under the objective; set it to 0.")
        if self.normalize not in ("all", "kept"):
            raise ValueError(f"normalize must be 'all' or 'kept', got {self.normalize!r}.")
        if self.normalize == "kept" and not self.average_tokens_across_devices:
            raise ValueError("normalize='kept' counts over all ranks; leave average_tokens_across_devices on.")
        if not 0.0 <= self.gradient_budget < 1.0:
            raise ValueError(f"gradient_budget must be a share in [0, 1), got {self.gradient_budget}.")
        if self.probe_rows and self.probe_rows < LEAST_ROWS:
            raise ValueError(f"probe_rows must be 0 for no probe, or at least {LEAST_ROWS}, got {self.probe_rows}.")
        if self.probe_measurements is not None and self.probe_measurements < 1:
            raise ValueError(
                f"probe_measurements must be at least 1, got {self.probe_measurements}. For none, set probe_rows to 0."
            )
        self.make_objective()  # refuse a wrong one now, not after the model has been loaded

    def make_objective(self) -> Objective:
        """Build the objective these settings name, or raise ValueError or TypeError."""
        kwargs = dict(self.objective_kwargs or {})  # type: ignore[arg-type]  # a string was parsed in __post_init__
        if self.threshold is not None:
            kwargs["threshold"] = self.threshold
        if self.threshold_direction is not None:
            kwargs["direction"] = self.threshold_direction
        return make_objective(self.objective, **kwargs)


class ProFitTrainer(SFTTrainer):
    """`trl.SFTTrainer` with a selective loss. Takes the same arguments; `args` is a `ProFitConfig`.

    Training logs, besides TRL's `entropy`, `mean_token_accuracy` and `num_tokens`: `kept_share`, `mean_p_kept`,
    `mean_p_masked` (probabilities), `nll` (plain NLL of the full reference in nats, whatever the objective),
    `tokens_per_second`, and with a gradient budget `dropped_share`. They are measured over all ranks on the optimizer
    step that is logged. At the start and at some logs the same training rows are measured again (`CollapseProbe`):
    `probe_nll`, `probe_loss` (the objective's), both nats a label token, and `probe_rise_se`, the standard error of the
    rise of `probe_nll` since the start. Evaluation is plain NLL. `metrics.jsonl` in the output folder has one line a
    log.

    A training data set may carry the column `reference_log_probs`, a list a row as long as its `input_ids`: `log p` of
    each token under a frozen model in nats, anything where there is no label. Objectives that need it get it.

    Raises:
        ValueError: `compute_loss_func` is given, or `normalize="kept"` meets DeepSpeed or an MoE auxiliary loss, where
            gradients cannot be rescaled exactly.

    Source: Liu et al. 2026, arXiv:2601.09195.
    """

    _tag_names = ("profit", "sft")
    _name = "ProFit"

    def __init__(self, model: Any, args: ProFitConfig | None = None, **kwargs: Any) -> None:
        if args is None:
            args = ProFitConfig("profit-output")
        if not isinstance(args, ProFitConfig):
            raise TypeError(f"args must be a ProFitConfig, got {type(args).__name__}. It takes every SFTConfig field.")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func would replace the objective; write an objective instead.")
        super().__init__(model=model, args=args, **kwargs)
        if REFERENCE_COLUMN in (getattr(self.train_dataset, "column_names", None) or ()):
            self.data_collator: Any = _WithReference(self.data_collator)
        apply_profit(
            self.model,
            args.make_objective(),
            chunk_size=args.loss_chunk_size,
            gradient_budget=args.gradient_budget,
        )
        self._head = selective_head(self.model)
        self._kept_only = args.normalize == "kept"
        if self._kept_only and (self.is_deepspeed_enabled or self.aux_loss_enabled):
            what = "DeepSpeed" if self.is_deepspeed_enabled else "a mixture of experts' auxiliary loss"
            raise ValueError(f"normalize='kept' rescales gradients, which is not exact with {what}. Use 'all'.")
        self._probe = CollapseProbe(self)
        self.add_callback(self._probe)
        self.add_callback(CollapseWarning())
        self.add_callback(MetricsFile())
        self._step_kept: Tensor | None = None  # of the optimizer step under way, this rank
        self._measured = _Measured()
        self._kept_losses: list[Tensor] = []

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if REFERENCE_COLUMN not in self._signature_columns:
            self._signature_columns.append(REFERENCE_COLUMN)

    def _send_telemetry(self) -> None:
        if self.args.trl_telemetry:
            super()._send_telemetry()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the selective loss in training, TRL's plain NLL in evaluation."""
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        measure = self._is_logged(self.state.global_step + 1)
        self._head.statistics = "all" if measure else "objective"
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs["loss"]
        if self.aux_loss_enabled:
            # The model adds the whole auxiliary loss to every micro-batch; as in TRL, a step counts it once.
            share = 1.0 if num_items_in_batch is None else 1.0 / self.current_gradient_accumulation_steps
            loss = loss - (1.0 - share) * self.router_aux_loss_coef * outputs["aux_loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # num_items_in_batch counts every rank's tokens, and DDP averages the gradients over ranks.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        self._record(outputs["selective"], inputs, measure=measure)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run one micro-batch; after the last one of a step, rescale to the kept tokens where that is asked for."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self._kept_only and self.accelerator.sync_gradients:
            self._rescale_to_kept(num_items_in_batch)
        return loss

    def _rescale_to_kept(self, num_items_in_batch: Tensor | int | None) -> None:
        """Turn gradients divided by all label tokens into gradients divided by the kept ones of all ranks.

        The kept tokens are only known when every micro-batch has run, so this is the earliest place, and before
        clipping, the latest.
        """
        assert self._step_kept is not None
        kept = self.accelerator.reduce(self._step_kept, reduction="sum")
        self._step_kept = None
        if num_items_in_batch is None:
            raise ValueError("normalize='kept' needs batches with labels that can be counted.")
        factor = num_items_in_batch / kept.clamp(min=1)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.device))
        self._kept_losses.append(factor)

    def _record(self, selective: SelectiveLoss, inputs: dict[str, Any], *, measure: bool) -> None:
        if self._kept_only:
            kept = selective.num_kept
            self._step_kept = kept if self._step_kept is None else self._step_kept + kept
        self._measured.add(selective, measure=measure)
        mask = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask is None else mask.sum()
        self._measured.tokens += tokens

    def _is_logged(self, step: int) -> bool:
        """True if the optimizer step that ends as `step` will be logged, so that statistics are worth their cost."""
        if self.args.logging_strategy == IntervalStrategy.STEPS:
            return bool(step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step))
        return bool(self.args.logging_strategy == IntervalStrategy.EPOCH)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last training log."""
        if "loss" in logs:
            sums = self.accelerator.reduce(self._measured.as_tensor(self.accelerator.device), reduction="sum")
            metrics, new_tokens = self._measured.metrics(sums)
            self._total_train_tokens += new_tokens
            logs.update(metrics, num_tokens=self._total_train_tokens)
            if self._kept_only and self._kept_losses:
                # The trainer's running loss is divided by all label tokens; report the one that was minimized.
                logs["loss"] *= torch.stack(self._kept_losses).mean().item()
            logs.update(self._probe.figures())
            self._measured = _Measured()
            self._kept_losses = []
        super().log(logs, start_time)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write README.md into the output folder: objective, threshold, data and settings."""
        if not self.is_world_process_zero():
            return
        text = render_model_card(
            self.args,
            base_model=getattr(self.model.config, "_name_or_path", "") or None,
            dataset_name=dataset_name or getattr(self.args, "dataset_name", None),
            log_history=self.state.log_history,
            tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
        )
        write_text(Path(self.args.output_dir) / "README.md", text)


class _WithReference:
    """A collator that lays `reference_log_probs` out as the wrapped one does `labels`: padded, or end to end.

    Rows without that column, such as those of an evaluation, are left to the wrapped one.
    """

    def __init__(self, collator: Any) -> None:
        self._collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if REFERENCE_COLUMN not in examples[0]:
            return self._collated(examples)
        rows = [torch.tensor(example[REFERENCE_COLUMN], dtype=torch.float32) for example in examples]
        batch = self._collated(
            [{name: value for name, value in example.items() if name != REFERENCE_COLUMN} for example in examples]
        )
        size = batch["labels"].shape
        if size[0] != len(examples):  # padding_free
            rows = [torch.cat(rows)]
        values = torch.zeros(size, dtype=torch.float32)
        for index, row in enumerate(rows):
            values[index, : len(row)] = row
        return {**batch, REFERENCE_COLUMN: values}

    def _collated(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self._collator(examples)
        return batch


class _Measured:
    """Sums and counts since the last log, on one rank. Means are formed only after the ranks have been summed."""

    _NAMES = (
        "labels",
        "kept",
        "measured",
        "p_kept",
        "p_masked",
        "measured_kept",
        "nll",
        "entropy",
        "correct",
        "dropped",
        "calls",
        "tokens",
    )

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.tokens: Tensor | int = 0
        self.start = time.perf_counter()

    def add(self, result: SelectiveLoss, *, measure: bool) -> None:
        labels, kept = result.num_labels, result.num_kept
        zero = torch.zeros_like(result.loss)
        measured = [zero] * 7
        if measure:
            assert result.entropy is not None
            assert result.is_top1 is not None
            kept_mask = result.weights != 0
            masked = result.label_mask & ~kept_mask
            probs = result.log_probs.exp()
            measured = [
                labels,
                probs[kept_mask].sum(),
                probs[masked].sum(),
                kept,
                -result.log_probs.sum(),
                result.entropy.sum(),
                result.is_top1.sum(),
            ]
        dropped = result.dropped_share, torch.ones_like(zero)
        sums = torch.stack([value.detach().double() for value in (labels, kept, *measured, *dropped)])
        self.sums = sums if self.sums is None else self.sums + sums

    def as_tensor(self, device: torch.device) -> Tensor:
        sums = torch.zeros(len(self._NAMES) - 1, dtype=torch.float64) if self.sums is None else self.sums
        tokens = torch.as_tensor(self.tokens, dtype=torch.float64).reshape(1)
        return torch.cat([sums.to(device), tokens.to(device)])

    def metrics(self, sums: Tensor) -> tuple[dict[str, float], int]:
        """Turn the sums over all ranks into named metrics; leave out what nothing was measured for."""
        total = dict(zip(self._NAMES, sums.tolist(), strict=True))
        found: dict[str, float] = {}

        def ratio(name: str, numerator: float, denominator: float) -> None:
            if denominator > 0:
                found[name] = numerator / denominator

        ratio("kept_share", total["kept"], total["labels"])
        ratio("mean_p_kept", total["p_kept"], total["measured_kept"])
        ratio("mean_p_masked", total["p_masked"], total["measured"] - total["measured_kept"])
        ratio("nll", total["nll"], total["measured"])
        ratio("entropy", total["entropy"], total["measured"])
        ratio("mean_token_accuracy", total["correct"], total["measured"])
        if total["dropped"] > 0:
            ratio("dropped_share", total["dropped"], total["calls"])
        ratio("tokens_per_second", total["tokens"], time.perf_counter() - self.start)
        return found, round(total["tokens"])
