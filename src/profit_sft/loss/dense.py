"""The selective loss where somebody else has formed the logits, and its weights where only `log p` is left of them.

`selective_linear_cross_entropy` forms fewer logits and less memory of them; these are for trainers that hand over no
hidden states.
"""

import torch
from torch import Tensor

from profit_sft.loss.chunked import topk_entropy
from profit_sft.loss.selective import (
    Normalize,
    SelectiveLoss,
    check_labels,
    check_weighting,
    shifted,
    warn_nothing_kept,
)
from profit_sft.objectives import Objective, TokenStats


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its shapes follow the data: nothing to compile
def selective_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    objective: Objective,
    *,
    num_items_in_batch: int | Tensor | None = None,
    normalize: Normalize = "all",
    ignore_index: int = -100,
    reference_log_probs: Tensor | None = None,
    token_weights: Tensor | None = None,
    shift: bool | None = None,
) -> SelectiveLoss:
    """Weighted next-token loss from logits: `-sum_t w_t * log p_t / normalizer`; the token weights are detached.

    Computed in fp32 (float64 for float64 logits) on the rows of label tokens, whose logits are copied once.

    Args:
        logits: `(N, V)` or `(B, S, V)`, floating point, as the model returns them: scaled and capped already.
        labels: `(N,)` or `(B, S)`, int64 in `[0, V)` or `ignore_index`. See `shift` for which position they belong to.
        objective: Maps per-token statistics to weights, such as `ProFit(threshold=0.1)`.
        num_items_in_batch: Label tokens of the whole optimizer step over all ranks. None: those of this call.
        normalize: `"all"` divides by the label tokens, `"kept"` by the tokens of non-zero weight of this call.
        ignore_index: Label of positions without a target.
        reference_log_probs: Shape of `labels`. `log p_t` under a reference, for objectives that need it.
        token_weights: Shape of `labels`. Known token weights. They replace the objective, unless it reads them as
            `Given` does.
        shift: As in `selective_linear_cross_entropy`. None: True for rows `(B, S)`, False for `(N,)`.

    Returns:
        The loss, differentiable in `logits`, and per-token values in the shape of `labels`, at the positions that
        predict. `log_probs` are those of every label token; `entropy` is there where the objective needs it.

    Raises:
        ValueError: A shape, label or option is out of range; names the argument and the first bad index.
        TypeError: `labels` are not integers.

    Host syncs on an accelerator: three a call, for checked labels, their places and whether anything was kept.

    Example:
        >>> from profit_sft.objectives import ProFit
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0]], requires_grad=True)
        >>> out = selective_cross_entropy(logits, torch.tensor([0, 1]), ProFit(threshold=0.1))
        >>> out.loss.backward()
        >>> out.token_weights, logits.grad[1].abs().sum().item()
        (tensor([1., 0.]), 0.0)
    """
    shape = labels.shape
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}.")
    if logits.shape[:-1] != shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(shape)} do not line up: labels must have the shape of "
            "logits without its last dimension."
        )
    check_labels(labels, logits.shape[-1], ignore_index)
    check_weighting(objective, normalize, num_items_in_batch)
    for name, value in (("reference_log_probs", reference_log_probs), ("token_weights", token_weights)):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} must have the shape of labels {tuple(shape)}, got {tuple(value.shape)}.")
    if labels.dim() > 1 if shift is None else shift:
        labels = shifted(labels, ignore_index)
        reference_log_probs = None if reference_log_probs is None else shifted(reference_log_probs, 0.0)
        token_weights = None if token_weights is None else shifted(token_weights, 0.0)
    label_mask = labels != ignore_index
    targets = labels[label_mask]  # (K,)
    rows = logits[label_mask]
    rows = rows if rows.dtype == torch.float64 else rows.float()  # (K, V) fp32
    totals = rows.logsumexp(dim=-1)
    log_probs = rows.gather(-1, targets[:, None]).squeeze(-1) - totals
    frozen = rows.detach()
    whole = objective.needs & {"entropy", "collision"}
    probs = (frozen - totals.detach()[:, None]).exp() if whole else None  # (K, V)
    stats = TokenStats(
        labels=targets,
        log_probs=log_probs.detach(),
        entropy=None if probs is None else torch.special.entr(probs).sum(-1),
        topk_entropy=topk_entropy(frozen) if "topk_entropy" in objective.needs else None,
        collision=None if probs is None else probs.square().sum(-1),
        reference_log_probs=None if reference_log_probs is None else reference_log_probs[label_mask],
        token_weights=None if token_weights is None else token_weights[label_mask],
    )
    known = None if "token_weights" in objective.needs else stats.token_weights
    weights = (objective.token_weights(stats) if known is None else known).detach()
    num_labels, num_kept = label_mask.sum(), (weights != 0).sum()
    if num_items_in_batch is None:
        num_items_in_batch = (num_labels if normalize == "all" else num_kept).clamp(min=1)
    # Multiplied by nothing where a weight is zero: log p may be -inf there.
    weighed = torch.where(weights != 0, weights.to(log_probs.dtype) * log_probs, 0.0)
    loss = -weighed.sum() / torch.as_tensor(num_items_in_batch, dtype=log_probs.dtype, device=logits.device)
    if targets.numel() and not num_kept and token_weights is None:  # else the caller chose these weights
        warn_nothing_kept(objective, targets.numel(), log_probs.detach().max())

    def placed(values: Tensor) -> Tensor:
        return torch.zeros(shape, device=logits.device).masked_scatter(label_mask, values.float())

    return SelectiveLoss(
        loss=loss,
        log_probs=placed(log_probs.detach()),
        token_weights=placed(weights),
        entropy=None if stats.entropy is None else placed(stats.entropy),
        is_top1=None,
        rank=None,
        top1=None,
        likeliest=None,
        likeliest_log_probs=None,
        label_mask=label_mask,
        num_labels=num_labels,
        num_kept=num_kept,
        dropped_share=loss.new_zeros(()),
    )


def token_weights(
    log_probs: Tensor,
    label_mask: Tensor,
    objective: Objective,
    *,
    labels: Tensor | None = None,
    reference_log_probs: Tensor | None = None,
) -> Tensor:
    """Return what to multiply each `-log p_t` by, for who has the log-probabilities of the labels and nothing more.

    The loss is then `-(token_weights * log_probs).sum() / num_items_in_batch`, with the trainer's own count.

    Args:
        log_probs: Any shape, floating point: `log p_t` of the label in nats, at most 0. Detached here.
        label_mask: Same shape, True (or non-zero) where the token counts. Elsewhere `log_probs` is not looked at.
        objective: Maps per-token statistics to weights. One that needs the whole prediction, such as `EAFT`, is
            refused; one that ranks tokens, such as `Rho`, ranks those of this call.
        labels: Same shape, int64, for an objective of your own that reads them. None: they are -100.
        reference_log_probs: Same shape. `log p_t` under a reference, for objectives that need it.

    Returns:
        The shape of `log_probs`, fp32 (float64 for float64), detached; 0 where `label_mask` is False.

    Raises:
        ValueError: The objective needs what log-probabilities do not tell, shapes differ, or a value is positive, as
            losses and probabilities are.

    Host syncs on an accelerator: two a call, for the places of the labels and the sign.

    Example:
        >>> from profit_sft.objectives import ProFit
        >>> log_probs = torch.tensor([0.05, 0.5, 0.9]).log()
        >>> token_weights(log_probs, torch.tensor([True, True, False]), ProFit(threshold=0.1))
        tensor([0., 1., 0.])
    """
    check_weighting(objective)
    missing = sorted(objective.needs - {"log_probs", "reference_log_probs"})
    if missing:
        raise ValueError(
            f"{objective} needs {', '.join(missing)}, which the log-probabilities of the labels do not tell. Use "
            "selective_cross_entropy on the logits, or selective_linear_cross_entropy on the hidden states."
        )
    for name, value in (("label_mask", label_mask), ("labels", labels), ("reference_log_probs", reference_log_probs)):
        if value is not None and value.shape != log_probs.shape:
            raise ValueError(
                f"{name} must have the shape of log_probs {tuple(log_probs.shape)}, got {tuple(value.shape)}."
            )
    label_mask = label_mask.bool()
    found = log_probs.detach()[label_mask]
    found = found if found.dtype == torch.float64 else found.float()
    if (found > 1e-3).any():  # more than rounding
        raise ValueError(
            f"log_probs must be at most 0, got {found.max().item():.3g}: pass log p in nats, not p nor -log p."
        )
    stats = TokenStats(
        labels=found.new_full(found.shape, -100, dtype=torch.int64) if labels is None else labels[label_mask],
        log_probs=found,
        reference_log_probs=None if reference_log_probs is None else reference_log_probs[label_mask],
    )
    weights = objective.token_weights(stats).detach().to(found.dtype)
    return found.new_zeros(log_probs.shape).masked_scatter(label_mask, weights)
