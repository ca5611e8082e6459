"""A raw data set of chats for the trainer: tokenized here, with a mask of what the assistant says."""

import warnings
from typing import Any

from transformers import PreTrainedTokenizerBase

from profit_sft.data.formats import to_conversation
from profit_sft.data.rows import Row
from profit_sft.data.tokenize import IGNORE_INDEX, tokenize_conversation
from profit_sft.errors import DataError

_CHAT_COLUMNS = ("messages", "conversations")
# TRL hands these to the chat template, which the commands do not.
_TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
_OTHER_WAYS = (
    "ProFitTrainer also takes assistant_only_loss=True, which leaves the labels to TRL and the chat template, and rows "
    "of 'input_ids' and 'labels' with -100 where nothing is to be trained."
)


def is_chat(example: dict[str, Any]) -> bool:
    """Say whether a data set with this first row is raw chats, of which TRL would train every turn."""
    if "input_ids" in example or "prompt" in example:
        return False
    return any(isinstance(example.get(column), list) for column in _CHAT_COLUMNS)


def assistant_turns(dataset: Any, tokenizer: Any, *, name: str, num_proc: int | None = None) -> Any:
    """Tokenize chats as `profit train` does; a mask marks the tokens that it would label.

    Args:
        dataset: A `Dataset` or `IterableDataset` for whose first row `is_chat` holds.
        tokenizer: What the trainer calls its processing class.
        name: What messages call the data set.
        num_proc: Processes that tokenize, of a `Dataset`.

    Returns:
        The data set with the columns `input_ids` and `assistant_masks` alone, from which TRL makes the labels whether
        it packs, pads or cuts. Where rows or processing class have something the commands do not read (tools, images,
        a slow tokenizer), the data set as it was, after a warning that every turn will be trained.

    Raises:
        DataError: A row cannot be used; names row, field and the fix.
    """
    columns = list(next(iter(dataset)))
    obstacle = _obstacle(columns, tokenizer)
    if obstacle is not None:
        warn_of_every_turn(name, obstacle)
        return dataset
    # An iterable data set takes neither.
    options = {"num_proc": num_proc, "desc": f"Tokenizing {name} dataset"} if hasattr(dataset, "num_rows") else {}
    return dataset.map(
        _tokenize,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "name": name},
        remove_columns=columns,
        **options,
    )


def warn_of_every_turn(name: str, obstacle: str) -> None:
    """Say that TRL trains system and user turns, too, and what to do about it."""
    warnings.warn(
        f"every turn of the {name} data set will be trained, those of system and user too, as {obstacle}. "
        f"{_OTHER_WAYS}",
        stacklevel=2,
    )


def _obstacle(columns: list[str], tokenizer: Any) -> str | None:
    column = next((column for column in _TEMPLATE_COLUMNS if column in columns), None)
    if column is not None:
        return f"its rows have '{column}'"
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return f"its processing class is a {type(tokenizer).__name__}, no tokenizer"
    if not tokenizer.is_fast:
        return "its tokenizer is a slow one, which does not tell where its tokens stand in the text"
    return None


def _tokenize(
    values: dict[str, Any], index: int, *, tokenizer: PreTrainedTokenizerBase, name: str
) -> dict[str, list[int]]:
    row = Row(values, f"{name} data set", index + 1)
    try:
        (example,) = tokenize_conversation(to_conversation(row), tokenizer, row)
    except DataError as error:
        raise DataError(f"{error} {_OTHER_WAYS}") from None
    masks = [int(label != IGNORE_INDEX) for label in example.labels]
    return {"input_ids": example.input_ids, "assistant_masks": masks}
