"""What may be told in public of a base model: its name on the hub and its license, never a local path."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from profit_sft.models.embedded import is_embedded_folder

_CARD = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseCard:
    """A base model as a card tells of it.

    Attributes:
        hub_name: OWNER/NAME; None: a local checkpoint of unknown descent.
        license: Its identifier, as its own card has it; None: not known here.
    """

    hub_name: str | None = None
    license: str | None = None


def base_card(name: str | None) -> BaseCard:
    """Return what is known of a model without asking the hub: from its folder, or from the hub's cache.

    Args:
        name: Hub name or folder, as the model's configuration has it.
    """
    if not name:
        return BaseCard()
    if is_embedded_folder(Path(name)):
        return BaseCard(hub_name="HuggingFaceTB/SmolLM2-135M-Instruct", license="apache-2.0")
    if Path(name).is_dir():
        told = front_matter(Path(name) / _CARD)
        return BaseCard(hub_name=_text(told.get("base_model")), license=_text(told.get("license")))
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        return BaseCard(hub_name=name if "/" not in name and not name.startswith((".", "~")) else None)
    cached = try_to_load_from_cache(name, _CARD)
    told = front_matter(Path(cached)) if isinstance(cached, str) else {}
    return BaseCard(hub_name=name, license=_text(told.get("license")))


def front_matter(card: Path) -> Mapping[str, Any]:
    """Return the YAML that a model card begins with; nothing where there is none that can be read."""
    try:
        text = card.read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    """Return a field that is one text, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None
