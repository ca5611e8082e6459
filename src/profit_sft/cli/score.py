"""`profit score`: log p, entropy, likeliest token and rank of every label token, once and for all."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from profit_sft.cli.progress import quiet_libraries
from profit_sft.data import DataSettings
from profit_sft.errors import ConfigurationError
from profit_sft.models.pretrained import require_model
from profit_sft.scores.score import (
    ScoreProgress,
    ScoreSettings,
    ScoringInterrupted,
    command_line,
    flags,
    score_dataset,
)
from profit_sft.scores.store import ScoreSet

_SHOWN_THRESHOLDS = (0.1, 0.5)


def score_command(data: Mapping[str, Any], options: Mapping[str, Any], *, as_json: bool) -> int:
    """Run `profit score` and return its exit status.

    Args:
        data: Fields of `DataSettings`.
        options: Fields of `ScoreSettings`, without `data`.
        as_json: Print the figures as JSON instead of a table.
    """
    quiet_libraries()
    require_model(options)
    try:
        settings = ScoreSettings(data=DataSettings(**data), **options)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with scoring_bar(messages) as bar:
            scores = score_dataset(
                settings, report=lambda line: messages.print(line, markup=False), on_batch=bar.update
            )
    except ScoringInterrupted as stop:
        name = signal.Signals(stop.signal_number).name
        messages.print(
            f"Stopped by {name}; the shards that were done are kept. Go on with the same command:\n"
            f"  {command_line(settings)}",
            markup=False,
        )
        return 130
    speaks = PartialState().is_main_process
    PartialState().destroy_process_group()
    if speaks:
        _print(figures(scores, bar.last), settings, as_json=as_json)
    return 0


class _Bar:
    """Progress on stderr: a bar on a terminal, a line every tenth of the way elsewhere; the first rank's share."""

    def __init__(self, console: Console) -> None:
        self.last: ScoreProgress | None = None
        self._console = console
        self._bar: Progress | None = None
        self._told = 0

    def update(self, progress: ScoreProgress) -> None:
        self.last = progress
        if not PartialState().is_main_process:
            return
        speed = f"{progress.tokens_per_second:,.0f} tokens/s"
        if not self._console.is_terminal:
            tenth = 10 * progress.examples // progress.total_examples
            if tenth > self._told:
                self._told = tenth
                self._console.print(f"scored {progress.examples}/{progress.total_examples} rows  {speed}")
            return
        if self._bar is None:
            columns = (TextColumn("scoring rows"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            more = (TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))
            self._bar = Progress(*columns, *more, console=self._console, transient=True)
            self._bar.start()
            self._bar.add_task("score", total=progress.total_examples, speed="")
        self._bar.update(self._bar.task_ids[0], completed=progress.examples, speed=speed)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def scoring_bar(console: Console) -> Iterator[_Bar]:
    """Show progress on `console` while scores are made; hand its `update` to `score_dataset` as `on_batch`."""
    bar = _Bar(console)
    try:
        yield bar
    finally:
        bar.stop()


def figures(scores: ScoreSet, progress: ScoreProgress | None) -> dict[str, Any]:
    """Return what the command prints. `tokens_per_second` is of this process and call; None if all was there."""
    manifest = scores.manifest
    log_probs = scores.column("log_probs")
    below = {
        f"share_below_{threshold}": float((log_probs < np.float32(np.log(threshold))).mean())
        for threshold in _SHOWN_THRESHOLDS
    }
    return {
        "output_dir": str(scores.folder),
        "examples": manifest.num_examples,
        "label_tokens": manifest.num_label_tokens,
        "mean_nll": manifest.mean_nll,
        **below,
        "tokens_per_second": None if progress is None else progress.tokens_per_second,
    }


def _print(found: Mapping[str, Any], settings: ScoreSettings, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    table = Table(title=f"{settings.data.dataset_name} under {settings.model_name_or_path}", show_header=False)
    table.add_row("rows", f"{found['examples']:,}")
    table.add_row("label tokens", f"{found['label_tokens']:,}")
    table.add_row("mean NLL", f"{found['mean_nll']:.3f} nats a token")
    for threshold in _SHOWN_THRESHOLDS:
        table.add_row(f"share of label tokens under p {threshold}", f"{found[f'share_below_{threshold}']:.1%}")
    speed = found["tokens_per_second"]
    table.add_row("tokens a second, one process", "all were there" if speed is None else f"{speed:,.0f}")
    out = Console(highlight=False, soft_wrap=True)
    out.print(table)
    out.print(f"Scores: {found['output_dir']}", markup=False)
    out.print("Train with the mask these scores give:\n  " + _train_command(settings), markup=False)


def _train_command(settings: ScoreSettings) -> str:
    """Return the `profit train` command for the same data and model, to paste into a shell."""
    wanted = flags(settings.data)
    if "--dataset_split" in wanted:
        wanted["--dataset_train_split"] = wanted.pop("--dataset_split")
    own = flags(settings)
    for name in ("--model_name_or_path", "--model_revision", "--chat_template_path", "--trust_remote_code"):
        if name in own:
            wanted[name] = own[name]
    wanted["--reference_scores"] = str(settings.output_dir)
    return shlex.join(["profit", "train", *(word for pair in wanted.items() for word in pair if word)])
