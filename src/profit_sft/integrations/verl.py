"""verl's SFT loss with an objective's weights: `model.external_lib=profit_sft.integrations.verl`.

Importing this module puts `sft_loss` in the place of verl's. Settings are `PROFIT_THRESHOLD` and so on in the
environment. verl hands over log-probabilities alone, so an objective that needs the whole prediction is refused.
"""

import logging
import os
import sys
from typing import Any

import torch
from torch import Tensor
from verl.workers.utils import losses

from profit_sft.errors import ConfigurationError, LossBypassedError
from profit_sft.integrations.settings import Settings, read_environment
from profit_sft.loss import token_weights

_PLACE = "the environment (PROFIT_...)"
_plain_sft_loss = losses.sft_loss


def sft_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """Return `-sum_t w_t * log p_t / batch_num_tokens * dp_size` and the counts of label and kept tokens.

    Validation, which runs without gradients, is verl's own.
    """
    if not torch.is_grad_enabled():
        loss, metrics = _plain_sft_loss(config, model_output, data, dp_group)
        return loss, metrics
    log_probs = model_output["log_probs"]
    if log_probs.is_nested:
        log_probs = log_probs.values()  # (N,)
        # The mask is of the labels' own places; position t predicts the label at t + 1.
        label_mask = torch.roll(data["loss_mask"].values(), shifts=-1, dims=0)
    else:
        label_mask = data["response_mask"]
    label_mask = label_mask.bool()
    weights = token_weights(log_probs, label_mask, _settings.objective)
    # What is masked may be infinite, and zero times that is not zero.
    weighed = weights * log_probs.masked_fill(weights == 0, 0.0)
    loss = -weighed.sum() / data["batch_num_tokens"] * data["dp_size"]
    # verl averages these over micro-batches and ranks alike, so their ratio is the kept share.
    return loss, {
        "profit/label_tokens": label_mask.sum().item(),
        "profit/kept_tokens": (weights != 0).sum().item(),
    }


def _install() -> Settings:
    """Check, and put our loss in the place of verl's."""
    settings = read_environment(place=_PLACE)
    if settings.options:
        raise ConfigurationError(f"{_PLACE}: {', '.join(settings.options)} needs hidden states, which verl keeps.")
    try:
        token_weights(torch.zeros(0), torch.zeros(0), settings.objective)
    except ValueError as error:  # it needs what log p does not tell
        raise ConfigurationError(f"{_PLACE}: {error}") from error
    holders = [
        name
        for name, module in list(sys.modules.items())
        if module is not losses and getattr(module, "__dict__", {}).get("sft_loss") is _plain_sft_loss
    ]
    if holders:
        raise LossBypassedError(
            f"{holders[0]} has taken verl's own sft_loss already and would train by it. Name "
            "profit_sft.integrations.verl in model.external_lib, and import nothing of verl's trainers before."
        )
    losses.sft_loss = sft_loss
    if os.environ.get("RANK", "0") == "0":  # verl's loggers show warnings
        logging.getLogger(__name__).warning(str(settings))
    return settings


_settings = _install()
