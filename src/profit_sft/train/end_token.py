"""The token that ends a trained answer: read off the labels, and made to be heeded by the model that is saved.

A base model's EOS is often not what a chat template ends its turns with (Qwen3's bases: `<|endoftext|>` and
`<|im_end|>`). Such a model learns an end that nothing stops at.
"""

import warnings
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from profit_sft.mask.labels import label_ends
from profit_sft.models.pretrained import end_tokens

_ROWS = 256  # looked at; a template ends every turn alike


def trained_end(rows: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the token that most stretches of labels end in, or None where no token ends more than half of them.

    Rows that were cut at `max_length` end anywhere, so there may be none.

    Args:
        rows: With `labels`; only the first are looked at.
    """
    counts = label_ends(islice(rows, _ROWS))
    token, count = max(counts.items(), key=lambda item: item[1], default=(None, 0))
    return token if 2 * count > counts.total() else None


def heed_trained_end(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, model: Any, *, asked: str | None
) -> str | None:
    """Make the token that ends the trained answers the tokenizer's EOS where neither it nor the model ends there.

    Saving writes the tokenizer; transformers' Trainer adds its EOS to those of the model and its generation config.

    Args:
        rows: The training data, with `labels`.
        tokenizer: Changed in place.
        model: For its generation config.
        asked: The EOS token that was asked for by name; then a warning says what ends the answers instead.

    Returns:
        The token that ends the trained answers and that the model now stops at, or None where that is not known.
    """
    end = trained_end(rows)
    # Any other token may follow an end: no rule could stop at it.
    if end is None or end not in tokenizer.added_tokens_decoder:
        return None
    text = str(tokenizer.convert_ids_to_tokens(end))
    if end in end_tokens(model, tokenizer.eos_token_id):
        return text
    if asked is not None:
        warnings.warn(
            f"the trained answers end in '{text}', and eos_token is '{asked}', so the model would learn an end that "
            f"nothing stops at. Set eos_token to '{text}', or leave it out.",
            stacklevel=3,
        )
        return None
    tokenizer.eos_token = text
    return text
