"""Formats in, tokenized and labeled examples out; and the generated data set."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profit_sft.data.blocks import LISTED_ROWS, SkippedRow
    from profit_sft.data.formats import FORMATS, Conversation, detect_format, to_conversation
    from profit_sft.data.prepare import (
        DataReport,
        PreparedData,
        check_tokens_fit,
        prepare_dataset,
        stream_dataset,
        tokenizer_fingerprint,
    )
    from profit_sft.data.row import Row, RowSource
    from profit_sft.data.rows import load_rows
    from profit_sft.data.settings import DataOptions, DataSettings, Labeling
    from profit_sft.data.tokenize import IGNORE_INDEX, TOKEN_KINDS, Tokenized, tokenize_conversation

# Loaded on first use: `profit --help` knows the settings, and must not load torch for it.
_LAZY = {
    "FORMATS": "formats",
    "IGNORE_INDEX": "tokenize",
    "LISTED_ROWS": "blocks",
    "Labeling": "settings",
    "TOKEN_KINDS": "tokenize",
    "Conversation": "formats",
    "DataOptions": "settings",
    "DataReport": "prepare",
    "DataSettings": "settings",
    "PreparedData": "prepare",
    "Row": "row",
    "RowSource": "row",
    "SkippedRow": "blocks",
    "Tokenized": "tokenize",
    "check_tokens_fit": "prepare",
    "detect_format": "formats",
    "load_rows": "rows",
    "prepare_dataset": "prepare",
    "stream_dataset": "prepare",
    "to_conversation": "formats",
    "tokenize_conversation": "tokenize",
    "tokenizer_fingerprint": "prepare",
}

__all__ = [
    "FORMATS",
    "IGNORE_INDEX",
    "LISTED_ROWS",
    "TOKEN_KINDS",
    "Conversation",
    "DataOptions",
    "DataReport",
    "DataSettings",
    "Labeling",
    "PreparedData",
    "Row",
    "RowSource",
    "SkippedRow",
    "Tokenized",
    "check_tokens_fit",
    "detect_format",
    "load_rows",
    "prepare_dataset",
    "stream_dataset",
    "to_conversation",
    "tokenize_conversation",
    "tokenizer_fingerprint",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"profit_sft.data.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'profit_sft.data' has no attribute {name!r}")
