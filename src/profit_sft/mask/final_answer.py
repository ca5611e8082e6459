"""Which label tokens make up an example's final answer, as far as the data shows it.

The final answer is the last run of core tokens where the example has any, else the last number of its answer.
"""

import re

import numpy as np
import numpy.typing as npt

from profit_sft.data.tokenize import TOKEN_KINDS
from profit_sft.scores.store import ScoredExample, ScoreSet

Bools = npt.NDArray[np.bool_]

_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")


def final_answer_mask(scores: ScoreSet) -> Bools:
    """Return `(N,)`, True for label tokens of a final answer, over all label tokens in data order.

    Args:
        scores: A score set; its tokenizer says which tokens are parts of a number.
    """
    token_ids = np.unique(scores.column("token_ids")).tolist()
    texts = scores.tokenizer().batch_decode([[token] for token in token_ids], skip_special_tokens=True)
    text_of = dict(zip(token_ids, texts, strict=True))
    return np.concatenate([_of_example(example, text_of) for example in scores])


def _of_example(example: ScoredExample, text_of: dict[int, str]) -> Bools:
    if example.token_kinds is not None and (example.token_kinds == TOKEN_KINDS["core"]).any():
        return _last_run(example.token_kinds == TOKEN_KINDS["core"])
    return _last_number([text_of[token] for token in example.input_ids[example.positions].tolist()])


def _last_run(chosen: Bools) -> Bools:
    end = int(np.flatnonzero(chosen)[-1]) + 1
    others = np.flatnonzero(~chosen[:end])
    places = np.arange(chosen.size)
    return (places < end) & (places > (others[-1] if others.size else -1))


def _last_number(pieces: list[str]) -> Bools:
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    numbers = list(_NUMBER.finditer("".join(pieces)))
    if not numbers:
        return np.zeros(len(pieces), dtype=bool)
    overlapping: Bools = (starts < numbers[-1].end()) & (numbers[-1].start() < ends)
    return overlapping
