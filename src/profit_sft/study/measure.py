"""Measure one model of a study: plain NLL on held-out data, and the evaluation. Runs as a process of its own.

    python -m profit_sft.study.processes LOCK_FILE profit_sft.study.measure CELL_FOLDER

so that its memory is free again afterwards, and a crash takes down one cell.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.files import write_text
from profit_sft.models.pretrained import default_device, load_model, load_tokenizer, pretrained_path
from profit_sft.scores.loop import label_examples, mean_figures, score_labels
from profit_sft.study.layout import CellFolder

if TYPE_CHECKING:
    from profit_sft.evaluation.settings import EvalSettings


def heldout_nll(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: DataSettings) -> dict[str, Any]:
    """Return plain NLL of the reference answers, in nats a token, whatever the model was trained with.

    Returns:
        `nll`, `label_tokens`, `mean_p`; `rows`: sum of NLL and label tokens of each row; where rows have
        `answer_spans`, `nll_core` and `nll_style`, which are NLL of those tokens alone.
    """
    examples = label_examples(prepare_dataset(settings, tokenizer, False).dataset[:])
    scores = score_labels(model, examples)
    rows = [-found.log_probs.astype(np.float64) for found in scores]
    means = mean_figures(examples, scores)
    return {
        **{name: means[name] for name in ("nll", "mean_p", "nll_core", "nll_style") if name in means},
        "label_tokens": sum(row.size for row in rows),
        "rows": [[float(row.sum()), row.size] for row in rows],
    }


def measure(folder: CellFolder, *, say: Callable[[str], None] = lambda text: None) -> None:
    """Do what `measure.json` in the folder asks for; what is there already is not done again."""
    request = json.loads(folder.request.read_text(encoding="utf-8"))
    if request["heldout"] is not None and not folder.heldout.exists():
        say("plain NLL on held-out data")
        write_text(folder.heldout, json.dumps(_heldout(request), indent=1) + "\n")
    if request["evaluate"] and not (folder.evaluation / "results.json").exists():
        _evaluate(request, folder, say)


def _heldout(request: Mapping[str, Any]) -> dict[str, Any]:
    name = request["model_name_or_path"]
    tokenizer = load_tokenizer(name, chat_template_path=request["chat_template_path"], eos_token=request["eos_token"])
    model = load_model(name, dtype=request["dtype"])
    model.to(default_device())  # type: ignore[arg-type]  # transformers wraps it
    return heldout_nll(model, tokenizer, DataSettings(**request["heldout"]))


def _evaluate(request: Mapping[str, Any], folder: CellFolder, say: Callable[[str], None]) -> None:
    from profit_sft.evaluation.runner import evaluate

    name = request["model_name_or_path"]
    if request["chat_template_path"] is not None:
        name = str(with_chat_template(name, request["chat_template_path"], folder.path / "model"))
    evaluate(eval_settings(request["evaluate"], name, folder.evaluation), say=say)


def with_chat_template(model_name_or_path: str, chat_template_path: str, folder: Path) -> Path:
    """Make a folder that is the model with another chat template: its tokenizer, and links to all other files.

    Base models have no template of their own. A trained one was saved with it; the untrained one gets it here.
    """
    source = Path(pretrained_path(model_name_or_path))
    if not source.is_dir():
        source = Path(snapshot_download(model_name_or_path))
    folder.mkdir(parents=True, exist_ok=True)
    load_tokenizer(model_name_or_path, chat_template_path=chat_template_path).save_pretrained(folder)
    for file in source.iterdir():
        link = folder / file.name
        if file.is_file() and not link.exists():
            link.symlink_to(file.resolve())
    return folder


def eval_settings(settings: Mapping[str, Any], model_name_or_path: str, output_dir: Path) -> "EvalSettings":
    """Turn the study file's `evaluate` into settings of `profit eval`.

    Raises:
        TypeError: A value is of another type.
        ValueError: A value is out of range.
    """
    from profit_sft.evaluation.settings import EvalSettings

    converted = {**settings, "tasks": tuple(settings.get("tasks", ()))}
    return EvalSettings(model_name_or_path=model_name_or_path, output_dir=output_dir, **converted)


if __name__ == "__main__":
    measure(CellFolder(Path(sys.argv[1])), say=typer.echo)
