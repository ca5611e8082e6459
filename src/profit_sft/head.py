"""Install the selective loss on a Hugging Face causal language model, and take it off again.

`apply_profit` replaces `model.forward` on the instance, so that wrappers such as DDP, FSDP2 and PEFT still run around
it. In training mode with labels the new forward runs the backbone and hands its hidden states and the head's matrix to
`selective_linear_cross_entropy`; in every other case it is the model's own forward.
"""

import functools
import inspect
import logging
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeModelOutputWithPast

from profit_sft.errors import UnsupportedModelError
from profit_sft.loss import SelectiveLoss, selective_linear_cross_entropy
from profit_sft.loss.selective import Backend, Normalize, Statistics
from profit_sft.objectives import NLL, Objective, ProFit

logger = logging.getLogger(__name__)

_IGNORE_INDEX = -100  # what transformers and TRL write into labels
_HEAD = "_profit_head"
# transformers 5.24 renamed the field from `past_key_values`.
_CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))


@dataclass(kw_only=True)
class SelectiveHead:
    """What the installed head does on its next call. Mutable, so that a trainer can ask for statistics now and then.

    Attributes:
        objective: Gives the token weights.
        normalize: `"all"` or `"kept"`, see `apply_profit`.
        statistics: `"objective"`, `"all"` or `"ranks"`, see `selective_linear_cross_entropy`.
        chunk_size: Tokens whose logits are held at once, or None.
        backend: Backend of the loss.
        gradient_budget: Share of the gradient mass that may be left out.
        logit_scale: The model's factor on its logits.
        logit_softcap: The model's soft cap, or None.
    """

    objective: Objective
    normalize: Normalize = "all"
    statistics: Statistics = "objective"
    chunk_size: int | None = None
    backend: Backend = "auto"
    gradient_budget: float = 0.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None


@dataclass
class SelectiveCausalLMOutput(CausalLMOutputWithPast):
    """A causal language model's output with the selective loss. `logits` is None: they were never all there.

    Attributes:
        aux_loss: 0-d, the load-balancing loss of a mixture of experts before its coefficient, or None.
        selective: The loss's per-token values, shape `(B, S)`, aligned with the positions that predict.
    """

    aux_loss: Tensor | None = None
    selective: SelectiveLoss | None = None


def apply_profit(
    model: nn.Module,
    objective: Objective | None = None,
    *,
    normalize: Normalize = "all",
    chunk_size: int | None = None,
    backend: Backend = "auto",
    gradient_budget: float = 0.0,
) -> nn.Module:
    """Make `model(**batch).loss` the selective loss in training mode. Evaluation and generation stay untouched.

    The batch may carry `labels` (shifted here) or `shift_labels`, `num_items_in_batch`, and `reference_log_probs` in
    the layout of whichever labels it has. Calling it again replaces the objective.

    Args:
        model: A Hugging Face causal language model, or a PEFT model around one. Changed in place.
        objective: The token objective; None is `ProFit()`, threshold 0.1.
        normalize: `"all"` divides by `num_items_in_batch` (or the labels of the call), `"kept"` by the tokens of
            non-zero weight. With `num_items_in_batch`, `"kept"` gives each call its share of the step by its labels,
            which equals one big batch only for a single call; `ProFitTrainer` is exact for any number.
        chunk_size: Tokens whose logits are held at once. None: chosen.
        backend: Backend of the loss.
        gradient_budget: Share of the gradient mass that may be left out, see `selective_linear_cross_entropy`.

    Returns:
        The same model.

    Raises:
        UnsupportedModelError: The model's logits come about in a way the head would not reproduce: it names the part.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...                      num_attention_heads=2, num_key_value_heads=2)
        >>> model = apply_profit(LlamaForCausalLM(config).train(), ProFit(threshold=0.01))
        >>> input_ids = torch.tensor([[1, 2, 3, 4]])
        >>> model(input_ids=input_ids, labels=input_ids).loss.backward()
    """
    base = _causal_lm(model)
    head = SelectiveHead(
        objective=ProFit() if objective is None else objective,
        normalize=normalize,
        chunk_size=chunk_size,
        backend=backend,
        gradient_budget=gradient_budget,
    )
    if not isinstance(head.objective, Objective):
        raise TypeError(f"objective must be an Objective such as ProFit(threshold=0.1), got {objective!r}.")
    if normalize not in ("all", "kept"):
        raise ValueError(f"normalize must be 'all' or 'kept', got {normalize!r}.")
    if not 0.0 <= gradient_budget < 1.0:
        raise ValueError(f"gradient_budget must be a share in [0, 1), got {gradient_budget}. Write 0.3% as 0.003.")
    _head_parameters(base)
    installed = getattr(base, _HEAD, None)
    if installed is not None:
        head.logit_scale, head.logit_softcap = installed.logit_scale, installed.logit_softcap
    else:
        head.logit_scale, head.logit_softcap = _tail_of(base)
        # Another library may have put its own forward on the instance; it is called, and restored, not lost.
        base._profit_wrapped = base.__dict__.get("forward")
        base.forward = types.MethodType(_selective_forward(type(base)), base)
    setattr(base, _HEAD, head)
    return model


def remove_profit(model: nn.Module) -> nn.Module:
    """Undo `apply_profit`. A model without a selective head is returned as it is.

    Args:
        model: What `apply_profit` was given or returned.

    Returns:
        The same model.
    """
    base = _causal_lm(model)
    if getattr(base, _HEAD, None) is not None:
        wrapped = base._profit_wrapped
        if wrapped is None:
            del base.forward
        else:
            base.forward = wrapped
        delattr(base, _HEAD)
        del base._profit_wrapped
    return model


def selective_head(model: nn.Module) -> SelectiveHead:
    """Return the settings of the head that `apply_profit` installed, or raise ValueError when there is none."""
    head = getattr(_causal_lm(model), _HEAD, None)
    if head is None:
        raise ValueError("the model has no selective head; call apply_profit(model) first.")
    assert isinstance(head, SelectiveHead)
    return head


@torch.no_grad()
def label_statistics(
    model: nn.Module,
    *,
    input_ids: Tensor,
    labels: Tensor,
    objective: Objective | None = None,
    statistics: Statistics = "all",
    chunk_size: int | None = None,
    backend: Backend = "auto",
    **inputs: Any,
) -> SelectiveLoss:
    """Look at every label token without training: no gradient, no dropout, never `(N, V)` logits.

    Args:
        model: A causal language model, with or without a selective head. Its training mode is the same afterwards.
        input_ids: `(B, S)`, int64.
        labels: `(B, S)`, int64, unshifted; -100 where there is none.
        objective: Whose token weights to report; None weighs every label 1.
        statistics: As `selective_linear_cross_entropy` takes them.
        chunk_size: Tokens whose logits are held at once. None: chosen.
        backend: Backend of the loss.
        **inputs: What else the backbone takes, such as `attention_mask`.

    Returns:
        Values `(B, S)`; those at position t are of token t + 1, so the last position never holds one.

    Raises:
        UnsupportedModelError: As `apply_profit`.
    """
    base = _causal_lm(model)
    head = getattr(base, _HEAD, None)
    logit_scale, logit_softcap = (head.logit_scale, head.logit_softcap) if head is not None else _tail_of(base)
    with _in_evaluation_mode(base):
        hidden_states = _backbone(base)(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
    lm_head_weight, bias = _head_parameters(base)
    device = lm_head_weight.device
    result: SelectiveLoss = selective_linear_cross_entropy(
        hidden_states.to(device),
        lm_head_weight,
        _shifted(labels, _IGNORE_INDEX).to(device),
        objective=NLL() if objective is None else objective,
        bias=bias,
        ignore_index=_IGNORE_INDEX,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        statistics=statistics,
        chunk_size=chunk_size,
        backend=backend,
    )
    return result


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into the mode it had: parts may differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _causal_lm(model: nn.Module) -> Any:
    """Unwrap DDP, torch.compile and PEFT down to the Hugging Face model."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]  # torch.compile's wrapper types it as Tensor | Module
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif not isinstance(model, PreTrainedModel) and hasattr(model, "get_base_model"):
            model = model.get_base_model()  # type: ignore[operator]  # PEFT
        else:
            break
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a Hugging Face causal language model with an output embedding. "
            "Load it with AutoModelForCausalLM, or call selective_linear_cross_entropy on your hidden states."
        )
    return model


def _backbone(model: Any) -> Any:
    """Return the module whose last hidden states the head multiplies."""
    base = model.base_model
    if base is model:  # Llama 4's backbone is not the attribute that its prefix names
        base = getattr(model, "model", model)
    parts = list(base.children())
    # OPT's forward goes past a base model that does nothing but hold a decoder.
    return parts[0] if len(parts) == 1 and parts[0] is model.get_decoder() else base


def _selective_forward(model_class: type) -> Callable[..., Any]:
    """Return the forward to install on an instance of `model_class`; its signature is the model's own."""
    own_forward = model_class.forward  # type: ignore[attr-defined]  # every torch module class has one
    names = list(inspect.signature(own_forward).parameters)[1:]

    # generate() and Trainer read the signature to decide which arguments the model takes.
    @functools.wraps(own_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.update(zip(names, args, strict=False))
        labeled = kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None
        # `fused_lm_head` asks TRL's own forward, which may lie below this one, for per-token values.
        if not (self.training and labeled) or kwargs.get("fused_lm_head"):
            kwargs.pop("reference_log_probs", None)
            wrapped = self._profit_wrapped
            return own_forward(self, **kwargs) if wrapped is None else wrapped(**kwargs)
        return _training_forward(self, getattr(self, _HEAD), **kwargs)

    return forward


def _training_forward(
    model: Any,
    head: SelectiveHead,
    *,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    reference_log_probs: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    if isinstance(kwargs.pop("logits_to_keep", 0), Tensor):
        raise ValueError("logits_to_keep as a tensor selects logits, of which a training forward with labels has none.")
    return_dict = kwargs.pop("return_dict", None)
    kwargs["use_cache"] = bool(kwargs.get("use_cache"))
    balanced = _wants_router_logits(model, kwargs)
    outputs = _backbone(model)(**kwargs)
    hidden_states = outputs.last_hidden_state  # (B, S, D)
    if shift_labels is None:
        assert labels is not None
        shift_labels = _shifted(labels, _IGNORE_INDEX)
        reference_log_probs = None if reference_log_probs is None else _shifted(reference_log_probs, 0.0)
    lm_head_weight, bias = _head_parameters(model)
    device = lm_head_weight.device  # a model split by device_map may end on another device than its head
    shift_labels = shift_labels.to(device)
    result = selective_linear_cross_entropy(
        hidden_states.to(device),
        lm_head_weight,
        shift_labels,
        objective=head.objective,
        bias=bias,
        num_items=num_items_in_batch if head.normalize == "all" else None,
        normalize=head.normalize,
        ignore_index=_IGNORE_INDEX,
        logit_scale=head.logit_scale,
        logit_softcap=head.logit_softcap,
        reference_log_probs=None if reference_log_probs is None else reference_log_probs.to(device),
        statistics=head.statistics,
        gradient_budget=head.gradient_budget,
        chunk_size=head.chunk_size,
        backend=head.backend,
    )
    loss = result.loss
    if head.normalize == "kept" and num_items_in_batch is not None:
        loss = loss * (result.num_labels.to(loss.dtype) / num_items_in_batch)
    aux_loss = None
    if balanced is not None:
        aux_loss = balanced(outputs.router_logits, kwargs.get("attention_mask"))
        loss = loss + model.router_aux_loss_coef * aux_loss.to(loss.device)
    found = SelectiveCausalLMOutput(
        loss=loss,
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
        aux_loss=aux_loss,
        selective=result,
        **{_CACHE: outputs.get(_CACHE)},
    )
    return found.to_tuple() if return_dict is False else found


def _shifted(values: Tensor, fill: float) -> Tensor:
    """Move `(B, S)` values one to the left, so that position t holds what it predicts."""
    return nn.functional.pad(values[..., 1:], (0, 1), value=fill)


def _wants_router_logits(model: Any, kwargs: dict[str, Any]) -> Callable[..., Tensor] | None:
    """Return the model family's load-balancing loss if the call or the configuration asks for it."""
    requested = kwargs.get("output_router_logits")
    if requested is None:
        requested = getattr(model.config, "output_router_logits", False)
    if not requested:
        return None
    function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    sizes = [getattr(model, name, None) for name in ("num_experts", "num_experts_per_tok", "router_aux_loss_coef")]
    if function is None or None in sizes:
        raise UnsupportedModelError(
            f"{type(model).__name__} asks for a load-balancing loss that is not known here. "
            "Set model.config.output_router_logits = False to train without it."
        )
    kwargs["output_router_logits"] = True
    return lambda router_logits, attention_mask: function(router_logits, sizes[0], sizes[1], attention_mask)


def _head_parameters(model: Any) -> tuple[Tensor, Tensor | None]:
    """Return the head's matrix `(V, D)` and bias `(V,)` or None, or refuse the head by name."""
    head = model.get_output_embeddings()
    if hasattr(head, "modules_to_save"):  # PEFT trains a full copy of the head
        head = head.modules_to_save[head.active_adapter]
    if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and head.weight.is_floating_point():
        lm_head_weight: Any = head.weight
        bias: Any = head.bias
        if hasattr(lm_head_weight, "ds_id") and lm_head_weight.numel() == 0:
            raise UnsupportedModelError(
                "the language-model head is partitioned by DeepSpeed ZeRO-3, where the selective loss cannot read it. "
                "Use ZeRO-2 or FSDP2."
            )
        if hasattr(lm_head_weight, "full_tensor"):  # FSDP2 shards it as a DTensor
            lm_head_weight = lm_head_weight.full_tensor()
            bias = None if bias is None else bias.full_tensor()
        return lm_head_weight, bias
    kind = f"{type(head).__module__.split('.')[0]}.{type(head).__name__}"
    if hasattr(head, "lora_A") or hasattr(head, "base_layer"):
        raise UnsupportedModelError(
            f"the language-model head carries an adapter ({kind}), which the selective loss would bypass and never "
            "train. Leave the head out of target_modules, or train all of it with modules_to_save=['lm_head']."
        )
    raise UnsupportedModelError(f"the language-model head is a {kind}; the selective loss reads a plain nn.Linear.")


_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def _tail_of(model: Any) -> tuple[float, float | None]:
    """Return the scale and soft cap between head and logits, checked against the model's own forward."""
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    factor = next((v for name in _MULTIPLIERS if (v := getattr(config, name, None)) is not None), 1.0)
    parameter = model.get_output_embeddings().weight
    if parameter.is_meta or hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id"):
        logger.info("the head is not materialized here; its tail is taken from the configuration unchecked")
        return (1.0 / factor if getattr(config, "logits_scaling", None) else factor), softcap
    torch_state = torch.random.get_rng_state()
    try:
        hidden_states, logits = _probe_tail(model)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__}.forward could not be run on given hidden states ({error}), so its head cannot be "
            "checked. Call selective_linear_cross_entropy on your hidden states instead."
        ) from error
    finally:
        torch.random.set_rng_state(torch_state)
    lm_head_weight, bias = _head_parameters(model)
    with torch.no_grad():
        raw = nn.functional.linear(hidden_states, lm_head_weight, bias).float()
    # Families disagree on whether the configured factor multiplies or divides.
    for scale in (factor, 1.0 / factor if factor else factor):
        ours = raw * scale
        if softcap is not None:
            ours = softcap * torch.tanh(ours / softcap)
        bound = 16 * torch.finfo(logits.dtype).eps * logits.abs().max().float()
        if logits.shape == ours.shape and (ours - logits.float()).abs().max() <= bound:
            return scale, softcap
    raise UnsupportedModelError(
        f"the logits of {type(model).__name__} are not its head's product with scale {factor} and soft cap {softcap}. "
        "Something else happens between head and logits, which the selective loss would leave out."
    )


def _probe_tail(model: Any) -> tuple[Tensor, Tensor]:
    """Run the model's forward on random hidden states `(1, 3, D)` without its backbone; return them and the logits."""
    lm_head_weight, _ = _head_parameters(model)
    generator = torch.Generator().manual_seed(0)
    # Large enough that a soft cap bends the logits.
    size = (1, 3, lm_head_weight.shape[1])
    hidden_states = 8 * torch.randn(size, generator=generator)
    hidden_states = hidden_states.to(device=lm_head_weight.device, dtype=lm_head_weight.dtype)
    own_forward = type(model).forward
    options: dict[str, Any] = {"use_cache": False}
    if "output_router_logits" in inspect.signature(own_forward).parameters:
        options["output_router_logits"] = False
    input_ids = torch.zeros(size[:2], dtype=torch.long, device=lm_head_weight.device)
    with torch.no_grad(), _backbone_returning(_backbone(model), hidden_states):
        outputs = own_forward(model, input_ids=input_ids, **options)
    return hidden_states, outputs.logits


class _ProbeOutput(MoeModelOutputWithPast):
    """A backbone's output of which only the hidden states are there: families read others by name (GPT-2, RWKV)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _backbone_returning(backbone: Any, hidden_states: Tensor) -> Iterator[None]:
    previous = backbone.__dict__.get("forward")
    backbone.forward = lambda *args, **kwargs: _ProbeOutput(last_hidden_state=hidden_states)
    try:
        yield
    finally:
        if previous is None:
            del backbone.forward
        else:
            backbone.forward = previous
