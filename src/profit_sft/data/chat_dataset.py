"""A raw data set of chats for the trainer: tokenized here, with a mask of what the assistant says."""

import logging
import warnings
from typing import Any

from transformers import PreTrainedTokenizerBase

from profit_sft.data.formats import detect_format, to_conversation
from profit_sft.data.messages import is_given
from profit_sft.data.row import Row
from profit_sft.data.tokenize import IGNORE_INDEX, Tokenized, tokenize_conversation
from profit_sft.errors import DataError

logger = logging.getLogger(__name__)
_CHATS = ("messages", "sharegpt", "alpaca", "question_answer")  # formats; the others say themselves what is trained
_OTHER_WAYS = (
    "ProFitTrainer also takes assistant_only_loss=True, which leaves the labels to TRL and the chat template, and rows "
    "of 'input_ids' and 'labels' with -100 where nothing is to be trained."
)


def is_chat(example: dict[str, Any], text_field: str) -> bool:
    """Say whether a data set with this first row is raw chats, of which TRL would train every turn, or could not read.

    Args:
        example: The row.
        text_field: Column of text that TRL trains where rows have no messages, whatever other columns there are.
    """
    if "input_ids" in example or {"prompt", "completion"} <= example.keys():
        return False
    has_messages = any(isinstance(example.get(name), list) for name in ("messages", "conversations"))
    if is_given(example.get(text_field)) and not has_messages:
        return False
    return detect_format(example) in _CHATS


def assistant_turns(dataset: Any, tokenizer: Any, *, name: str, num_proc: int | None = None) -> Any:
    """Tokenize chats as `profit train` does; a mask marks the tokens that it would label.

    Args:
        dataset: A `Dataset` or `IterableDataset` for whose first row `is_chat` holds.
        tokenizer: What the trainer calls its processing class.
        name: What messages call the data set.
        num_proc: Processes that tokenize, of a `Dataset`.

    Returns:
        The data set with the columns `input_ids` and `assistant_masks` alone, from which TRL makes the labels whether
        it packs, pads or cuts. Where the processing class is none that the commands take (a processor, a slow
        tokenizer), the data set as it was, after a warning that every turn will be trained.

    Raises:
        DataError: A row cannot be used; names row, field and the fix.
    """
    obstacle = _obstacle(tokenizer)
    if obstacle is not None:
        warn_of_every_turn(name, obstacle)
        return dataset
    first = next(iter(dataset))
    for note in dict.fromkeys(note for example in _examples(first, 0, tokenizer, name) for note in example.notes):
        logger.info("%s data set: %s", name, note)
    # An iterable data set takes neither.
    options = {"num_proc": num_proc, "desc": f"Tokenizing {name} dataset"} if hasattr(dataset, "num_rows") else {}
    return dataset.map(
        _tokenize,
        batched=True,  # a row may give several examples
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "name": name},
        remove_columns=list(first),
        **options,
    )


def warn_of_every_turn(name: str, obstacle: str) -> None:
    """Say that TRL trains system and user turns, too, and what to do about it."""
    warnings.warn(
        f"every turn of the {name} data set will be trained, those of system and user too, as {obstacle}. "
        f"{_OTHER_WAYS}",
        stacklevel=2,
    )


def _obstacle(tokenizer: Any) -> str | None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return f"its processing class is a {type(tokenizer).__name__}, no tokenizer"
    if not tokenizer.is_fast:
        return "its tokenizer is a slow one, which does not tell where its tokens stand in the text"
    return None


def _tokenize(
    batch: dict[str, list[Any]], indices: list[int], *, tokenizer: PreTrainedTokenizerBase, name: str
) -> dict[str, list[list[int]]]:
    rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
    examples = [
        example
        for values, index in zip(rows, indices, strict=True)
        for example in _examples(values, index, tokenizer, name)
    ]
    return {
        "input_ids": [example.input_ids for example in examples],
        "assistant_masks": [[int(label != IGNORE_INDEX) for label in example.labels] for example in examples],
    }


def _examples(values: dict[str, Any], index: int, tokenizer: PreTrainedTokenizerBase, name: str) -> list[Tokenized]:
    row = Row(values, f"{name} data set", index + 1)
    try:
        examples = tokenize_conversation(to_conversation(row), tokenizer, row)
        if any(example.token_weights is not None for example in examples):
            raise row.error("has weights other than 0 and 1, which are read by `profit train`.")
        return examples
    except DataError as error:
        raise DataError(f"{error} {_OTHER_WAYS}") from None
