"""What generates: a model of lm-evaluation-harness, with a seed for each sample where it takes one."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from profit_sft.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to be generated.

    Attributes:
        key: Numbers of its problem and of the sample.
        prompt: The whole prompt, as the harness renders it: a text, or messages in JSON.
        arguments: The harness's generation arguments.
        seed: Of its random numbers, in [0, 2^63).
    """

    key: tuple[int, int]
    prompt: Any
    arguments: Mapping[str, Any]
    seed: int


class Answer(str):
    """One generated answer.

    Attributes:
        new_tokens: Its length, the end-of-sequence token included where the generator gives it; None: not known.
        truncated: True if it was cut off before it ended.
    """

    new_tokens: int | None
    truncated: bool

    def __new__(cls, text: str = "", new_tokens: int | None = None, truncated: bool = False) -> "Answer":
        """Make the text an answer."""
        made = super().__new__(cls, text)
        made.new_tokens, made.truncated = new_tokens, truncated
        return made


class Generator:
    """Any model of the harness.

    A batch of requests is longest first, and sorted by prompt where lengths are equal, as the harness sorts it. What
    takes no seed with a request draws with torch's generator, which gets that of the first.

    Args:
        lm: The model.
        seeded: Whether it takes a seed with each request.
    """

    def __init__(self, lm: Any, *, seeded: bool = False) -> None:
        self.lm = lm
        self._seeded = seeded
        self.device_name = str(lm.device)

    @property
    def window(self) -> int | None:
        """Tokens of prompt and answer at most; None: not known."""
        return int(self.lm.max_length) if self.tokenizer is not None and hasattr(self.lm, "max_length") else None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None where the model is a server's."""
        return getattr(self.lm, "tokenizer", None)

    def length(self, prompt: Any) -> int:
        """Return how long a prompt is: in tokens, or in characters where nobody knows its tokens."""
        return len(str(prompt)) if self.tokenizer is None else len(self.lm.tok_encode(prompt))

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer a batch of requests, in its order."""
        torch.manual_seed(requests[0].seed)
        texts = self.lm.generate_until([self._instance(request) for request in requests], disable_tqdm=True)
        return [self._answer(text, request) for text, request in zip(texts, requests, strict=True)]

    def _instance(self, request: Request) -> Any:
        from lm_eval.api.instance import Instance

        # Some libraries read 32 bits of a seed, signed ones.
        seed = {"seed": request.seed % 2**31} if self._seeded and request.arguments["do_sample"] else {}
        return Instance("generate_until", {}, (request.prompt, {**request.arguments, **seed}), 0)

    def _answer(self, text: str, request: Request) -> Answer:
        if isinstance(text, Answer):
            return Answer(text.strip(), text.new_tokens, text.truncated)
        if self.tokenizer is None:
            return Answer(text.strip())
        new_tokens = len(self.lm.tok_encode(text))
        return Answer(text.strip(), new_tokens, new_tokens >= request.arguments["max_gen_toks"])


class ServedGenerator(Generator):
    """A model behind an API: each request on its own and with its own seed, all of a batch at the same time."""

    def __init__(self, lm: Any) -> None:
        super().__init__(lm, seeded=True)
        self.device_name = str(lm.base_url)
        lm.parse_generations = _noting_ends(lm.parse_generations)
        lm._create_payload = _without_empty_stop(lm._create_payload)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer a batch of requests, in its order.

        Raises:
            ConfigurationError: The server cannot be reached, or refuses a request.
        """
        from requests import RequestException

        with ThreadPoolExecutor(len(requests)) as pool:
            try:
                return [answer for answers in pool.map(self._alone, requests) for answer in answers]
            except RequestException as error:
                said = "" if error.response is None else f" ({error.response.text[:300]})"
                raise ConfigurationError(
                    f"engine {self.device_name}: {error}{said}. Finished answers are kept; the same command goes on."
                ) from None

    def _alone(self, request: Request) -> list[Answer]:
        return super().answer([request])


def _noting_ends(parse: Callable[..., list[str | None]]) -> Callable[..., list[Answer]]:
    """Have the harness's reader of a response keep how each answer ended."""

    def parse_generations(outputs: Any, **arguments: Any) -> list[Answer]:
        responses = outputs if isinstance(outputs, list) else [outputs]
        ends = []
        for response in responses:
            choices = sorted(response["choices"], key=itemgetter("index"))
            tokens = (response.get("usage") or {}).get("completion_tokens") if len(choices) == 1 else None
            ends += [(tokens, choice.get("finish_reason") == "length") for choice in choices]
        texts = parse(outputs=outputs, **arguments)
        return [Answer(text or "", *end) for text, end in zip(texts, ends, strict=True)]

    return parse_generations


def _without_empty_stop(create: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Leave out of a request a list of no stop strings, which transformers' server (5.24) fails at."""

    def create_payload(*arguments: Any, **named: Any) -> dict[str, Any]:
        payload = create(*arguments, **named)
        return {name: value for name, value in payload.items() if name != "stop" or value}

    return create_payload
