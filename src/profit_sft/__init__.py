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

# Loaded on first use: the loss must not pull in transformers or TRL, nor `profit --help` torch. The rest: objectives.
_ELSEWHERE = {
    "ProFitCallback": "integrations.callback",
    "ProFitConfig": "train.config",
    "ProFitTrainer": "train.trainer",
    **dict.fromkeys(("apply_profit", "remove_profit"), "head"),
    **dict.fromkeys(
        ("SelectiveLoss", "selective_cross_entropy", "selective_linear_cross_entropy", "token_weights"), "loss"
    ),
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
    if name in __all__:
        try:
            return getattr(importlib.import_module(f"profit_sft.{_ELSEWHERE.get(name, 'objectives')}"), name)
        except ModuleNotFoundError as error:
            from profit_sft.errors import missing_extra

            raise missing_extra(error.name, wanted_by=name) or error from error
    raise AttributeError(f"module 'profit_sft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
