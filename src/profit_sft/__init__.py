"""Token-level objectives for fine-tuning language models on one reference answer per prompt."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profit_sft.head import apply_profit, remove_profit
    from profit_sft.integrations.callback import ProFitCallback
    from profit_sft.loss import SelectiveLoss, selective_cross_entropy, selective_linear_cross_entropy, token_weights
    from profit_sft.objectives import (
        ASFT,
        DEFT,
        DFT,
        EAFT,
        NLL,
        PSFT,
        STM,
        Focal,
        Given,
        HighEntropy,
        Objective,
        Power,
        ProFit,
        Rho,
        TrSFT,
        make_objective,
    )
    from profit_sft.train.config import ProFitConfig
    from profit_sft.train.trainer import ProFitTrainer

__version__ = "0.1.0"

# Loaded on first use: the loss must not pull in transformers or TRL, nor `profit --help` torch.
_LAZY = {
    "ASFT": "profit_sft.objectives",
    "DEFT": "profit_sft.objectives",
    "DFT": "profit_sft.objectives",
    "EAFT": "profit_sft.objectives",
    "NLL": "profit_sft.objectives",
    "PSFT": "profit_sft.objectives",
    "STM": "profit_sft.objectives",
    "Focal": "profit_sft.objectives",
    "Given": "profit_sft.objectives",
    "HighEntropy": "profit_sft.objectives",
    "Objective": "profit_sft.objectives",
    "Power": "profit_sft.objectives",
    "ProFit": "profit_sft.objectives",
    "ProFitCallback": "profit_sft.integrations.callback",
    "ProFitConfig": "profit_sft.train.config",
    "ProFitTrainer": "profit_sft.train.trainer",
    "Rho": "profit_sft.objectives",
    "SelectiveLoss": "profit_sft.loss",
    "TrSFT": "profit_sft.objectives",
    "apply_profit": "profit_sft.head",
    "make_objective": "profit_sft.objectives",
    "remove_profit": "profit_sft.head",
    "selective_cross_entropy": "profit_sft.loss",
    "selective_linear_cross_entropy": "profit_sft.loss",
    "token_weights": "profit_sft.loss",
}

__all__ = [
    "ASFT",
    "DEFT",
    "DFT",
    "EAFT",
    "NLL",
    "PSFT",
    "STM",
    "Focal",
    "Given",
    "HighEntropy",
    "Objective",
    "Power",
    "ProFit",
    "ProFitCallback",
    "ProFitConfig",
    "ProFitTrainer",
    "Rho",
    "SelectiveLoss",
    "TrSFT",
    "apply_profit",
    "make_objective",
    "remove_profit",
    "selective_cross_entropy",
    "selective_linear_cross_entropy",
    "token_weights",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        try:
            return getattr(importlib.import_module(_LAZY[name]), name)
        except ModuleNotFoundError as error:
            from profit_sft.errors import missing_extra

            raise missing_extra(error.name, wanted_by=name) or error from error
    raise AttributeError(f"module 'profit_sft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
