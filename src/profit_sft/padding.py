"""Padding that costs nothing: the layers see a batch's tokens end to end, and attention sees them row by row.

A padded batch `(B, S)` is run as one row `(1, T)` of its T tokens that some label depends on: no padding, and nothing
behind the last label of a row, since a causal model's earlier states do not depend on it. Position ids are those of the
padded batch. Only attention must know of rows; it is given them as an argument that the layers pass on, pads what it is
given to the longest row, and needs no mask for that.

Not every model's layers pass it on, and some mix positions elsewhere (convolutions, recurrent states). Which do is not
listed but tried: `rows_are_independent` runs two short rows both ways.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_ROWS = "rows_of_tokens"  # the argument under which layers pass them on to attention
_ATTENTION = "sdpa"  # PyTorch's own, and the default of transformers
# Below this share of a batch the tokens are not laid out anew, which costs about as much as it saves.
_WORTH = 0.03
# What a call of the backbone may name; anything else may belong to the layout of the padded batch.
_ARGUMENTS = frozenset({"input_ids", "labels", "attention_mask", "output_router_logits", "return_dict"})
# Settings of a model that make it return something of every token of the batch.
_OF_EVERY_TOKEN = ("output_hidden_states", "output_attentions")
# Settings that keep attention from looking further back than so many tokens. Shorter rows do not notice.
_WINDOWS = ("sliding_window", "attention_chunk_size")
# Rotary embeddings whose frequencies change for all tokens where the last position is far enough.
_ROPE_BY_LENGTH = ("dynamic", "longrope")
_ORIGINAL_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True, eq=False, slots=True)
class TokenRows:
    """Where the tokens of a padded batch stand that are run.

    Attributes:
        in_batch: `(T,)`, int64: places in the batch, flattened, ascending.
        in_rows: `(T,)`, int64: places in `(num_rows, longest)`, flattened, where each row begins at the left.
        shape: `(B, S)` of the batch.
        longest: The most tokens of a row.
    """

    in_batch: Tensor
    in_rows: Tensor
    shape: tuple[int, int]
    longest: int

    @classmethod
    def of(cls, needed: Tensor) -> "TokenRows":
        """Return the places of the tokens that are needed, `(B, S)` bool."""
        num_rows, size = needed.shape
        in_batch = needed.flatten().nonzero().squeeze(1)  # waits for the device, as the size of the step depends on it
        in_row = needed.cumsum(1) - 1
        longest = int(in_row.max()) + 1 if size else 0
        rows = torch.arange(num_rows, device=needed.device)[:, None] * longest
        return cls(in_batch, (rows + in_row).flatten()[in_batch], (num_rows, size), longest)

    def laid_out(self, values: Tensor) -> Tensor:
        """Pad `(1, T, ...)` to `(num_rows, longest, ...)`, zeros behind each row."""
        return _put(values, self.in_rows, (self.shape[0], self.longest))

    def taken(self, values: Tensor) -> Tensor:
        """Return `(1, T, ...)` of `(num_rows, longest, ...)`."""
        return values.flatten(0, 1).index_select(0, self.in_rows.to(values.device))[None]

    def in_place(self, values: Tensor) -> Tensor:
        """Put `(1, T, ...)` where the tokens stand in the batch: `(B, S, ...)`, zeros elsewhere."""
        return _put(values, self.in_batch, self.shape)


def _put(values: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    flat = values.new_zeros((shape[0] * shape[1], *values.shape[2:]))
    return flat.index_copy(0, places.to(values.device), values[0]).view(*shape, *values.shape[2:])


def rows_to_run(arguments: dict[str, Any], predicts: Tensor, config: Any, *, every_token: bool) -> TokenRows | None:
    """Return which tokens to run, or None where the batch is to be run as it is.

    Args:
        arguments: Those of a call of the backbone.
        predicts: `(B, S)`, bool: whether a position predicts a label.
        config: The backbone's.
        every_token: Also those behind the last label, of which something else is asked.
    """
    input_ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if isinstance(mask, dict):  # of masks that a caller has made, one a type of layer
        return None
    given = {name for name, value in arguments.items() if value is not None and value is not False}
    if input_ids is None or input_ids.shape != predicts.shape or not given <= _ARGUMENTS:
        return None
    if any(getattr(config, name, False) for name in _OF_EVERY_TOKEN):
        return None
    predicts = predicts.to(input_ids.device)
    needed = torch.ones_like(predicts) if mask is None else mask.bool()
    if needed.shape != predicts.shape or bool((predicts & ~needed).any()):  # a label that padding predicts
        return None
    if not every_token:
        needed = needed & predicts.flip(1).cumsum(1).flip(1).bool()
    rows = TokenRows.of(needed)
    windows = [getattr(config, name, None) for name in _WINDOWS]
    looks_back = [window for window in windows if isinstance(window, int) and window > 0]
    if looks_back and _span(needed) > min(looks_back):
        return None
    longest_call = max(input_ids.shape[1], len(rows.in_batch))
    if any(longest_call >= length for length in _lengths_that_matter(config)):
        return None
    return rows if 0 < len(rows.in_batch) <= (1 - _WORTH) * input_ids.numel() else None


def _span(needed: Tensor) -> int:
    """Return the most places from the first to the last token of a row that is needed, those between them included."""
    since_first = (needed.cumsum(1) > 0).cumsum(1)
    return int((since_first * needed).max())


def _lengths_that_matter(config: Any) -> Iterator[int]:
    """Yield from which lengths on the layers treat every token by how many they are given, or by the last position."""
    # transformers 4 has `rope_scaling`; in 5 there may be one a type of layer.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for entry in (rope, *rope.values()):
        if isinstance(entry, dict) and entry.get("rope_type", entry.get("type")) in _ROPE_BY_LENGTH:
            original = (entry.get(_ORIGINAL_LENGTH), getattr(config, _ORIGINAL_LENGTH, None))
            yield min(length for length in (*original, config.max_position_embeddings) if length)
    if getattr(config, "attn_temperature_tuning", False):  # Llama 4 counts tokens, whatever their positions
        yield config.floor_scale


def can_skip_padding(model: Any) -> bool:
    """Say whether a model may be tried as it is set now: by PyTorch's attention, and nothing else goes by the layout.

    Beside the layers, and in training alone, that is the noise of NEFTune (arXiv:2310.05914), scaled by the length of
    the padded rows, and adapters that begin at a place of each row (aLoRA, arXiv:2504.12397).
    """
    if getattr(model.config.get_text_config(), "_attn_implementation", None) != _ATTENTION:
        return False
    noise = getattr(model.get_input_embeddings(), "neftune_noise_alpha", None)
    adapters = (getattr(model, "peft_config", None) or {}).values()
    return not (noise or any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters))


def run_rows(backbone: nn.Module, rows: TokenRows, arguments: dict[str, Any]) -> Any:
    """Call the backbone on the rows alone; its last hidden states are `(B, S, D)` again, zeros where nothing was run.

    What else it returns, such as the router logits of a mixture of experts, is of the T tokens.
    """
    _attention_knows_rows()
    input_ids = arguments["input_ids"]
    positions = (rows.in_batch % rows.shape[1])[None]
    # A mask of four dimensions is passed on as it is; attention by rows does not read it.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
    of_tokens = {name: arguments[name] for name in ("input_ids", "labels") if arguments.get(name) is not None}
    outputs = backbone(
        **{
            **arguments,
            **{name: values.flatten()[rows.in_batch][None] for name, values in of_tokens.items()},
            "attention_mask": unread,
            "position_ids": positions,
            _ROWS: rows,
        }
    )
    outputs.last_hidden_state = rows.in_place(outputs.last_hidden_state)
    return outputs


@torch.no_grad()
def rows_are_independent(backbone: nn.Module, vocab_size: int, device: torch.device) -> bool:
    """Say whether short rows have the same hidden states end to end as in a padded batch, whatever the other row says.

    One is padded at the right and one at the left, where a model may count positions from the first token instead.
    The second question finds what the first would take for rounding: in untrained models little goes from row to row,
    but what is not a number would.
    The backbone is in evaluation mode, and is called as it would be in a step: where it is sharded, by every rank.
    """
    parameters = inspect.signature(backbone.forward).parameters.values()
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return False  # it takes no further argument
    size = 8
    place = torch.arange(size, device=device)
    needed = torch.stack([place < 7, place >= 4])
    input_ids = (torch.arange(2 * size, device=device).view(2, size) * 7919 + 11) % vocab_size
    arguments = {"input_ids": input_ids, "attention_mask": needed.long(), "use_cache": False}
    rows = TokenRows.of(needed)
    padded = backbone(**arguments).last_hidden_state
    with suppress(TypeError, ValueError, RuntimeError, IndexError):  # a layer that has no place for the argument
        found = run_rows(backbone, rows, arguments).last_hidden_state
        exact = padded.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device.type)
        same = _difference(found[needed], padded[needed]) < (1e-3 if exact else 3e-2)
        first, embeddings = place[:7], backbone.get_input_embeddings()  # type: ignore[operator]  # a PreTrainedModel
        hook = embeddings.register_forward_hook(
            lambda _, __, states: states.index_fill(1, first.to(states.device), torch.nan)
        )
        try:
            beside_nan = run_rows(backbone, rows, arguments).last_hidden_state
        finally:
            hook.remove()
        return same and bool(beside_nan[0, :7].isnan().all() & beside_nan[1, 4:].isfinite().all())
    return False


def _difference(states: Tensor, expected: Tensor) -> float:
    """Return the largest difference of a token's hidden states, relative to their norm."""
    states, expected = states.float(), expected.float()
    return float(((states - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)).max())


def _attention_knows_rows() -> None:
    """Let the registered attention see to rows, where a call has them. Done once; without rows it is what it was."""
    registered = ALL_ATTENTION_FUNCTIONS[_ATTENTION]
    if not hasattr(registered, "_sees_to_rows"):
        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _by_rows(registered))
        if ALL_ATTENTION_FUNCTIONS[_ATTENTION] is registered:  # set by another library, which hides what is registered
            ALL_ATTENTION_FUNCTIONS[_ATTENTION] = _by_rows(registered)


def _by_rows(attention: Callable[..., Any]) -> Callable[..., Any]:
    def by_rows(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        rows: TokenRows | None = kwargs.pop(_ROWS, None)
        if rows is None:
            return attention(module, query, key, value, attention_mask, *args, **kwargs)
        if attention_mask is not None and attention_mask.numel() != 1:  # sparse attention, which chooses what to see
            raise ValueError(
                f"{type(module).__name__} looks at tokens by a mask of its own. Set skip_padding=False to train it."
            )
        # Causal, and each row at the left: what is behind it is not looked at, so that no mask is needed.
        padded = (rows.laid_out(states.transpose(1, 2)).transpose(1, 2) for states in (query, key, value))
        output, weights = attention(module, *padded, None, *args, **kwargs)
        return rows.taken(output), weights

    by_rows._sees_to_rows = True  # type: ignore[attr-defined]
    return by_rows
