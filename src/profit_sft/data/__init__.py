"""Formats in, tokenized and labeled examples out; and the generated data set."""

from profit_sft.data.formats import FORMATS, Conversation, detect_format, to_conversation
from profit_sft.data.prepare import (
    LISTED_ROWS,
    DataReport,
    DataSettings,
    PreparedData,
    SkippedRow,
    prepare_dataset,
    tokenizer_fingerprint,
)
from profit_sft.data.rows import Row, RowSource, load_rows
from profit_sft.data.tokenize import IGNORE_INDEX, TOKEN_KINDS, Tokenized, tokenize_conversation

__all__ = [
    "FORMATS",
    "IGNORE_INDEX",
    "LISTED_ROWS",
    "TOKEN_KINDS",
    "Conversation",
    "DataReport",
    "DataSettings",
    "PreparedData",
    "Row",
    "RowSource",
    "SkippedRow",
    "Tokenized",
    "detect_format",
    "load_rows",
    "prepare_dataset",
    "to_conversation",
    "tokenize_conversation",
    "tokenizer_fingerprint",
]
