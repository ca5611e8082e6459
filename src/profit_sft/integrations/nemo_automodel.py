"""NeMo AutoModel's loss class: `loss_fn: {_target_: profit_sft.integrations.nemo_automodel.ProFitCrossEntropy}`.

Its recipes hand over hidden states and the head, so nothing of the savings is lost.
"""

import logging
from typing import Any

import torch
from nemo_automodel.components.loss.linear_ce_base import LinearCrossEntropy
from torch import Tensor

from profit_sft.errors import ConfigurationError
from profit_sft.integrations.settings import read_settings
from profit_sft.loss import selective_linear_cross_entropy
from profit_sft.objectives import NLL

_PLACE = "loss_fn"


class ProFitCrossEntropy(LinearCrossEntropy):  # type: ignore[misc]  # NeMo's, of which mypy knows nothing
    """The selective loss on hidden states; validation, which runs without gradients, is plain NLL.

    Args:
        ignore_index: Label of positions without a target.
        logit_scale: The model's factor on its logits; the recipe hands over the head alone.
        final_logit_softcapping: The model's soft cap, or None.
        **settings: `objective` and its fields, such as `threshold`, and `gradient_budget`.
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        logit_scale: float = 1.0,
        final_logit_softcapping: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.objective, self.options = read_settings(settings, place=_PLACE)
        self.options.update(logit_scale=logit_scale, final_logit_softcapping=final_logit_softcapping)
        self.ignore_index = ignore_index
        # NeMo's recipes show warnings on every rank and information on none, unless told to.
        logging.getLogger(__name__).warning("ProFit trains %s on hidden states.", self.objective)

    def forward(
        self,
        hidden_states: Tensor,
        labels: Tensor,
        lm_weight: Tensor,
        num_label_tokens: int | None = None,
        grad_reduce_group: Any = None,
        loss_weights: Tensor | None = None,
        **unknown: Any,
    ) -> Tensor:
        """Return the loss.

        Args:
            hidden_states: `(B, S, D)` or `(N, D)`.
            labels: `(B, S)` or `(N,)`, shifted already.
            lm_weight: `(V, D)`, a DTensor where it is sharded.
            num_label_tokens: Label tokens of the whole step. None: those of this call.
            grad_reduce_group: Ranks over which a sharded head's gradient is summed.
            loss_weights: Refused: the objective weighs tokens.
            unknown: Refused, since it would be left out.
        """
        if loss_weights is not None:
            raise ConfigurationError(f"{_PLACE}: the data set's loss_weights and ProFit both weigh tokens. Take one.")
        if unknown:
            raise ConfigurationError(f"{_PLACE}: ProFit does not know what {', '.join(unknown)} asks for.")
        loss: Tensor = selective_linear_cross_entropy(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            self.materialize_lm_weight(lm_weight, grad_reduce_group=grad_reduce_group),
            labels.reshape(-1),
            objective=self.objective if torch.is_grad_enabled() else NLL(),
            num_items_in_batch=num_label_tokens,
            ignore_index=self.ignore_index,
            **self.options,
        ).loss
        return loss
