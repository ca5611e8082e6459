"""Clocks in the processes that `benchmarks/run.py` starts, ours and others' alike: which phase of a run takes how long.

Python imports this module by its name in every process that has this folder on PYTHONPATH, also in those that a
launcher starts. It wraps the functions of PLACES when their modules are imported, and changes nothing that they do. A
phase's time is exclusive: what runs inside another phase's function counts for that one alone. What is in none of them
is `start` (the interpreter, imports, settings) before the steps are done, and `save` after.

CPU time is that of the process, of its children that have ended, and of the launchers above it up to the benchmark, so
it is of the whole command. Linux only: launchers are read from /proc.
"""

import atexit
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

FILE, BENCHMARK = "PROFIT_PHASES_FILE", "PROFIT_PHASES_BENCHMARK"  # where to, and the process that started the command

# module: functions and methods of it, each with its phase
PLACES: dict[str, dict[str, str]] = {
    "transformers.modeling_utils": {"PreTrainedModel.from_pretrained": "model"},
    "transformers.trainer": {
        "Trainer.train": "steps",
        "Trainer._save_checkpoint": "save",
        "Trainer.save_model": "save",
    },
    "datasets.load": {"load_dataset": "data"},
    "trl.trainer.sft_trainer": {"SFTTrainer._prepare_dataset": "data", "SFTTrainer._save_checkpoint": "save"},
    "lm_eval.models.huggingface": {"HFLM.loglikelihood": "steps", "HFLM.generate_until": "steps"},
    "profit_sft.data.prepare": {"prepare_dataset": "data"},
    "profit_sft.scores.score": {"_score_shards": "steps"},
    "profit_sft.train.trainer": {"ProFitTrainer._save_checkpoint": "save", "ProFitTrainer.save_model": "save"},
}


class Clocks:
    """Wall and CPU seconds by phase, and what was seen of the training."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self.seen: dict[str, Any] = {}
        self._running = ["start"]
        self._last: tuple[float, float] | None = None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what the block takes for a phase."""
        self.count()
        self._running.append(phase)
        try:
            yield
        finally:
            self.count()
            self._running.pop()
            if phase == "steps" and len(self._running) == 1:
                self._running[0] = "save"

    def count(self) -> None:
        """Count the time since the last call for the phase that is running."""
        # The benchmark has the time before the first call, and that after the last.
        now = time.monotonic(), cpu_seconds()
        wall, cpu = self.phases.setdefault(self._running[-1], [0.0, 0.0])
        if self._last is None:
            self._last = float(os.environ[BENCHMARK].split()[1]), 0.0
        self.phases[self._running[-1]] = [wall + now[0] - self._last[0], cpu + now[1] - self._last[1]]
        self._last = now

    def write(self) -> None:
        """Write the phases, unless this process did nothing but launch another."""
        if "steps" in self.phases:
            self.count()
            Path(os.environ[FILE]).write_text(json.dumps({"phases": self.phases, **self.seen}), encoding="utf-8")


def cpu_seconds() -> float:
    """Return the CPU time of this process, its ended children, and the launchers above it."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    process, benchmark = os.getppid(), int(os.environ[BENCHMARK].split()[0])
    while process not in (benchmark, 0, 1):
        # After the name, which may hold anything: state, parent, ..., user and system time as numbers 11 and 12.
        words = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        process = int(words[1])
    return total


def wrapped(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
    @wraps(function)
    def timed_function(*args: Any, **kwargs: Any) -> Any:
        with clocks.timed(phase):
            return function(*args, **kwargs)

    return timed_function


def wrap(module: ModuleType, name: str, phase: str) -> None:
    owner: Any = module
    *classes, function_name = name.split(".")
    for class_name in classes:
        owner = getattr(owner, class_name)
    found = vars(owner)[function_name]
    is_classmethod = isinstance(found, classmethod)
    timed_function = wrapped(found.__func__ if is_classmethod else found, phase)
    setattr(owner, function_name, classmethod(timed_function) if is_classmethod else timed_function)


def look_on(trainer_class: Any) -> None:
    """Have the trainer's tokens counted, and its mean loss noted."""
    batches, train = trainer_class.get_batch_samples, trainer_class.train

    @wraps(batches)
    def counted_batches(*args: Any, **kwargs: Any) -> Any:
        found = batches(*args, **kwargs)
        for batch in found[0]:
            # The first token of a row is never predicted.
            labels = int((batch["labels"][:, 1:] != -100).sum())
            clocks.seen["label_tokens"] = clocks.seen.get("label_tokens", 0) + labels
            clocks.seen["tokens"] = clocks.seen.get("tokens", 0) + int(batch["attention_mask"].sum())
            clocks.seen["padded_tokens"] = clocks.seen.get("padded_tokens", 0) + batch["input_ids"].numel()
        return found

    @wraps(train)
    def noted_train(*args: Any, **kwargs: Any) -> Any:
        result = train(*args, **kwargs)
        clocks.seen.update(loss=result.training_loss, steps=result.global_step)
        return result

    trainer_class.get_batch_samples, trainer_class.train = counted_batches, noted_train


class Finder:
    """Wraps the functions of a module of PLACES as soon as it has been imported."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return the module's specification, with a loader that wraps, or None for any other module."""
        if name not in PLACES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for place, phase in PLACES[name].items():
                wrap(module, place, phase)
            if name == "transformers.trainer":
                look_on(module.Trainer)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


clocks = Clocks()
if FILE in os.environ:
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    atexit.register(clocks.write)
