"""Formats in, tokenized and labeled examples out; and the generated data set."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profit_sft.data.blocks import LISTED_ROWS as LISTED_ROWS
    from profit_sft.data.formats import FORMATS as FORMATS
    from profit_sft.data.formats import detect_format as detect_format
    from profit_sft.data.formats import to_conversation as to_conversation
    from profit_sft.data.prepare import DataReport as DataReport
    from profit_sft.data.prepare import PreparedData as PreparedData
    from profit_sft.data.prepare import check_tokens_fit as check_tokens_fit
    from profit_sft.data.prepare import prepare_dataset as prepare_dataset
    from profit_sft.data.prepare import stream_dataset as stream_dataset
    from profit_sft.data.prepare import tokenizer_fingerprint as tokenizer_fingerprint
    from profit_sft.data.row import Row as Row
    from profit_sft.data.rows import load_rows as load_rows
    from profit_sft.data.settings import DataOptions as DataOptions
    from profit_sft.data.settings import DataSettings as DataSettings
    from profit_sft.data.settings import Labeling as Labeling
    from profit_sft.data.tokenize import IGNORE_INDEX as IGNORE_INDEX
    from profit_sft.data.tokenize import TOKEN_KINDS as TOKEN_KINDS
    from profit_sft.data.tokenize import tokenize_conversation as tokenize_conversation

# Loaded on first use: `profit --help` knows the settings, and must not load torch for it.
_HOMES = {
    "blocks": ("LISTED_ROWS",),
    "formats": ("FORMATS", "detect_format", "to_conversation"),
    "prepare": (
        *("DataReport", "PreparedData", "check_tokens_fit", "prepare_dataset", "stream_dataset"),
        "tokenizer_fingerprint",
    ),
    "row": ("Row",),
    "rows": ("load_rows",),
    "settings": ("DataOptions", "DataSettings", "Labeling"),
    "tokenize": ("IGNORE_INDEX", "TOKEN_KINDS", "tokenize_conversation"),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'profit_sft.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"profit_sft.data.{home}"), name)
