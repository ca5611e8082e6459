"""`profit score`: log p, entropy, likeliest token and rank of every label token; `advise` and `inspect` score, too."""

import json
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from profit_sft.cli.options import (
    DAY_OF_TRAINING,
    GivenData,
    flag,
    given,
    takes_data_options,
    takes_settings,
    wrong_values_are_usage_errors,
)
from profit_sft.cli.progress import ProgressDisplay, quiet_libraries
from profit_sft.data.settings import DataSettings
from profit_sft.errors import ConfigurationError
from profit_sft.scores.settings import ScoreSettings, command_line, flags
from profit_sft.terminal import console

if TYPE_CHECKING:
    from profit_sft.scores.score import ScoreProgress
    from profit_sft.scores.store import ScoreSet

_SHOWN_THRESHOLDS = (0.1, 0.5)


@takes_data_options(template_date=DAY_OF_TRAINING)
@takes_settings(ScoreSettings, "scoring")
def score_command(
    dataset_name: Annotated[str, typer.Argument(metavar="DATA", help="jsonl, json, parquet or csv file, or hub name.")],
    output_dir: Annotated[Path, flag("output_dir", "Where the scores go; a second run goes on.")],
    *,
    model_name_or_path: Annotated[
        str | None, flag("model_name_or_path", "Frozen model: hub name, folder, embedded.")
    ] = None,
    scoring: dict[str, Any],
    data: GivenData,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> int:
    """Compute log p, entropy, likeliest token and rank of every label token under a frozen model, once."""
    from accelerate import PartialState

    from profit_sft.models.pretrained import require_model
    from profit_sft.scores.score import ScoringInterrupted

    quiet_libraries()
    options = {"model_name_or_path": model_name_or_path, "output_dir": output_dir, **scoring}
    require_model(options)
    settings = scoring_settings({"dataset_name": dataset_name, **data}, options)
    try:
        scores, progress = score_with_progress(settings)
    except ScoringInterrupted as stop:
        name = signal.Signals(stop.signal_number).name
        console(stderr=True).print(
            f"Stopped by {name}; the shards that were done are kept. Go on with the same command:\n"
            f"  {command_line(settings)}"
        )
        return 130
    speaks = PartialState().is_main_process
    PartialState().destroy_process_group()
    if speaks:
        _print(figures(scores, progress), settings, as_json=as_json)
    return 0


def scoring_settings(data: Mapping[str, Any], options: Mapping[str, Any]) -> ScoreSettings:
    """Return the settings, or raise ConfigurationError for a value that they refuse.

    Args:
        data: Fields of `DataSettings`. Without `template_date` it is that of the model's training.
        options: Fields of `ScoreSettings`, without `data`.
    """
    from profit_sft.data.chat_template import trained_date

    if "template_date" not in data:
        data = {**data, "template_date": trained_date(options.get("model_name_or_path"))}
    with wrong_values_are_usage_errors():
        return ScoreSettings(data=DataSettings(**data), **options)


@dataclass(frozen=True, kw_only=True)
class ScoresToMake:
    """What `advise` and `inspect` score, and how, where they are not given a folder of scores."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data to score first, in place of SCORES."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to score with: hub name, folder, embedded."}
    )
    dtype: str | None = field(default=None, metadata={"help": "Of the model (default: float32)."})
    chat_template_path: str | None = field(default=None, metadata={"help": "Jinja file, or a model to take it from."})
    scores_dir: Path | None = field(default=None, metadata={"help": "Keep the scores there (default: thrown away)."})


@contextmanager
def score_sets(
    command: str,
    folders: Sequence[Path],
    to_make: Mapping[str, Any],
    data: GivenData,
    *,
    max_samples: int,
    compare_to: str | None = None,
    likeliest: int | None = None,
    eval_results: Path | None = None,
) -> "Iterator[Sequence[ScoreSet]]":
    """Give the score sets that are named, or new ones, which last as long as they are looked at unless they are kept.

    New ones of one model lie in their folder, of two in its subfolders `before` and `after`.

    Args:
        command: Whose flags these are, for the messages.
        folders: Of scores that are there.
        to_make: Fields of `ScoresToMake`.
        data: Fields of `DataSettings`.
        max_samples: Rows to score, unless `data` says.
        compare_to: A second model to score with.
        likeliest: As in `ScoreSettings`.
        eval_results: An evaluation whose answers must be of the same model, which is looked at before any scoring.

    Raises:
        ConfigurationError: There are both scores and something to score, or neither.
        DataError: The answers are another model's.
    """
    from profit_sft.evaluation.records import refuse_answers_of_another_model
    from profit_sft.files import check_output_folder
    from profit_sft.models.fingerprint import model_fingerprint
    from profit_sft.models.pretrained import require_model
    from profit_sft.scores.store import load_scores

    if folders:
        flags = ", ".join(f"--{name}" for name in (*data, *to_make, *given({"compare_to": compare_to})))
        if flags:
            raise ConfigurationError(
                f"'{folders[0]}' is scored already, so {flags} would change nothing. Leave it out."
            )
        found = [load_scores(folder) for folder in folders]
        if eval_results is not None:
            for manifest in (scores.manifest for scores in found):
                refuse_answers_of_another_model(eval_results, manifest.model_name_or_path, manifest.model_fingerprint)
        yield found
        return
    scoring = dict(to_make)
    dataset_name, scores_dir = scoring.pop("dataset_name", None), scoring.pop("scores_dir", None)
    if dataset_name is None:
        raise ConfigurationError(
            f"name scores (profit {command} SCORES), or data to score first (profit {command} --dataset_name DATA "
            "--model_name_or_path MODEL)."
        )
    if scores_dir is not None:
        check_output_folder(scores_dir, "scores_dir")
    require_model(scoring)
    scoring |= given({"likeliest": likeliest})
    data = {"dataset_name": dataset_name, "max_samples": max_samples, **data}
    with tempfile.TemporaryDirectory() as temporary:
        folder = scores_dir or Path(temporary)
        jobs = [{**scoring, "output_dir": folder}]
        if compare_to is not None:
            after = {**scoring, "model_name_or_path": compare_to, "output_dir": folder / "after"}
            jobs = [{**scoring, "output_dir": folder / "before"}, after]
            # Two models are shown the same texts.
            data["template_date"] = scoring_settings(data, jobs[0]).data.template_date
        settings = [scoring_settings(data, job) for job in jobs]  # all are looked at before minutes of scoring
        if eval_results is not None:
            for name, revision in ((job.model_name_or_path, job.model_revision) for job in settings):
                refuse_answers_of_another_model(eval_results, name, model_fingerprint(name, revision=revision))
        yield [score_with_progress(job)[0] for job in settings]


def score_with_progress(settings: ScoreSettings) -> "tuple[ScoreSet, ScoreProgress | None]":
    """Score a data set, and return the scores and how far this call came; None if all were there.

    Raises:
        ScoringInterrupted: SIGINT or SIGTERM came.
    """
    from accelerate import PartialState

    from profit_sft.scores.score import score_dataset

    messages = console(stderr=True)
    last: ScoreProgress | None = None

    def show(progress: "ScoreProgress") -> None:
        nonlocal last
        last = progress
        if PartialState().is_main_process:  # its share stands for the others'
            speed = f"{progress.tokens_per_second:,.0f} tokens/s"
            display.update("scoring rows", progress.examples, progress.total_examples, figures=speed)

    with ProgressDisplay(messages, line="scored {done}/{total} rows", transient=True) as display:
        scores = score_dataset(settings, say=lambda line: messages.print(line), on_batch=show)
    return scores, last


def figures(scores: "ScoreSet", progress: "ScoreProgress | None") -> dict[str, Any]:
    """Return what the command prints. `tokens_per_second` is of this process and call; None if all was there."""
    import numpy as np

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
    out = console()
    out.print(table)
    out.print(f"Scores: {found['output_dir']}")
    out.print("Train with the mask these scores give:\n  " + _train_command(settings))


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
