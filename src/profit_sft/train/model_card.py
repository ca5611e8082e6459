"""The model card of a run: objective, threshold, data, settings, and the last figures logged."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from profit_sft.files import package_versions

if TYPE_CHECKING:
    from profit_sft.train.config import ProFitConfig

_TEMPLATE = jinja2.Template(
    """\
---
{{ front_matter }}---

# {{ title }}

Fine-tuned with [ProFit](https://arxiv.org/abs/2601.09195) (`profit-sft` {{ version }}){% if base_model %} from \
`{{ base_model }}`{% endif %}.

| | |
|---|---|
| objective | `{{ objective }}` |
| normalizer | {{ normalize }} label tokens of the optimizer step |
| data | {{ dataset_name or "not recorded" }} |
| learning rate, schedule | {{ learning_rate }}, {{ schedule }} |
| batch | {{ batch_size }} sequences a device x {{ accumulation }} micro-batches |
| epochs | {{ epochs }} |
| seed | {{ seed }} |
{% if last %}
Last training log, step {{ last.step }}:

| metric | value |
|---|---|
{% for name, value in last.items() if name != "step" -%}
| {{ name }} | {{ "%.4g"|format(value) if value is number else value }} |
{% endfor %}
`loss` is the objective's; `nll` is plain NLL of the full reference, the figure to compare runs by.
{% endif %}""",
    keep_trailing_newline=True,
)


def render_model_card(
    args: "ProFitConfig",
    *,
    base_model: str | None,
    dataset_name: str | None,
    log_history: Sequence[Mapping[str, Any]],
    tags: Sequence[str],
) -> str:
    """Return the card as Markdown with the hub's front matter.

    Args:
        args: The run's settings.
        base_model: Name or folder of the starting checkpoint.
        dataset_name: Name or file of the data.
        log_history: `TrainerState.log_history`; its last training entry is shown.
        tags: Tags for the hub.
    """
    front_matter = {"library_name": "transformers", "tags": list(tags)}
    if base_model and not base_model.startswith(("/", ".")):
        front_matter["base_model"] = base_model
    training = [entry for entry in log_history if "loss" in entry]
    card: str = _TEMPLATE.render(
        front_matter=yaml.safe_dump(front_matter, sort_keys=True),
        title=str(args.output_dir).rstrip("/").rsplit("/", 1)[-1],
        version=package_versions(["profit-sft"])["profit-sft"],
        base_model=base_model,
        objective=args.make_objective(),
        normalize=args.normalize,
        dataset_name=dataset_name,
        learning_rate=args.learning_rate,
        schedule=getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        epochs=args.num_train_epochs,
        seed=args.seed,
        last=training[-1] if training else None,
    )
    return card
