"""A step whose loss, gradient or weights are not finite: found before anything of it is saved.

Loss and gradient are looked at after every step, and tell the rows; the weights, which a last update may spoil whatever
its gradient was, before they are saved.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor

from profit_sft.errors import ProFitError
from profit_sft.models.checks import first_not_finite

_LISTED_ROWS = 20


class FiniteCheck:
    """Stop a run after a step of which nothing may be kept.

    Without loss scaling one such step has spoiled the weights. Where the loss is scaled (fp16), the step was skipped
    and the scale lowered, which is no fault until it happens several times in a row.

    Args:
        trainer: Whose steps are checked.
        max_skipped_steps: So many skipped steps in a row stop the run.

    Raises:
        ProFitError: From `after_step`, on every rank: this is the step, or the last of several.
    """

    def __init__(self, trainer: Any, max_skipped_steps: int) -> None:
        self._trainer = trainer
        self._max_skipped_steps = max_skipped_steps
        self._skipped = 0
        self._losses: list[Tensor] = []  # of the step under way, one a micro-batch
        self._input_ids: list[Tensor] = []

    def add(self, input_ids: Tensor, loss: Tensor) -> None:
        """Note a micro-batch; its loss is not looked at before the step's end."""
        self._losses.append(loss.detach())
        self._input_ids.append(input_ids)

    def after_step(self, grad_norm: Tensor | float | None) -> None:
        """Look at the step that was just done, before it is logged or saved. Waits for the device.

        Args:
            grad_norm: Of all gradients over all ranks; None where the engine has not told.
        """
        losses, input_ids = self._losses, self._input_ids
        self._losses, self._input_ids = [], []
        if not losses:
            return
        accelerator, step = self._trainer.accelerator, self._trainer.state.global_step
        norm = grad_norm.item() if isinstance(grad_norm, Tensor) else 0.0 if grad_norm is None else grad_norm
        fine = torch.isfinite(torch.stack(losses))
        bad = torch.tensor([not bool(fine.all()), not math.isfinite(norm)], device=losses[0].device).float()
        loss_is_bad, norm_is_bad = accelerator.reduce(bad, reduction="sum").tolist()
        was_skipped = accelerator.optimizer_step_was_skipped
        if not (loss_is_bad or norm_is_bad or was_skipped):
            self._skipped = 0
            return
        # accelerate does not see that a fused optimizer has skipped a step, as the scaler makes it do.
        if was_skipped or getattr(accelerator, "scaler", None) is not None:
            self._skipped += 1
            if self._skipped < self._max_skipped_steps:
                return
            what = f"{self._skipped} steps in a row were skipped, since gradients overflowed under loss scaling"
            fix = "Train in bf16 or fp32, or raise --max_skipped_steps."
        else:
            what = f"the {'loss' if loss_is_bad else 'gradient norm'} is not finite"
            fix = "Look at these rows, lower --learning_rate, or check the model."
        if loss_is_bad:
            input_ids = [ids for ids, is_fine in zip(input_ids, fine.tolist(), strict=True) if not is_fine]
        rows = gather_object(rows_of(input_ids, self._trainer.train_dataset))
        raise ProFitError(
            f"step {step}: {what}{_named(sorted(set(rows)))}. Nothing of this step is saved; the checkpoints before it "
            f"stay. {fix}"
        )

    def before_saving(self) -> None:
        """Look at the weights that are about to be saved, each rank at its own.

        Raises:
            ProFitError: Some are not finite, on every rank.
        """
        names = gather_object([first_not_finite(self._trainer.model)])
        name = next((name for name in names if name is not None), None)
        if name is not None:
            raise ProFitError(
                f"step {self._trainer.state.global_step}: the update has left weights that are not finite, the first "
                f"in {name}. They are not saved; the checkpoints before stay. Lower --learning_rate or --weight_decay, "
                "or train in bf16 or fp32."
            )


def rows_of(batches: Iterable[Tensor], dataset: object) -> list[int]:
    """Return the numbers of the rows that are in the batches, padded or end to end: in their file, or in the data set.

    Rows of the same tokens cannot be told apart, and all are named.

    Args:
        batches: `input_ids` of micro-batches.
        dataset: What they were drawn from. Of a stream nothing is found.
    """
    texts = [batch.cpu().numpy().astype(np.int64).tobytes() for batch in batches]
    if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names or not texts:
        return []
    numbers: Sequence[int] = dataset["row"] if "row" in dataset.column_names else range(1, len(dataset) + 1)
    found = []
    for number, input_ids in zip(numbers, dataset.with_format("numpy")["input_ids"], strict=True):
        if any(np.asarray(input_ids, np.int64).tobytes() in text for text in texts):
            found.append(int(number))
    return found


def _named(rows: Sequence[int]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - _LISTED_ROWS} more" if len(rows) > _LISTED_ROWS else ""
    return f" on row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:_LISTED_ROWS]))}{more} of the data"
