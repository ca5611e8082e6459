"""TRL's SFTTrainer with a token-level objective: exact normalization, metrics, whole checkpoints, model card.

The loss itself is in `profit_sft.loss`; nothing here computes one.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer_utils import IntervalStrategy
from trl import SFTTrainer

from profit_sft.data.chat_dataset import assistant_turns, is_chat, warn_of_every_turn
from profit_sft.files import write_text
from profit_sft.head import apply_profit, selective_head
from profit_sft.objectives import FROM_THE_BATCH
from profit_sft.train.beside import CollatesBeside, columns_beside, cut_beside, packed
from profit_sft.train.callbacks import CollapseWarning, MetricsFile, RunWarnings
from profit_sft.train.checkpoints import (
    MANIFEST,
    SAVING,
    check_whole,
    clear_saving,
    finish_publishing,
    last_whole,
    move_into_place,
    publish,
    rotate,
)
from profit_sft.train.collapse_probe import CollapseProbe
from profit_sft.train.config import ProFitConfig
from profit_sft.train.end_token import heed_trained_end
from profit_sft.train.engine import launched_engine
from profit_sft.train.finite import FiniteCheck
from profit_sft.train.memory import settle_checkpointing
from profit_sft.train.metrics import StepMetrics, memory_in_use_gib
from profit_sft.train.model_card import base_card, render_model_card
from profit_sft.train.run_folder import check_reaches
from profit_sft.train.run_page import RunPage


class ProFitTrainer(SFTTrainer):
    """`trl.SFTTrainer` with a selective loss. Takes the same arguments; `args` is a `ProFitConfig`.

    Training logs, besides TRL's `entropy`, `mean_token_accuracy`, `num_tokens` and `aux_loss`: `kept_share`,
    `mean_p_kept`, `mean_p_masked` (probabilities), `nll` (plain NLL of the full reference in nats, whatever the
    objective), `tokens_per_second`, `memory_gib` (the first rank's), and with a gradient budget `dropped_share`. They
    are measured over all ranks on the optimizer step that is logged.

    At the start and at some logs the same training rows are measured again
    (`CollapseProbe`): `probe_nll`, `probe_loss` (the objective's), both nats a label token, and `probe_rise_se`, the
    standard error of the rise of `probe_nll` since the start. Evaluation is plain NLL. `metrics.jsonl` in the output
    folder has one line a log, a warning's included, and `report.html` shows the run (`RunPage`).

    Where the labels end an answer with a special token that neither tokenizer nor model stops at, it becomes the
    tokenizer's EOS, and so that of the model that is saved (`trained_end`).

    Of chats (`messages` or `conversations`) only what the assistant says is trained, as by `profit train`; TRL's
    `assistant_only_loss` leaves that to the chat template. Of other rows the column `dataset_text_field` is trained
    whole where there is one, as in TRL. Rows may also bring `input_ids` and `labels`.

    Checkpoints appear whole or not at all, with a manifest (`profit_sft.train.checkpoints`); the oldest are deleted by
    step. A run that is resumed at its last step trains nothing more. A step whose loss or gradient norm is not finite
    raises `ProFitError` before anything of it is saved, and so do weights that are not.

    A training data set may carry the column `reference_log_probs`, a list a row as long as its `input_ids`: `log p` of
    each token under a frozen model in nats, anything where there is no label; and alike `token_weights`, the weights
    of the data. Objectives that need them get them.

    Raises:
        ValueError: `compute_loss_func` is given; the batches would be split by `nn.DataParallel` or along the sequence;
            or `normalize="kept"` meets DeepSpeed or an MoE auxiliary loss, where gradients cannot be rescaled exactly.

    Source: Liu et al. 2026, arXiv:2601.09195.
    """

    _tag_names = ("profit-sft", "sft")
    _name = "ProFit"

    def __init__(self, model: Any, args: ProFitConfig | None = None, **kwargs: Any) -> None:
        if args is None:
            args = ProFitConfig("profit-output")
        if not isinstance(args, ProFitConfig):
            raise TypeError(f"args must be a ProFitConfig, got {type(args).__name__}. It takes every SFTConfig field.")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func would replace the objective; write an objective instead.")
        args.spread_batch(args.world_size)
        if isinstance(model, nn.Module):
            settle_checkpointing(model, args, launched_engine(args), longest=args.max_length)
        super().__init__(model=model, args=args, **kwargs)
        self._refuse_split_batches()
        columns = getattr(self.train_dataset, "column_names", None) or ()
        if columns_beside(self.train_dataset):
            self.data_collator: Any = CollatesBeside(self.data_collator)
        if getattr(self, "_is_vision_dataset", False) and "messages" in columns and not args.assistant_only_loss:
            warn_of_every_turn("train", "it has images")
        apply_profit(
            self.model,
            args.make_objective(),
            chunk_size=args.loss_chunk_size,
            gradient_budget=args.gradient_budget,
            skip_padding=args.skip_padding,
        )
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        self.trained_end = heed_trained_end(self.train_dataset or (), tokenizer, self.model, asked=args.eos_token)
        self._head = selective_head(self.model)
        self._head.adds_aux_loss = False  # compute_loss does, scaled as TRL's
        # The installed head divides by the step's labels whatever the model's own forward does with their number.
        self._model_takes_num_items = bool(getattr(self, "model_accepts_loss_kwargs", False))
        self.model_accepts_loss_kwargs = True
        self._kept_only = args.normalize == "kept"
        if self._kept_only and (self.is_deepspeed_enabled or self.aux_loss_enabled):
            what = "DeepSpeed" if self.is_deepspeed_enabled else "a mixture of experts' auxiliary loss"
            raise ValueError(f"normalize='kept' rescales gradients, which is not exact with {what}. Use 'all'.")
        self._probe = CollapseProbe(self)
        self.add_callback(self._probe)
        self.add_callback(CollapseWarning())
        self.add_callback(MetricsFile())
        self.add_callback(RunWarnings(lambda: self.callback_handler.callbacks))
        self.run_page = RunPage(lambda: self._probe.seen, lambda: self.callback_handler.callbacks)
        self.add_callback(self.run_page)
        self.fixed: Mapping[str, Any] = {}  # what a resumed run must not change, for the manifests of checkpoints
        if not args.max_grad_norm and not self.is_deepspeed_enabled:
            args.max_grad_norm = math.inf  # clips nothing; without it transformers 4 does not tell the norm
        self._begin_step_anew()
        self._num_tokens = 0  # trained on, up to the last log
        self._first_step = 0  # the one this run is resumed at
        self._resumed_from = Path()
        self._saves_aside = False

    def _begin_step_anew(self) -> None:
        """Forget the micro-batches of a step that was not finished, as its gradients are."""
        self._step_kept: Tensor | None = None  # of the optimizer step under way, this rank
        self._step_loss: Tensor | None = None  # as reported for its micro-batches so far
        self._step_metrics = StepMetrics()
        self._finite = FiniteCheck(self, self.args.max_skipped_steps)

    def _refuse_split_batches(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process would be used by nn.DataParallel, whose copies of the model "
                "bypass the objective. Launch with torchrun or accelerate launch, or show one by CUDA_VISIBLE_DEVICES."
            )
        refuse_split_sequences(getattr(self.accelerator, "parallelism_config", None))
        if self.args.global_batch_size is not None and self._copies_of_a_batch() > 1:
            raise ValueError(
                f"global_batch_size {self.args.global_batch_size}: {self._copies_of_a_batch()} ranks of tensor "
                "parallelism share each row, so a step would have fewer. Set gradient_accumulation_steps instead."
            )

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        asks_trl = formatting_func is not None or args.assistant_only_loss
        if not asks_trl and is_chat(next(iter(dataset)), args.dataset_text_field):
            dataset = assistant_turns(dataset, processing_class, name=dataset_name, num_proc=args.dataset_num_proc)
        labeled = "labels" in (dataset.column_names or ())
        if labeled and columns_beside(dataset):
            dataset = packed(dataset, args) if packing else cut_beside(dataset, args)
            packing = False
        dataset = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if labeled and "labels" not in (dataset.column_names or ("labels",)):
            raise ValueError(
                f"this version of TRL drops the labels of the {dataset_name} data set when it packs or uses Liger's "
                "kernels, and would train every token. Set packing=False and use_liger_kernel=False, or use TRL 1.9."
            )
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in FROM_THE_BATCH if name not in self._signature_columns]

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
            self._total_train_tokens = self._num_tokens  # TRL logs it beside the evaluation
            num_items_in_batch = num_items_in_batch if self._model_takes_num_items else None
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        measure = self._is_logged(self.state.global_step + 1)
        self._head.statistics = "all" if measure else "objective"
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # num_items_in_batch counts every rank's tokens, and DDP averages the gradients over ranks.
            loss = loss * (self.accelerator.num_processes // self._copies_of_a_batch())
        aux_loss = outputs["aux_loss"] if self.aux_loss_enabled else None
        if aux_loss is not None:
            # A mean of the micro-batch already, so only to be averaged over those of the step, which Trainer leaves to
            # the loss where that is divided by the step's labels.
            steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self._aux_loss_coefficient() * aux_loss.to(loss.device) / steps
        selective = outputs["selective"]
        if self._kept_only:
            self._step_kept = selective.num_kept + (0 if self._step_kept is None else self._step_kept)
        mask = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask is None else mask.sum()
        self._step_metrics.add(selective, tokens=tokens, aux_loss=aux_loss, measure=measure)
        return (loss, outputs) if return_outputs else loss

    def _aux_loss_coefficient(self) -> float:
        """Return TRL's, where that version has one, or the model's."""
        coefficient = getattr(self, "router_aux_loss_coef", None)
        if coefficient is None:
            coefficient = self.model.config.get_text_config().router_aux_loss_coef
        return float(coefficient)

    def _copies_of_a_batch(self) -> int:
        """Return the number of ranks that are given the same rows: those of one tensor-parallel group."""
        return int(self.get_tp_size()) if hasattr(self, "get_tp_size") else 1

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run one micro-batch; after the last one of a step, rescale to the kept tokens where that is asked for."""
        input_ids = inputs["input_ids"]
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._finite.add(input_ids, loss)
        if not self._kept_only:
            return loss
        before = torch.zeros_like(loss) if self._step_loss is None else self._step_loss
        self._step_loss = before + loss
        if not self.accelerator.sync_gradients:
            return loss
        # Trainer adds up what is returned: with this, to the loss that the step has minimized.
        reported = self._step_loss * self._rescale_to_kept(num_items_in_batch) - before
        self._step_kept = self._step_loss = None
        return reported

    def _rescale_to_kept(self, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Turn gradients divided by all label tokens into gradients divided by the kept ones of all ranks.

        The kept tokens are only known when every micro-batch has run, so this is the earliest place, and before
        clipping, the latest. Returns the factor.
        """
        assert self._step_kept is not None
        if num_items_in_batch is None:
            raise ValueError("normalize='kept' needs batches with labels that can be counted.")
        kept = self.accelerator.reduce(self._step_kept, reduction="sum") / self._copies_of_a_batch()
        factor: Tensor = num_items_in_batch / kept.clamp(min=1)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.device))
        return factor

    def _is_logged(self, step: int) -> bool:
        """True if the optimizer step that ends as `step` will be logged, so that statistics are worth their cost."""
        if self.args.logging_strategy == IntervalStrategy.STEPS:
            return bool(step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step))
        return bool(self.args.logging_strategy == IntervalStrategy.EPOCH)

    def _measured(self) -> tuple[dict[str, float], int]:
        """Return what was measured over all ranks since the last log, and the number of tokens."""
        gathered = self.accelerator.gather(self._step_metrics.as_tensor(self.accelerator.device))
        return self._step_metrics.means(gathered, copies=self._copies_of_a_batch())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last training log."""
        if "loss" in logs:
            metrics, tokens = self._measured()
            self._num_tokens += tokens
            logs.update(metrics, num_tokens=self._num_tokens, memory_gib=memory_in_use_gib(self.args.device))
            logs.update(self._probe.figures())  # before the clock of tokens_per_second starts anew
            self._step_metrics = StepMetrics()
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL's does. A checkpoint whose files are missing or of other sizes is refused, or with True skipped.

        Raises:
            DataError: The checkpoint is not whole.
            ConfigurationError: It has done more steps than this run is to do.
            ProFitError: The loss or the gradient norm of a step is not finite, or weights that would be saved are not.
        """
        self._first_step = self._num_tokens = 0
        if resume_from_checkpoint is True:
            finish_publishing(Path(str(self.args.output_dir)))
            resume_from_checkpoint = str(last_whole(Path(str(self.args.output_dir)), contents=False) or "") or True
        if isinstance(resume_from_checkpoint, str):
            checkpoint = Path(resume_from_checkpoint)
            if (checkpoint / MANIFEST).exists():  # else of another program
                self._num_tokens = check_whole(checkpoint, contents=False).num_tokens
            self._resumed_from = checkpoint
            self._first_step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> Any:
        """Return the lengths of the training: no epochs where the checkpoint is of the last step already.

        Called wherever training begins, also once more after a batch that was found too large.
        """
        self._begin_step_anew()
        values = super().set_initial_training_values(*args, **kwargs)
        max_steps = values[-1]
        check_reaches(self._resumed_from, self._first_step, max_steps)
        return (0, *values[1:]) if 0 < max_steps <= self._first_step else values

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Tensor | float | None, *args: Any, **kwargs: Any
    ) -> None:
        self._finite.after_step(grad_norm)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(super()._get_output_dir(trial))
        return str(folder / SAVING if self._saves_aside else folder)

    @contextmanager
    def _saved_aside(self, folder: Path) -> Iterator[Path]:
        """Yield the place in `folder` where nobody looks; all ranks have written when the block is left."""
        if self.args.should_save:
            clear_saving(folder)
        self.accelerator.wait_for_everyone()
        self._saves_aside = True
        try:
            yield folder / SAVING
        except BaseException:  # such as a full disk, which half a checkpoint would keep full
            if self.args.should_save:
                with suppress(OSError):
                    clear_saving(folder)
            raise
        finally:
            self._saves_aside = False
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._finite.before_saving()
        folder = Path(self._get_output_dir(trial))
        num_tokens = self._num_tokens + self._measured()[1]
        name = f"checkpoint-{self.state.global_step}"
        with self._saved_aside(folder) as aside:
            super()._save_checkpoint(model, trial)
        if self.state.best_model_checkpoint == str(aside / name):
            self.state.best_model_checkpoint = str(folder / name)
        if self.args.should_save:
            self.state.save_to_json(str(aside / name / "trainer_state.json"))  # with the best one's place
            publish(aside / name, folder / name, num_tokens=num_tokens, fixed=self.fixed)
            best = self.state.best_model_checkpoint
            rotate(folder, limit=self.args.save_total_limit, step=self.state.global_step, keep=[best])
            clear_saving(folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(folder / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing where TRL would: the checkpoint is not in its place yet."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and tokenizer so that `from_pretrained` loads them; each file appears whole or not at all."""
        if self._saves_aside:
            super().save_model(output_dir, _internal_call)
            return
        self._finite.before_saving()
        folder = Path(output_dir or str(self.args.output_dir))
        with self._saved_aside(folder) as aside:
            super().save_model(str(aside / "model"), _internal_call=True)
        if self.args.should_save:
            if (aside / "model").is_dir():
                move_into_place(aside / "model", folder)
            clear_saving(folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write README.md into the output folder: what it is, how to use it, data, figures, warnings, sources."""
        if not self.is_world_process_zero():
            return
        text = render_model_card(
            self.args,
            base=base_card(getattr(self.model.config, "_name_or_path", "")),
            dataset_name=dataset_name or getattr(self.args, "dataset_name", None),
            log_history=self.state.log_history,
            tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
            is_adapter=hasattr(self.model, "peft_config"),
        )
        write_text(Path(self.args.output_dir) / "README.md", text)


def refuse_split_sequences(parallelism: Any) -> None:
    """Raise ValueError where accelerate's `ParallelismConfig` cuts each sequence into pieces for several ranks.

    Every rank would divide the loss by the labels of its own pieces.
    """
    for name, size in (("sequence", "sp_size"), ("context", "cp_size")):
        if getattr(parallelism, size, 1) > 1:
            raise ValueError(
                f"{size}={getattr(parallelism, size)}: under {name} parallelism each rank would divide by the labels "
                f"of its own part of a sequence. Set {size} to 1 and shard the model by FSDP2 or ZeRO-3 instead."
            )
