"""What the runner asks of a model behind lm-evaluation-harness, and asking it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to be generated: the whole prompt, and the seed of its random numbers."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Generated:
    """One generated answer.

    Attributes:
        text: Without special tokens.
        new_tokens: Its length, the end-of-sequence token included.
        truncated: True if it was cut off before it ended.
    """

    text: str
    new_tokens: int
    truncated: bool


def answer_batch(
    lm: Any, requests: Sequence[Request], arguments: Callable[[Request], dict[str, Any]]
) -> list[Generated]:
    """Have a model of the harness answer requests in one batch.

    Args:
        lm: The model. Before the call its `rows` are set to the requests in the order the harness has them in; after
            it, its `row_ends` say of each how many tokens it has and whether it was cut off.
        requests: The requests.
        arguments: From a request to the harness's generation arguments.

    Returns:
        The answers in the order of `requests`.
    """
    from lm_eval.api.instance import Instance

    lengths = lm.count_tokens([request.prompt for request in requests])
    # The harness's own order, whose sort is stable. So row i of its batch is request order[i].
    order = sorted(range(len(requests)), key=lambda index: (-lengths[index], requests[index].prompt))
    lm.rows = [requests[index] for index in order]
    instances = [Instance("generate_until", {}, (row.prompt, arguments(row)), 0) for row in lm.rows]
    texts = lm.generate_until(instances, disable_tqdm=True)
    answers = {index: Generated(text.strip(), *end) for index, text, end in zip(order, texts, lm.row_ends, strict=True)}
    return [answers[index] for index in range(len(requests))]


def end_tokens(model: "PreTrainedModel", eos_token_id: int | None) -> list[int]:
    """Return what ends an answer: the checkpoint's end tokens (chat models have several) and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in [*found, eos_token_id] if token is not None})
