"""All label tokens of a score set as flat arrays, and which of them a threshold keeps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profit_sft.errors import DataError
from profit_sft.scores.store import ScoreSet

# The paper studies 0.1 to 0.9; below that lie the tokens a strong model finds nearly impossible.
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelTokens:
    """Label tokens in data order, N of them.

    Attributes:
        log_probs: `(N,)` float64. Natural log of the probability the scored model gives the token.
        examples: `(N,)` int64. Which example the token belongs to, counted from 0 in data order.
        token_kinds: `(N,)` int8, values of `profit_sft.data.TOKEN_KINDS`; None where no row has `answer_spans`.
    """

    log_probs: npt.NDArray[np.float64]
    examples: npt.NDArray[np.int64]
    token_kinds: npt.NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        if self.log_probs.size == 0:
            raise DataError("there is no label token to look at. Score a data set that has at least one row.")
        bad = int((~np.isfinite(self.log_probs)).sum())
        if bad:
            raise DataError(
                f"{bad} of {self.log_probs.size} label tokens have no finite log p: the model's logits overflow. Score "
                "again with --dtype float32, or with another model."
            )

    @property
    def num_examples(self) -> int:
        """Examples that have label tokens."""
        return int(np.unique(self.examples).size)

    @property
    def answer_positions(self) -> npt.NDArray[np.int64]:
        """`(N,)` int64: place of each token among the label tokens of its example, from 0."""
        starts = np.flatnonzero(np.r_[True, self.examples[1:] != self.examples[:-1]])
        lengths = np.diff(np.r_[starts, self.examples.size])
        return np.arange(self.examples.size) - np.repeat(starts, lengths)


def label_tokens(scores: ScoreSet) -> LabelTokens:
    """Read a score set into memory: 17 bytes a label token.

    Args:
        scores: What `load_scores` returns.

    Raises:
        DataError: There is no label token, or one has no finite log p.
    """
    lengths = [example.positions.size for example in scores]
    return LabelTokens(
        log_probs=scores.column("log_probs").astype(np.float64),
        examples=np.repeat(np.arange(len(lengths)), lengths),
        token_kinds=scores.column("token_kinds") if scores.has_kinds else None,
    )


def kept_mask(log_probs: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.bool_]:
    """Return True where ProFit keeps the token: `p >= threshold`.

    The comparison is that of `ProFit`: of fp32 log-probabilities, in log space.

    Args:
        log_probs: `(N,)` float64 that hold fp32 values.
        threshold: A probability in [0, 1].
    """
    floor = np.float32(math.log(threshold)) if threshold > 0 else -math.inf
    return log_probs >= floor


def checked_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Return the thresholds in ascending order, each once, or raise ValueError for one that is no probability."""
    for threshold in thresholds:
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be a probability in [0, 1], got {threshold}. Write 10% as 0.1.")
    return tuple(sorted(set(thresholds)))
