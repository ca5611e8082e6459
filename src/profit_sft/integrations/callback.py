"""A callback that puts the selective loss into any trainer built on `transformers.Trainer`, and sees that it runs.

Needs torch and transformers alone.
"""

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from profit_sft.errors import LossBypassedError, UnsupportedModelError
from profit_sft.head import apply_profit, causal_lm, head_counts, selective_head
from profit_sft.objectives import Objective


class ProFitCallback(TrainerCallback):
    """Install the selective loss when a Trainer is made, log what it keeps, and stop a run that does not use it.

    Training logs, and whatever reporter is on, get `kept_share`, the share of label tokens of non-zero weight over all
    ranks since the last log, and with `statistics="all"` also `nll`, plain NLL of all label tokens in nats. The output
    folder gets `metrics.jsonl`, a line a log and a warning, and `report.html`, the page of the run.

    Attributes:
        trainer_rescales: The trainer passes no `num_items_in_batch` and weighs each call by its labels itself.

    Args:
        objective: The token objective; None is `ProFit()`, threshold 0.1.
        page: Write these files.
        **options: As `apply_profit` takes them. `normalize="kept"` is exact only where a step is a single batch on a
            single process.

    Raises:
        UnsupportedModelError: When the Trainer is made: as `apply_profit`, or the Trainer has read from the model
            already that its micro-batches are to be averaged.
        LossBypassedError: After the first optimizer step of a run whose loss came from elsewhere, or whose
            micro-batches were averaged as if each had as many labels.

    Example:
        >>> from profit_sft import ProFit, ProFitCallback
        >>> callbacks = [ProFitCallback(ProFit(threshold=0.1))]  # Trainer(model=model, ..., callbacks=callbacks)
    """

    trainer_rescales: ClassVar[bool] = False

    def __init__(self, objective: Objective | None = None, *, page: bool = True, **options: Any) -> None:
        self.objective = objective
        self.options = options
        self.page = page
        self._followers: Sequence[TrainerCallback] = ()  # who write down the run
        self._model: Any = None
        self._before: tuple[int, int] | None = None  # counts at the start; None: the first step has been seen

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Install the head, before the Trainer hands the model to accelerate."""
        model = kwargs["model"]
        base = causal_lm(model)
        if getattr(base, "accepts_loss_kwargs", True) is False:
            raise UnsupportedModelError(
                f"{type(base).__name__} says that its loss takes no num_items_in_batch, and the Trainer has read that "
                "already, so micro-batches would be averaged. Call apply_profit(model, objective) before the Trainer "
                "is made; the callback may then stay."
            )
        apply_profit(model, self.objective, **self.options)
        self._model = model
        # Reporters stand before a user's callbacks and would not see what on_log adds.
        caller = sys._getframe(1).f_locals.get("self")
        if isinstance(caller, CallbackHandler) and self in caller.callbacks:
            caller.callbacks.remove(self)
            caller.callbacks.insert(0, self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count."""
        if self._model is None:
            raise LossBypassedError(
                "ProFitCallback was added after the Trainer was made, so it has installed nothing. Pass it in the "
                "Trainer's callbacks=[...], or call apply_profit(model, objective) yourself before the Trainer is made."
            )
        counts = head_counts(self._model)
        counts.take(args.device)
        self._before = counts.calls, counts.calls_without_num_items
        if self.page:
            self._followers = _followers(str(selective_head(self._model).objective))
        for follower in self._followers:
            follower.on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the run if its first step went by without the head, or without the number of its labels."""
        if self._before is None:
            return
        (calls, without), self._before = self._before, None
        counts = head_counts(self._model)
        if counts.calls == calls:
            raise LossBypassedError(
                "the first optimizer step did not use the selective loss: the trainer computed its loss elsewhere. "
                "Switch off what does that (label smoothing, compute_loss_func, a DFT or loss-scale switch, another "
                "fused loss), or see that the model the trainer trains is the one apply_profit was given."
            )
        parts = (counts.calls - calls) * args.world_size
        if counts.calls_without_num_items > without and parts > 1 and not self.trainer_rescales:
            raise LossBypassedError(
                f"the trainer passed no num_items_in_batch, so the {parts} parts of an optimizer step were averaged as "
                "if each had as many labels (some trainers do so for models with a processor). Use one micro-batch on "
                "one process, or set trainer.model_accepts_loss_kwargs = True once the trainer is made."
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what was counted since the last training log, and write it down."""
        if logs is not None and "loss" in logs:
            logs.update(self._counted(args.device))
            state.log_history[-1].update(logs)
        for follower in self._followers:
            follower.on_log(args, state, control, logs=logs, **kwargs)

    def _counted(self, device: torch.device) -> dict[str, float]:
        sums = head_counts(self._model).take(device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        labels, kept, nll = sums.tolist()
        added = {"kept_share": kept / labels, "nll": nll / labels} if labels else {}
        return {name: value for name, value in added.items() if value == value}  # NaN: not all of it was computed

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the checkpoint on the page."""
        for follower in self._followers:
            follower.on_save(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the page with all there is."""
        for follower in self._followers:
            follower.on_train_end(args, state, control, **kwargs)


def _followers(objective: str) -> Sequence[TrainerCallback]:
    from profit_sft.train.callbacks import MetricsFile, RunWarnings
    from profit_sft.train.run_page import RunPage

    page = RunPage()
    page.facts["objective"] = objective
    return MetricsFile(), RunWarnings(), page
