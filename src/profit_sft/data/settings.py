"""Which data a command reads and how: settings that are flags of several commands. Imports nothing heavy.

A field's default and help text are the flag's. What `profit train` shares with the others is in `DataOptions`, from
which its `RunArguments` inherit; `profit_sft.cli.options` makes the others' flags of the fields of `DataSettings`.
"""

import json
from dataclasses import dataclass, field
from datetime import date

from profit_sft.data.formats import FORMATS

TEMPLATE_DATE = "2024-07-26"  # any day, but one: the day Llama's templates fall back to


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How rows are read and labeled. A field added here is a flag of every command that reads data.

    Attributes:
        dataset_format: One of `FORMATS`, or `auto`.
        prompt_column: Column of the question.
        response_column: Column of the answer.
        system_prompt: Put in front of chats without a system message.
        chat_template_kwargs: JSON text of what the chat template is told besides; a row's own column goes first.
        template_date: The day that templates are told which write today's date, so that a row's tokens stay the same.
        train_on: Assistant turns that carry labels: `all` or `last`.
        empty_think: What becomes of a thought without words that the template puts before an answer: `train`, `ignore`.
        skip_bad_rows: Leave out and list rows that cannot be used, instead of stopping at the first.
        max_samples: Rows to read. None: all.
    """

    dataset_format: str = field(
        default="auto",
        metadata={
            "help": "auto, messages, prompt_completion, sharegpt, alpaca, question_answer or text. auto looks at the "
            "columns."
        },
    )
    prompt_column: str | None = field(default=None, metadata={"help": "Column with the question (default: question)."})
    response_column: str | None = field(default=None, metadata={"help": "Column with the answer (default: answer)."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message put before rows without one."})
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={"help": "JSON object the chat template is told, such as '{\"enable_thinking\": false}'."},
    )
    template_date: str = field(
        default=TEMPLATE_DATE, metadata={"help": "Day for chat templates that write today's date."}
    )
    train_on: str = field(default="all", metadata={"help": "Assistant turns that carry labels: all or last."})
    empty_think: str = field(
        default="train",
        metadata={
            "help": "Whether an empty thought that the chat template puts before an answer is learned: train or ignore."
        },
    )
    skip_bad_rows: bool = field(default=False, metadata={"help": "Count and list rows that cannot be used; go on."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first N rows."})


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where rows are.

    Attributes:
        dataset_name: File, folder or hub name.
        dataset_config: Configuration of a hub data set.
        dataset_split: Split of a hub data set.
    """

    dataset_name: str
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub data set."})


@dataclass(frozen=True, kw_only=True)
class DataSettings(DataOptions, DataSource):
    """What to read and how.

    Attributes:
        max_length: Tokens a row may have; longer ones lose their end. None: no limit.
        truncation_mode: Only `keep_start`.

    Raises:
        ValueError: A value is out of range.
    """

    max_length: int | None = field(default=1024, metadata={"help": "Tokens a row may have."})
    truncation_mode: str = "keep_start"

    def __post_init__(self) -> None:
        for name, choices in (
            ("dataset_format", ("auto", *FORMATS)),
            ("train_on", ("all", "last")),
            ("empty_think", ("train", "ignore")),
            ("truncation_mode", ("keep_start",)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
        if isinstance(self.chat_template_kwargs, dict):  # as YAML has it
            object.__setattr__(self, "chat_template_kwargs", json.dumps(self.chat_template_kwargs))
        _require_object("chat_template_kwargs", self.chat_template_kwargs)
        _require_day("template_date", self.template_date)
        for name in ("max_length", "max_samples"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{name} must be a whole number or None, got {value!r}.")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not self.dataset_name:
            raise ValueError("dataset_name is empty: name a jsonl, json, parquet or csv file, or a hub data set.")
        for name in ("prompt_column", "response_column"):
            if getattr(self, name) is not None and self.dataset_format not in ("auto", "question_answer"):
                raise ValueError(
                    f"{name} ({getattr(self, name)!r}) is for question_answer rows, but dataset_format is "
                    f"{self.dataset_format!r}. Leave one of the two out."
                )


def _require_object(name: str, value: str | None) -> None:
    try:
        fits = value is None or isinstance(json.loads(value), dict)
    except (json.JSONDecodeError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f'{name} must be a JSON object, got {value!r}. Example: {{"enable_thinking": false}}.')


def _require_day(name: str, value: str) -> None:
    try:
        date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a day, got {value!r}. Example: {TEMPLATE_DATE}.") from None
