"""Options that several commands spell alike: what is scored, how it is read and labeled. None: the default."""

from pathlib import Path
from typing import Annotated

import typer

DatasetFormat = Annotated[
    str | None,
    typer.Option("--dataset_format", "--dataset-format", help="As in profit train (default: by the columns)."),
]
PromptColumn = Annotated[
    str | None, typer.Option("--prompt_column", "--prompt-column", help="Column with the question.")
]
ResponseColumn = Annotated[
    str | None, typer.Option("--response_column", "--response-column", help="Column with the answer.")
]
SystemPrompt = Annotated[
    str | None, typer.Option("--system_prompt", "--system-prompt", help="System message of rows without one.")
]
ChatTemplatePath = Annotated[
    str | None,
    typer.Option("--chat_template_path", "--chat-template-path", help="Jinja file, or a model to take it from."),
]
DatasetConfig = Annotated[
    str | None, typer.Option("--dataset_config", "--dataset-config", help="Configuration of a hub data set.")
]
DatasetSplit = Annotated[
    str | None, typer.Option("--dataset_split", "--dataset-split", help="Split of a hub data set (default: train).")
]
TrainOn = Annotated[
    str | None,
    typer.Option("--train_on", "--train-on", help="Assistant turns that carry labels: all (default) or last."),
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip_bad_rows", "--skip-bad-rows", help="Leave out and list rows that cannot be used.")
]
MaxLength = Annotated[
    int | None, typer.Option("--max_length", "--max-length", help="Tokens a row may have (default: 1024).")
]
DataToScore = Annotated[
    str | None, typer.Option("--dataset_name", "--dataset-name", help="Data to score first, in place of SCORES.")
]
ModelToScoreWith = Annotated[
    str | None,
    typer.Option(
        "--model_name_or_path", "--model-name-or-path", help="Model to score with: hub name, folder, embedded."
    ),
]
ScoresDir = Annotated[
    Path | None, typer.Option("--scores_dir", "--scores-dir", help="Keep the scores there (default: thrown away).")
]
