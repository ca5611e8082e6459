"""Generation by vLLM, through lm-evaluation-harness's `VLLM`.

vLLM samples each request with a generator of its own, seeded with the sample's seed, so what `sampling.py` promises
holds; its random numbers are others than ours for transformers, so texts of the two engines differ. This module was
written against vLLM's and the harness's documented interfaces, not tested with an installed vLLM.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from profit_sft.errors import ConfigurationError, require_extra
from profit_sft.evaluation.engine import Engine, Generated, Request, answer_batch
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.models.pretrained import pretrained_path


def check_vllm(settings: EvalSettings) -> None:
    """Refuse what the engine cannot do, before anything is written.

    Raises:
        ConfigurationError: vLLM is not installed, or the model is a LoRA adapter.
    """
    require_extra("vllm", wanted_by="engine 'vllm' (the engine hf does not)")
    path = pretrained_path(settings.model_name_or_path)
    if (Path(path) / "adapter_config.json").is_file():
        raise ConfigurationError(
            f"model_name_or_path: '{path}' is a LoRA adapter, which the engine vllm cannot take. Merge it into "
            "its model, or use the engine hf."
        )


def load_vllm(settings: EvalSettings) -> Engine:
    """Load the model into vLLM; errors as `check_vllm`."""
    check_vllm(settings)
    from lm_eval.models.vllm_causallms import VLLM

    path = pretrained_path(settings.model_name_or_path)

    class VLLMEngine(VLLM):  # here, since its base cannot be imported without vLLM
        """`VLLM` that notes how each answer ended."""

        def __init__(self) -> None:
            super().__init__(pretrained=path, dtype=settings.dtype, batch_size="auto", seed=settings.seed)
            self.rows: list[Request] = []
            self.row_ends: list[tuple[int, bool]] = []
            self.window = int(self.max_length)
            self.has_chat_template = self.hf_chat_template is not None
            self.device_name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"

        def count_tokens(self, prompts: Sequence[str]) -> list[int]:
            """Return the length of each prompt in tokens."""
            return [len(tokens) for tokens in self.tok_encode(list(prompts))]

        def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generated]:
            """Answer one batch of requests, in their order."""
            return answer_batch(self, requests, lambda request: _sampling_arguments(settings, request, max_new_tokens))

        def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super()._model_generate(*args, **kwargs)
            answers = [output.outputs[0] for output in outputs]
            self.row_ends = [(len(answer.token_ids), answer.finish_reason == "length") for answer in answers]
            return outputs

    engine: Engine = VLLMEngine()
    return engine


def _sampling_arguments(settings: EvalSettings, request: Request, max_new_tokens: int) -> dict[str, Any]:
    """Return what the harness turns into vLLM's `SamplingParams`."""
    common = {"until": [], "max_gen_toks": max_new_tokens, "skip_special_tokens": True}
    if settings.greedy:
        return {**common, "do_sample": False}
    return {
        **common,
        "do_sample": True,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "seed": request.seed,
    }
