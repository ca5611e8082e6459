"""The oracle: the same loss from dense logits, in a few plain lines, differentiable, in any dtype including float64.

For tests and small inputs. It shares no helper with the backends it judges.
"""

from typing import Literal

import torch
from torch import Tensor

from profit_sft.objectives import Objective, TokenStats


def reference_log_probs_of(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> Tensor:
    """Return the dense `(N, V)` log-probabilities in the dtype of the inputs.

    Args:
        hidden: `(N, D)`.
        weight: `(V, D)`.
        labels: `(N,)`, unused but for its shape.
        bias: `(V,)` or None.
        logit_scale: Factor on the logits, before the soft cap.
        logit_softcap: `c` of `c * tanh(logits / c)`, or None.
    """
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * logit_scale
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    return logits.log_softmax(dim=-1)


def reference_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    objective: Objective,
    bias: Tensor | None = None,
    num_items: int | Tensor | None = None,
    normalize: Literal["all", "kept"] = "all",
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    reference_log_probs: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the selective loss densely.

    Args: as `selective_linear_cross_entropy`; hidden, weight and bias may be float64.

    Returns:
        The 0-d loss, and the per-token values of the label tokens: `log_probs`, `entropy`, `topk_entropy`, `weights`.
    """
    counted = labels != ignore_index
    targets = labels[counted]
    dense = reference_log_probs_of(
        hidden[counted], weight, targets, bias=bias, logit_scale=logit_scale, logit_softcap=logit_softcap
    )
    log_probs = dense.gather(-1, targets[:, None]).squeeze(-1)
    frozen = dense.detach()
    likeliest = frozen.topk(min(20, frozen.shape[-1]), dim=-1).values.softmax(dim=-1)
    stats = TokenStats(
        labels=targets,
        log_probs=log_probs.detach(),
        entropy=torch.special.entr(frozen.exp()).sum(-1),
        topk_entropy=torch.special.entr(likeliest).sum(-1),
        reference_log_probs=None if reference_log_probs is None else reference_log_probs[counted],
    )
    token_weights = objective.token_weights(stats) if weights is None else weights[counted]
    token_weights = token_weights.detach().to(log_probs.dtype)
    if num_items is not None:
        normalizer = torch.as_tensor(num_items, dtype=log_probs.dtype)
    else:
        normalizer = (counted if normalize == "all" else token_weights != 0).sum().clamp(min=1).to(log_probs.dtype)
    loss = -(token_weights * log_probs).sum() / normalizer
    values = {name: getattr(stats, name) for name in ("log_probs", "entropy", "topk_entropy")}
    return loss, {**values, "weights": token_weights}
