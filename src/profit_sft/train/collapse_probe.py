"""The probe of the collapse warning: the same training rows, measured again and again, and the first token by token."""

import dataclasses
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from profit_sft.head import label_statistics, selective_head
from profit_sft.loss import SelectiveLoss
from profit_sft.objectives import Objective

if TYPE_CHECKING:
    from trl import SFTTrainer

logger = logging.getLogger(__name__)

LEAST_ROWS = 16  # with fewer, four standard errors are too often exceeded by chance (see CollapseWarning)
MOST_MEASUREMENTS = 20
COST_SHARE = 0.05  # of the training's time, at most, where the number of measurements is chosen here
FORWARDS_A_TRAINED_ROW = 3  # what a forward and a backward pass cost, in forward passes
SHOWN_ROWS = 6
MOST_TOKENS = 600  # of a row
_ROWS = "probe_rows"  # in the first log only; a resumed run finds it there


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeValues:
    """What one measurement found.

    Attributes:
        labels: Label tokens of each row.
        nll: Plain NLL of each row, summed over its label tokens, nats.
        loss: The objective's loss on all rows, nats a label token.
    """

    labels: Sequence[int]
    nll: Sequence[float]
    loss: float

    def figures(self, start: "ProbeValues | None") -> dict[str, float]:
        """Return what is logged: `probe_nll` and `probe_loss`, nats a label token, and how sure a rise is.

        Args:
            start: The first measurement; None where this is the first.

        Returns:
            `probe_rise_se` as well where there is a `start`: the standard error of the mean's rise since then, of a
            ratio of sums over rows that rose independently of each other.
        """
        tokens, rows = sum(self.labels), len(self.labels)
        found = {"probe_nll": sum(self.nll) / tokens, "probe_loss": self.loss}
        if start is not None:
            risen = [now - before for now, before in zip(self.nll, start.nll, strict=True)]
            mean = sum(risen) / tokens
            squares = sum((rise - mean * labels) ** 2 for rise, labels in zip(risen, self.labels, strict=True))
            found["probe_rise_se"] = (squares * rows / (rows - 1)) ** 0.5 / tokens
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRow:
    """A row under one model; lists of `T` tokens, the first of the row.

    Attributes:
        row: 1-based, in the training data.
        input_ids: Its tokens.
        probs: Of each label token, given everything before it; None where there is no label.
        token_weights: The objective's, 0 where there is no label.
        nll: Plain NLL of the whole row, nats a label token; None: not finite.
    """

    row: int
    input_ids: Sequence[int]
    probs: Sequence[float | None]
    token_weights: Sequence[float]
    nll: float | None

    def as_json(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        return {
            "p": [None if p is None else float(f"{p:.3g}") for p in self.probs],
            "w": [float(f"{value:.3g}") for value in self.token_weights],
            "nll": self.nll,
        }


class CollapseProbe(TrainerCallback):
    """Measure plain NLL and the objective's loss of a few training rows at the start of a run and at some of its logs.

    The rows are drawn once, the same on every rank, and every rank runs all of them, so that sharded models find their
    partners. Nothing of the run is changed: no gradient, no dropout, random state and training mode as they were.
    A data set that cannot be indexed, or has fewer rows than `LEAST_ROWS`, has no probe.

    Args:
        trainer: Whose model, rows and collator are used; its `args` say how many rows and how often.

    Attributes:
        seen: The first rows, token by token, as measured last. None: not yet.
    """

    def __init__(self, trainer: "SFTTrainer") -> None:
        self._trainer = trainer
        self._batches: list[dict[str, Any]] | None = None  # None until the first step
        self._row_numbers: list[int] = []
        self.seen: list[ProbeRow] | None = None
        self._start: ProbeValues | None = None
        self._last_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget an earlier training by the same trainer."""
        self._batches, self._start, self.seen = None, None, None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure before the first step: by then every callback is ready for a log."""
        if self._batches is not None:
            return
        with _random_state_kept(self._trainer.accelerator.device):
            self._batches = self._collated()
        if not self._batches:
            return
        labels = [int(row.sum()) for batch in self._batches for row in batch["labels"] != -100]
        history: Any = state.log_history
        measured = [entry for entry in history if "probe_nll" in entry]
        stored = next((entry[_ROWS] for entry in reversed(measured) if _ROWS in entry), None)
        if stored is not None and stored["labels"] == labels:
            self._start, self._last_step = ProbeValues(**stored), measured[-1]["step"]
            return
        self._start, self._last_step = self._measured(), state.global_step
        self._trainer.log(self._start.figures(None))
        # Into the history alone, which every checkpoint has; no tracker could draw it.
        logged = next(entry for entry in reversed(history) if "probe_nll" in entry)  # a warning may stand behind it
        logged[_ROWS] = dataclasses.asdict(self._start)

    def figures(self) -> dict[str, float]:
        """Return the probe's figures if it is time to measure it again, to be logged with the others."""
        if self._start is None:
            return {}
        step, steps = self._trainer.state.global_step, max(1, self._trainer.state.max_steps)
        times = self._trainer.args.probe_measurements or self._affordable_times(steps)
        if step * times // steps <= self._last_step * times // steps:
            return {}
        self._last_step = step
        return self._measured().figures(self._start)

    def _affordable_times(self, steps: int) -> int:
        args = self._trainer.args
        trained_rows = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        affordable = int(COST_SHARE * FORWARDS_A_TRAINED_ROW * trained_rows / args.probe_rows)
        return min(MOST_MEASUREMENTS, max(1, affordable))

    def _collated(self) -> list[dict[str, Any]]:
        """Return the rows in batches as the trainer makes them, on the CPU; none without rows to draw from."""
        trainer, dataset = self._trainer, self._trainer.train_dataset
        if not trainer.args.probe_rows:
            return []
        rows = len(dataset) if _can_be_drawn_from(dataset) else 0
        if rows < LEAST_ROWS:
            found = f"{rows} rows" if rows else f"a {type(dataset).__name__}, which cannot be indexed"
            logger.warning("a collapse will not be warned of: that takes %d rows, not %s", LEAST_ROWS, found)
            return []
        # Not the first rows: data may be sorted.
        indices = random.Random(0).sample(range(rows), min(trainer.args.probe_rows, rows))
        self._row_numbers = [index + 1 for index in indices]
        examples = [self._used_columns(dataset[index]) for index in indices]
        size = trainer.args.per_device_train_batch_size
        if len(trainer.data_collator(examples[:2])["labels"]) != 2:
            size = 1  # a collator that lays rows end to end hides where one ends
        batches = [trainer.data_collator(examples[first : first + size]) for first in range(0, len(examples), size)]
        return batches if any((batch["labels"] != -100).any() for batch in batches) else []

    def _used_columns(self, row: dict[str, Any]) -> dict[str, Any]:
        if not self._trainer.args.remove_unused_columns:
            return row
        self._trainer._set_signature_columns_if_needed()
        return {name: value for name, value in row.items() if name in self._trainer._signature_columns}

    def _measured(self) -> ProbeValues:
        """Run the model over all rows, on every rank alike."""
        trainer = self._trainer
        assert self._batches is not None
        labels: list[int] = []
        nll: list[float] = []
        loss = 0.0
        seen: list[ProbeRow] = []
        with _random_state_kept(trainer.accelerator.device), trainer.compute_loss_context_manager():
            for batch in self._batches:
                found = measure(trainer.model_wrapped, trainer._prepare_inputs(dict(batch)))
                log_probs, token_weights = found.log_probs.cpu().double(), found.token_weights.cpu().double()
                labels += found.label_mask.sum(-1).tolist()
                nll += (-log_probs.sum(-1)).tolist()
                loss -= float((token_weights * log_probs).sum())
                shown = self._row_numbers[len(seen) : min(SHOWN_ROWS, len(labels))]
                seen += probe_rows(shown, batch["input_ids"], found)
        self.seen = seen
        return ProbeValues(labels=labels, nll=nll, loss=loss / sum(labels))


def measure(model: nn.Module, batch: Mapping[str, Any]) -> SelectiveLoss:
    """Return every label token's statistics under a model whose head is installed, and change nothing of the model.

    Args:
        model: What the trainer calls: bare, or wrapped by PEFT, DDP, FSDP or DeepSpeed.
        batch: As the trainer gives it to the model, with `labels`, on the model's device.

    Returns:
        Values `(B, S)`, aligned with the positions that predict. An objective that draws at random draws the same
        every time.
    """
    return label_statistics(model, objective=_drawing_alike(selective_head(model).objective), **batch)


def probe_rows(rows: Sequence[int], input_ids: Tensor, found: SelectiveLoss) -> list[ProbeRow]:
    """Return the rows of one measured batch.

    Args:
        rows: Number of each.
        input_ids: `(B, S)`.
        found: `(B, S)` values, entry t of token t + 1.
    """
    log_probs, weights = found.log_probs.cpu().double(), found.token_weights.cpu().double()
    labels = found.label_mask.cpu()
    seen = []
    for index, row in enumerate(rows):
        has_label, log_p = labels[index].tolist(), log_probs[index].tolist()
        last = max((at + 1 for at, labeled in enumerate(has_label) if labeled), default=0)  # what follows is padding
        size = min(last + 1, MOST_TOKENS)
        mean = -sum(value for value, labeled in zip(log_p, has_label, strict=True) if labeled) / max(1, sum(has_label))
        seen.append(
            ProbeRow(
                row=row,
                input_ids=input_ids[index, :size].tolist(),
                probs=[None, *(math.exp(log_p[at]) if has_label[at] else None for at in range(size - 1))],
                token_weights=[0.0, *(weights[index, at].item() if has_label[at] else 0.0 for at in range(size - 1))],
                nll=mean if math.isfinite(mean) else None,
            )
        )
    return seen


def _drawing_alike(objective: Objective) -> Objective:
    if dataclasses.is_dataclass(objective) and hasattr(objective, "generator"):
        return dataclasses.replace(objective, generator=torch.Generator().manual_seed(0))
    return objective


def _can_be_drawn_from(dataset: Any) -> bool:
    # torch's IterableDataset has a __getitem__ that raises.
    return isinstance(dataset, Sized) and hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Leave torch's random state as it was, whatever a collator or an objective of others draws."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
