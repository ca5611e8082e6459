"""Weights that come with a row, for the objective `given`: of the row, of a turn, of tokens, of parts of the answer."""

from collections.abc import Sequence
from typing import TypeVar

from profit_sft.data.messages import read_list, read_weight, shown
from profit_sft.data.row import Row

_T = TypeVar("_T")
COLUMN = "token_weights"
WeightedPart = tuple[int, int, float]  # characters from, up to, and their weight


def given_weights(row: Row) -> tuple[list[float], list[WeightedPart]]:
    """Read the column `token_weights`: a number a token, or objects with start, end and weight.

    One of the two is empty. The objects are characters of the last answer, `end` exclusive; what none of them covers
    has the weight 1.

    Raises:
        DataError: An entry is neither, or no weight; names file, row, entry and the fix.
    """
    entries = read_list(row, COLUMN, row.values.get(COLUMN))
    numbers, spans = [], []
    for index, entry in enumerate(entries):
        place = f"'{COLUMN}[{index}]'"
        if not isinstance(entry, dict):
            numbers.append(read_weight(row, f"{place} is", entry))
            continue
        start, end = entry.get("start"), entry.get("end")
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end):
            raise row.error(
                f"{place} must have start, end and weight, start before end, got {shown(entry)}. Mend or drop it."
            )
        spans.append((start, end, read_weight(row, f"{place} has weight", entry.get("weight"))))
    if numbers and spans:
        raise row.error(f"'{COLUMN}' has numbers and objects. Give one or the other.")
    return numbers, spans


def check_parts(row: Row, parts: Sequence[WeightedPart], answer: str) -> None:
    """Raise DataError where a stretch ends behind the answer."""
    for index, (_, end, _) in enumerate(parts):
        if end > len(answer):
            raise row.error(
                f"'{COLUMN}[{index}]' ends at {end}, but the last answer has {len(answer)} characters. Count from its "
                "beginning."
            )


def spread(row: Row, weights: Sequence[float], labeled: Sequence[bool]) -> list[float]:
    """Return a weight for every token, of weights for all of them or for the label tokens alone.

    Raises:
        DataError: There are too few or too many; names file, row and both numbers.
    """
    labels = sum(labeled)
    if len(weights) == len(labeled):
        return list(weights)
    if len(weights) != labels:
        raise row.error(
            f"'{COLUMN}' has {len(weights)} entries, and the row has {len(labeled)} tokens, {labels} of them labels. "
            "Give one for each token, or one for each label token, the token that ends the answer included."
        )
    given = iter(weights)
    return [next(given) if counts else 1.0 for counts in labeled]


def shifted_parts(parts: Sequence[tuple[int, int, _T]], by: int) -> list[tuple[int, int, _T]]:
    """Count the characters of parts, whatever is said of them, from another beginning."""
    return [(start + by, end + by, what) for start, end, what in parts]


def weights_of_parts(
    weights: list[float], offsets: Sequence[tuple[int, int]], parts: Sequence[WeightedPart]
) -> list[float] | None:
    """Multiply the weights of tokens with those of the parts they reach into; None where nothing but 1 is given."""
    for first, last, weight in parts:
        weights = [
            own * weight if start < last and first < end else own
            for own, (start, end) in zip(weights, offsets, strict=True)
        ]
    return weights if parts or any(weight != 1.0 for weight in weights) else None
