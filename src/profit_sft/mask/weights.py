"""What any objective would weigh the label tokens of score sets by, as far as the scores hold what it looks at."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from profit_sft.errors import ConfigurationError
from profit_sft.loss.chunked import topk_entropy
from profit_sft.mask.tokens import LabelTokens
from profit_sft.objectives import ENTROPY_TOP_K, Objective, TokenStats
from profit_sft.scores.store import ScoreSet

_REMEDIES = {
    "entropy": "Score again with this version.",
    "topk_entropy": f"Score again with --likeliest {ENTROPY_TOP_K}.",
    "reference_log_probs": "Give two score sets, those of the reference first.",
}


def objective_weights(
    objective: Objective, score_sets: Sequence[ScoreSet], tokens: LabelTokens
) -> NDArray[np.float32]:
    """Return `(M, N)`, the token weights under each model.

    The first of two score sets is the reference, for an objective that has one. An objective that ranks the tokens of a
    batch sees an example at a time, since what a batch would hold is not known.

    Args:
        objective: Any.
        score_sets: One or two.
        tokens: Their label tokens.

    Raises:
        ConfigurationError: The objective looks at something the scores do not hold; names it and the remedy.
    """
    starts = [0] if objective.elementwise else np.flatnonzero(np.diff(tokens.examples, prepend=-1)).tolist()
    parts = [slice(start, end) for start, end in zip(starts, [*starts[1:], tokens.token_ids.size], strict=True)]
    labels = torch.from_numpy(tokens.token_ids.astype(np.int64))
    found = []
    for scores, log_probs in zip(score_sets, tokens.log_probs, strict=True):
        stats = _stats(objective, score_sets, scores, log_probs, tokens)
        weights = [
            objective.token_weights(
                TokenStats(labels=labels[part], **{name: value[part] for name, value in stats.items()})
            )
            for part in parts
        ]
        found.append(torch.cat(weights).float().numpy())
        if not np.isfinite(found[-1]).all():
            raise ConfigurationError(f"objective {objective!r} gives a label token a weight that is not finite.")
    return np.stack(found)


def _stats(
    objective: Objective,
    score_sets: Sequence[ScoreSet],
    scores: ScoreSet,
    log_probs: NDArray[np.float64],
    tokens: LabelTokens,
) -> dict[str, torch.Tensor]:
    """Return what the objective looks at, `(N,)` fp32 each."""
    stats = {}
    for name in sorted(objective.needs):
        value: NDArray[np.floating] | None = None
        if name == "log_probs":
            value = log_probs
        elif name == "reference_log_probs" and len(score_sets) == 2:
            value = tokens.log_probs[0]
        elif name == "entropy":
            value = scores.column("entropy")
        elif name == "topk_entropy" and scores.manifest.likeliest >= ENTROPY_TOP_K:
            value = np.concatenate([_topk_entropy(example.likeliest_log_probs) for example in scores])
        if value is None or not np.isfinite(value).all():
            remedy = _REMEDIES.get(name, "What it weighs can be seen in a run: profit train --dry-run.")
            raise ConfigurationError(
                f"objective {objective!r} looks at {name}, which '{scores.folder}' does not hold. {remedy}"
            )
        stats[name] = torch.from_numpy(np.asarray(value, np.float32))
    return stats


def _topk_entropy(likeliest_log_probs: NDArray[np.float16] | None) -> NDArray[np.float32]:
    assert likeliest_log_probs is not None  # the manifest says that they are there
    found: NDArray[np.float32] = topk_entropy(torch.from_numpy(likeliest_log_probs.astype(np.float32))).numpy()
    return found
