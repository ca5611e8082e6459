"""Generation by transformers, through lm-evaluation-harness's `HFLM`."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from profit_sft.errors import ConfigurationError
from profit_sft.evaluation.engine import Generated, Request, answer_batch, end_tokens
from profit_sft.evaluation.sampling import SeededSampling
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.models.pretrained import load_model, load_tokenizer


class HFEngine(HFLM):
    """`HFLM` that draws each row's tokens with random numbers of its own and notes how each row ended.

    Args:
        settings: Which model, dtype and decoding.

    Raises:
        ConfigurationError: There is no such model.
    """

    def __init__(self, settings: EvalSettings) -> None:
        self._settings = settings
        tokenizer = load_tokenizer(settings.model_name_or_path)
        model = load_model(settings.model_name_or_path, dtype=settings.dtype)
        model.to(_device())  # type: ignore[arg-type]  # transformers wraps it
        eos = end_tokens(model, tokenizer.eos_token_id)
        # The checkpoint's own file may set a temperature or a repetition penalty, which would silently apply on top.
        model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
        self._end_tokens = eos
        self.rows: list[Request] = []
        self.row_ends: list[tuple[int, bool]] = []
        self.window = int(self.max_length)
        self.has_chat_template = tokenizer.chat_template is not None
        self.device_name = torch.cuda.get_device_name() if self.device.type == "cuda" else str(self.device)

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return the length of each prompt in tokens."""
        return [len(self.tok_encode(prompt)) for prompt in prompts]

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generated]:
        """Answer one batch of requests, in their order.

        Raises:
            ConfigurationError: The batch does not fit into the device's memory.
        """
        self.batch_size_per_gpu = len(requests)
        arguments = {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens}
        try:
            return answer_batch(self, requests, lambda _: arguments)
        except torch.OutOfMemoryError as error:
            raise ConfigurationError(
                f"batch_size: {len(requests)} answers of up to {max_new_tokens} tokens do not fit into memory together "
                f"({str(error).splitlines()[0]}). Lower batch_size or max_new_tokens; finished samples are kept."
            ) from None

    def tok_batch_encode(self, strings: Sequence[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Encode a batch as HFLM does, and make sure that its rows are in the order the seeds are in."""
        assert list(strings) == [row.prompt for row in self.rows], "HFLM's order of rows is not the one expected"
        encoded: tuple[Tensor, Tensor] = super().tok_batch_encode(strings, *args, **kwargs)
        return encoded

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """Generate with the settings' decoding; note how long each row is and whether it ended."""
        settings, prompt_length = self._settings, context.shape[1]
        if not settings.greedy:
            sampling = SeededSampling(
                [row.seed for row in self.rows],
                prompt_length=prompt_length,
                max_new_tokens=max_length - prompt_length,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                device=context.device,
            )
            generation_kwargs["logits_processor"] = LogitsProcessorList([sampling])
        tokens: Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
        ended = torch.isin(tokens[:, prompt_length:], torch.tensor(self._end_tokens, device=tokens.device))
        self.row_ends = [(row.index(True) + 1, False) if True in row else (len(row), True) for row in ended.tolist()]
        return tokens


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
