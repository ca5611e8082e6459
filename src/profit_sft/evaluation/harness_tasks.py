"""Tasks of lm-evaluation-harness from the files in `evaluation/tasks`, set up as the evaluation's settings say."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profit_sft.errors import ConfigurationError, DataError, DownloadError, ProFitError, first_line
from profit_sft.evaluation.code_check import check_confirmed
from profit_sft.evaluation.settings import DEFAULT_LONGEST, TASK_FOLDER, EvalSettings, task_file, task_files

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")


def load_task(name: str, settings: EvalSettings) -> "ConfigurableTask":
    """Load a task and its data.

    Args:
        name: One of the settings' tasks.
        settings: Where the data is, how often each problem is answered, and how.

    Raises:
        ConfigurationError: The task cannot be run that way, or runs code and that was not allowed.
        DataError: A file is missing or cannot be used.
        DownloadError: The data cannot be loaded from the hub.
    """
    from lm_eval.tasks import TaskManager

    file, given_name = task_files(settings.task_dir)[name], task_file(name, settings.task_dir).get("task")
    if not isinstance(given_name, str):
        raise ConfigurationError(f"{file} is no task of lm-evaluation-harness: it has no name under `task`.")
    manager = TaskManager(include_path=list(dict.fromkeys((TASK_FOLDER, file.parent))), include_defaults=False)
    entry = manager.task_index.get(given_name)
    if entry is None:
        raise ConfigurationError(f"{file} is no task that lm-evaluation-harness can read.")
    if entry.yaml_path != file:
        raise ConfigurationError(
            f"{file} and {entry.yaml_path} have the same name under `task`, '{given_name}'. Give one of them another."
        )
    if entry.cfg.get("unsafe_code"):
        check_confirmed(name)
    beside = None if file.parent == TASK_FOLDER else file.parent
    data = _data_files(name, entry.cfg, settings.data_dir or beside, is_own=beside is not None)
    # A group of one: the harness's way to load a task with some of its fields changed.
    source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data}}
    group = {"group": "profit", "task": [{"task": entry.name, **(source if data else {})}]}
    try:
        task = manager.load(group)["tasks"][entry.name]
        problems = len(task.eval_docs)
        if not problems:
            raise ValueError("no problems")
    except ProFitError:
        raise
    # datasets, the hub's client and the harness have classes of their own for each reason, without a common base.
    except Exception as error:
        if data or "dataset_path" not in entry.cfg:
            files = ", ".join(data.values()) or "its data"
            raise DataError(f"{name}: {files} cannot be used ({_reason(error)}).") from None
        raise DownloadError(
            f"{name}: the data set {entry.cfg['dataset_path']} could not be loaded from the hub ({_reason(error)}). "
            f"{_remedy(name, entry.cfg)}"
        ) from None
    _set_up(name, task, settings)
    return task


def fingerprint(task: "ConfigurableTask") -> str:
    """Return a SHA-256 of all prompts, outside a chat template, and expected answers."""
    digest = hashlib.sha256()
    for problem in task.eval_docs:
        prompt = task.fewshot_context(problem, task.config.num_fewshot or 0)
        digest.update(f"{prompt}\0{task.doc_to_target(problem)}\0".encode())
    seed_examples(task)
    return digest.hexdigest()


def grading_fingerprint(name: str, task: "ConfigurableTask", settings: EvalSettings) -> str | None:
    """Return a SHA-256 of what grades a task of one's own: its file, its rows, the Python beside it; None of ours."""
    folder = task_files(settings.task_dir)[name].parent
    if folder == TASK_FOLDER:
        return None
    told = task_file(name, settings.task_dir)
    grading = {key: told[key] for key in sorted(told) if key not in ("include", "generation_kwargs")}
    digest = hashlib.sha256(json.dumps(grading, default=str).encode())
    for path in sorted(folder.glob("*.py")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    for row in task.eval_docs:
        digest.update(json.dumps(row, default=str).encode())
    return digest.hexdigest()


def generation_arguments(task: "ConfigurableTask") -> dict[str, Any]:
    """Return what the file of a task says of generation but for the length and the sampling, such as stop strings."""
    given = task.config.generation_kwargs.items()
    told = {name: value for name, value in given if name not in (*_SAMPLING, "max_gen_toks")}
    until = told.get("until") or []  # in any order, and one without a list
    return {**told, "until": sorted({until} if isinstance(until, str) else {*until})}


def seed_examples(task: "ConfigurableTask") -> None:
    """Have a task draw its worked examples from the beginning again, if it draws any."""
    task.set_fewshot_seed(1234)  # the harness's own seed of them


def grades_each_sample(task: "ConfigurableTask") -> bool:
    """Say whether a task's file keeps the samples of a problem apart."""
    return not any(pipeline.get("filter") for pipeline in task.config.filter_list or [{"filter": True}])


def _data_files(name: str, config: Mapping[str, Any], data_dir: Path | None, *, is_own: bool) -> dict[str, str]:
    """Return the file of each split; none: the data comes from the hub, or is made. `is_own`: a user's own task."""
    if data_dir is None:
        return {}
    named = (config.get("metadata") or {}).get("data_files") or {}
    files = {split: str(data_dir / file) for split, file in named.items()}
    for path in files.values():
        try:
            Path(path).open().close()
        except OSError as error:
            fix = (
                "or name its folder as data_dir."
                if is_own
                else f"leave {name} out, or leave out data_dir to load it from the hub."
            )
            raise DataError(
                f"{name} needs {path}, which cannot be read ({error.strerror}). Put the file there, {fix}"
            ) from None
    return files


def _set_up(name: str, task: "ConfigurableTask", settings: EvalSettings) -> None:
    if task.OUTPUT_TYPE != "generate_until":
        raise ConfigurationError(f"{name}: only tasks that generate answers can be evaluated, not {task.OUTPUT_TYPE}.")
    samples = settings.samples_per_problem
    if samples > 1 and not grades_each_sample(task):
        raise ConfigurationError(
            f"{name}: its task file gives one grade a problem, not one for each of {samples} samples. Take --samples 1 "
            "or --greedy."
        )
    kept = {key: value for key, value in task.config.generation_kwargs.items() if key not in _SAMPLING}
    kept.setdefault("max_gen_toks", DEFAULT_LONGEST)
    longest = {} if settings.max_new_tokens is None else {"max_gen_toks": settings.max_new_tokens}
    task.set_config("generation_kwargs", {**kept, **settings.generation_arguments, **longest})
    task.set_config("repeats", samples)
    if settings.system_prompt is not None:
        task.set_config("description", "")  # the harness would put it behind the one that is asked for
    seed_examples(task)


def _remedy(name: str, config: Mapping[str, Any]) -> str:
    files = (config.get("metadata") or {}).get("data_files")
    if files:
        return f"Name a folder that holds {', '.join(files.values())} with --data_dir, or leave {name} out."
    return (
        f"It comes from the hub only: accept its terms on huggingface.co/datasets/{config['dataset_path']}, log in "
        f"with `hf auth login`, and run where the hub can be reached; or leave {name} out."
    )


def _reason(error: BaseException) -> str:
    """Return the first line of what began it, such as a bad line of a file that a data set could not be made of."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
