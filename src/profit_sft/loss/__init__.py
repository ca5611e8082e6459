"""The selective loss: weighted next-token cross-entropy straight from hidden states. Imports torch alone."""

from profit_sft.loss.selective import SelectiveLoss, selective_linear_cross_entropy

__all__ = ["SelectiveLoss", "selective_linear_cross_entropy"]
