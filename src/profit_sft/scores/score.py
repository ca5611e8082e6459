"""Score a data set under a frozen model, once: log p, entropy, likeliest token and rank of every label token.

Shards are written as they are done, so a killed job loses at most the shard under way, and the same call goes on. Under
`accelerate launch` or `torchrun` the ranks share the shards; each shard's numbers depend on its own examples alone, so
they are the same whoever computes them.
"""

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import PreTrainedTokenizerBase

from profit_sft.data.prepare import PreparedData, check_tokens_fit, prepare_dataset
from profit_sft.errors import DataError
from profit_sft.files import sole_use
from profit_sft.head import apply_profit
from profit_sft.interrupts import FirstSignal, signals_handled
from profit_sft.models.fingerprint import model_fingerprint
from profit_sft.models.pretrained import load_model, load_tokenizer
from profit_sft.objectives import NLL
from profit_sft.ranks import first_decides
from profit_sft.scores.loop import LabelExample, LabelScores, label_examples, score_in_batches
from profit_sft.scores.settings import ScoreSettings
from profit_sft.scores.store import ScoredExample, ScoreJob, ScoreSet, ScoreWriter, as_stored, load_scores


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreProgress:
    """How far this process has come with its share of the shards, in this call.

    Attributes:
        total_examples: Examples to do.
        examples: Examples done.
        tokens: Tokens run through the model, without padding.
        label_tokens: Those of them that were scored.
        seconds: Since the first batch began.
    """

    total_examples: int
    examples: int = 0
    tokens: int = 0
    label_tokens: int = 0
    seconds: float = 0.0

    def after(self, batch: Sequence[LabelExample], seconds: float) -> "ScoreProgress":
        """Return how far it has come with a further batch, so many seconds after the first began."""
        return ScoreProgress(
            total_examples=self.total_examples,
            examples=self.examples + len(batch),
            tokens=self.tokens + sum(len(example.input_ids) for example in batch),
            label_tokens=self.label_tokens + sum(len(example.positions) for example in batch),
            seconds=seconds,
        )

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
    say = say if state.is_main_process else _ignore
    with ExitStack() as held:
        first_decides(lambda: held.enter_context(sole_use(settings.output_dir, "scoring")))
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
            job, done = writer.job, writer.job.num_shards - len(missing)
            say(
                f"scoring {job.num_label_tokens:,} label tokens of {job.num_examples:,} rows in {job.num_shards} shards"
                + (f", of which {done} are there" if done else "")
            )
            # Before the folder is begun with one that cannot be had.
            model = _model(settings, tokenizer, prepared, state.device)
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
    total = sum(len(writer.job.shard_range(shard)) for shard in shards)
    progress, began = ScoreProgress(total_examples=total), time.perf_counter()
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
                progress = progress.after([examples[index] for index in batch], time.perf_counter() - began)
                on_batch(progress)
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
    kept = next((0 if found.likeliest is None else found.likeliest.shape[1] for found in scores), 0)
    with sole_use(settings.output_dir, "scoring"):
        writer = ScoreWriter(settings.output_dir, _job(dataclasses.replace(settings, likeliest=kept), prepared))
        writer.start(tokenizer)
        for shard in writer.missing_shards():
            where = writer.job.shard_range(shard)
            rows = prepared.dataset[where.start : where.stop]
            examples = _scored(where, rows["row"], label_examples(rows), scores[where.start : where.stop])
            writer.write_shard(shard, examples)
        return writer.finish()


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
