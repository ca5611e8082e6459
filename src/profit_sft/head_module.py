"""The language-model head as a module: finding its matrix, calling it with the loss as its forward, checking its tail.

Engines hang their work on the head's module. FSDP1, FSDP2 and DeepSpeed ZeRO-3 gather its parameters before its forward
and reduce their gradients after its backward; PEFT chooses a trained copy; accelerate moves inputs and parameters
between devices. So the loss never reads a parameter from outside: the module is called, and for the length of that call
the forward of the `nn.Linear` inside is the loss. The matrix is gathered once a call, whatever the loss does with it.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from profit_sft.errors import UnsupportedModelError

Result = TypeVar("Result")

# The attributes under which FSDP1, activation checkpointing and torch.compile keep the module they wrap.
_WRAPPED = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def backbone_of(model: Any) -> Any:
    """Return the module whose last hidden states the head multiplies."""
    base = model.base_model
    if base is model:  # Llama 4's backbone is not the attribute that its prefix names
        base = getattr(model, "model", model)
    parts = list(base.children())
    # OPT's forward goes past a base model that does nothing but hold a decoder; Gemma 4's without towers takes more.
    holds_decoder = len(parts) == 1 and parts[0] is model.get_decoder()
    return parts[0] if holds_decoder and _arguments_of(base) <= _arguments_of(parts[0]) else base


def _arguments_of(module: nn.Module) -> set[str]:
    """Return the names that its class's forward takes, further ones left out."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return {entry.name for entry in parameters if entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)}


def head_linears(model: Any) -> list[nn.Linear]:
    """Return every `nn.Linear` that a call of the head may lead to, inside whatever is wrapped around it.

    That is one, and with PEFT's `modules_to_save` the original and its trained copies, of which the adapter that is
    active at the call decides.

    Raises:
        UnsupportedModelError: The head is something else, carries an adapter, or another library replaced its forward;
            names which.
    """
    heads, linears = [model.get_output_embeddings()], []
    while heads:
        head = heads.pop()
        wrapped = next((name for name in _WRAPPED if name in head._modules), None)
        if wrapped is not None:
            heads.append(head._modules[wrapped])
        elif hasattr(head, "modules_to_save"):  # PEFT trains a full copy of the head
            heads += [head.original_module, *head.modules_to_save.values()]
        else:
            _check_linear(head, has_other_forward=_has_other_forward(model, head))
            linears.append(head)
    return linears


def _has_other_forward(model: Any, head: Any) -> bool:
    """Say whether another library replaced the forward, unless it is accelerate's hooks or tensor parallelism."""
    return "forward" in head.__dict__ and not hasattr(head, "_hf_hook") and not _is_tensor_parallel(model, head)


def _check_linear(head: Any, *, has_other_forward: bool) -> None:
    kind = f"{type(head).__module__.split('.')[0]}.{type(head).__name__}"
    if hasattr(head, "lora_A") or hasattr(head, "base_layer"):
        raise UnsupportedModelError(
            f"the language-model head carries an adapter ({kind}), which the selective loss would bypass and never "
            "train. Leave the head out of target_modules, or train all of it with modules_to_save=['lm_head']."
        )
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        raise UnsupportedModelError(f"the language-model head is a {kind}; the selective loss reads a plain nn.Linear.")
    if not head.weight.is_floating_point():
        raise UnsupportedModelError(
            f"the language-model head holds {head.weight.dtype}; the selective loss reads floating point. Leave the "
            "head out of the quantization (llm_int8_skip_modules=['lm_head'])."
        )
    if has_other_forward:
        raise UnsupportedModelError(
            "another library replaced the forward of the language-model head, which the selective loss would leave "
            "out. Call apply_profit on the model as it was loaded, and switch that library's head off."
        )


def through_head(
    model: Any, function: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Result]], hidden_states: Tensor
) -> tuple[Tensor, Result]:
    """Call the head's module on `hidden_states` with `function` as the forward of its `nn.Linear`.

    Args:
        model: A Hugging Face causal language model, perhaps sharded.
        function: Takes the hidden states `(B, S, D)`, the matrix `(V, D)` and the bias `(V,)` or None, whole and on one
            device; returns a loss, which takes its way out through the hooks, and a second result.
        hidden_states: `(B, S, D)`.

    Returns:
        The loss as the hooks left it, and the second result.

    Raises:
        UnsupportedModelError: The head is none that `head_linears` takes, or is sharded in a way that the gradient
            would not be reduced in.
    """
    linears = head_linears(model)
    found: list[Result] = []

    def run(linear: nn.Linear, hidden: Tensor) -> Tensor:
        lm_head_weight, bias = _whole(model, linear)
        # A model split by device_map may end on another device than its head.
        loss, result = function(hidden.to(lm_head_weight.device), lm_head_weight, bias)
        found.append(result)
        return loss

    if len(linears) == 1 and _is_tensor_parallel(model, linears[0]):
        # Its hooks gather the logits, of which there are none; every rank has all tokens and computes all of the loss.
        loss = run(linears[0], hidden_states)
    else:
        with ExitStack() as exchanged:
            for linear in linears:
                exchanged.enter_context(_forward_exchanged(linear, partial(run, linear)))
            loss = model.get_output_embeddings()(hidden_states)
    if len(found) != 1:
        raise UnsupportedModelError(
            f"a call of the language-model head led to its linear layer {len(found)} times, not once; the selective "
            "loss is taken there. Call apply_profit on the model as it was loaded."
        )
    return loss, found[0]


@contextmanager
def _forward_exchanged(linear: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    # accelerate's hooks call the forward they replaced under this name.
    name = "_old_forward" if hasattr(linear, "_hf_hook") else "forward"
    before = linear.__dict__.get(name)
    setattr(linear, name, forward)
    try:
        yield
    finally:
        put_back(linear, name, before)


def _whole(model: Any, linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return the matrix and the bias as the hooks have made them, gathered over tensor-parallel ranks."""
    weight: Any = linear.weight
    bias: Any = linear.bias
    if weight.numel() == 0 or weight.dim() != 2 or weight.is_meta:
        raise UnsupportedModelError(
            f"the language-model head is not whole while its module is called (shape {tuple(weight.shape)}): its "
            "engine did not gather it. Call the model through the wrapper that the engine returned."
        )
    if hasattr(weight, "full_tensor"):
        if not _is_tensor_parallel(model, linear):
            raise UnsupportedModelError(
                f"the language-model head is still sharded ({weight.placements}) while its module is called, so its "
                "gradient would not be reduced. Call the model that fully_shard was given as a whole; a head sharded "
                "by FSDP2 and tensor parallelism at once is not supported."
            )
        # Every rank computes the loss of the same tokens, so each has the whole gradient: it counts as replicated.
        weight = weight.full_tensor()
        bias = bias.full_tensor() if hasattr(bias, "full_tensor") else bias
    return weight, bias


def _is_tensor_parallel(model: Any, linear: nn.Linear) -> bool:
    """Say whether the head is sharded over tensor-parallel ranks and nothing else."""
    mesh = getattr(linear.weight, "device_mesh", None)
    tp_size = getattr(model, "tp_size", None)
    return mesh is not None and tp_size is not None and mesh.ndim == 1 and mesh.size() == tp_size


_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
_PROBE_TOKENS = 3
_PLACES = ("position_ids", "cache_position")  # 0, 1, 2, ... where a backbone is not told; some forwards tell it
_PROBE_HIDDEN = 8.0  # spread of the hidden states and the raw logits: large enough that a soft cap bends them


class Tail(NamedTuple):
    """What a family's forward does around its backbone.

    Attributes:
        logit_scale: Factor on the head's product.
        final_logit_softcapping: The soft cap, or None.
        hands_labels: The backbone is given the labels, too (PaliGemma lets a prompt look ahead, and not an answer).
    """

    logit_scale: float
    final_logit_softcapping: float | None
    hands_labels: bool


def tail_of(model: Any) -> Tail:
    """Return the scale and soft cap between head and logits, checked against the model's own forward.

    The forward is run with a backbone that returns given hidden states and a head that returns given raw logits, in
    fp32, as it trains and as it evaluates. So it looks at what the family's code does, and at no weight: sharded,
    partitioned and empty models are checked like any other.

    Raises:
        UnsupportedModelError: The logits are not the raw ones, scaled and capped as the configuration says, the
            backbone is not given what the model is, the head is not given the backbone's hidden states, or the loss is
            not that of the next tokens.
    """
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    factor = next((v for name in _MULTIPLIERS if (v := getattr(config, name, None)) is not None), 1.0)
    for training in (True, False):
        # In training without labels: fused losses of other libraries then form no logits.
        probe, outputs = _probed(model, training=training, labeled=not training)
        _check_handed_over(model, probe)
        logits = outputs.logits.float()
        scale = _matching_scale(probe.head.raw, logits, factor, softcap, eps=torch.finfo(outputs.logits.dtype).eps)
        if scale is None:
            raise UnsupportedModelError(
                f"the logits of {type(model).__name__} are not its head's product with scale {factor} and soft cap "
                f"{softcap}. Something else happens between head and logits, which the selective loss would leave out."
            )
    loss = math.nan if outputs.loss is None else outputs.loss.item()
    next_token = nn.functional.cross_entropy(logits[0, :-1], probe.labels[0, 1:]).item()
    if not math.isclose(loss, next_token, rel_tol=1e-2):  # of a family that rounds its loss
        raise UnsupportedModelError(
            f"the loss of {type(model).__name__} is not the next-token cross-entropy of its labels, of which the "
            f"selective loss is made ({loss:.3f} where that is {next_token:.3f}): it takes them already shifted, or "
            "adds something. Call selective_linear_cross_entropy on your hidden states instead."
        )
    assert scale is not None
    return Tail(scale, softcap, hands_labels="labels" in probe.received)


def _probed(model: Any, *, training: bool, labeled: bool) -> "tuple[_Probe, Any]":
    """Return what the model's own forward made of given hidden states and logits; nothing of the model changes."""
    torch_state = torch.random.get_rng_state()
    try:
        with in_mode(model, training=training), _probe(model) as probe:
            return probe, probe.outputs(labeled=labeled)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__}.forward could not be run on given hidden states ({error}), so its head cannot be "
            "checked. Call selective_linear_cross_entropy on your hidden states instead."
        ) from error
    finally:
        torch.random.set_rng_state(torch_state)


def _check_handed_over(model: Any, probe: "_Probe") -> None:
    """Raise where a forward does something before its backbone, or between that and its head."""
    others = {name for name, value in probe.received.items() if not probe.is_given(name, value)}
    if "input_ids" not in probe.received:
        others.add("input_ids")
    if others:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not hand its backbone what it is given ({', '.join(sorted(others))}). "
            "Something happens before its layers, which the selective loss would leave out."
        )
    if probe.head.received is None or not torch.equal(probe.head.received, probe.hidden_states):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not hand its backbone's last hidden states to its head as they are. "
            "Something happens in between, which the selective loss would leave out."
        )


def put_back(owner: Any, name: str, before: Any) -> None:
    """Give an instance the attribute it had before, None where it had none of its own."""
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module into training or evaluation mode, and each back into the mode it had: parts may differ."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = training
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before


def _matching_scale(raw: Tensor, logits: Tensor, factor: float, softcap: float | None, *, eps: float) -> float | None:
    """Return the scale with which the raw logits give these, or None: families disagree whether to multiply or divide.

    Args:
        raw: `(1, S, V)`.
        logits: `(1, S, V)`.
        factor: The configuration's.
        softcap: The configuration's, or None.
        eps: Of the dtype that the family rounds its logits to.
    """
    if logits.shape != raw.shape:
        return None
    for scale in (factor, 1.0 / factor if factor else factor):
        ours = raw * scale if softcap is None else softcap * torch.tanh(raw * scale / softcap)
        if (ours - logits).abs().max() <= 2 * eps * logits.abs().max():
            return scale
    return None


class _GivenHead(nn.Module):
    """A head that answers with given raw logits `(1, S, V)` fp32, and keeps what it was asked."""

    def __init__(self, head: nn.Module, raw: Tensor) -> None:
        super().__init__()
        self.__dict__["_head"] = head  # beside torch's registry: the probe must not own its parameters
        self.raw = raw
        self.received: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        # Some forwards ask the head for its dtype or device.
        return getattr(self.__dict__["_head"], name)

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.received = hidden_states
        return self.raw


class _Probe:
    """The model's own forward on given hidden states `(1, S, D)` and labels `(1, S)`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        head = model.get_output_embeddings()
        linear = head_linears(model)[-1]  # PEFT's original: a copy that it ties has the sizes exchanged
        weight, width = linear.weight, linear.in_features
        generator = torch.Generator().manual_seed(0)
        device = torch.device("cpu") if weight.is_meta else weight.device
        hidden_states = _PROBE_HIDDEN * torch.randn((1, _PROBE_TOKENS, width), generator=generator)
        self.hidden_states = hidden_states.to(device=device, dtype=weight.dtype)
        raw = _PROBE_HIDDEN * torch.randn((1, _PROBE_TOKENS, linear.out_features), generator=generator)
        self.head = _GivenHead(head, raw.to(device))
        self.labels = torch.arange(_PROBE_TOKENS, device=device)[None] % linear.out_features
        self.given: dict[str, Tensor] = {}  # what the model is called with
        self.received: dict[str, Tensor] = {}  # what it calls its backbone with

    def outputs(self, *, labeled: bool) -> Any:
        """Return the logits `(1, S, V)` of the given raw ones, and the loss."""
        own_forward = type(self.model).forward
        parameters = inspect.signature(own_forward).parameters
        options: dict[str, Any] = {"use_cache": False}
        if "output_router_logits" in parameters:
            options["output_router_logits"] = False
        self.given = {"input_ids": torch.zeros_like(self.labels)}
        if "attention_mask" in parameters:
            self.given["attention_mask"] = torch.ones_like(self.labels)
            self.given["attention_mask"][0, 0] = labeled  # or padding, by which a forward may count places
        if labeled:
            self.given["labels"] = self.labels
        with torch.no_grad():
            return own_forward(self.model, **self.given, **options)

    def backbone(self, names: list[str], *args: Any, **kwargs: Any) -> "_ProbeOutput":
        """Note the tensors that the backbone is called with, of parameters of these names; return what it would."""
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        self.received = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        return _ProbeOutput(last_hidden_state=self.hidden_states)

    def is_given(self, name: str, value: Tensor) -> bool:
        """Say whether the backbone would be called with that, or take it where it is not told."""
        if name in _PLACES:
            return value.shape[-1] == _PROBE_TOKENS and bool((value.cpu() == torch.arange(_PROBE_TOKENS)).all())
        return name in self.given and torch.equal(value, self.given[name])


@contextmanager
def _probe(model: Any) -> Iterator[_Probe]:
    """Put the given backbone and head in place, and the model's own back afterwards."""
    probe = _Probe(model)
    backbone, head = backbone_of(model), model.get_output_embeddings()
    parent, name = next(
        (module, name) for module in model.modules() for name, child in module.named_children() if child is head
    )
    before = backbone.__dict__.get("forward")
    hooks = {kind: getattr(backbone, kind) for kind in ("_forward_pre_hooks", "_forward_hooks")}
    for kind in hooks:  # an engine's hooks would gather parameters, on this rank alone
        setattr(backbone, kind, type(hooks[kind])())
    names = list(inspect.signature(type(backbone).forward).parameters)[1:]
    backbone.forward = partial(probe.backbone, names)
    parent._modules[name] = probe.head
    try:
        yield probe
    finally:
        parent._modules[name] = head
        for kind, own in hooks.items():
            setattr(backbone, kind, own)
        put_back(backbone, "forward", before)


class _ProbeOutput(MoeModelOutputWithPast):
    """A backbone's output of which only the hidden states are there: families read others by name (GPT-2, RWKV)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
