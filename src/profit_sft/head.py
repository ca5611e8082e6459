"""Install the selective loss on a Hugging Face causal language model, and take it off again.

`apply_profit` replaces `model.forward` on the instance, so that wrappers such as DDP, FSDP2 and PEFT still run around
it. In training mode with labels the new forward runs the backbone and calls the head's module with
`selective_linear_cross_entropy` as its forward (`head_module.py`); in evaluation and generation it is the model's own.

A training step that would leave the selective loss is never silent: without labels, by TRL's fused head, or past the
installed forward altogether, it raises and says what to write instead.
"""

import functools
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from profit_sft.errors import LossBypassedError, UnsupportedModelError
from profit_sft.head_module import backbone_of, head_linears, tail_of, through_head
from profit_sft.linears import linears_by_onednn
from profit_sft.loss import SelectiveLoss, selective_linear_cross_entropy
from profit_sft.loss.selective import Backend, Normalize, Statistics, shifted
from profit_sft.objectives import FROM_THE_BATCH, NLL, Objective, ProFit
from profit_sft.padding import can_skip_padding, rows_are_independent, rows_to_run, run_rows

_IGNORE_INDEX = -100  # what transformers and TRL write into labels
_INSTALLED = "_profit_head"
# transformers 5.24 renamed the field from `past_key_values`.
_CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))


@dataclass(kw_only=True)
class SelectiveHead:
    """What the installed head does on its next call. Mutable, so that a trainer can ask for statistics now and then.

    Attributes:
        objective: Gives the token weights.
        normalize: `"all"` or `"kept"`, see `apply_profit`.
        statistics: `"objective"`, `"all"` or `"ranks"`, see `selective_linear_cross_entropy`.
        likeliest: How many of the likeliest tokens to report.
        chunk_size: Tokens whose logits are held at once, or None.
        backend: Backend of the loss.
        gradient_budget: Share of the gradient mass that may be left out.
        skip_padding: Run the layers on the tokens that labels depend on, see `apply_profit`.
        adds_aux_loss: Add a mixture of experts' load-balancing loss to the loss, as the model's own forward does.
        logit_scale: The model's factor on its logits.
        final_logit_softcapping: The model's soft cap, or None.
    """

    objective: Objective
    normalize: Normalize = "all"
    statistics: Statistics = "objective"
    likeliest: int = 0
    chunk_size: int | None = None
    backend: Backend = "auto"
    gradient_budget: float | None = None
    skip_padding: bool = True
    adds_aux_loss: bool = True
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            raise TypeError(f"objective must be an Objective such as ProFit(threshold=0.1), got {self.objective!r}.")
        if self.normalize not in ("all", "kept"):
            raise ValueError(f"normalize must be 'all' or 'kept', got {self.normalize!r}.")
        if self.statistics not in ("objective", "all", "ranks"):
            raise ValueError(f"statistics must be 'objective', 'all' or 'ranks', got {self.statistics!r}.")
        if not isinstance(self.skip_padding, bool):
            raise TypeError(f"skip_padding must be true or false, got {self.skip_padding!r}.")
        budget = self.gradient_budget
        if budget is not None and not (isinstance(budget, (int, float)) and 0.0 <= budget < 1.0):
            raise ValueError(f"gradient_budget must be a share in [0, 1), got {budget!r}. Write 0.3% as 0.003.")


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

    def __init__(self, model: Any) -> None:
        self.settings = SelectiveHead(objective=NLL())
        self.counts = HeadCounts()
        # Another library may have put its own forward on the instance; it is called, and restored, not lost.
        self.wrapped = model.__dict__.get("forward")
        self.skips_padding: bool | None = None  # not tried yet
        self.removed = False  # while another library's forward on top still calls this one
        self.in_call = False
        self.look: SelectiveHead | None = None  # settings of `label_statistics`, while it calls the model
        self.warned_of_evaluation_mode = False
        self.had_accepts_loss_kwargs = model.__dict__.get("accepts_loss_kwargs")
        self.guard = backbone_of(model).register_forward_pre_hook(self._refuse_a_step_past_the_head)

    def _refuse_a_step_past_the_head(self, backbone: nn.Module, args: Any) -> None:
        """Raise if the backbone runs a training step that the installed forward knows nothing of."""
        if backbone.training and torch.is_grad_enabled() and not self.in_call:
            _refuse_another_loss("the model's layers ran outside of the forward that apply_profit installed")


@dataclass
class SelectiveCausalLMOutput(CausalLMOutputWithPast):
    """A causal language model's output with the selective loss. `logits` is None: they were never all there.

    Attributes:
        aux_loss: 0-d, the load-balancing loss of a mixture of experts before its coefficient, or None.
        selective: The loss's per-token values, shape `(B, S)`, aligned with the positions that predict.
        log_probs: `(B, S)`; this and the next three under the names that TRL reads in evaluation, elsewhere None.
        entropy: `(B, S)`.
        is_top1: `(B, S)`, bool.
        label_mask: `(B, S)`, bool.
    """

    aux_loss: Tensor | None = None
    selective: SelectiveLoss | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None

    def __getattribute__(self, name: str) -> Any:
        # TRL before 1.15 reads these after every step, and would fail on what is not there.
        if name in _READ_BY_TRL and str(sys._getframe(1).f_globals.get("__name__")).startswith("trl."):
            _refuse_another_loss(f"TRL's SFTTrainer reads '{name}' of the output, which is never formed")
        return super().__getattribute__(name)


_READ_BY_TRL = frozenset({"logits", "num_valid_tokens", "entropy_sum", "num_correct_tokens"})


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
    that were cut alike. Calling it again replaces the objective.

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
    installed = _installed_on(base)
    if installed is None:
        settings.logit_scale, settings.final_logit_softcapping = tail_of(base)
        installed = _install(base)
    else:
        before = installed.settings
        settings.logit_scale, settings.final_logit_softcapping = before.logit_scale, before.final_logit_softcapping
    installed.settings = settings
    return model


def _install(base: Any) -> _Installed:
    if hasattr(base, "_original_forward"):  # accelerate's, when it wraps the forward in autocast
        raise UnsupportedModelError(
            "accelerate has wrapped the model's forward in autocast already, and the selective loss would run outside "
            "of it. Call apply_profit before accelerator.prepare, that is before the trainer starts to train."
        )
    installed = _Installed(base)
    base.forward = types.MethodType(_selective_forward(type(base)), base)
    # Families that say False have micro-batches averaged by the Trainer; this forward does read num_items_in_batch.
    base.accepts_loss_kwargs = True
    # The replicas of nn.DataParallel would run this forward on the parameters of the first device.
    base._replicate_for_data_parallel = _refuse_data_parallel
    setattr(base, _INSTALLED, installed)
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
    if installed is None:
        return model
    installed.guard.remove()
    del base._replicate_for_data_parallel
    if installed.had_accepts_loss_kwargs is None:
        del base.accepts_loss_kwargs
    else:
        base.accepts_loss_kwargs = installed.had_accepts_loss_kwargs
    if getattr(base.forward, "_is_selective", False):
        if installed.wrapped is None:
            del base.forward
        else:
            base.forward = installed.wrapped
        delattr(base, _INSTALLED)
    else:
        installed.removed = True
    return model


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
        with _in_evaluation_mode(base), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*teaches nothing")
            found: SelectiveLoss = model(input_ids=input_ids, labels=labels, use_cache=False, **inputs)["selective"]
    finally:
        installed.look = None
        if not was_installed:
            remove_profit(model)
    return found


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
    installed: _Installed | None = getattr(base, _INSTALLED, None)
    return None if installed is None or installed.removed else installed


def _require_installed(model: nn.Module) -> _Installed:
    installed = _installed_on(causal_lm(model))
    if installed is None:
        raise ValueError("the model has no selective head; call apply_profit(model) first.")
    return installed


def _refuse_another_loss(what: str) -> NoReturn:
    raise LossBypassedError(
        f"{what}, so this training step would not be on the selective loss that apply_profit installed. In TRL write "
        "ProFitTrainer and ProFitConfig for SFTTrainer and SFTConfig; they take the same arguments. In another trainer "
        "switch off what computes the loss itself (label smoothing, compute_loss_func, a DFT or loss-scale switch). To "
        "look at logits, use model.eval() or torch.no_grad(); to train on another loss, remove_profit(model)."
    )


def _refuse_data_parallel() -> NoReturn:
    raise UnsupportedModelError(
        "nn.DataParallel copies a model without the forward that apply_profit installed. Start one process a GPU "
        "(torchrun or accelerate launch), or show the process one GPU (CUDA_VISIBLE_DEVICES=0)."
    )


def _selective_forward(model_class: type) -> Callable[..., Any]:
    """Return the forward to install on an instance of `model_class`; its signature is the model's own."""
    own_forward = model_class.forward  # type: ignore[attr-defined]  # every torch module class has one
    names = list(inspect.signature(own_forward).parameters)[1:]

    # generate() and Trainer read the signature to decide which arguments the model takes.
    @functools.wraps(own_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.update(zip(names, args, strict=False))
        installed: _Installed = getattr(self, _INSTALLED)
        labeled = kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None
        if not installed.removed and (settings := _settings_of_call(self, installed, kwargs, labeled=labeled)):
            fused = kwargs.pop("fused_lm_head", False)
            installed.in_call = True
            try:
                output = _loss_forward(self, settings, **kwargs)
            finally:
                installed.in_call = False
            assert output.selective is not None
            if fused:
                for name in ("log_probs", "entropy", "is_top1", "label_mask"):
                    output[name] = getattr(output.selective, name)
            if self.training and torch.is_grad_enabled():
                installed.counts.add(output.selective, has_num_items=kwargs.get("num_items_in_batch") is not None)
            return output.to_tuple() if kwargs.get("return_dict") is False else output
        for name in FROM_THE_BATCH:
            kwargs.pop(name, None)
        return own_forward(self, **kwargs) if installed.wrapped is None else installed.wrapped(**kwargs)

    forward._is_selective = True  # type: ignore[attr-defined]  # how remove_profit knows it
    return forward


def _settings_of_call(
    model: Any, installed: _Installed, kwargs: dict[str, Any], *, labeled: bool
) -> SelectiveHead | None:
    """Return what to compute in this call, or None for the model's own forward; refuse another loss in a step."""
    if installed.look is not None:
        return installed.look
    fused = bool(kwargs.get("fused_lm_head"))  # TRL asks its own forward for per-token values in place of a loss
    stepping = model.training and torch.is_grad_enabled()
    if stepping and not labeled:
        _refuse_another_loss("the model was called in training mode without labels")
    if stepping and fused:
        _refuse_another_loss("TRL's SFTTrainer computes its loss from log-probabilities (fused_lm_head=True)")
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


def _loss_forward(
    model: Any,
    settings: SelectiveHead,
    *,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
    return_dict: bool | None = None,
    **kwargs: Any,
) -> "SelectiveCausalLMOutput":
    beside = {name: kwargs.pop(name, None) for name in FROM_THE_BATCH}
    kwargs["use_cache"] = bool(kwargs.get("use_cache"))
    balanced = _wants_router_logits(model, kwargs)
    given = labels if shift_labels is None else shift_labels
    assert given is not None
    if shift_labels is None:
        shift_labels = shifted(given, _IGNORE_INDEX)
        beside = {name: None if value is None else shifted(value, 0.0) for name, value in beside.items()}
    rows = None
    if settings.skip_padding and _skips_padding(model, given.device):
        predicts = shift_labels != _IGNORE_INDEX
        rows = rows_to_run(kwargs, predicts, model.config.get_text_config(), every_token=balanced is not None)
    backbone = backbone_of(model)
    with linears_by_onednn(backbone):
        outputs = backbone(**kwargs) if rows is None else run_rows(backbone, rows, kwargs)
    hidden_states = outputs.last_hidden_state  # (B, S, D)
    hidden_states = _kept_positions(hidden_states, given, logits_to_keep)
    # The loss would take weights in place of an objective that does not read them, such as an evaluation's.
    beside = {name: value for name, value in beside.items() if value is not None and name in settings.objective.needs}

    def loss_of(hidden: Tensor, lm_head_weight: Tensor, bias: Tensor | None) -> tuple[Tensor, SelectiveLoss]:
        device = hidden.device
        result: SelectiveLoss = selective_linear_cross_entropy(
            hidden,
            lm_head_weight,
            shift_labels.to(device),
            shift=False,
            objective=settings.objective,
            bias=bias,
            num_items_in_batch=num_items_in_batch if settings.normalize == "all" else None,
            normalize=settings.normalize,
            ignore_index=_IGNORE_INDEX,
            logit_scale=settings.logit_scale,
            final_logit_softcapping=settings.final_logit_softcapping,
            **{name: value.to(device) for name, value in beside.items()},
            statistics=settings.statistics,
            likeliest=settings.likeliest,
            gradient_budget=settings.gradient_budget,
            chunk_size=settings.chunk_size,
            backend=settings.backend,
        )
        return result.loss, result

    loss, result = through_head(model, loss_of, hidden_states)
    if settings.normalize == "kept" and num_items_in_batch is not None:
        # A step without a label anywhere divides zero by one, not by zero.
        num_items = torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        loss = loss * (result.num_labels.to(loss.dtype) / num_items)
    aux_loss = None
    if balanced is not None:
        aux_loss = balanced(outputs.router_logits, kwargs.get("attention_mask") if rows is None else None)
        if settings.adds_aux_loss:
            loss = loss + model.router_aux_loss_coef * aux_loss.to(loss.device)
    return SelectiveCausalLMOutput(
        loss=loss,
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
        aux_loss=aux_loss,
        selective=result,
        **{_CACHE: outputs.get(_CACHE)},
    )


def _skips_padding(model: Any, device: torch.device) -> bool:
    """Say whether the layers give the same without padding; tried at the first call, by every rank alike."""
    if torch.compiler.is_compiling() or not can_skip_padding(model):
        return False
    installed = _require_installed(model)
    if installed.skips_padding is None:
        vocab_size = model.config.get_text_config().vocab_size
        with _in_evaluation_mode(model):
            installed.skips_padding = rows_are_independent(backbone_of(model), vocab_size, device)
    return installed.skips_padding


def _kept_positions(hidden_states: Tensor, labels: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Return the hidden states that belong to the labels: all, or where the labels were cut, those of the kept logits.

    Args:
        hidden_states: `(B, S, D)`.
        labels: `(B, S)`, or `(B, K)` cut by the caller as the logits would be.
        logits_to_keep: As transformers takes it: the last K (0: all), or positions `(K,)`, or a mask `(S,)`.
    """
    if labels.shape[1] == hidden_states.shape[1]:
        return hidden_states  # no logits are formed, so those that nobody wants cost nothing
    kept: Any = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep.squeeze()
    selected = hidden_states[:, kept]
    if labels.shape[1] != selected.shape[1]:
        raise ValueError(
            f"labels {tuple(labels.shape)} go neither with all {hidden_states.shape[1]} positions nor with the "
            f"{selected.shape[1]} that logits_to_keep selects. Cut them by the same logits_to_keep, or leave it out."
        )
    return selected


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
