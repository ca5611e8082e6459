"""What an evaluation found: one `TaskResult` a task, one `EvalReport` an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from profit_sft.evaluation.statistics import Estimate, estimate_mean

Record = dict[str, Any]  # one line of samples/<task>.jsonl
# Of ifeval: an answer follows several instructions, so that instructions weigh alike, not prompts.
_PER_INSTRUCTION = ("instruction_strict", "instruction_loose")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric(Estimate):
    """An `Estimate` with a name, a share in [0, 1]."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRow:
    """What a limit of new tokens would have given, see `budgets.py`.

    Attributes:
        budget: The limit.
        truncated_share: Share of samples cut off at it.
        accuracy: avg@k, as `TaskResult` has it, at that limit.
    """

    budget: int
    truncated_share: float
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """How a model did on one task.

    Attributes:
        task: Name of the task.
        num_problems: Problems answered.
        samples_per_problem: k of avg@k.
        accuracy: avg@k: mean over problems of the share of right samples among those judged. Of ifeval, strict and by
            prompt.
        metrics: Further figures of the task.
        truncated_share: Share of samples cut off at `max_new_tokens`.
        no_answer_share: Share of samples in which no answer was found (format failures, empty texts); they are wrong.
        not_judged: Samples that are neither right nor wrong, since comparing their formula came to no end. The accuracy
            leaves them out, and a problem with them of which no sample is judged.
        fallback_share: Share of samples whose answer was only guessed at, as their last number or formula.
        mean_new_tokens: Mean length of a sample; None: the generator does not say.
        max_new_tokens: The limit of a sample, after lowering to the model's window.
        generation_seconds: Wall-clock time of generating and grading all samples, earlier runs included.
        by_budget: The same at lower limits, rising; empty where there is none to cut at, or lengths are unknown.
        inexact_cut_share: Share of samples that may have been cut some tokens early or late for that; None: not cut.
    """

    task: str
    num_problems: int
    samples_per_problem: int
    accuracy: Metric
    metrics: tuple[Metric, ...]
    truncated_share: float
    no_answer_share: float
    not_judged: int
    fallback_share: float
    mean_new_tokens: float | None
    max_new_tokens: int
    generation_seconds: float
    by_budget: tuple[BudgetRow, ...] = ()
    inexact_cut_share: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """How a model did, and what made it so.

    Attributes:
        model_name_or_path: As given.
        model_fingerprint: See `profit_sft.models.fingerprint.model_fingerprint`; None: a server has the model.
        settings: All `EvalSettings` as plain values.
        tasks: One result a task, in the order asked for.
        versions: Of the packages that decide about the figures; None: not installed.
        device: Where the model ran; of answers from several, each, set apart by commas.
        seconds: Wall-clock time of this call.
        output_dir: Where `results.json` and the records are.
    """

    model_name_or_path: str
    model_fingerprint: str | None
    settings: Mapping[str, Any]
    tasks: tuple[TaskResult, ...]
    versions: Mapping[str, str | None]
    device: str
    seconds: float
    output_dir: Path

    def task(self, name: str) -> TaskResult:
        """Return the result of a task by name; KeyError if it was not evaluated."""
        return {result.task: result for result in self.tasks}[name]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, as `results.json` holds it."""
        return {**asdict(self), "output_dir": str(self.output_dir)}


def summarize(task: str, records: Sequence[Record], *, max_new_tokens: int) -> TaskResult:
    """Turn the records of a task into figures.

    Args:
        task: Its name.
        records: All samples, those of one problem side by side, as many of each.
        max_new_tokens: The limit of a sample.
    """
    problems: dict[int, list[Record]] = {}
    for record in records:
        problems.setdefault(record["problem"], []).append(record)
    groups = list(problems.values())
    names = list(records[0].get("scores", {}))
    weights = [float(group[0]["num_instructions"]) for group in groups] if names else None

    def metric(name: str, value: Callable[[Record], float], weights: Sequence[float] | None = None) -> Metric:
        found = estimate_mean([[value(record) for record in group] for group in groups], weights)
        return Metric(name=name, **asdict(found))

    def share(value: Callable[[Record], float]) -> float:
        return sum(value(record) for record in records) / len(records)

    unknown = any(record["new_tokens"] is None for record in records)
    return TaskResult(
        task=task,
        num_problems=len(groups),
        samples_per_problem=len(groups[0]),
        accuracy=Metric(name="accuracy", **asdict(mean_accuracy(groups))),
        metrics=tuple(metric(name, _score(name), weights if name in _PER_INSTRUCTION else None) for name in names),
        truncated_share=share(lambda record: record["truncated"]),
        not_judged=sum(record["correct"] is None for record in records),
        no_answer_share=share(lambda record: record["rule"] is None),
        fallback_share=share(lambda record: record["rule"] == "fallback"),
        mean_new_tokens=None if unknown else share(lambda record: record["new_tokens"]),
        max_new_tokens=max_new_tokens,
        generation_seconds=sum(record["seconds"] for record in records),
    )


def mean_accuracy(problems: Sequence[Sequence[Record]]) -> Estimate:
    """Estimate avg@k from the samples of each problem, of which each has `correct`; those not judged are left out."""
    judged = [[record for record in samples if record["correct"] is not None] for samples in problems]
    # Where nothing is judged at all, nothing is right.
    groups = [samples for samples in judged if samples] or problems
    return estimate_mean([[float(bool(record["correct"])) for record in samples] for samples in groups])


def judged_accuracy(samples: Sequence[Record]) -> float:
    """Return the accuracy of a problem over its judged samples.

    A problem of which none was judged counts as half right: it stays a problem of what is compared, and favors none.
    """
    judged = [float(sample["correct"]) for sample in samples if sample["correct"] is not None]
    return sum(judged) / len(judged) if judged else 0.5


def _score(name: str) -> Callable[[Record], float]:
    return lambda record: float(record["scores"][name])
