"""What an installed head computes in a call: the backbone, then the selective loss by the head's module.

`head.py` decides which calls these are.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from profit_sft.errors import LossBypassedError, UnsupportedModelError
from profit_sft.head_module import backbone_of, through_head
from profit_sft.linears import linears_by_onednn
from profit_sft.loss import SelectiveLoss, selective_linear_cross_entropy
from profit_sft.loss.selective import Backend, Normalize, Statistics, check_weighting, shifted
from profit_sft.objectives import FROM_THE_BATCH, Objective
from profit_sft.padding import rows_to_run, run_rows

_IGNORE_INDEX = -100  # what transformers and TRL write into labels
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
        hands_labels: The model gives its backbone the labels, too.
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
    hands_labels: bool = False

    def __post_init__(self) -> None:
        check_weighting(self.objective, self.normalize)
        if self.statistics not in ("objective", "all", "ranks"):
            raise ValueError(f"statistics must be 'objective', 'all' or 'ranks', got {self.statistics!r}.")
        if not isinstance(self.skip_padding, bool):
            raise TypeError(f"skip_padding must be true or false, got {self.skip_padding!r}.")
        budget = self.gradient_budget
        if budget is not None and not (isinstance(budget, (int, float)) and 0.0 <= budget < 1.0):
            raise ValueError(f"gradient_budget must be a share in [0, 1), got {budget!r}. Write 0.3% as 0.003.")


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
            refuse_another_loss(f"TRL's SFTTrainer reads '{name}' of the output, which is never formed")
        return super().__getattribute__(name)


_READ_BY_TRL = frozenset({"logits", "num_valid_tokens", "entropy_sum", "num_correct_tokens"})


def refuse_another_loss(what: str) -> NoReturn:
    """Raise LossBypassedError: `what` happens in a training step, which would be on another loss than was asked for."""
    raise LossBypassedError(
        f"{what}, so this training step would not be on the selective loss that apply_profit installed. In TRL write "
        "ProFitTrainer and ProFitConfig for SFTTrainer and SFTConfig; they take the same arguments. In another trainer "
        "switch off what computes the loss itself (label smoothing, compute_loss_func, a DFT or loss-scale switch). To "
        "look at logits, use model.eval() or torch.no_grad(); to train on another loss, remove_profit(model)."
    )


def loss_forward(
    model: Any,
    settings: SelectiveHead,
    *,
    skip_padding: bool,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
    fused_lm_head: bool = False,
    **kwargs: Any,
) -> SelectiveCausalLMOutput:
    """Return the loss of a batch's labels, and what the backbone returns beside its hidden states.

    Args:
        model: A Hugging Face causal language model.
        settings: What to compute.
        skip_padding: Run the layers on the tokens that labels depend on, if this batch allows it.
        labels: `(B, S)`, int64, or `(B, K)` cut as the logits would be.
        shift_labels: The same, already shifted; taken in place of `labels`.
        num_items_in_batch: Label tokens of the whole optimizer step; None: those of this call.
        logits_to_keep: As transformers takes it: the last K (0: all), or positions `(K,)`, or a mask `(S,)`.
        fused_lm_head: Give the per-token values under the names that TRL reads, too.
        **kwargs: What the backbone takes, and columns beside the labels in their layout.
    """
    beside = {name: kwargs.pop(name, None) for name in FROM_THE_BATCH}
    kwargs["use_cache"] = bool(kwargs.get("use_cache"))
    balanced = _wants_router_logits(model, kwargs)
    if labels is not None and settings.hands_labels:
        kwargs["labels"] = labels
    if shift_labels is None:
        assert labels is not None
        shift_labels = shifted(labels, _IGNORE_INDEX)
        beside = {name: None if value is None else shifted(value, 0.0) for name, value in beside.items()}
    rows = None
    if skip_padding:
        predicts = shift_labels != _IGNORE_INDEX
        rows = rows_to_run(kwargs, predicts, model.config.get_text_config(), every_token=balanced is not None)
    backbone = backbone_of(model)
    with linears_by_onednn(backbone):
        outputs = backbone(**kwargs) if rows is None else run_rows(backbone, rows, kwargs)
    hidden_states = _kept_positions(outputs.last_hidden_state, shift_labels, logits_to_keep)  # (B, S, D)
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
    output = SelectiveCausalLMOutput(
        loss=loss,
        hidden_states=outputs.get("hidden_states"),
        attentions=outputs.get("attentions"),
        aux_loss=aux_loss,
        selective=result,
        **{_CACHE: outputs.get(_CACHE)},
    )
    if fused_lm_head:
        for name in ("log_probs", "entropy", "is_top1", "label_mask"):
            output[name] = getattr(result, name)
    return output


def _kept_positions(hidden_states: Tensor, labels: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Return the hidden states that belong to the labels: all, or where the labels were cut, those of the kept logits.

    Args:
        hidden_states: `(B, S, D)`.
        labels: `(B, S)`, or `(B, K)` cut by the caller as the logits would be.
        logits_to_keep: As transformers takes it: the last K (0: all), or positions `(K,)`, or a mask `(S,)`.
    """
    if labels.shape[1] == hidden_states.shape[1]:
        return hidden_states  # no logits are formed, so those that nobody wants cost nothing
    kept: Any = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep.flatten()
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
