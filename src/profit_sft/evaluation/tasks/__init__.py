"""The benchmarks, as task files of lm-evaluation-harness: each YAML file here is a task, named by its file.

    lm_eval --include_path FOLDER --tasks profit_gsm8k --model hf --model_args pretrained=MODEL --apply_chat_template

runs one without us. What this project asks of a task beyond the harness's own format:

- The name it gives itself has a prefix (`profit_gsm8k` in gsm8k.yaml): the harness has a gsm8k, too. A file whose name
  begins with an underscore is no task; others include it.
- `filter_list` and `process_results` keep the samples of a problem apart: no filter, and as metric `accuracy` the list
  that `each_sample` makes. A task that gives one number a problem can be run with one sample a problem.
- `metadata: data_files` names a file of `--data_dir` for each split, of a task in `--task_dir` beside it unless told
  otherwise. Without it the data comes from the hub. `problems` says how many there are, for the estimate of a study.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from profit_sft.evaluation.grading import Grade
from profit_sft.evaluation.results import Record, mean_accuracy


def each_sample(grade: Callable[[str, bool], Grade], results: Sequence[Any]) -> list[Record]:
    """Grade every sample of a problem.

    Args:
        grade: From a text, and whether it was cut off, to its grade.
        results: What the harness gives to `process_results`: a list with the list of samples, or with one text.

    Returns:
        For each sample `correct`, `extracted`, `rule`, and what else the grade has.
    """
    samples = results[0] if isinstance(results[0], list) else results
    # Of an answer that does not say whether it was cut off it is not known: the harness has plain texts.
    return [_record(grade(text, getattr(text, "truncated", False))) for text in samples]


def accuracy(problems: Sequence[list[Record]]) -> float:
    """Return avg@k of what `each_sample` made of each problem, as the harness aggregates a metric."""
    return mean_accuracy(problems).mean


def _record(grade: Grade) -> Record:
    record = asdict(grade)
    details: Record = record.pop("details")
    return {**record, **details}
