"""Token-level objectives: each is a stop-gradient weight on the log-likelihood of the reference token.

Every objective here trains on `loss = -sum_t w_t * log p_t / normalizer` and differs only in `w_t`, a pure function of
what is known about token `t`: its log-probability, the entropy of the prediction, its log-probability under a reference
model, a weight from the data. This room imports torch alone.
"""

from profit_sft.objectives.base import ENTROPY_TOP_K, FROM_THE_BATCH, FROM_THE_HEAD, Objective, TokenStats
from profit_sft.objectives.lookup import OBJECTIVES, make_objective
from profit_sft.objectives.masks import STM, HighEntropy, ProFit, Rho
from profit_sft.objectives.weights import ASFT, DEFT, DFT, EAFT, NLL, PSFT, Focal, Given, Power, TrSFT

__all__ = [
    "ASFT",
    "DEFT",
    "DFT",
    "EAFT",
    "ENTROPY_TOP_K",
    "FROM_THE_BATCH",
    "FROM_THE_HEAD",
    "NLL",
    "OBJECTIVES",
    "PSFT",
    "STM",
    "Focal",
    "Given",
    "HighEntropy",
    "Objective",
    "Power",
    "ProFit",
    "Rho",
    "TokenStats",
    "TrSFT",
    "make_objective",
]
