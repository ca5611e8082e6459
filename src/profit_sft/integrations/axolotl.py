"""Axolotl's plug-in: `plugins: [profit_sft.integrations.axolotl.ProFitPlugin]`, and keys such as `profit_threshold`.

Axolotl trains on without a plug-in that it cannot import, so look for the line "ProFit trains ..." at the start.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from axolotl.integrations.base import BasePlugin
from axolotl.utils.logging import get_logger
from pydantic import BaseModel

from profit_sft.errors import ConfigurationError
from profit_sft.head import apply_profit
from profit_sft.integrations.callback import ProFitCallback
from profit_sft.integrations.settings import Settings, read_settings, refuse

_PREFIX = "profit_"
# By each of these Axolotl computes the loss itself, or shards what it is computed from.
_RIVALS = (
    *("use_eaft", "orpo_alpha", "rl", "kd_trainer", "label_smoothing_factor", "chunked_cross_entropy"),
    *("cut_cross_entropy", "liger_fused_linear_cross_entropy", "liger_cross_entropy"),
)
_SHARDED = ("context_parallel_size", "sequence_parallel_degree")


class ProFitArgs(BaseModel):
    """The keys that the plug-in adds to a configuration, each optional."""

    profit_objective: str | None = None
    profit_objective_kwargs: dict[str, Any] | None = None
    profit_threshold: float | list[float] | None = None
    profit_threshold_direction: str | None = None
    profit_gradient_budget: float | None = None
    profit_statistics: str | None = None
    profit_skip_padding: bool | None = None
    profit_normalize: str | None = None


class ProFitPlugin(BasePlugin):  # type: ignore[misc]  # Axolotl's, of which mypy knows nothing
    """The selective loss in Axolotl's trainer, also over micro-batches, which its trainer would average."""

    def get_input_args(self) -> str:
        """Name the keys of the configuration."""
        return f"{__name__}.{ProFitArgs.__name__}"

    def register(self, cfg: Mapping[str, Any]) -> None:
        """Refuse what cannot be meant, before anything is loaded: Axolotl itself takes misspelt keys."""
        for key in cfg:
            if str(key).startswith(_PREFIX) and key not in ProFitArgs.model_fields:
                likely = difflib.get_close_matches(key, ProFitArgs.model_fields, n=1)
                meant = f" Did you mean {likely[0]}?" if likely else ""
                raise ConfigurationError(f"{key!r} is none of ProFit's keys in Axolotl.{meant}")
        sharded = {name: cfg.get(name) for name in _SHARDED if (cfg.get(name) or 1) > 1}
        refuse({**{name: cfg.get(name) for name in _RIVALS}, **sharded}, place="Axolotl")
        _settings(cfg)

    def post_model_load(self, cfg: Mapping[str, Any], model: Any) -> None:
        """Install the loss, adapters being there, and say so."""
        settings = _settings(cfg)
        apply_profit(model, settings.objective, **settings.options)
        get_logger("axolotl.integrations.profit").info(str(settings))  # it shows what is named after it

    def add_callbacks_pre_trainer(self, cfg: Mapping[str, Any], model: Any) -> list[ProFitCallback]:
        """Log the kept share, and stop a run that does not use the loss."""
        settings = _settings(cfg)
        return [ProFitCallback(settings.objective, **settings.options)]

    def post_trainer_create(self, cfg: Mapping[str, Any], trainer: Any) -> None:
        """Have the number of a step's labels passed: AxolotlTrainer looks for it in the backbone alone (up to 0.19)."""
        trainer.model_accepts_loss_kwargs = True


def _settings(cfg: Mapping[str, Any]) -> Settings:
    given = {name.removeprefix(_PREFIX): cfg.get(name) for name in ProFitArgs.model_fields}
    return read_settings(given, place="Axolotl's configuration (profit_...)")
