"""What `profit score`, `advise` and `inspect` share: data scored under a model, with progress on stderr."""

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState

from profit_sft.cli.options import wrong_values_are_usage_errors
from profit_sft.cli.progress import ProgressDisplay
from profit_sft.data import DataSettings
from profit_sft.data.chat_template import trained_date
from profit_sft.scores.score import ScoreProgress, ScoreSettings, score_dataset
from profit_sft.scores.store import ScoreSet
from profit_sft.terminal import console


def scoring_settings(data: Mapping[str, Any], options: Mapping[str, Any]) -> ScoreSettings:
    """Return the settings, or raise ConfigurationError for a value that they refuse.

    Args:
        data: Fields of `DataSettings`. Without `template_date` it is that of the model's training.
        options: Fields of `ScoreSettings`, without `data`.
    """
    if "template_date" not in data:
        data = {**data, "template_date": trained_date(options.get("model_name_or_path"))}
    with wrong_values_are_usage_errors():
        return ScoreSettings(data=DataSettings(**data), **options)


def score_with_progress(settings: ScoreSettings) -> tuple[ScoreSet, ScoreProgress | None]:
    """Score a data set, and return the scores and how far this call came; None if all were there.

    Raises:
        ScoringInterrupted: SIGINT or SIGTERM came.
    """
    messages = console(stderr=True)
    last: ScoreProgress | None = None

    def show(progress: ScoreProgress) -> None:
        nonlocal last
        last = progress
        if PartialState().is_main_process:  # its share stands for the others'
            speed = f"{progress.tokens_per_second:,.0f} tokens/s"
            display.update("scoring rows", progress.examples, progress.total_examples, figures=speed)

    with ProgressDisplay(messages, line="scored {done}/{total} rows", transient=True) as display:
        scores = score_dataset(settings, report=lambda line: messages.print(line), on_batch=show)
    return scores, last
