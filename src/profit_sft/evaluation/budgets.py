"""Accuracy by token budget: what an evaluation would have found with a lower limit of new tokens.

Answers are generated once, up to the largest limit. An answer longer than a budget is cut there and graded as one that
was cut off, just as a generation with that limit would be: a model chooses its tokens without knowing the limit. So a
difference between two models that comes from one of them being cut off shows as one that a larger budget takes away.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from profit_sft.errors import DataError
from profit_sft.evaluation.results import BudgetRow, Record, judged_accuracy, mean_accuracy
from profit_sft.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_BUDGET = 128

Grade = Callable[[int, str], bool | None]
"""From the number of a problem and a text that was cut off to whether it is right; None: not judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetTable:
    """Accuracy by token budget.

    Attributes:
        rows: One a budget, rising; the last is the evaluation's own limit.
        accuracies: By budget, that of each problem over its judged samples; where none is judged, 0.5.
        inexact_cut_share: Share of samples whose text, put into tokens again, has another number of tokens than were
            generated. Such a text may be cut some tokens early or late. White space at either end, which is not kept,
            is one reason; a model that spells a word in other tokens than the tokenizer does is another.
    """

    rows: tuple[BudgetRow, ...]
    accuracies: Mapping[int, Sequence[float]]
    inexact_cut_share: float


def budgets_up_to(limit: int) -> tuple[int, ...]:
    """Return 128, 256, 512, ... below a limit of new tokens, and the limit.

    Example:
        >>> budgets_up_to(600), budgets_up_to(100)
        ((128, 256, 512, 600), (100,))
    """
    budgets = []
    budget = FIRST_BUDGET
    while budget < limit:
        budgets.append(budget)
        budget *= 2
    return (*budgets, limit)


def accuracy_by_budget(
    records: Sequence[Record], tokenizer: "PreTrainedTokenizerBase", grade: Grade, *, max_new_tokens: int
) -> BudgetTable:
    """Grade samples as if they had been generated with lower limits.

    Args:
        records: All samples, those of one problem side by side, as `samples/TASK.jsonl` has them.
        tokenizer: The model's.
        grade: The task's grader.
        max_new_tokens: The limit they were generated with.
    """
    budgets = budgets_up_to(max_new_tokens)
    found: dict[int, dict[int, list[Record]]] = {budget: {} for budget in budgets}
    inexact = 0
    for record in records:
        tokens: list[int] = tokenizer(record["answer"], add_special_tokens=False)["input_ids"]
        inexact += len(tokens) + (not record["truncated"]) != record["new_tokens"]
        for budget in budgets:
            cut, correct = record["new_tokens"] > budget, record["correct"]
            if cut:
                text = str(tokenizer.decode(tokens[:budget], skip_special_tokens=True)).strip()
                correct = grade(record["problem"], text)
            at_budget = {"correct": correct, "truncated": cut or record["truncated"]}
            found[budget].setdefault(record["problem"], []).append(at_budget)
    return BudgetTable(
        rows=tuple(_row(budget, list(problems.values())) for budget, problems in found.items()),
        accuracies={
            budget: [judged_accuracy(samples) for samples in problems.values()] for budget, problems in found.items()
        },
        inexact_cut_share=inexact / len(records),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetAccuracies:
    """What a study needs of one budget: the limit, the share of samples cut off at it, each problem's accuracy."""

    budget: int
    truncated_share: float
    accuracies: tuple[float, ...]


def budget_file(output_dir: Path, task: str) -> Path:
    """Return where an evaluation keeps a task's accuracies by budget."""
    return output_dir / "by_budget" / f"{task}.jsonl"


def write_budgets(path: Path, table: BudgetTable) -> None:
    """Write the accuracies at each budget, a line of JSON each."""
    lines = [
        json.dumps(
            {"budget": row.budget, "truncated_share": row.truncated_share, "scores": [*table.accuracies[row.budget]]}
        )
        for row in table.rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_budgets(path: Path) -> list[BudgetAccuracies]:
    """Read what `write_budgets` wrote; nothing where there is no file.

    Raises:
        DataError: It is something else.
    """
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            BudgetAccuracies(
                budget=row["budget"], truncated_share=row["truncated_share"], accuracies=tuple(row["scores"])
            )
            for row in rows
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read ({error!r}). Delete it: the accuracies by token budget are left out."
        ) from None


def _row(budget: int, problems: Sequence[Sequence[Record]]) -> BudgetRow:
    cut_off = [sample["truncated"] for samples in problems for sample in samples]
    return BudgetRow(budget=budget, truncated_share=sum(cut_off) / len(cut_off), accuracy=mean_accuracy(problems))
