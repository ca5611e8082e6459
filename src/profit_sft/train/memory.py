"""How much memory a run would take on one device, by part and engine, before it is tried."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from profit_sft.loss.devices import default_chunk_size
from profit_sft.ranks import first_decides
from profit_sft.train.config import ProFitConfig
from profit_sft.train.engine import Engine

_GIB = 2**30
# DeepSpeed's defaults, in elements: parameters that stay gathered, and gradients that are reduced together.
_MAX_LIVE_PARAMETERS = 10**9
_REDUCE_BUCKET = 5 * 10**8


def estimate_memory_gib(
    model: torch.nn.Module,
    config: ProFitConfig,
    engine: Engine,
    *,
    longest: int,
    mixed_precision: bool,
    device: torch.device,
) -> dict[str, float]:
    """Estimate the memory of one rank's device in GiB, by part. A guide: within 20% of measured runs on a CPU.

    Args:
        model: The whole model, not sharded; its parameters may lie on the meta device.
        config: The trainer's settings.
        engine: How the run is spread. For FSDP resharding after the forward is assumed; what is offloaded to the CPU is
            counted as if it stayed.
        longest: Tokens of the longest row; `max_length` bounds it.
        mixed_precision: Whether it is computed in 16 bits.
        device: Where it runs, which decides how many logits the loss holds.

    Returns:
        weights, gradients: As stored, or a rank's share of them. FSDP holds whole gradients while it accumulates
            without exchanging them. DeepSpeed stores both in the compute dtype.
        adam: Two moments in the dtype of the weights; with DeepSpeed in fp32, and its fp32 copy of the weights.
        exchange: What a rank holds of the others. DDP: its gradient buckets. FSDP: the parameters outside the decoder's
            blocks, and two blocks, gathered in the compute dtype. DeepSpeed: a bucket of gradients and, at stage 3, the
            parameters that stay gathered, as far as its default sizes are filled.
        loss: A chunk of fp32 logits, and the fp32 gradient of the head if it is trained.
        activations: Of the longest sequence: 34 bytes a token, layer and hidden unit in 16-bit (Korthikanti et al.
            2022, arXiv:2205.05198), and for `eager` attention, which holds its scores, 5 bytes a pair of tokens and
            head; twice that in fp32; with gradient checkpointing one such layer, and the input of every other.
    """
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    compute_bytes = 2 if mixed_precision else parameters[0].element_size()
    ranks, stage = engine.ranks, engine.zero_stage
    weights, gradients = bytes_of(parameters), bytes_of(trainable)
    adam = 2 * gradients
    if stage is not None:
        weights, gradients = (sum(entry.numel() for entry in some) * compute_bytes for some in (parameters, trainable))
        adam = 3 * 4 * sum(entry.numel() for entry in trainable)
    exchange = 0.0
    if engine.is_fsdp:
        exchange = _gathered(model, compute_bytes)
    elif engine.name == "DDP":
        exchange = gradients
    elif stage is not None:
        exchange = min(gradients, _REDUCE_BUCKET * compute_bytes)
        exchange += min(weights, _MAX_LIVE_PARAMETERS * compute_bytes) if stage == 3 else 0
    synchronizes = (config.accelerator_config.gradient_accumulation_kwargs or {}).get("sync_each_batch", False)
    accumulates_whole = engine.is_fsdp and config.gradient_accumulation_steps > 1 and not synchronizes
    parts = {
        "weights": weights / ranks if engine.shards_weights else weights,
        "gradients": gradients / ranks if engine.shards_gradients and not accumulates_whole else gradients,
        "adam": adam / ranks if engine.is_fsdp or stage is not None else adam,
        "exchange": exchange,
        "loss": _of_the_loss(model, config, longest, device),
        "activations": _activations(model, config, longest, compute_bytes),
    }
    return {name: size / _GIB for name, size in parts.items()}


def settle_checkpointing(model: torch.nn.Module, config: ProFitConfig, engine: Engine, *, longest: int | None) -> None:
    """Keep activations where nobody has said whether to, and a step is estimated to fit well.

    Args:
        model: The whole model.
        config: `gradient_checkpointing`, and `checkpointing`, which says what was done, are settled in it.
        engine: How the run is spread. Where it shards, activations are computed again: the user may know better.
        longest: Tokens of the longest row, or None where that is not known.
    """
    if config.checkpointing != "open":
        return
    fits = False
    if longest is not None and not engine.is_fsdp and engine.zero_stage is None:
        _set_checkpointing(config, False)
        parts = estimate_memory_gib(
            model,
            config,
            engine,
            longest=longest,
            mixed_precision=bool(config.bf16 or config.fp16),
            device=config.device,
        )
        held = bytes_of(entry for entry in model.parameters() if entry.device.type == config.device.type) / _GIB
        needed = sum(parts.values()) - held
        # DDP counts on the same of every rank.
        fits = first_decides(lambda: needed <= _SHARE_TO_FILL * free_memory_gib(config.device))
    _set_checkpointing(config, not fits)
    config.checkpointing = "kept" if fits else "computed again"


def _set_checkpointing(config: ProFitConfig, value: bool) -> None:
    config.gradient_checkpointing = value
    if hasattr(config, "activation_checkpointing"):  # what transformers 5 reads
        config.activation_checkpointing = value


def free_memory_gib(device: torch.device) -> float:
    """Return the free memory of an accelerator in GiB, or of the machine, or of a container on it, for one rank of it.

    An accelerator that does not tell shares the machine's, as Apple's do.
    """
    of_accelerator = getattr(torch.get_device_module(device), "mem_get_info", None)
    if of_accelerator is not None:
        return float(of_accelerator(device)[0]) / _GIB
    free = float(psutil.virtual_memory().available)
    for limit, used in _CONTAINER:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # there is none, or "max"
            continue
    return free / _GIB / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


# The limit of a container and what it uses, of cgroups version 2 and 1.
_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
# Of the free memory; an estimate may be wrong, and other programs may want some.
_SHARE_TO_FILL = 0.5


def bytes_of(parameters: Iterable[torch.Tensor]) -> float:
    """Return what they take as they are stored."""
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _causal_lm(model: torch.nn.Module) -> PreTrainedModel:
    """Return transformers' model, which an adapter may lie around."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def _tokens(config: ProFitConfig, longest: int) -> int:
    return int(config.per_device_train_batch_size) * min(longest, config.max_length or longest)


def _gathered(model: torch.nn.Module, compute_bytes: int) -> float:
    """Return the bytes of what lies outside the blocks that are sharded one by one, and of two of these."""
    blocks = [sum(entry.numel() for entry in block.parameters()) for block in _blocks(model)]
    whole = sum(entry.numel() for entry in model.parameters())
    return (whole - sum(blocks) + 2 * max(blocks, default=0)) * compute_bytes


def _blocks(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    names = set(getattr(_causal_lm(model), "_no_split_modules", None) or ())  # what TRANSFORMER_BASED_WRAP goes by
    return (module for module in model.modules() if type(module).__name__ in names)


def _of_the_loss(model: torch.nn.Module, config: ProFitConfig, longest: int, device: torch.device) -> float:
    head = _causal_lm(model).get_output_embeddings().weight
    vocab_size, hidden_size = head.shape
    chunk = min(_tokens(config, longest), config.loss_chunk_size or default_chunk_size(device, vocab_size))
    return float(chunk * vocab_size * 4 + (vocab_size * hidden_size * 4 if head.requires_grad else 0))


def _activations(model: torch.nn.Module, config: ProFitConfig, longest: int, compute_bytes: int) -> float:
    text_config = _causal_lm(model).config.get_text_config()
    inputs = _tokens(config, longest) * text_config.hidden_size * compute_bytes
    layer, layers = 17 * inputs, text_config.num_hidden_layers
    if getattr(text_config, "_attn_implementation", None) == "eager":
        pairs = _tokens(config, longest) * min(longest, config.max_length or longest)
        layer += 2.5 * pairs * text_config.num_attention_heads * compute_bytes
    return float(layer + layers * inputs if config.gradient_checkpointing else layers * layer)
