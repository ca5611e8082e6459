"""The public loss: checks its inputs, picks a backend, and returns a loss with what was measured on the way."""

import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from profit_sft.loss.call import HeadOptions
from profit_sft.loss.chunked import ChunkedCall, chunked_selective_loss
from profit_sft.objectives import Objective

Backend = Literal["auto", "chunked", "triton"]
Normalize = Literal["all", "kept"]
Statistics = Literal["objective", "all", "ranks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectiveLoss:
    """Result of `selective_linear_cross_entropy`. Everything but `loss` is detached.

    A per-token value that was not computed is NaN (fp32) rather than a guess; ignored positions hold 0.

    Attributes:
        loss: 0-d, fp32 (float64 for float64 inputs), nats.
        log_probs: `(N,)`, fp32. `log p` of the label, nats.
        token_weights: `(N,)`, fp32. The objective's token weights; 0 where masked or ignored.
        entropy: `(N,)`, fp32, nats, or None where neither the objective nor the caller asked for it.
        is_top1: `(N,)`, bool. The label is the likeliest token; False where it was not computed. None as above.
        rank: `(N,)`, int64. 1 where no token is likelier than the label, and so on; 0 where ignored. None where the
            caller did not ask for ranks.
        top1: `(N,)`, int64. The likeliest token; 0 where ignored. None as above.
        likeliest: `(N, K)`, int64. The `K` likeliest tokens, likeliest first; 0 where ignored. None where the caller
            asked for none.
        likeliest_log_probs: `(N, K)`, fp32. Their `log p`, nats. None as above.
        label_mask: `(N,)`, bool. True where the position carries a label.
        num_labels: 0-d int64. Positions with a label.
        num_kept: 0-d int64. Positions of non-zero weight.
        dropped_share: 0-d fp32, at most `gradient_budget`: the share of `sum |d loss / d logits|` that was left out. 0
            where nearly every column of the vocabulary is needed, since leaving out so few would save nothing.
    """

    loss: Tensor
    log_probs: Tensor
    token_weights: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    rank: Tensor | None
    top1: Tensor | None
    likeliest: Tensor | None
    likeliest_log_probs: Tensor | None
    label_mask: Tensor
    num_labels: Tensor
    num_kept: Tensor
    dropped_share: Tensor

    @property
    def kept_share(self) -> Tensor:
        """0-d fp32: the share of the label tokens that have a non-zero weight; 0 where there are none. No sync."""
        return self.num_kept.float() / self.num_labels.clamp(min=1)

    @property
    def nll(self) -> Tensor:
        """0-d fp32: plain NLL, the mean of `-log p` over the label tokens, in nats; 0 where there are none. No sync.

        NaN where a `log p` was not computed, which `statistics="all"` rules out.
        """
        return -self.log_probs.sum() / self.num_labels.clamp(min=1)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its shapes follow the data: nothing to compile
def selective_linear_cross_entropy(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    *,
    objective: Objective,
    bias: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    normalize: Normalize = "all",
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    reference_log_probs: Tensor | None = None,
    token_weights: Tensor | None = None,
    statistics: Statistics = "objective",
    likeliest: int = 0,
    gradient_budget: float | None = None,
    shift: bool | None = None,
    chunk_size: int | None = None,
    backend: Backend = "auto",
) -> SelectiveLoss:
    """Weighted next-token loss from hidden states, without ever holding `(N, V)` logits.

    Computes `-sum_t w_t * log p_t / normalizer` with `p_t = softmax(cap(logit_scale * (W h_t + b)))[y_t]`. The token
    weights `w_t` are detached. Logits, softmax and the mask are fp32 whatever the inputs are; under autocast hidden
    states and matrix are first rounded to its dtype, as `torch.nn.Linear` would. Gradients are formed during the
    forward pass, while the logits of a chunk are there, and only for tokens of non-zero weight.

    Args:
        hidden_states: `(N, D)` or `(B, S, D)`, floating point.
        lm_head_weight: `(V, D)`, the language-model head. Gets no gradient, and costs none, where it is frozen.
        labels: `(N,)` or `(B, S)`, int64 in `[0, V)` or `ignore_index`. See `shift` for which position they belong to.
        objective: Maps per-token statistics to weights, such as `ProFit(threshold=0.1)`.
        bias: `(V,)`, added to the logits, or None.
        num_items_in_batch: Label tokens of the whole optimizer step over all ranks. None: those of this call.
        normalize: `"all"` divides by the label tokens, `"kept"` by the tokens of non-zero weight of this call.
        ignore_index: Label of positions without a target.
        logit_scale: Factor on the logits (Cohere; `1 / logits_scaling` in Granite).
        final_logit_softcapping: `c` in `c * tanh(logits / c)`, applied after the scale (Gemma 2), or None.
        reference_log_probs: Shape of `labels`. `log p_t` under a reference, for objectives that need it.
        token_weights: Shape of `labels`. Known token weights. They replace the objective, unless it reads them as
            `Given` does, and tokens of weight zero are not projected at all.
        statistics: `"objective"` computes what the objective reads. `"all"` computes log-probability, entropy and
            whether it is the likeliest, of every label token; `"ranks"` its rank and the likeliest token as well.
        likeliest: How many of the likeliest tokens to return with their log-probabilities; needs `"ranks"`.
        gradient_budget: Share of `sum |d loss / d logits|` that may be left out of the two backward products, in
            [0, 1); 0.003 leaves most columns of a large vocabulary out. None leaves nothing out, but CPUs with bf16
            instructions multiply the columns that carry the last 0.5% in bf16 (error of the hidden states' gradient on
            real data 8e-6, where it is 4e-6 in fp32). 0.0 leaves nothing out and multiplies everything in fp32 (of
            16-bit operands on CUDA), whatever the processor.
        shift: Whether position t of `hidden_states` predicts position t + 1 of `labels`, `reference_log_probs` and
            `token_weights`, as a model's hidden states and the labels of its batch do. They are then moved one to the
            left: the last position of a row has no label, and results stand where the prediction is made. None: True
            for rows `(B, S)`, False for `(N,)`, where each label lies beside the hidden state that predicts it.
        chunk_size: Tokens whose logits are held at once; memory is `chunk_size * V * 4` bytes, on the CPU
            kept for the next call. None: chosen, 128 MiB or 64 tokens there.
        backend: `"chunked"` is plain torch on any device, `"triton"` has kernels for CUDA. `"auto"` takes the kernels
            on a CUDA device if Triton is installed.

    Returns:
        The loss, differentiable in `hidden_states`, `lm_head_weight` and `bias`, and per-token values in the shape of
        `labels`, at the positions that predict.

    Raises:
        ValueError: A shape, label or option is out of range; names the argument and the first bad index.
        TypeError: `labels` are not integers.
        RuntimeError: From `backward`, when asked for a second derivative or called twice.

    Host syncs on an accelerator: three a call, for checked labels, their places and whether anything was kept; one more
    where weights are known beforehand; three more and one a group of tokens where a prefix of the vocabulary is tried;
    one to three a chunk for kept tokens, and up to four more with a budget. None in `backward`.

    Source: Liu et al. 2026, arXiv:2601.09195, for the objective; gradients inside the forward pass as in Liger Kernel
    (Hsu et al. 2024, arXiv:2410.10989).

    Example:
        >>> from profit_sft.objectives import ProFit
        >>> _ = torch.manual_seed(0)
        >>> hidden_states, lm_head_weight = torch.randn(4, 8, requires_grad=True), torch.randn(16, 8)
        >>> out = selective_linear_cross_entropy(
        ...     hidden_states, lm_head_weight, torch.tensor([1, 5, -100, 2]), objective=ProFit(threshold=0.01))
        >>> out.loss.backward()
        >>> int(out.num_labels), hidden_states.grad[2].abs().sum().item()
        (3, 0.0)
    """
    shape = labels.shape
    per_token = {"reference_log_probs": reference_log_probs, "token_weights": token_weights}
    _check(hidden_states, lm_head_weight, labels, bias, per_token, ignore_index=ignore_index)
    check_weighting(objective, normalize, num_items_in_batch)
    if statistics not in ("objective", "all", "ranks"):
        raise ValueError(f"statistics must be 'objective', 'all' or 'ranks', got {statistics!r}.")
    if likeliest < 0 or (likeliest and statistics != "ranks"):
        raise ValueError(f"likeliest must be 0, or positive with statistics='ranks', got {likeliest}, {statistics!r}.")
    if backend not in ("auto", "chunked", "triton"):
        raise ValueError(f"backend must be 'auto', 'chunked' or 'triton', got {backend!r}.")
    if final_logit_softcapping is not None and not final_logit_softcapping > 0:
        raise ValueError(
            f"final_logit_softcapping must be positive, or None for no cap, got {final_logit_softcapping}."
        )
    if gradient_budget is not None and not 0.0 <= gradient_budget < 1.0:
        raise ValueError(f"gradient_budget must be a share in [0, 1), got {gradient_budget}. Write 0.3% as 0.003.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token, got {chunk_size}.")
    if shift and labels.dim() < 2:
        raise ValueError(
            f"shift=True needs rows, hidden_states (B, S, D) and labels (B, S): labels {tuple(shape)} do not say where "
            "a sequence ends. Leave shift out if each label lies beside the hidden state that predicts it."
        )
    if labels.dim() > 1 if shift is None else shift:
        labels = shifted(labels, ignore_index)
        per_token = {name: None if value is None else shifted(value, 0.0) for name, value in per_token.items()}
    has_autocast = torch.amp.is_autocast_available(hidden_states.device.type)
    if has_autocast and torch.is_autocast_enabled(hidden_states.device.type):
        hidden_states, lm_head_weight = _autocast(hidden_states), _autocast(lm_head_weight)
        bias = None if bias is None else _autocast(bias)
    options = HeadOptions(
        objective=objective,
        normalize=normalize,
        ignore_index=ignore_index,
        logit_scale=float(logit_scale),
        final_logit_softcapping=final_logit_softcapping,
        all_statistics=statistics != "objective",
        ranks=statistics == "ranks",
        likeliest=likeliest,
        gradient_budget=gradient_budget,
        chunk_size=chunk_size,
    )
    with torch.autocast(hidden_states.device.type, enabled=False) if has_autocast else nullcontext():
        loss, found = chunked_selective_loss(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            lm_head_weight,
            labels.reshape(-1),
            bias,
            num_items_in_batch,
            {name: None if value is None else value.reshape(-1) for name, value in per_token.items()},
            options,
            _call_class(backend, hidden_states, lm_head_weight),
        )
    if found.nothing_kept and token_weights is None:  # else the caller chose these weights
        warn_nothing_kept(
            objective,
            int(found.label_mask.sum()),
            found.largest_log_prob,
            screened=bool(found.log_probs.isnan().any()),
        )
    return SelectiveLoss(
        loss=loss,
        log_probs=found.log_probs.view(shape),
        token_weights=found.token_weights.view(shape),
        entropy=None if found.entropy is None else found.entropy.view(shape),
        is_top1=None if found.is_top1 is None else found.is_top1.view(shape),
        rank=None if found.rank is None else found.rank.view(shape),
        top1=None if found.top1 is None else found.top1.view(shape),
        likeliest=None if found.likeliest is None else _of_shape(found.likeliest, shape),
        likeliest_log_probs=None if found.likeliest_log_probs is None else _of_shape(found.likeliest_log_probs, shape),
        label_mask=found.label_mask.view(shape),
        num_labels=found.label_mask.sum(),
        num_kept=(found.token_weights != 0).sum(),
        dropped_share=found.dropped_share,
    )


def _of_shape(values: Tensor, shape: torch.Size) -> Tensor:
    return values.view(*shape, values.shape[-1])


def shifted(values: Tensor, fill: float) -> Tensor:
    """Move the values of each row `(..., S)` one to the left; the last becomes `fill`."""
    return torch.cat([values[..., 1:], torch.full_like(values[..., :1], fill)], dim=-1)


def _autocast(operand: Tensor) -> Tensor:
    """Round to the dtype of autocast, which leaves float64 alone."""
    if operand.dtype == torch.float64:
        return operand
    return operand.to(torch.get_autocast_dtype(operand.device.type))


def _call_class(backend: Backend, hidden_states: Tensor, lm_head_weight: Tensor) -> type[ChunkedCall]:
    """Return the backend's class. Triton is imported only where it will be used."""
    computes_in_float64 = torch.float64 in (hidden_states.dtype, lm_head_weight.dtype)
    kernels_fit = hidden_states.is_cuda and not computes_in_float64 and find_spec("triton")
    if backend == "chunked" or (backend == "auto" and not kernels_fit):
        return ChunkedCall
    if computes_in_float64:
        raise ValueError("backend='triton' computes in fp32, and the inputs are float64. Use backend='chunked'.")
    if find_spec("triton") is None:
        raise ValueError("backend='triton' needs the package triton, which is not installed. Use backend='chunked'.")
    from profit_sft.loss.triton_kernels import INTERPRETED, TritonCall

    if not (hidden_states.is_cuda or INTERPRETED):
        raise ValueError(
            f"backend='triton' runs on CUDA devices, got {hidden_states.device}. Use backend='chunked', or set "
            "TRITON_INTERPRET=1 before the first import to run the kernels slowly on the CPU."
        )
    return TritonCall


def _check(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    per_token: dict[str, Tensor | None],
    *,
    ignore_index: int,
) -> None:
    if not hidden_states.is_floating_point():
        raise TypeError(f"hidden_states must be floating point, got {hidden_states.dtype}.")
    if hidden_states.shape[:-1] != labels.shape:
        raise ValueError(
            f"hidden_states {tuple(hidden_states.shape)} and labels {tuple(labels.shape)} do not line up: labels must "
            "have the shape of hidden_states without its last dimension."
        )
    if lm_head_weight.dim() != 2 or lm_head_weight.shape[1] != hidden_states.shape[-1]:
        raise ValueError(
            f"lm_head_weight must be (V, {hidden_states.shape[-1]}) to match hidden_states, got "
            f"{tuple(lm_head_weight.shape)}."
        )
    if bias is not None and bias.shape != lm_head_weight.shape[:1]:
        raise ValueError(
            f"bias must be ({lm_head_weight.shape[0]},), one per row of lm_head_weight, got {tuple(bias.shape)}."
        )
    for name, value in per_token.items():
        if value is not None and value.shape != labels.shape:
            raise ValueError(f"{name} must have the shape of labels {tuple(labels.shape)}, got {tuple(value.shape)}.")
    check_labels(labels, lm_head_weight.shape[0], ignore_index)


def check_labels(labels: Tensor, vocab_size: int, ignore_index: int) -> None:
    """Raise if a label is neither a token of the vocabulary nor `ignore_index`. Syncs with the host."""
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}. Call labels.long().")
    bad = (labels != ignore_index) & ((labels < 0) | (labels >= vocab_size))
    if bad.any():
        index = tuple(int(place) for place in bad.nonzero()[0])
        where = index[0] if len(index) == 1 else index
        raise ValueError(
            f"labels[{where}] is {labels[index].item()}, outside the vocabulary [0, {vocab_size}). "
            f"Positions without a target carry ignore_index ({ignore_index})."
        )


def check_weighting(
    objective: Objective, normalize: Normalize = "all", num_items_in_batch: int | Tensor | None = None
) -> None:
    """Raise if the tokens cannot be weighed, or their sum not be divided, in this way."""
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective such as ProFit(threshold=0.1), got {objective!r}.")
    if normalize not in ("all", "kept"):
        raise ValueError(f"normalize must be 'all' or 'kept', got {normalize!r}.")
    if normalize == "kept" and num_items_in_batch is not None:
        raise ValueError("normalize='kept' counts the kept tokens of this call itself; leave num_items_in_batch out.")
    # A tensor on an accelerator is taken as it is: looking at it would wait for the device.
    looked_at = not isinstance(num_items_in_batch, Tensor) or num_items_in_batch.device.type == "cpu"
    if num_items_in_batch is not None and looked_at and num_items_in_batch < 0:
        raise ValueError(
            f"num_items_in_batch must be the number of label tokens of the step, got {num_items_in_batch}."
        )


def warn_nothing_kept(
    objective: Objective, num_labels: int, largest_log_prob: Tensor, *, screened: bool = False
) -> None:
    """Say why a batch teaches nothing, with the number that decides it.

    Args:
        objective: What gave every label token weight 0.
        num_labels: How many there are.
        largest_log_prob: 0-d, of those.
        screened: Whether some have a bound in place of `log p`.
    """
    largest = largest_log_prob.exp().item()
    if math.isnan(largest):
        return  # the loss is NaN, too, and says more
    if largest > 0:
        reason = f"the largest p seen is {'at most ' if screened else ''}{largest:.3g}"
    else:
        reason = "no p was computed, since its weights do not depend on p"
    warnings.warn(
        f"{objective} gave all {num_labels} label tokens of this batch weight 0, so it teaches "
        f"nothing; {reason}. Lower the threshold, or look at the data under this model.",
        stacklevel=4,
    )
