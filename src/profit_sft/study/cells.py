"""One cell from nothing to `cell.json`: train, measure, sum up. Every step is skipped where its file is there."""

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from profit_sft.data.sources import data_to_evaluate, data_to_train
from profit_sft.errors import ConfigurationError, ProFitError, explained, first_line
from profit_sft.files import read_json, sha256_of, write_text
from profit_sft.runs.record import read_metrics as read_logs
from profit_sft.runs.record import step_number
from profit_sft.study.layout import CellFolder, StudyFolder
from profit_sft.study.plan import GENERATED, Cell, StudyPlan
from profit_sft.study.processes import StopRequest, log_tail, run_child, wait_for_earlier_child
from profit_sft.train.checkpoints import last_whole

logger = logging.getLogger(__name__)

FORMAT = 1
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json", "training_args.bin", "checkpoint-*")


class CellFailed(ProFitError):
    """A child process of a cell failed; the message has the end of its log."""


def failure_of(cell: Cell, error: Exception) -> str:
    """Return why a cell failed; of a mistake of this library also where, in the log."""
    told = explained(error)
    if told is None:
        logger.error("%s: not a failure that was thought of", cell.slug, exc_info=error)
    text = str(told or f"{type(error).__name__}: {first_line(error)}")
    return text if text.startswith(cell.slug) else f"{cell.slug}: {text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CellRun:
    """What the steps of a cell have in common."""

    plan: StudyPlan
    cell: Cell
    study: StudyFolder
    stop: StopRequest
    say: Callable[[str], None]
    environment: Mapping[str, str]

    @property
    def folder(self) -> CellFolder:
        """The cell's folder."""
        return self.study.cell(self.cell.slug)

    def child(self, arguments: list[str], log: Path) -> None:
        """Run a child process for this cell.

        Raises:
            CellFailed: Its exit status was not 0.
            Interrupted: The study was asked to stop.
        """
        status = run_child(arguments, log, stop=self.stop, environment=self.environment)
        if status != 0:
            raise CellFailed(f"{self.cell.slug}: exit status {status}. The end of {log}:\n{log_tail(log)}")


def run_cell(run: CellRun) -> None:
    """Take the cell to its end, from wherever an earlier attempt left it.

    Raises:
        CellFailed: Training or measuring failed.
        Interrupted: The study was asked to stop; what is done stays done.
    """
    folder = run.folder
    settings = {**cell_settings(run.plan, run.cell), **data_contents(run.plan)}
    write_text(folder.settings, json.dumps(settings, indent=2) + "\n")
    attempt = {"host": socket.gethostname(), "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    with folder.attempts.open("a", encoding="utf-8") as attempts:
        attempts.write(json.dumps(attempt) + "\n")
    wait_for_earlier_child(folder.path, stop=run.stop)
    if run.cell.variant.objective is not None and not folder.trained.exists():
        if needs_scores(run.cell):
            ensure_scores(run)
        train(run)
    start = time.monotonic()
    measure(run)
    summary = summarize(run, measure_seconds=time.monotonic() - start)
    write_text(folder.finished, json.dumps(summary, indent=2) + "\n")
    drop_weights(run.plan, folder)


def cell_settings(plan: StudyPlan, cell: Cell) -> dict[str, Any]:
    """Return what defines a cell's figures, without paths inside the study, so that the folder can be moved."""
    heldout = _heldout_dataset_name(plan, cell)
    generated = GENERATED in (plan.dataset_name, heldout)
    settings = {
        "model_name_or_path": cell.model.model_name_or_path,
        "dataset_name": plan.dataset_name,
        "heldout_dataset_name": heldout,
        "generated": plan.generated.model_dump() if generated else None,
        "objective": cell.variant.objective,
        "objective_kwargs": cell.variant.objective_kwargs,
        "normalize": cell.variant.normalize,
        "kept_share_of": cell.variant.kept_share_of,
        "kept_share_from": cell.variant.kept_share_from if cell.variant.kept_share_of else None,
        "seed": cell.seed,
        "train": plan.train_settings(cell),
        "evaluate": plan.eval_settings(cell),
    }
    as_read_back: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists
    return as_read_back


def _heldout_dataset_name(plan: StudyPlan, cell: Cell) -> str | None:
    """Return what the cell's plain NLL is measured on; a try is judged by its answers alone."""
    return None if cell.is_try else plan.heldout_dataset_name


def data_contents(plan: StudyPlan) -> dict[str, str | None]:
    """Return the SHA-256 of the files that a study reads; None of what is no file here."""
    names = {"dataset_sha256": plan.dataset_name, "heldout_sha256": plan.heldout_dataset_name}
    return {key: None if name in (None, GENERATED) else _contents(Path(name)) for key, name in names.items()}


def _contents(path: Path) -> str | None:
    path = path.expanduser()
    if not path.is_file():
        return None
    state = path.stat()
    return _known_sha256(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)  # every cell asks
def _known_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_of([path])[0]


def check_settings(plan: StudyPlan, cell: Cell, folder: CellFolder) -> None:
    """Refuse a folder in which the same cell was run with other settings, or trained or measured on other rows."""
    if not folder.settings.exists():
        return
    before = read_json(folder.settings, f"Delete {folder.path} to run the cell again.")
    contents = data_contents(plan)
    for key, name, made in (
        ("dataset_sha256", plan.dataset_name, folder.trained),
        ("heldout_sha256", plan.heldout_dataset_name, folder.heldout),
    ):
        if made.exists() and None not in (before.get(key), contents[key]) and before[key] != contents[key]:
            raise ConfigurationError(
                f"{folder.path} was run with other contents of '{name}' than are there now, so cells could not be "
                "compared. Choose another --output_dir, or delete that folder to run the cell again."
            )
    refuse_other_settings(plan, cell, before, folder.path)


def refuse_other_settings(plan: StudyPlan, cell: Cell, before: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigurationError where a cell's settings are not those that its folder was run with, `before`."""
    now = cell_settings(plan, cell)
    for name in now:
        if name in before and before[name] != now[name]:
            what, old, new, says = name, before[name], now[name], "the study file says"
            if isinstance(old, dict) and isinstance(new, dict):
                key = next(key for key in [*new, *old] if (key in old, old.get(key)) != (key in new, new.get(key)))
                what, old, new = f"{name}.{key}", old.get(key), new.get(key)
                if name == "train" and key in cell.tuned and not cell.is_try:
                    says = "the best of those tried is"
            raise ConfigurationError(
                f"{folder} was run with {what} = {old!r}, {says} {new!r}. Choose another --output_dir, or delete that "
                "folder to run the cell again."
            )


def train(run: CellRun) -> None:
    """Train in a `profit train` process, from its last complete checkpoint if there is one."""
    folder, cell = run.folder, run.cell
    write_text(folder.config, yaml.safe_dump(train_config(run), sort_keys=True))
    checkpoint = last_checkpoint(run)
    command = ["profit_sft.cli", "train", "--config", str(folder.config)]
    if checkpoint is None:
        command += ["--overwrite_output_dir", "True"]
    else:
        run.say(f"{cell.slug}: going on after step {step_number(checkpoint)}")
        command += ["--resume_from_checkpoint", "latest"]
    start = time.monotonic()
    run.child(command, folder.path / "train.log")
    write_text(folder.trained, json.dumps({"train_process_seconds": time.monotonic() - start}) + "\n")


def train_config(run: CellRun) -> dict[str, Any]:
    """Return the settings of the cell's `profit train` process."""
    plan, cell = run.plan, run.cell
    variant = cell.variant
    objective_kwargs = dict(variant.objective_kwargs)
    config = {"report_to": "none", **plan.train_settings(cell)}
    if variant.kept_share_of is not None:
        objective_kwargs["rate"] = imitated_share(plan, cell, run.study)
    if variant.needs_reference:
        config["reference_scores"] = str(run.study.scores(cell.model.name))
    if variant.normalize is not None:
        config["normalize"] = variant.normalize
    return {
        **config,
        "model_name_or_path": cell.model.model_name_or_path,
        "dataset_name": training_data(run),
        "output_dir": str(run.folder.run),
        "objective": variant.objective,
        "objective_kwargs": objective_kwargs,
        "seed": cell.seed,
    }


def needs_scores(cell: Cell) -> bool:
    """Say whether training the cell takes the starting model's scores of the training data."""
    variant = cell.variant
    return variant.needs_reference or (variant.kept_share_of is not None and variant.kept_share_from == "scores")


def ensure_scores(run: CellRun) -> None:
    """Score the training data under the starting model, unless that is done."""
    if run.study.scored(run.cell.model.name):
        return
    job = run.study.scores_job(run.cell.model.name)
    run.say(f"{run.cell.slug}: scoring the training data under the starting model")
    write_text(job / "request.json", json.dumps(score_request(run), indent=2) + "\n")
    run.child(["profit_sft.study.score_data", str(job / "request.json")], job / "score.log")


def score_request(run: CellRun) -> dict[str, Any]:
    """Return what the scoring process is to do: the data as the training runs read it, under the starting model."""
    settings = run.plan.shared_settings(run.cell.model)
    data = data_to_train({**settings, "dataset_name": training_data(run)})
    return {
        "model_name_or_path": run.cell.model.model_name_or_path,
        "data": asdict(data),
        "output_dir": str(run.study.scores(run.cell.model.name)),
        "likeliest": 0,
        "dtype": settings.get("dtype", "float32"),
        "chat_template_path": settings.get("chat_template_path"),
    }


def training_data(run: CellRun) -> str:
    """Return the name `profit train` reads the training data by."""
    return str(run.study.train_file) if run.plan.dataset_name == GENERATED else run.plan.dataset_name


def imitated_cell(plan: StudyPlan, cell: Cell) -> Cell:
    """Return the cell whose kept share `cell` imitates: of its own seed, or else of the variant's first."""
    candidates = [
        other for other in plan.cells if other.variant.name == cell.variant.kept_share_of and other.model == cell.model
    ]
    return next((other for other in candidates if other.seed == cell.seed), candidates[0])


def imitated_share(plan: StudyPlan, cell: Cell, study: StudyFolder) -> float:
    """Return the share of tokens that the imitated cell kept while it was trained, or keeps of the scores.

    Raises:
        CellFailed: It was trained without logging its kept share.
    """
    if cell.variant.kept_share_from == "run":
        imitated = imitated_cell(plan, cell).slug
        folder = study.cell(imitated)
        finished = read_json(folder.finished, f"Delete {folder.path} and run the study again.")
        share: float | None = finished["training"]["kept_share"]
        if share is None:
            raise CellFailed(f"{cell.slug}: {imitated} has logged no kept share. Lower train.logging_steps.")
        return share
    import torch

    from profit_sft.objectives import TokenStats
    from profit_sft.scores.store import load_scores

    log_probs = torch.from_numpy(load_scores(study.scores(cell.model.name)).column("log_probs"))
    stats = TokenStats(
        labels=torch.zeros(len(log_probs), dtype=torch.int64), log_probs=log_probs, reference_log_probs=log_probs
    )
    token_weights = imitated_cell(plan, cell).variant.make_objective().token_weights(stats)
    return float((token_weights != 0).double().mean())


def last_checkpoint(run: CellRun) -> Path | None:
    """Return the cell's last whole checkpoint, or None. That its contents are whole as well is left to the child."""
    return last_whole(run.folder.run, contents=False, say=lambda text: run.say(f"{run.cell.slug}: {text}"))


def measure(run: CellRun) -> None:
    """Measure the cell's model in a process of its own."""
    plan, cell = run.plan, run.cell
    name, evaluate = _heldout_dataset_name(plan, cell), plan.eval_settings(cell)
    if name is None and not evaluate:
        return
    settings = plan.shared_settings(cell.model)
    heldout = None
    if name is not None:
        name = str(run.study.heldout_file) if name == GENERATED else name
        heldout = asdict(data_to_evaluate({**settings, "max_samples": None}, name))
    trained = cell.variant.objective is not None
    request = {
        "model_name_or_path": str(run.folder.run) if trained else cell.model.model_name_or_path,
        "dtype": settings.get("dtype", "float32"),
        # The trained model was saved with the template and the token.
        "chat_template_path": None if trained else settings.get("chat_template_path"),
        "eos_token": None if trained else settings.get("eos_token"),
        "heldout": heldout,
        "evaluate": evaluate,
    }
    write_text(run.folder.request, json.dumps(request, indent=2) + "\n")
    run.child(["profit_sft.study.measure", str(run.folder.path)], run.folder.path / "measure.log")


def drop_weights(plan: StudyPlan, folder: CellFolder) -> None:
    """Delete weights and checkpoints of a finished cell, unless they are to be kept."""
    if plan.keep_models:
        return
    for pattern in _WEIGHT_FILES:
        for path in folder.run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_metrics(folder: CellFolder) -> list[dict[str, Any]]:
    """Return the training logs of a cell, one a logged step, after the measurement of the probe at the start."""
    return [entry for entry in read_logs(folder.run) if "loss" in entry or "probe_nll" in entry]


def summarize(run: CellRun, *, measure_seconds: float) -> dict[str, Any]:
    """Return what goes into cell.json: the cell's settings and all its figures, except curves and samples."""
    folder, cell = run.folder, run.cell
    summary: dict[str, Any] = {
        "format": FORMAT,
        "cell": cell.slug,
        "model": cell.model.name,
        "variant": cell.variant.name,
        "seed": cell.seed,
        "settings": cell_settings(run.plan, cell),
        "training": None,
        "heldout": None,
        "evaluation": None,
        "cost": {
            "measure_seconds": measure_seconds,
            "attempts": len(folder.attempts.read_text(encoding="utf-8").splitlines()),
        },
        "environment": None,
    }
    if cell.variant.objective is not None:
        config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        summary["training"] = training_summary(read_metrics(folder)) | {"rate": config["objective_kwargs"].get("rate")}
        summary["cost"] |= json.loads(folder.trained.read_text(encoding="utf-8"))
        summary["cost"] |= training_cost(read_metrics(folder))
        environment = json.loads((folder.run / "environment.json").read_text(encoding="utf-8"))
        summary["environment"] = {name: environment[name] for name in ("python", "platform", "device", "packages")}
    if folder.heldout.exists():
        heldout = json.loads(folder.heldout.read_text(encoding="utf-8"))
        summary["heldout"] = {name: value for name, value in heldout.items() if name != "rows"}
    if run.plan.eval_settings(cell):
        results = json.loads((folder.evaluation / "results.json").read_text(encoding="utf-8"))
        summary["cost"]["generation_seconds"] = sum(task.pop("generation_seconds") for task in results["tasks"])
        summary["evaluation"] = {name: results[name] for name in ("tasks", "versions", "device")}
    return summary


def training_summary(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the training logs: steps, mean kept share over the run, first and last plain NLL."""
    shares = [entry["kept_share"] for entry in metrics if "kept_share" in entry]
    nll = [entry["nll"] for entry in metrics if "nll" in entry]
    return {
        "steps": metrics[-1]["step"] if metrics else 0,
        "kept_share": sum(shares) / len(shares) if shares else None,
        "first_nll": nll[0] if nll else None,
        "last_nll": nll[-1] if nll else None,
    }


def training_cost(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Return tokens trained on and seconds spent on them, over all attempts, without loading and saving."""
    seconds, before = 0.0, 0
    for entry in metrics:
        if entry.get("tokens_per_second"):
            seconds += (entry["num_tokens"] - before) / entry["tokens_per_second"]
        before = entry.get("num_tokens", before)  # the start's measurement has none
    return {"train_tokens": before, "train_seconds": seconds}
