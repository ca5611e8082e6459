"""ms-swift's plug-in: swift sft ... --external_plugins $(profit plugin ms-swift) --callbacks profit.

`--callbacks profit` is the selective loss from hidden states. `--loss_type profit` is the same loss from all logits,
without its savings. Settings are `PROFIT_THRESHOLD` and so on, out of `--model_kwargs '{"profit_threshold": 0.1}'`, the
`ENV:` block of a YAML file, or the environment. This file has a folder of its own: ms-swift puts that folder on
`sys.path`, where `axolotl.py` and `verl.py` would stand in the way of theirs.
"""

from typing import Any

import swift.trainers  # sets transformers' list of callbacks anew, so it has to come before what is added to that
import torch
from swift.callbacks import callbacks_map
from swift.loss import BaseLoss, loss_map
from swift.utils import get_logger
from transformers import TrainerCallback, trainer

from profit_sft import NLL, selective_cross_entropy
from profit_sft.errors import ConfigurationError
from profit_sft.integrations.callback import ProFitCallback
from profit_sft.integrations.settings import Settings, read_environment, refuse

NAME = "profit"
_PLACE = "--model_kwargs or the environment (PROFIT_...)"


def _settings_of_run(args: Any, swift_trainer: Any, **rivals: Any) -> Settings:
    """Read the settings, refuse what would compute another loss, and say what is trained."""
    switches = ("enable_dft_loss", "enable_channel_loss", "label_smoothing_factor")
    template = swift_trainer.template
    given: dict[str, Any] = {f"--{name}": getattr(args, name, None) for name in switches} | rivals
    given["--sequence_parallel_size"] = template.sequence_parallel_size if template.sequence_parallel_size > 1 else None
    if not template.loss_scale.is_binary_loss_scale:
        given["--loss_scale"] = "weights other than 0 and 1"
    refuse(given, place="ms-swift")
    settings = read_environment(place=_PLACE)
    get_logger().info(str(settings))
    return settings


class SwiftCallback(ProFitCallback):
    """`--callbacks profit`: the head is installed when ms-swift makes its trainer."""

    trainer_rescales = True  # Template.compute_sft_loss multiplies by the call's share of the step's labels

    def __init__(self, args: Any, trainer: Any) -> None:
        loss_type = getattr(args, "loss_type", None)
        settings = _settings_of_run(args, trainer, **{"--loss_type": loss_type})
        super().__init__(settings.objective, **settings.options)
        # No logits are formed, so leaving some out saves nothing.
        args.use_logits_to_keep = False


class SwiftLoss(BaseLoss):  # type: ignore[misc]  # ms-swift's, of which mypy knows nothing
    """`--loss_type profit`: the loss from all logits; evaluation stays plain NLL."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self.settings = _settings_of_run(args, trainer)
        if self.settings.options:
            raise ConfigurationError(f"{_PLACE}: {', '.join(self.settings.options)} belongs to --callbacks profit.")

    def __call__(
        self, outputs: Any, labels: torch.Tensor, *, num_items_in_batch: Any = None, loss_scale: Any = None, **_: Any
    ) -> torch.Tensor:
        """Return the loss of logits and labels that ms-swift has cut alike."""
        if loss_scale is not None:
            raise ConfigurationError("--loss_scale with weights and --loss_type profit both weigh tokens. Take one.")
        objective = self.settings.objective if torch.is_grad_enabled() else NLL()
        found = selective_cross_entropy(outputs.logits, labels, objective, num_items_in_batch=num_items_in_batch)
        if torch.is_grad_enabled():
            kept = (found.token_weights != 0)[found.label_mask].float()
            self.trainer.custom_metrics["train"]["kept_share"].update(kept)
        loss: torch.Tensor = found.loss
        return loss


class _NeitherAskedFor(TrainerCallback):
    """The plug-in is loaded, but by itself it does nothing: better stopped than trained without the mask."""

    def on_init_end(self, args: Any, *_: Any, **__: Any) -> None:
        if NAME not in (getattr(args, "callbacks", None) or []) and getattr(args, "loss_type", None) != NAME:
            raise ConfigurationError(
                "ms-swift has loaded ProFit's plug-in, but nothing asks for it, so plain SFT would be trained. Add "
                "--callbacks profit, or take --external_plugins out."
            )


assert swift.trainers
callbacks_map[NAME] = SwiftCallback
loss_map[NAME] = SwiftLoss
trainer.DEFAULT_CALLBACKS.append(_NeitherAskedFor)  # type: ignore[arg-type]  # holds any kind of callback
