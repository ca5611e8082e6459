"""Options that several commands spell alike: how data is read and labelled. None: the library's default."""

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
MaxLength = Annotated[
    int | None, typer.Option("--max_length", "--max-length", help="Tokens a row may have (default: 1024).")
]
