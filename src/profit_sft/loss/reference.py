"""The oracle: the same loss from dense logits, in a few plain lines, differentiable, in any dtype including float64.

For tests and small inputs. It shares no helper with the backends it judges.
"""

from typing import Literal

import torch
from torch import Tensor

from profit_sft.objectives import Objective, TokenStats


def reference_log_probs_of(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
) -> Tensor:
    """Return the dense `(N, V)` log-probabilities in the dtype of the inputs.

    Args:
        hidden_states: `(N, D)`.
        lm_head_weight: `(V, D)`.
        labels: `(N,)`, unused but for its shape.
        bias: `(V,)` or None.
        logit_scale: Factor on the logits, before the soft cap.
        final_logit_softcapping: `c` of `c * tanh(logits / c)`, or None.
    """
    logits = hidden_states @ lm_head_weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * logit_scale
    if final_logit_softcapping is not None:
        logits = final_logit_softcapping * torch.tanh(logits / final_logit_softcapping)
    return logits.log_softmax(dim=-1)


def reference_loss(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    *,
    objective: Objective,
    bias: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    normalize: Literal["all", "kept"] = "all",
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    final_logit_softcapping: float | None = None,
    reference_log_probs: Tensor | None = None,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the selective loss densely.

    Args: as `selective_linear_cross_entropy`; hidden states, matrix and bias may be float64.

    Returns:
        The 0-d loss, and the per-token values of the label tokens: `log_probs`, `entropy`, `topk_entropy`,
        `collision`, `token_weights`.
    """
    counted = labels != ignore_index
    targets = labels[counted]
    dense = reference_log_probs_of(
        hidden_states[counted],
        lm_head_weight,
        targets,
        bias=bias,
        logit_scale=logit_scale,
        final_logit_softcapping=final_logit_softcapping,
    )
    log_probs = dense.gather(-1, targets[:, None]).squeeze(-1)
    frozen = dense.detach()
    likeliest = frozen.topk(min(20, frozen.shape[-1]), dim=-1).values.softmax(dim=-1)
    stats = TokenStats(
        labels=targets,
        log_probs=log_probs.detach(),
        entropy=torch.special.entr(frozen.exp()).sum(-1),
        topk_entropy=torch.special.entr(likeliest).sum(-1),
        collision=frozen.exp().square().sum(-1),
        reference_log_probs=None if reference_log_probs is None else reference_log_probs[counted],
        token_weights=None if token_weights is None else token_weights[counted],
    )
    if stats.token_weights is None or "token_weights" in objective.needs:
        weights = objective.token_weights(stats)
    else:
        weights = stats.token_weights
    weights = weights.detach().to(log_probs.dtype)
    if num_items_in_batch is not None:
        normalizer = torch.as_tensor(num_items_in_batch, dtype=log_probs.dtype)
    else:
        normalizer = (counted if normalize == "all" else weights != 0).sum().clamp(min=1).to(log_probs.dtype)
    loss = -(weights * log_probs).sum() / normalizer
    values = {name: getattr(stats, name) for name in ("log_probs", "entropy", "topk_entropy", "collision")}
    return loss, {**values, "token_weights": weights}
