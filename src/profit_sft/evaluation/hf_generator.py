"""Generation by transformers, through lm-evaluation-harness's `HFLM`, with random numbers that belong to the sample.

They do not depend on the batch (see `kept_answers.sample_seed`). The logits they are applied to are the model's, which
in another batch differ by rounding (another amount of padding, other matrix kernels): where two tokens are almost
equally likely the text may then still differ.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from profit_sft.errors import ConfigurationError, first_line
from profit_sft.evaluation.generator import Answer, Generator, Request
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.linears import linears_by_onednn
from profit_sft.models.pretrained import default_device, end_tokens, load_model, load_tokenizer


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


class HFGenerator(Generator):
    """transformers on one device: each row draws its tokens with random numbers of its own, and says how it ended.

    Args:
        settings: Which model and dtype; `engine_args` are `HFLM`'s.

    Raises:
        ConfigurationError: There is no such model, or `HFLM` does not take the arguments.
    """

    def __init__(self, settings: EvalSettings) -> None:
        tokenizer = load_tokenizer(settings.model_name_or_path)
        model = load_model(
            settings.model_name_or_path, dtype=settings.dtype, allow_missing_weights=settings.allow_missing_weights
        )
        model.to(default_device())  # type: ignore[arg-type]  # transformers wraps it
        eos = end_tokens(model, tokenizer.eos_token_id)
        # The checkpoint's own file may set a temperature or a repetition penalty, which would silently apply on top.
        model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)
        # A chat template writes what a prompt begins with, and training encodes what it has written as it is.
        arguments = {"add_bos_token": False} if settings.apply_chat_template else {}
        try:
            super().__init__(SeededHFLM(pretrained=model, tokenizer=tokenizer, **{**arguments, **settings.engine_args}))
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigurationError(f"engine_args: the harness's hf model does not take them ({error}).") from None
        self.lm.end_tokens = eos
        if self.lm.device.type == "cuda":
            self.device_name = torch.cuda.get_device_name()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests, as `Generator` does.

        Raises:
            ConfigurationError: They do not fit into the device's memory.
        """
        self.lm.rows, self.lm.batch_size_per_gpu = requests, len(requests)
        try:
            with linears_by_onednn(self.lm.model):
                return super().answer(requests)
        except torch.OutOfMemoryError as error:
            raise ConfigurationError(
                f"batch_size: {len(requests)} answers do not fit into memory together ({first_line(error)}). "
                "Lower batch_size; finished samples are kept."
            ) from None


class SeededHFLM(HFLM):
    """`HFLM` with the seeds of its rows.

    Attributes:
        end_tokens: What ends an answer.
        rows: The requests of the next batch, in the order the harness sorts them in.
    """

    end_tokens: list[int]
    rows: Sequence[Request]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Answer the requests of `rows`, and say of each answer how long it is and whether it was cut off."""
        texts = super().generate_until(requests, disable_tqdm)
        return [Answer(text, *end) for text, end in zip(texts, self._ends, strict=True)]

    def tok_batch_encode(self, strings: Sequence[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Encode a batch as HFLM does, and make sure that its rows are in the order the seeds are in."""
        assert list(strings) == [row.prompt for row in self.rows], "HFLM's order of rows is not the one expected"
        encoded: tuple[Tensor, Tensor] = super().tok_batch_encode(strings, *args, **kwargs)
        return encoded

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **arguments: Any) -> Tensor:
        """Generate with the rows' random numbers; note how each row ends."""
        prompt_length = context.shape[1]
        if arguments.pop("do_sample"):
            sampling = SeededSampling(
                [row.seed for row in self.rows],
                prompt_length=prompt_length,
                max_new_tokens=max_length - prompt_length,
                temperature=arguments.pop("temperature"),
                top_p=arguments.pop("top_p", 1.0),
                top_k=arguments.pop("top_k", 0),
                device=context.device,
            )
            arguments["logits_processor"] = LogitsProcessorList([sampling])
        arguments.pop("temperature", None)
        tokens: Tensor = super()._model_generate(
            context, max_length, stop, do_sample=False, temperature=0.0, **arguments
        )
        self._ends = [self._end(row, stop) for row in tokens[:, prompt_length:].tolist()]
        return tokens

    def _end(self, row: list[int], stop: list[str]) -> tuple[int, bool]:
        length = next((place + 1 for place, token in enumerate(row) if token in self.end_tokens), None)
        if length is not None:
            return length, False
        # A row that came to a stop string goes on until the last one does; the harness cuts it there.
        text = self.tok_decode(row)
        ends = [text.index(words) for words in stop if words and words in text]
        return (len(self.tok_encode(text[: min(ends)])), False) if ends else (len(row), True)
