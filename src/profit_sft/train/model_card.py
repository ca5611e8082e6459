"""The model card of a run: what it is and is not, how to use it, its data, figures, warnings and sources."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml
from huggingface_hub import metadata_load, try_to_load_from_cache

from profit_sft.errors import ProFitError
from profit_sft.files import package_versions, read_json, write_text
from profit_sft.models.embedded import is_embedded_folder
from profit_sft.objectives import Objective
from profit_sft.pages.render import asset
from profit_sft.runs.figures import Logs, before_after, warnings_in
from profit_sft.runs.record import PACKAGES

if TYPE_CHECKING:
    from profit_sft.train.config import ProFitConfig

_TEMPLATE = jinja2.Template(asset("model_card.md"), keep_trailing_newline=True)
_BENCHMARKS = "<!-- Benchmarks: `profit eval` adds its results here. -->"
_NO_BENCHMARK = "No benchmark is recorded: `profit eval` measures it on gsm8k, math500, ifeval and others."


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseCard:
    """A base model as a card tells of it.

    Attributes:
        hub_name: OWNER/NAME; None: a local checkpoint of unknown descent.
        license: Its identifier, as its own card has it; None: not known here.
    """

    hub_name: str | None = None
    license: str | None = None


def render_model_card(
    args: "ProFitConfig",
    *,
    base: BaseCard,
    dataset_name: str | None,
    log_history: Logs,
    tags: list[str],
    is_adapter: bool = False,
) -> str:
    """Return the card as Markdown with the hub's front matter. No local path is in it.

    Args:
        args: The run's settings; in its output folder lies data.json, where there is one.
        base: The model it started from.
        dataset_name: Name or file of the data.
        log_history: `TrainerState.log_history`, or the lines of metrics.jsonl.
        tags: Tags for the hub.
        is_adapter: Whether a PEFT adapter was trained.
    """
    folder = Path(str(args.output_dir))
    objective = args.make_objective()
    name = type(objective).__name__
    source = _source(objective)
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", source)
    hub_data = dataset_name if dataset_name and _is_hub_name(dataset_name) else None
    versions = {package: number for package, number in package_versions(PACKAGES).items() if number}
    front_matter = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys([*tags, name.lower()])),
        "base_model": base.hub_name,
        "license": base.license,
        "datasets": [hub_data] if hub_data else None,
    }
    card: str = _TEMPLATE.render(
        front_matter=yaml.safe_dump({key: value for key, value in front_matter.items() if value}, sort_keys=True),
        title=folder.resolve().name,
        made_by=_made_by(name, arxiv[1] if arxiv else None),
        base=base,
        is_adapter=is_adapter,
        place=args.hub_model_id or "PATH_OR_NAME_OF_THIS_MODEL",
        objective=objective,
        objective_name=name,
        source=source,
        arxiv=arxiv[1] if arxiv else None,
        normalize=args.normalize,
        data=_data(folder, dataset_name),
        learning_rate=args.learning_rate,
        schedule=getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        ranks=args.world_size,
        steps=max((int(entry["step"]) for entry in log_history if "step" in entry), default=0),
        epochs=f"{max((entry['epoch'] for entry in log_history if 'epoch' in entry), default=0):.3g}",
        seed=args.seed,
        figures=before_after(log_history),
        benchmarks=f"{_BENCHMARKS}\n{_NO_BENCHMARK}",
        warned=[(step, _one_line(text)) for step, text in warnings_in(log_history)],
        probed=any("probe_nll" in entry for entry in log_history),
        versions=", ".join(f"{package} {number}" for package, number in versions.items()),
        version=versions.get("profit-sft"),
    )
    return card


def add_benchmarks(card: Path, results: Mapping[str, str]) -> bool:
    """Put results of benchmarks into a card that `render_model_card` made; an earlier one of the same name goes.

    Args:
        card: The card.
        results: By task, in words.

    Returns:
        Whether there is such a card.
    """
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    head, marker, rest = text.partition(_BENCHMARKS)
    if not marker:
        return False
    lines, heading, tail = rest.partition("\n## ")
    told = dict(line[2:].split(": ", 1) for line in lines.splitlines() if line.startswith("- ") and ": " in line)
    told |= {name: _one_line(words) for name, words in results.items()}
    listed = "".join(f"- {name}: {words}\n" for name, words in told.items())
    write_text(card, f"{head}{marker}\n{listed}{heading}{tail}")
    return True


def _made_by(name: str, arxiv: str | None) -> str:
    if name == "NLL":
        return "Fine-tuned by plain supervised fine-tuning"
    return f"Fine-tuned with [{name}](https://arxiv.org/abs/{arxiv})" if arxiv else f"Fine-tuned with `{name}`"


def _source(objective: Objective) -> str:
    """Return whom an objective is from, as its docstring tells."""
    found = re.search(r"Source: (.+?)\s*(?:\n\s*\n|$)", type(objective).__doc__ or "", flags=re.DOTALL)
    return _one_line(found[1]).rstrip(".") if found else "its source is not recorded"


def _data(folder: Path, dataset_name: str | None) -> str:
    """Return what is known of the data: a hub name or a file's name, without its folder, and counts."""
    if dataset_name is None:
        return "not recorded"
    told = f"`{dataset_name if _is_hub_name(dataset_name) else Path(dataset_name).name}`".replace("|", "\\|")
    # A trainer that was given a data set has written no report.
    with suppress(ProFitError, KeyError, TypeError, ValueError):
        report = read_json(folder / "data.json", "")
        told += f", {report['rows_used']:,} rows, {report['label_tokens']:,} label tokens of {report['total_tokens']:,}"
        told += f"; sha256 of its tokens {report['fingerprint'][:16]}"
    return _one_line(told)


def _is_hub_name(name: str) -> bool:
    return bool(re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name)) and not Path(name).exists() and not Path(name).suffix


def _one_line(text: str) -> str:
    return " ".join(text.split())


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
        told = _front_matter(Path(name) / "README.md")
        return BaseCard(hub_name=_text(told.get("base_model")), license=_text(told.get("license")))
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        return BaseCard(hub_name=name if "/" not in name and not name.startswith((".", "~")) else None)
    cached = try_to_load_from_cache(name, "README.md")
    told = _front_matter(Path(cached)) if isinstance(cached, str) else {}
    return BaseCard(hub_name=name, license=_text(told.get("license")))


def _front_matter(card: Path) -> Mapping[str, Any]:
    """Return the YAML that a model card begins with; nothing where there is none that can be read."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        return metadata_load(card) or {}
    return {}


def _text(value: object) -> str | None:
    """Return a field that is one text, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None
