"""Install the selective loss on a Hugging Face causal language model, and take it off again.

`apply_profit` replaces `model.forward` on the instance, so that wrappers such as DDP, FSDP2 and PEFT still run around
it. In training mode with labels the new forward computes the loss (`head_forward.py`), by a call of the head's module
(`head_module.py`); in evaluation and generation it is the model's own.

A training step that would leave the selective loss is never silent: without labels, by TRL's fused head, or past the
installed forward altogether, it raises and says what to write instead.
"""

import functools
import inspect
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from profit_sft.errors import UnsupportedModelError
from profit_sft.head_forward import SelectiveHead, loss_forward, refuse_another_loss
from profit_sft.head_module import Tail, backbone_of, head_linears, in_mode, put_back, tail_of
from profit_sft.loss import SelectiveLoss
from profit_sft.loss.selective import Backend, Normalize, Statistics
from profit_sft.objectives import FROM_THE_BATCH, NLL, Objective, ProFit
from profit_sft.padding import can_skip_padding, rows_are_independent

_HEADS = "_profit_heads"  # the last is installed, and calls what was there before it


class HeadCounts:
    """What the training steps through an installed head have seen on this rank.

    Attributes:
        calls: Calls with gradients since the head was installed.
        calls_without_num_items: Those of them whose loss was divided by the label tokens of the call alone.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.calls_without_num_items = 0
        self._sums: list[Tensor] | None = None

    def add(self, result: SelectiveLoss, *, has_num_items: bool) -> None:
        """Count one call. No sync with the host."""
        self.calls += 1
        self.calls_without_num_items += not has_num_items
        sums = [result.num_labels, result.num_kept, -result.log_probs.sum()]
        self._sums = sums if self._sums is None else [a + b for a, b in zip(self._sums, sums, strict=True)]

    def take(self, device: torch.device | str) -> Tensor:
        """Return label tokens, kept tokens and the sum of `-log p` in nats since the last reading, `(3,)` fp32.

        The last is NaN where a call did not compute every `log p`: see `statistics` of `apply_profit`.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            return torch.zeros(3, device=device)
        return torch.stack([value.detach().float().to(device) for value in sums])


class _Installed:
    """What `apply_profit` leaves on the model: the settings, and what is needed to take it off again."""

    def __init__(self, model: Any, tail: Tail) -> None:
        self.tail = tail
        self.settings = SelectiveHead(objective=NLL())
        self.counts = HeadCounts()
        # Another library may have put its own forward on the instance; it is called, and restored, not lost.
        self.wrapped = model.__dict__.get("forward")
        self.removed = False  # while another library's forward on top still calls this one
        self.in_call = False
        self.look: SelectiveHead | None = None  # settings of `label_statistics`, while it calls the model
        self.warned_of_evaluation_mode = False
        self.had_accepts_loss_kwargs = model.__dict__.get("accepts_loss_kwargs")
        self.guard = backbone_of(model).register_forward_pre_hook(self._refuse_a_step_past_the_head)
        self._rows_are_independent: bool | None = None  # not tried yet

    def _refuse_a_step_past_the_head(self, backbone: nn.Module, args: Any) -> None:
        """Raise if the backbone runs a training step that the installed forward knows nothing of."""
        if backbone.training and torch.is_grad_enabled() and not self.in_call:
            refuse_another_loss("the model's layers ran outside of the forward that apply_profit installed")

    def skips_padding(self, model: Any, device: torch.device) -> bool:
        """Say whether the layers give the same without padding; tried at the first call, by every rank alike."""
        if torch.compiler.is_compiling() or not can_skip_padding(model):
            return False
        if self._rows_are_independent is None:
            vocab_size = model.config.get_text_config().vocab_size
            with in_mode(model, training=False):
                self._rows_are_independent = rows_are_independent(backbone_of(model), vocab_size, device)
        return self._rows_are_independent


def apply_profit(
    model: nn.Module,
    objective: Objective | None = None,
    *,
    normalize: Normalize = "all",
    statistics: Statistics = "objective",
    chunk_size: int | None = None,
    backend: Backend = "auto",
    gradient_budget: float | None = None,
    skip_padding: bool = True,
) -> nn.Module:
    """Make `model(**batch).loss` the selective loss in training mode. Evaluation and generation stay untouched.

    Call it before the trainer is made or `accelerator.prepare` is called, with the model in training mode from the
    first step on: `from_pretrained` returns it in evaluation mode, and trainers call `model.train()`.

    The batch may carry `labels` (shifted here) or `shift_labels`, `num_items_in_batch`, and `reference_log_probs` and
    `token_weights` in the layout of whichever labels it has. `logits_to_keep`, a number or a mask, goes with labels
    that were cut alike. Calling it again replaces the objective, and puts it back on a model that was pickled.

    Args:
        model: A Hugging Face causal language model, or a PEFT model around one. Changed in place.
        objective: The token objective; None is `ProFit()`, threshold 0.1.
        normalize: `"all"` divides by `num_items_in_batch` (or the labels of the call), `"kept"` by the tokens of
            non-zero weight. With `num_items_in_batch`, `"kept"` gives each call its share of the step by its labels,
            which equals one big batch only for a single call; `ProFitTrainer` is exact for any number.
        statistics: What `output.selective` holds after each training call: `"objective"` what the objective needs,
            `"all"` log-probabilities of every label token (so plain NLL is known), entropy and accuracy as well.
        chunk_size: Tokens whose logits are held at once. None: chosen.
        backend: Backend of the loss.
        gradient_budget: Share of the gradient mass that may be left out, see `selective_linear_cross_entropy`.
        skip_padding: Run the layers on no padding, and on nothing behind the last label of a row. The loss and its
            gradients stay what they are. It needs PyTorch's attention (`attn_implementation="sdpa"`), layers that mix
            positions in attention alone, rows within an attention's window, and calls shorter than the length by which
            layers go, such as longrope's; else batches run as they are.

    Returns:
        The same model.

    Raises:
        UnsupportedModelError: The model's logits come about in a way the head would not reproduce, or the model cannot
            take another forward any more: it names the part.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...                      num_attention_heads=2, num_key_value_heads=2)
        >>> model = apply_profit(LlamaForCausalLM(config).train(), ProFit(threshold=0.01))
        >>> input_ids = torch.tensor([[1, 2, 3, 4]])
        >>> model(input_ids=input_ids, labels=input_ids).loss.backward()
    """
    settings = SelectiveHead(
        objective=ProFit() if objective is None else objective,
        normalize=normalize,
        statistics=statistics,
        chunk_size=chunk_size,
        backend=backend,
        gradient_budget=gradient_budget,
        skip_padding=skip_padding,
    )
    base = causal_lm(model)
    head_linears(base)
    installed = _installed_on(base) or _install(base, tail_of(base))
    installed.settings = replace(settings, **installed.tail._asdict())
    return model


def _install(base: Any, tail: Tail) -> _Installed:
    if hasattr(base, "_original_forward"):  # accelerate's, when it wraps the forward in autocast
        raise UnsupportedModelError(
            "accelerate has wrapped the model's forward in autocast already, and the selective loss would run outside "
            "of it. Call apply_profit before accelerator.prepare, that is before the trainer starts to train."
        )
    installed = _Installed(base, tail)
    heads: list[_Installed] = getattr(base, _HEADS, [])
    base.forward = types.MethodType(_selective_forward(type(base), len(heads)), base)
    # Families that say False have micro-batches averaged by the Trainer; this forward does read num_items_in_batch.
    base.accepts_loss_kwargs = True
    # The replicas of nn.DataParallel would run this forward on the parameters of the first device.
    base._replicate_for_data_parallel = _refuse_data_parallel
    setattr(base, _HEADS, [*heads, installed])
    return installed


def remove_profit(model: nn.Module) -> nn.Module:
    """Undo `apply_profit`. A model without a selective head is returned as it is.

    A forward that another library put on top in the meantime stays, and calls the model's own from then on.

    Args:
        model: What `apply_profit` was given or returned.

    Returns:
        The same model.
    """
    base = causal_lm(model)
    installed = _installed_on(base)
    if installed is not None:
        _take_off(base, installed, is_on_top=_is_selective(base.forward))
    return model


def _take_off(base: Any, installed: _Installed, *, is_on_top: bool) -> None:
    installed.removed = True
    installed.guard.remove()
    del base._replicate_for_data_parallel
    put_back(base, "accepts_loss_kwargs", installed.had_accepts_loss_kwargs)
    if is_on_top:
        put_back(base, "forward", installed.wrapped)
        put_back(base, _HEADS, getattr(base, _HEADS)[:-1] or None)


def _is_selective(forward: Any) -> bool:
    """Say whether it is ours by itself, not another library's around it, which may have copied its attributes."""
    function = getattr(forward, "__func__", None)
    return function is not None and getattr(function, "_is_selective", None) is function


def selective_head(model: nn.Module) -> SelectiveHead:
    """Return the settings of the head that `apply_profit` installed, or raise ValueError when there is none."""
    return _require_installed(model).settings


def head_counts(model: nn.Module) -> HeadCounts:
    """Return the counts of the head that `apply_profit` installed, or raise ValueError when there is none."""
    return _require_installed(model).counts


@torch.no_grad()
def label_statistics(
    model: nn.Module,
    *,
    input_ids: Tensor,
    labels: Tensor,
    objective: Objective | None = None,
    statistics: Statistics = "all",
    likeliest: int = 0,
    **inputs: Any,
) -> SelectiveLoss:
    """Look at every label token without training: no gradient, no dropout, never `(N, V)` logits.

    The model is called as a whole, so whatever shards it works as in a step: every rank must call. Chunks and backend
    are those of its head. Rows of which the objective keeps nothing are what is looked for, so they are not warned of.

    Args:
        model: A causal language model, with or without a selective head, as its engine wrapped it. Its training mode is
            the same afterwards.
        input_ids: `(B, S)`, int64.
        labels: `(B, S)`, int64, unshifted; -100 where there is none.
        objective: Whose token weights to report; None weighs every label 1.
        statistics: As `selective_linear_cross_entropy` takes them.
        likeliest: As there.
        **inputs: What else the model takes, such as `attention_mask`.

    Returns:
        Values `(B, S)`; those at position t are of token t + 1, so the last position never holds one.

    Raises:
        UnsupportedModelError: As `apply_profit`.
    """
    base = causal_lm(model)
    was_installed = _installed_on(base) is not None
    if not was_installed:
        apply_profit(model)
    installed = _require_installed(model)
    installed.look = replace(
        installed.settings,
        objective=NLL() if objective is None else objective,
        normalize="all",
        statistics=statistics,
        likeliest=likeliest,
        adds_aux_loss=False,
    )
    try:
        with in_mode(base, training=False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*teaches nothing")
            found: SelectiveLoss = model(input_ids=input_ids, labels=labels, use_cache=False, **inputs)["selective"]
    finally:
        installed.look = None
        if not was_installed:
            remove_profit(model)
    return found


def causal_lm(model: nn.Module) -> Any:
    """Unwrap DDP, FSDP1, DeepSpeed, torch.compile and PEFT down to the Hugging Face model."""
    while not isinstance(model, PreTrainedModel):
        if isinstance(model, nn.DataParallel):
            _refuse_data_parallel()
        inner = next((model._modules[name] for name in _WRAPPERS if name in model._modules), None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()  # type: ignore[operator]  # PEFT
        if inner is None:
            break
        model = inner
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a Hugging Face causal language model with an output embedding. "
            "Load it with AutoModelForCausalLM, or call selective_linear_cross_entropy on your hidden states."
        )
    return model


# The attributes under which torch.compile, FSDP1, and DDP and DeepSpeed keep what they wrap.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "module")


def _installed_on(base: Any) -> _Installed | None:
    heads: list[_Installed] = getattr(base, _HEADS, [])
    if not heads or heads[-1].removed:
        return None
    if getattr(base.forward, "__func__", None) is type(base).forward:  # unpickled: methods are found by their names
        _take_off(base, heads[-1], is_on_top=True)
        return None
    return heads[-1]


def _require_installed(model: nn.Module) -> _Installed:
    installed = _installed_on(causal_lm(model))
    if installed is None:
        raise ValueError("the model has no selective head; call apply_profit(model) first.")
    return installed


def _refuse_data_parallel() -> NoReturn:
    raise UnsupportedModelError(
        "nn.DataParallel copies a model without the forward that apply_profit installed. Start one process a GPU "
        "(torchrun or accelerate launch), or show the process one GPU (CUDA_VISIBLE_DEVICES=0)."
    )


def _selective_forward(model_class: type, place: int) -> Callable[..., Any]:
    """Return the forward to install on an instance of `model_class`; its signature is the model's own.

    A forward finds its own installation by its place, on a copy of the model as well: beneath another library's
    forward there may be one that was removed, which that forward still calls.
    """
    own_forward = model_class.forward  # type: ignore[attr-defined]  # every torch module class has one
    names = list(inspect.signature(own_forward).parameters)[1:]

    # generate() and Trainer read the signature to decide which arguments the model takes.
    @functools.wraps(own_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.update(zip(names, args, strict=False))
        installed: _Installed = getattr(self, _HEADS)[place]
        labels: Any = kwargs.get("labels") if kwargs.get("shift_labels") is None else kwargs["shift_labels"]
        settings = _settings_of_call(self, installed, kwargs, labeled=labels is not None)
        if settings is None:
            for name in FROM_THE_BATCH:
                kwargs.pop(name, None)
            return own_forward(self, **kwargs) if installed.wrapped is None else installed.wrapped(**kwargs)
        as_tuple = kwargs.pop("return_dict", None) is False
        installed.in_call = True
        try:
            skip_padding = settings.skip_padding and installed.skips_padding(self, labels.device)
            output = loss_forward(self, settings, skip_padding=skip_padding, **kwargs)
        finally:
            installed.in_call = False
        assert output.selective is not None
        if self.training and torch.is_grad_enabled():
            installed.counts.add(output.selective, has_num_items=kwargs.get("num_items_in_batch") is not None)
        return output.to_tuple() if as_tuple else output

    forward._is_selective = forward  # type: ignore[attr-defined]  # how remove_profit knows it
    return forward


def _settings_of_call(
    model: Any, installed: _Installed, kwargs: dict[str, Any], *, labeled: bool
) -> SelectiveHead | None:
    """Return what to compute in this call, or None for the model's own forward; refuse another loss in a step."""
    if installed.removed:
        return None
    if installed.look is not None:
        return installed.look
    fused = bool(kwargs.get("fused_lm_head"))  # TRL asks its own forward for per-token values in place of a loss
    stepping = model.training and torch.is_grad_enabled()
    if stepping and not labeled:
        refuse_another_loss("the model was called in training mode without labels")
    if stepping and fused:
        refuse_another_loss("TRL's SFTTrainer computes its loss from log-probabilities (fused_lm_head=True)")
    if model.training and labeled and not fused:
        return installed.settings
    if labeled and fused:
        return replace(installed.settings, objective=NLL(), normalize="all", statistics="all")
    if labeled and torch.is_grad_enabled() and not installed.warned_of_evaluation_mode:
        installed.warned_of_evaluation_mode = True
        warnings.warn(
            "the model got labels in evaluation mode with gradients on: its loss is plain NLL, not the selective loss. "
            "Call model.train() to train, or use torch.no_grad() to evaluate.",
            stacklevel=5,
        )
    return None
