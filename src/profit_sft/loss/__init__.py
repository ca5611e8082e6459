"""The selective loss: weighted next-token cross-entropy, from hidden states or from logits. Imports torch alone."""

from profit_sft.loss.dense import selective_cross_entropy, token_weights
from profit_sft.loss.selective import SelectiveLoss, selective_linear_cross_entropy

__all__ = ["SelectiveLoss", "selective_cross_entropy", "selective_linear_cross_entropy", "token_weights"]
