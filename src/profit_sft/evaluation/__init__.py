"""Benchmarks: which problems, how a model answers them, what counts as right, and how sure the figure is.

from profit_sft.evaluation import EvalSettings, evaluate

report = evaluate(EvalSettings(model_name_or_path="embedded", tasks=("generated",), output_dir="eval", greedy=True))
"""

from profit_sft.evaluation.results import EvalReport, Metric, TaskResult
from profit_sft.evaluation.runner import evaluate
from profit_sft.evaluation.settings import TASKS, EvalSettings

__all__ = ["TASKS", "EvalReport", "EvalSettings", "Metric", "TaskResult", "evaluate"]
