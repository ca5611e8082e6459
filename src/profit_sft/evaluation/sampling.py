"""Choosing the next token with random numbers that belong to the sample, not to the batch.

A sample's random numbers follow from the evaluation's seed, the task, the number of the problem and the number of the
sample. So they stay the same whatever `limit`, `batch_size`, the other tasks and an interruption do. The logits they
are applied to are the model's, which in another batch differ by rounding (another amount of padding, other matrix
kernels): where two tokens are almost equally likely the text may then still differ.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor


def sample_seed(seed: int, task: str, problem: int, sample: int) -> int:
    """Return the seed of one sample, an int in [0, 2^63).

    Args:
        seed: The evaluation's seed.
        task: Name of the task.
        problem: Number of the problem in the task's data.
        sample: Number of the sample.
    """
    digest = hashlib.sha256(f"{seed}/{task}/{problem}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class SeededSampling(LogitsProcessor):
    """Leave one token a row, drawn from the softmax after temperature, top-k and top-p, so that greedy search takes it.

    The token is found by inverting the distribution function over the tokens in order of falling probability at a
    uniform number of the row's own generator, one number a step. top-p keeps a token if those likelier than it have
    less than `top_p` of what top-k left, as transformers does.

    Args:
        seeds: One seed a row.
        prompt_length: Tokens of the padded prompts.
        max_new_tokens: Steps at most.
        temperature: Positive.
        top_p: In (0, 1].
        top_k: At least 0; 0 keeps all.
        device: Where the logits are.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        prompt_length: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        device: torch.device,
    ) -> None:
        # numpy's stream does not depend on how many numbers are asked for at once; torch makes no such promise.
        uniforms = np.stack([np.random.Generator(np.random.PCG64(seed)).random(max_new_tokens) for seed in seeds])
        self._uniforms = torch.from_numpy(uniforms.astype(np.float32)).to(device)  # (B, steps) fp32
        self._prompt_length = prompt_length
        self._temperature, self._top_p, self._top_k = temperature, top_p, top_k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `scores` with all but the drawn token of each row at minus infinity.

        Args:
            input_ids: `(B, S)`, int64. Prompts and what has been generated.
            scores: `(B, V)`, float. Logits of the next token.
        """
        step = input_ids.shape[1] - self._prompt_length
        vocab_size = scores.shape[1]
        kept = min(self._top_k or vocab_size, vocab_size)
        logits, token_ids = (scores.float() / self._temperature).topk(kept)  # (B, kept) fp32, falling
        probs = logits.softmax(-1)
        likelier = probs.cumsum(-1) - probs
        reached = probs.where(likelier < self._top_p, 0).cumsum(-1)
        target = self._uniforms[:, step, None] * reached[:, -1:]
        drawn = (reached <= target).sum(-1, keepdim=True).clamp(max=kept - 1)  # (B, 1)
        return torch.full_like(scores, float("-inf")).scatter_(1, token_ids.gather(1, drawn), 0.0)
