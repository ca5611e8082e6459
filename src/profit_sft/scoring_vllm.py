"""The scoring engine `vllm`: prompt log-probabilities through vLLM's public API.

vLLM (https://docs.vllm.ai) gives, for every token of a prompt, its log-probability and rank and those of the likeliest
tokens: `SamplingParams(prompt_logprobs=1)`, `RequestOutput.prompt_logprobs`. It does not give the entropy over the
whole vocabulary, so that is stored as NaN. Its logits are of the model's dtype: with bfloat16 a probability is off by
up to some percent, and a mask near its threshold with it; the engine `hf` forms them in fp32. Its rank counts a token
that ties with the label as likelier.

This module was tested against a recorded contract, that is stand-ins with the documented fields, not against an
installed vLLM.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from profit_sft.errors import ConfigurationError, require_extra
from profit_sft.models.pretrained import pretrained_path
from profit_sft.scores.engine import Engine, LabelPositions, LabelScores


def vllm_engine(
    name: str, *, longest: int, dtype: str = "auto", revision: str | None = None, trust_remote_code: bool = False
) -> Engine:
    """Load the model in vLLM.

    Args:
        name: Hub name, folder, or `embedded`.
        longest: Tokens of the longest example.
        dtype: Of the model and its logits.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ConfigurationError: vLLM is not installed, or the model is a LoRA adapter.
    """
    path = pretrained_path(name)
    if (Path(path) / "adapter_config.json").is_file():
        raise ConfigurationError(
            f"engine 'vllm' loads whole models, and '{path}' is a LoRA adapter. Merge it first, or use --engine hf."
        )
    require_extra("vllm", wanted_by="engine 'vllm' (--engine hf does not)")
    from vllm import LLM, SamplingParams

    model = LLM(
        model=path,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        max_model_len=longest + 1,  # it cannot be asked for no new token at all
    )
    wanted = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=1, detokenize=False)

    def score(batch: Sequence[LabelPositions]) -> list[LabelScores]:
        prompts = [{"prompt_token_ids": example.input_ids.tolist()} for example in batch]
        outputs = model.generate(prompts, wanted, use_tqdm=False)
        return [_read(example, output.prompt_logprobs) for example, output in zip(batch, outputs, strict=True)]

    return score


def _read(example: LabelPositions, prompt_logprobs: Sequence[Mapping[int, Any] | None]) -> LabelScores:
    """Pick the label tokens out of one request's values: one mapping a token, None for the first."""
    if len(prompt_logprobs) != len(example.input_ids):
        raise RuntimeError(
            f"vLLM returned {len(prompt_logprobs)} prompt log-probabilities for {len(example.input_ids)} tokens."
        )
    found = [prompt_logprobs[position] for position in example.positions]
    labels = [
        (entries or {})[int(token)] for entries, token in zip(found, example.input_ids[example.positions], strict=True)
    ]
    # The label comes along though it is not the likeliest; of two that tie, rank tells.
    likeliest = [
        min(entries or {}, key=lambda token: (-entries[token].logprob, entries[token].rank)) for entries in found
    ]
    return LabelScores(
        log_probs=np.array([label.logprob for label in labels], np.float32),
        entropy=np.full(len(labels), np.nan, np.float32),
        top1=np.array(likeliest, np.int32),
        rank=np.array([label.rank for label in labels], np.int32),
    )
