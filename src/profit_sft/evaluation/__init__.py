"""Benchmarks: which problems, how a model answers them, what counts as right, and how sure the figure is.

from profit_sft.evaluation import EvalSettings, evaluate

report = evaluate(EvalSettings(model_name_or_path="embedded", tasks=("generated",), output_dir="eval", greedy=True))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profit_sft.evaluation.results import EvalReport as EvalReport
    from profit_sft.evaluation.results import Metric as Metric
    from profit_sft.evaluation.results import TaskResult as TaskResult
    from profit_sft.evaluation.runner import evaluate as evaluate
    from profit_sft.evaluation.settings import TASKS as TASKS
    from profit_sft.evaluation.settings import EvalSettings as EvalSettings

# Loaded on first use: `profit --help` knows the settings, and must not load torch for it.
_HOMES = {"evaluate": "runner", "TASKS": "settings", "EvalSettings": "settings"} | dict.fromkeys(
    ("EvalReport", "Metric", "TaskResult"), "results"
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'profit_sft.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"profit_sft.evaluation.{_HOMES[name]}"), name)
