"""Token-level objectives: each is a stop-gradient weight on the log-likelihood of the reference token.

Every objective here trains on `loss = -sum_t w_t * log p_t / normalizer` and differs only in `w_t`, a pure function of
what is known about token `t`: its log-probability, the entropy of the prediction, its log-probability under a reference
model, a weight from the data. They are found by name, in our spelling or another tool's. This room imports torch alone.
"""

import dataclasses
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from profit_sft.objectives.base import (
    ENTROPY_TOP_K,
    FROM_THE_BATCH,
    FROM_THE_HEAD,
    Objective,
    TokenStats,
    check_probability,
)
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


ENTRY_POINT_GROUP = "profit_sft.objectives"

OBJECTIVES: Mapping[str, type[Objective]] = {
    "nll": NLL,
    "profit": ProFit,
    "trsft": TrSFT,
    "dft": DFT,
    "deft": DEFT,
    "power": Power,
    "eaft": EAFT,
    "entropy": HighEntropy,
    "focal": Focal,
    "given": Given,
    "stm": STM,
    "psft": PSFT,
    "asft": ASFT,
    "rho": Rho,
}

# Spellings of other tools: LLaMA-Factory and the official ProFit code (the switches and prob_threshold), TRL, RHO-1.
_NAME_ALIASES = {
    "sft": "nll",
    "ce": "nll",
    "chunked_nll": "nll",
    "use_dft_loss": "dft",
    "use_eaft_loss": "eaft",
    "use_asft_loss": "asft",
    "use_profit_loss": "profit",
    "rho-1": "rho",
    "slm": "rho",
}
_KEYWORD_ALIASES = {
    "prob_threshold": "threshold",
    "threshold_direction": "direction",
    "eaft_alpha": "alpha",
    "asft_alpha": "kl_coef",
    "focal_gamma": "gamma",
}


def make_objective(name: str, **kwargs: Any) -> Objective:
    """Build an objective from its name and keyword arguments, in our spelling or another tool's.

    Args:
        name: A key of `OBJECTIVES`, an alias such as `use_dft_loss`, or the name of an entry point in the group
            `profit_sft.objectives`, which must load to a callable that returns an `Objective`.
        **kwargs: The objective's fields. The official code's `prob_threshold` and `threshold_direction` are understood
            for `profit`: a list of one or two thresholds, and the share that `random` masks, where `rate` is kept.

    Returns:
        The objective.

    Raises:
        ValueError: No objective has this name, or a value is out of range.
        TypeError: The objective has no such field; the message lists those it has.

    Example:
        >>> make_objective("profit", prob_threshold=0.3, threshold_direction="lower").threshold
        0.3
    """
    key = _NAME_ALIASES.get(name.lower(), name.lower())
    factory: Any = OBJECTIVES.get(key)
    if factory is None:
        plugins = {plugin.name: plugin for plugin in entry_points(group=ENTRY_POINT_GROUP)}
        if name not in plugins:
            known = ", ".join([*OBJECTIVES, *sorted(plugins)])
            raise ValueError(f"no objective is named {name!r}. Known: {known}.")
        factory = plugins[name].load()
    arguments = _canonical_keywords(key, factory, kwargs)
    objective = factory(**arguments)
    if not isinstance(objective, Objective):
        raise TypeError(f"{name!r} gave a {type(objective).__name__}, which lacks needs, elementwise or token_weights.")
    return objective


def _canonical_keywords(name: str, factory: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate aliases and refuse what the objective does not have."""
    if not dataclasses.is_dataclass(factory):
        return dict(kwargs)
    fields = [entry.name for entry in dataclasses.fields(factory)]
    arguments: dict[str, Any] = {}
    for keyword, value in kwargs.items():
        target = keyword if keyword in fields else _KEYWORD_ALIASES.get(keyword, keyword)
        if target not in fields:
            raise TypeError(f"objective {name!r} has no field {keyword!r}. It has: {', '.join(fields) or 'none'}.")
        if target in arguments:
            raise TypeError(f"objective {name!r} was given {target!r} twice, once as {keyword!r}.")
        arguments[target] = value
    threshold = arguments.get("threshold")
    if isinstance(threshold, (list, tuple)):
        if len(threshold) not in (1, 2):
            raise ValueError(f"threshold takes one probability, or two for direction 'middle', got {threshold!r}.")
        arguments["threshold"] = threshold[0]
        if len(threshold) == 2:
            arguments["upper_threshold"] = threshold[1]
            arguments.setdefault("direction", "middle")
    if "prob_threshold" in kwargs and arguments.get("direction") == "random" and "rate" not in arguments:
        masked = arguments.pop("threshold")
        check_probability("prob_threshold", masked)
        arguments["rate"] = 1.0 - masked
    return arguments
