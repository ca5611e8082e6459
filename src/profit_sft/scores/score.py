"""Score a data set under a frozen model, once: log p, entropy, likeliest token and rank of every label token.

Shards are written as they are done, so a killed job loses at most the shard under way, and the same call goes on. Under
`accelerate launch` or `torchrun` the ranks share the shards; each shard's numbers depend on its own examples alone, so
they are the same whoever computes them.
"""

import dataclasses
import json
import logging
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from profit_sft.data import IGNORE_INDEX, DataSettings, PreparedData, prepare_dataset
from profit_sft.errors import DataError
from profit_sft.files import check_output_folder
from profit_sft.models.pretrained import DTYPES, load_tokenizer, model_fingerprint
from profit_sft.scores.engine import Engine, LabelPositions, LabelScores, hf_engine
from profit_sft.scores.store import ScoredExample, ScoreJob, ScoreSet, ScoreWriter, load_scores

logger = logging.getLogger(__name__)

# The head's logits are held in chunks whatever the batch, so a batch costs its hidden states. On two cores a batch of
# 2,048 tokens of a 135M model takes three seconds, which is how long a stop waits.
_CPU_BATCH_TOKENS = 2048
_BATCH_TOKENS = 16384


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """What to score, under which model, into which folder; the names are flags of `profit score`.

    Attributes:
        model_name_or_path: Frozen model: hub name, folder (LoRA adapters too), or `embedded`.
        data: Which data, prepared how.
        output_dir: The store, see `profit_sft.scores.store`.
        dtype: The model's dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own. Logits are fp32
            whatever it is.
        max_batch_tokens: Tokens of a batch, padding included; a longer example is a batch of its own. None: 2,048 on a
            CPU, 16,384 elsewhere.
        shard_rows: Examples in a shard.
        chat_template_path: A Jinja file, or another model whose chat template to take.
        model_revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: A value is out of range.
    """

    model_name_or_path: str
    data: DataSettings
    output_dir: Path
    dtype: str = "float32"
    max_batch_tokens: int | None = None
    shard_rows: int = 256
    chat_template_path: str | None = None
    model_revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        for name in ("max_batch_tokens", "shard_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")


def flags(settings: DataSettings | ScoreSettings) -> dict[str, str]:
    """Return the fields that differ from their defaults, as the command line spells them; a switch has no value."""
    found = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if value != entry.default and not isinstance(value, DataSettings):
            found[f"--{entry.name}"] = "" if value is True else str(value)
    return found


def command_line(settings: ScoreSettings) -> str:
    """Return the `profit score` command with these settings, to paste into a shell."""
    data = flags(settings.data)
    words = ["profit", "score", data.pop("--dataset_name")]
    for name, value in {**data, **flags(settings)}.items():
        words += [name, value] if value else [name]
    return shlex.join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreProgress:
    """How far this process has come with its share of the shards, in this call.

    Attributes:
        examples: Examples done.
        total_examples: Examples to do.
        tokens: Tokens run through the model, without padding.
        label_tokens: Those of them that were scored.
        seconds: Since the first batch began.
    """

    examples: int
    total_examples: int
    tokens: int
    label_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens run through the model a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class ScoringInterrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came, and the batch under way was let finish. The same call goes on with the next shard.

    Attributes:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; the shards that were done are safe.")


def _ignore(told: object) -> None:
    pass


def score_dataset(
    settings: ScoreSettings,
    *,
    report: Callable[[str], None] = _ignore,
    on_batch: Callable[[ScoreProgress], None] = _ignore,
) -> ScoreSet:
    """Score every label token of a data set, or go on where an earlier call with these settings stopped.

    Args:
        settings: What to score.
        report: Called on the first rank with one line of text before each slow step.
        on_batch: Called after each batch of this process.

    Returns:
        The finished store. Under several ranks every rank gets it, once all are done.

    Raises:
        ConfigurationError: The folder holds another job's scores, or there is no such model.
        DataError: A row cannot be used, or a log-probability is not finite.
        ScoringInterrupted: SIGINT or SIGTERM came.
    """
    # accelerate takes ranks without an accelerator for unrelated processes, unless it is told that they are on CPUs.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # Ranks may wait for the slowest one's last shard; a rank that dies is the launcher's business.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))
    check_output_folder(settings.output_dir)
    tell = report if state.is_main_process else _ignore
    tokenizer = load_tokenizer(
        settings.model_name_or_path,
        revision=settings.model_revision,
        trust_remote_code=settings.trust_remote_code,
        chat_template_path=settings.chat_template_path,
    )
    prepared = prepare_dataset(settings.data, tokenizer, progress=state.is_main_process)
    tell(f"reading the weights of {settings.model_name_or_path}, to know them again")
    writer = ScoreWriter(settings.output_dir, _job(settings, prepared))
    if writer.is_finished:
        return writer.finish()
    missing = writer.missing_shards()
    mine = missing[state.process_index :: state.num_processes]
    engine = None
    if mine:
        _say_how_much(tell, writer.job, missing)
        engine = _engine(settings, prepared, state.device)  # before the folder is begun with one that cannot be had
    state.wait_for_everyone()  # every rank must have seen the same shards before one writes
    if state.is_main_process:
        writer.start(tokenizer)
    state.wait_for_everyone()  # and the folder must say what it is before it holds any
    if engine is not None:
        _score_shards(mine, writer, prepared, engine, _batch_tokens(settings, state.device), on_batch)
    state.wait_for_everyone()
    if state.is_main_process:
        writer.finish()
    state.wait_for_everyone()
    return load_scores(settings.output_dir)


def _say_how_much(tell: Callable[[str], None], job: ScoreJob, missing: Sequence[int]) -> None:
    done = job.num_shards - len(missing)
    tell(
        f"scoring {job.num_label_tokens:,} label tokens of {job.num_examples:,} rows in {job.num_shards} shards"
        + (f", of which {done} are there" if done else "")
    )


def _job(settings: ScoreSettings, prepared: PreparedData) -> ScoreJob:
    def plain(value: Any) -> Any:
        # As JSON gives it back, so that what is compared has been through the same.
        return json.loads(json.dumps(dataclasses.asdict(value)))

    return ScoreJob(
        model_name_or_path=settings.model_name_or_path,
        model_fingerprint=model_fingerprint(settings.model_name_or_path, revision=settings.model_revision),
        data=plain(prepared.report),
        data_settings=plain(settings.data),
        dtype=settings.dtype,
        engine="hf",
        shard_rows=settings.shard_rows,
        has_token_kinds="token_kinds" in prepared.dataset.column_names,
    )


def _batch_tokens(settings: ScoreSettings, device: torch.device) -> int:
    if settings.max_batch_tokens is not None:
        return settings.max_batch_tokens
    return _CPU_BATCH_TOKENS if device.type == "cpu" else _BATCH_TOKENS


def _engine(settings: ScoreSettings, prepared: PreparedData, device: torch.device) -> Engine:
    model: dict[str, Any] = {
        "dtype": settings.dtype,
        "revision": settings.model_revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    return hf_engine(settings.model_name_or_path, device=device, **model)


def _score_shards(
    shards: Sequence[int],
    writer: ScoreWriter,
    prepared: PreparedData,
    engine: Engine,
    max_batch_tokens: int,
    on_batch: Callable[[ScoreProgress], None],
) -> None:
    meter = _Meter(total_examples=sum(len(writer.job.shard_range(shard)) for shard in shards))
    with _signals_noted() as noted:
        for shard in shards:
            where = writer.job.shard_range(shard)
            rows = {"example": list(where), **prepared.dataset[where.start : where.stop]}
            examples = [_label_positions(*row) for row in zip(rows["input_ids"], rows["labels"], strict=True)]
            scores: dict[int, LabelScores] = {}
            for indices in batches_by_length([len(example.input_ids) for example in examples], max_batch_tokens):
                if noted:
                    raise ScoringInterrupted(noted[0])
                batch = [examples[index] for index in indices]
                scores.update(zip(indices, engine(batch), strict=True))
                on_batch(meter.add(batch))
            scored = [_scored(rows, index, example, scores[index]) for index, example in enumerate(examples)]
            writer.write_shard(shard, scored)


class _Meter:
    def __init__(self, *, total_examples: int) -> None:
        self._start = time.perf_counter()
        self._progress = ScoreProgress(examples=0, total_examples=total_examples, tokens=0, label_tokens=0, seconds=0.0)

    def add(self, batch: Sequence[LabelPositions]) -> ScoreProgress:
        self._progress = dataclasses.replace(
            self._progress,
            examples=self._progress.examples + len(batch),
            tokens=self._progress.tokens + sum(len(example.input_ids) for example in batch),
            label_tokens=self._progress.label_tokens + sum(len(example.positions) for example in batch),
            seconds=time.perf_counter() - self._start,
        )
        return self._progress


def batches_by_length(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of like length, longest first, so that too large a batch fails at once.

    Args:
        lengths: Tokens of each example.
        max_batch_tokens: Tokens of a batch, padding included. A longer example is a batch of its own.

    Example:
        >>> list(batches_by_length([3, 9, 4, 1], max_batch_tokens=8))
        [[1], [2, 0], [3]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _label_positions(input_ids: Sequence[int], labels: Sequence[int]) -> LabelPositions:
    # The first token is never predicted, so a label there does not count.
    positions = 1 + np.flatnonzero(np.array(labels[1:]) != IGNORE_INDEX)
    return LabelPositions(input_ids=np.array(input_ids, np.int32), positions=positions.astype(np.int32))


def _scored(
    rows: Mapping[str, Sequence[Any]], index: int, example: LabelPositions, scores: LabelScores
) -> ScoredExample:
    """Put row `index` of a shard's rows together with what was found."""
    if not np.isfinite(scores.log_probs).all():
        bad = int(example.positions[~np.isfinite(scores.log_probs)][0])
        raise DataError(
            f"row {rows['row'][index]}: log p of token {bad} is not finite under this model. In float16 that is "
            "overflow: use --dtype bfloat16 or float32. Otherwise the model's weights are damaged."
        )
    kinds = np.array(rows["token_kinds"][index], np.int8)[example.positions] if "token_kinds" in rows else None
    return ScoredExample(
        example=rows["example"][index],
        row=rows["row"][index],
        input_ids=example.input_ids,
        positions=example.positions,
        token_kinds=kinds,
        **{entry.name: getattr(scores, entry.name) for entry in dataclasses.fields(scores)},
    )


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one stops at once."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)
        logger.warning("%s: finishing this batch", signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield noted  # Python hands signals to the main thread alone
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
