"""Score a data set under a frozen model, once: log p, entropy, likeliest token and rank of every label token.

Shards are written as they are done, so a killed job loses at most the shard under way, and the same call goes on. Under
`accelerate launch` or `torchrun` the ranks share the shards; each shard's numbers depend on its own examples alone, so
they are the same whoever computes them.
"""

import dataclasses
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import PreTrainedTokenizerBase

from profit_sft.data.prepare import PreparedData, check_tokens_fit, prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.errors import DataError
from profit_sft.files import sole_use
from profit_sft.head import apply_profit
from profit_sft.interrupts import FirstSignal, signals_handled
from profit_sft.models import DTYPES
from profit_sft.models.fingerprint import model_fingerprint
from profit_sft.models.pretrained import load_model, load_tokenizer
from profit_sft.objectives import NLL
from profit_sft.ranges import check_values
from profit_sft.ranks import first_decides
from profit_sft.scores.loop import LabelExample, LabelScores, label_examples, score_in_batches
from profit_sft.scores.store import ScoredExample, ScoreJob, ScoreSet, ScoreWriter, as_stored, load_scores

MOST_LIKELIEST = 100  # beyond that the scores would be logits in all but name


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
        likeliest: How many of the likeliest tokens to keep with each label token, with their log p; 0: none.
        chat_template_path: A Jinja file, or another model whose chat template to take.
        model_revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run code that comes with the model.
        allow_missing_weights: Load a model whose files lack weights, or hold others.

    Raises:
        TypeError: A value is of another kind.
        ValueError: A value is out of range.
    """

    model_name_or_path: str
    data: DataSettings
    output_dir: Path
    dtype: str = "float32"
    max_batch_tokens: int | None = None
    shard_rows: int = 256
    likeliest: int = 5
    chat_template_path: str | None = None
    model_revision: str | None = None
    trust_remote_code: bool = False
    allow_missing_weights: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        check_values(self, unlimited=("likeliest",))
        if not 0 <= self.likeliest <= MOST_LIKELIEST:
            raise ValueError(f"likeliest must be from 0 to {MOST_LIKELIEST}, got {self.likeliest}.")


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
    say: Callable[[str], None] = _ignore,
    on_batch: Callable[[ScoreProgress], None] = _ignore,
) -> ScoreSet:
    """Score every label token of a data set, or go on where an earlier call with these settings stopped.

    Args:
        settings: What to score.
        say: Called on the first rank with one line of text before each slow step.
        on_batch: Called after each batch of this process.

    Returns:
        The finished store. Under several ranks every rank gets it, once all are done.

    Raises:
        ConfigurationError: The folder holds another job's scores or is in use, or there is no such model.
        DataError: A row cannot be used, or a log-probability is not finite.
        ScoringInterrupted: SIGINT or SIGTERM came.
    """
    # accelerate takes ranks without an accelerator for unrelated processes, unless it is told that they are on CPUs.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # Ranks may wait for the slowest one's last shard; a rank that dies is the launcher's business.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))
    with ExitStack() as held:
        first_decides(lambda: held.enter_context(sole_use(settings.output_dir, "scoring")))
        return _scored_alone(settings, state, say, on_batch)


def _scored_alone(
    settings: ScoreSettings,
    state: PartialState,
    say: Callable[[str], None],
    on_batch: Callable[[ScoreProgress], None],
) -> ScoreSet:
    say = say if state.is_main_process else _ignore
    tokenizer = load_tokenizer(
        settings.model_name_or_path,
        revision=settings.model_revision,
        trust_remote_code=settings.trust_remote_code,
        chat_template_path=settings.chat_template_path,
    )
    prepared = prepare_dataset(settings.data, tokenizer, progress=state.is_main_process)
    say(f"reading the weights of {settings.model_name_or_path}, to know them again")
    writer = ScoreWriter(settings.output_dir, _job(settings, prepared))
    if writer.is_finished:
        return writer.finish()
    missing = writer.missing_shards()
    mine = missing[state.process_index :: state.num_processes]
    model = None
    if mine:
        _say_how_much(say, writer.job, missing)
        model = _model(
            settings, tokenizer, prepared, state.device
        )  # before the folder is begun with one that cannot be had
    state.wait_for_everyone()  # every rank must have seen the same shards before one writes
    if state.is_main_process:
        writer.start(tokenizer)
    state.wait_for_everyone()  # and the folder must say what it is before it holds any
    if model is not None:
        _score_shards(mine, writer, prepared, model, settings, on_batch)
    state.wait_for_everyone()
    if state.is_main_process:
        writer.finish()
    state.wait_for_everyone()
    return load_scores(settings.output_dir)


def _say_how_much(say: Callable[[str], None], job: ScoreJob, missing: Sequence[int]) -> None:
    done = job.num_shards - len(missing)
    say(
        f"scoring {job.num_label_tokens:,} label tokens of {job.num_examples:,} rows in {job.num_shards} shards"
        + (f", of which {done} are there" if done else "")
    )


def _job(settings: ScoreSettings, prepared: PreparedData) -> ScoreJob:
    return ScoreJob(
        model_name_or_path=settings.model_name_or_path,
        model_fingerprint=model_fingerprint(settings.model_name_or_path, revision=settings.model_revision),
        data=as_stored(prepared.report),
        data_settings=as_stored(settings.data),
        dtype=settings.dtype,
        engine="hf",
        shard_rows=settings.shard_rows,
        likeliest=settings.likeliest,
        has_token_kinds="token_kinds" in prepared.dataset.column_names,
    )


def _model(
    settings: ScoreSettings, tokenizer: PreTrainedTokenizerBase, prepared: PreparedData, device: torch.device
) -> nn.Module:
    model = load_model(
        settings.model_name_or_path,
        dtype=settings.dtype,
        revision=settings.model_revision,
        trust_remote_code=settings.trust_remote_code,
        allow_missing_weights=settings.allow_missing_weights,
    )
    check_tokens_fit(model, tokenizer, prepared)
    on_device: nn.Module = model.to(device)  # type: ignore[arg-type]  # a decorator of transformers hides its type
    return apply_profit(on_device, NLL())  # checks the head once, not for each shard


def _score_shards(
    shards: Sequence[int],
    writer: ScoreWriter,
    prepared: PreparedData,
    model: nn.Module,
    settings: ScoreSettings,
    on_batch: Callable[[ScoreProgress], None],
) -> None:
    meter = _Meter(total_examples=sum(len(writer.job.shard_range(shard)) for shard in shards))
    stop = FirstSignal("this batch")
    with signals_handled(stop):
        for shard in shards:
            if stop.signal_number is not None:
                raise ScoringInterrupted(stop.signal_number)
            where = writer.job.shard_range(shard)
            rows = prepared.dataset[where.start : where.stop]
            examples = label_examples(rows)
            scores: dict[int, LabelScores] = {}
            for batch in score_in_batches(
                model, examples, likeliest=settings.likeliest, max_batch_tokens=settings.max_batch_tokens
            ):
                scores |= batch
                on_batch(meter.add([examples[index] for index in batch]))
                if stop.signal_number is not None and len(scores) < len(examples):
                    raise ScoringInterrupted(stop.signal_number)
            in_order = [scores[index] for index in range(len(examples))]
            writer.write_shard(shard, _scored(where, rows["row"], examples, in_order))


def write_scores(
    settings: ScoreSettings, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, scores: Sequence[LabelScores]
) -> ScoreSet:
    """Write a store of scores that are there already, as `score_labels` finds them under a model in memory.

    As many of the likeliest tokens are kept as were found, whatever the settings say.

    Args:
        settings: The model they are of, its dtype, the data, and where the store goes.
        prepared: The data.
        tokenizer: What it was prepared with.
        scores: Of each example, in data order.

    Raises:
        ConfigurationError: The folder holds another job's scores.
        DataError: A log-probability is not finite.
    """
    with sole_use(settings.output_dir, "scoring"):
        return _written_alone(settings, prepared, tokenizer, scores)


def _written_alone(
    settings: ScoreSettings, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, scores: Sequence[LabelScores]
) -> ScoreSet:
    kept = next((0 if found.likeliest is None else found.likeliest.shape[1] for found in scores), 0)
    writer = ScoreWriter(settings.output_dir, _job(dataclasses.replace(settings, likeliest=kept), prepared))
    writer.start(tokenizer)
    for shard in writer.missing_shards():
        where = writer.job.shard_range(shard)
        rows = prepared.dataset[where.start : where.stop]
        examples = _scored(where, rows["row"], label_examples(rows), scores[where.start : where.stop])
        writer.write_shard(shard, examples)
    return writer.finish()


class _Meter:
    def __init__(self, *, total_examples: int) -> None:
        self._start = time.perf_counter()
        self._progress = ScoreProgress(examples=0, total_examples=total_examples, tokens=0, label_tokens=0, seconds=0.0)

    def add(self, batch: Sequence[LabelExample]) -> ScoreProgress:
        self._progress = dataclasses.replace(
            self._progress,
            examples=self._progress.examples + len(batch),
            tokens=self._progress.tokens + sum(len(example.input_ids) for example in batch),
            label_tokens=self._progress.label_tokens + sum(len(example.positions) for example in batch),
            seconds=time.perf_counter() - self._start,
        )
        return self._progress


def _scored(
    where: range, rows: Sequence[int], examples: Sequence[LabelExample], scores: Sequence[LabelScores]
) -> list[ScoredExample]:
    """Put a shard's examples, their numbers and their rows' numbers together with what was found."""
    found = []
    for number, row, example, values in zip(where, rows, examples, scores, strict=True):
        if not np.isfinite(values.log_probs).all():
            bad = int(example.positions[~np.isfinite(values.log_probs)][0])
            raise DataError(
                f"row {row}: log p of token {bad} is not finite under this model. In float16 that is overflow: use "
                "--dtype bfloat16 or float32. Otherwise the model's weights are damaged."
            )
        scored: dict[str, Any] = {entry.name: getattr(values, entry.name) for entry in dataclasses.fields(values)}
        if values.likeliest_log_probs is not None:
            scored["likeliest_log_probs"] = values.likeliest_log_probs.astype(np.float16)
        found.append(
            ScoredExample(
                example=number,
                row=row,
                input_ids=example.input_ids,
                positions=example.positions,
                token_kinds=example.token_kinds,
                **scored,
            )
        )
    return found
