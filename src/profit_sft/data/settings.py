"""Which data a command reads and how: settings that are flags of several commands. Imports nothing heavy.

A field's default and help text are the flag's. What `profit train` shares with the others is in `DataOptions`, from
which its `RunArguments` inherit; `profit_sft.cli.options` makes the others' flags of the fields of `DataSettings`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Literal, get_args

from profit_sft.ranges import check_values

# In the order in which they are looked for.
Format = Literal["messages", "sharegpt", "prompt_completion", "alpaca", "question_answer", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
PART_KINDS = ("thought", "content", "tool_call", "tool_call_turn", "core", "style")  # what `given_weights` may weigh
TEST_SPLIT = "test"  # evaluated on, where no other is asked for
TEMPLATE_DATE = "2024-07-26"  # any day, but one: the day Llama's templates fall back to


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How rows are read and labeled. A field added here is a flag of every command that reads data, with its help text.

    Texts that are JSON may be given as what they stand for, as YAML has them.
    """

    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a folder or hub data set."})
    test_split_size: float | None = field(
        default=None, metadata={"help": "Share of the rows, or their number, held out of training for evaluation."}
    )
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
    given_weights: str | None = field(
        default=None,
        metadata={
            "help": 'Weights by kind for the objective given, as \'{"thought": 0.2, "tool_call": 2}\'. Kinds: '
            f"{', '.join(PART_KINDS)}."
        },
    )
    skip_bad_rows: bool = field(default=False, metadata={"help": "Count and list rows that cannot be used; go on."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first N rows."})
    drop_long_rows: bool = field(
        default=False, metadata={"help": "Leave out rows longer than max_length, instead of cutting their end off."}
    )

    @cached_property  # not read at every row
    def kind_weights(self) -> dict[str, float]:
        """Weights of `PART_KINDS`; of a kind that is not named, 1."""
        return weights_by_kind(self.given_weights)

    @property
    def names_text(self) -> bool:
        """Whether a column was named as text, so that it is read before those of formats that TRL does not know."""
        return False

    @property
    def weighs_parts(self) -> bool:
        """Whether a turn's thought, content or calls have a weight, so that they must be found in what is rendered."""
        return not self.kind_weights.keys().isdisjoint(("thought", "content", "tool_call", "tool_call_turn"))


@dataclass(frozen=True)
class MixturePart:
    """One data set of a mixture, spelled as in TRL's `datasets`.

    Attributes:
        path: File, folder or hub name; with `data_files` also `json`, `csv`, `parquet` or `arrow`.
        name: Configuration.
        data_dir: Folder inside it.
        data_files: Files of it.
        split: Split.
        columns: Columns to keep. None: all.
        fraction: Its share of the mixture, which then is as large as it can be without a row twice. All parts have one,
            or none.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | Sequence[str] | Mapping[str, str] | None = None
    split: str = "train"
    columns: Sequence[str] | None = None
    fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where rows are.

    Attributes:
        dataset_name: File, folder or hub name, or a YAML file with a list `datasets` of such, a mixture.
        dataset_split: Split of a folder or hub data set.
        datasets: The parts of a mixture, in place of what `dataset_name` names.
        held_out: Read the rows that `test_split_size` holds out, always the same ones, instead of the others.
    """

    dataset_name: str
    dataset_split: str = field(default="train", metadata={"help": "Split of a folder or hub data set."})
    datasets: tuple[MixturePart, ...] | None = None
    held_out: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSettings(DataOptions, DataSource):
    """What to read and how.

    Attributes:
        max_length: Tokens a row may have; longer ones lose their end. None: no limit.
        truncation_mode: Only `keep_start`.
        dataset_num_proc: Processes that prepare the rows. Changes nothing about them.
        dataset_text_field: Column that is read as `text`.

    Raises:
        TypeError: A value is of another kind.
        ValueError: A value is out of range.
    """

    max_length: int | None = field(default=1024, metadata={"help": "Tokens a row may have."})
    truncation_mode: str = "keep_start"
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that prepare the rows."})
    dataset_text_field: str = field(default="text", metadata={"help": "Column of rows that are one text."})

    @property
    def names_text(self) -> bool:
        """Whether a column was named as text, so that it is read before those of formats that TRL does not know."""
        return self.dataset_text_field != "text"

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
        _require_object(self.chat_template_kwargs)
        if isinstance(self.given_weights, dict):  # as YAML has it
            object.__setattr__(self, "given_weights", json.dumps(self.given_weights))
        weights_by_kind(self.given_weights)
        try:
            date.fromisoformat(self.template_date)
        except (TypeError, ValueError):
            given = repr(self.template_date)
            raise ValueError(f"template_date must be a day, got {given}. Example: {TEMPLATE_DATE}.") from None
        check_values(self)
        if not self.dataset_name:
            raise ValueError("dataset_name is empty: name a jsonl, json, parquet or csv file, or a hub data set.")
        size = self.test_split_size
        if size is not None and not (0 < size < 1 or (size >= 1 and size % 1 == 0)):
            raise ValueError(f"test_split_size must be a share of the rows in (0, 1), or their number, got {size}.")
        for name in ("prompt_column", "response_column"):
            if getattr(self, name) is not None and self.dataset_format not in ("auto", "question_answer"):
                raise ValueError(
                    f"{name} ({getattr(self, name)!r}) is for question_answer rows, but dataset_format is "
                    f"{self.dataset_format!r}. Leave one of the two out."
                )


def weights_by_kind(given: str | None) -> dict[str, float]:
    """Read `given_weights`: JSON text of an object from kinds to weights.

    Raises:
        ValueError: It is no such object, names an unknown kind, or has a weight that is no finite number from 0 on.
    """
    known = f'Kinds are {", ".join(PART_KINDS)}; example: {{"thought": 0.2, "tool_call": 2}}.'
    try:
        weights = json.loads(given or "{}")
    except (json.JSONDecodeError, TypeError):
        weights = None
    if not isinstance(weights, dict):
        raise ValueError(f"given_weights must be a JSON object from kinds to weights, got {given!r}. {known}")
    for kind, weight in weights.items():
        if kind not in PART_KINDS:
            raise ValueError(f"given_weights has unknown kind {kind!r}. {known}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(
                f"given_weights of {kind} must be a finite number, 0 or more, got {json.dumps(weight)}. {known}"
            )
    return {kind: float(weight) for kind, weight in weights.items()}


def _require_object(value: str | None) -> None:
    try:
        fits = value is None or isinstance(json.loads(value), dict)
    except (json.JSONDecodeError, TypeError):
        fits = False
    if not fits:
        raise ValueError(
            f'chat_template_kwargs must be a JSON object, got {value!r}. Example: {{"enable_thinking": false}}.'
        )
