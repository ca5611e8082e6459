"""Columns beside the labels, `reference_log_probs` and `token_weights`: cut, packed and collated as the labels are.

TRL does each of these to `input_ids` and `labels` alone.
"""

from typing import Any

import torch
from trl import SFTConfig, pack_dataset

from profit_sft.objectives import FROM_THE_BATCH


def columns_beside(dataset: Any) -> list[str]:
    """Return those of the columns that a data set has; none where its columns are not known."""
    present = getattr(dataset, "column_names", None) or ()
    return [name for name in FROM_THE_BATCH if name in present]


def cut_beside(dataset: Any, args: SFTConfig) -> Any:
    """Cut the columns to `max_length`, at the end that TRL cuts."""
    if args.max_length is None:
        return dataset
    ends_first = args.truncation_mode == "keep_end"
    kept = slice(-args.max_length, None) if ends_first else slice(None, args.max_length)
    names = columns_beside(dataset)
    return dataset.map(lambda example: {name: example[name][kept] for name in names})


def packed(dataset: Any, args: SFTConfig) -> Any:
    """Pack the data set as TRL would, and the columns with it."""
    if args.max_length is None:
        raise ValueError("packing fills rows of max_length tokens, and max_length is None. Set max_length.")
    dataset = dataset.select_columns(["input_ids", "labels", *columns_beside(dataset)])
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    return pack_dataset(dataset, args.max_length, args.packing_strategy)


class CollatesBeside:
    """A collator that lays the columns out as the wrapped one does the tokens: padded at either side, or end to end.

    Rows without them, such as those of an evaluation, are left to the wrapped one.
    """

    def __init__(self, collator: Any) -> None:
        self._collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch, with each column that the examples have as `(B, S)` fp32."""
        names = [name for name in FROM_THE_BATCH if name in examples[0]]
        batch: dict[str, Any] = self._collator(
            [{name: value for name, value in example.items() if name not in names} for example in examples]
        )
        _check_lengths(examples, names)
        places = _places(examples, batch, names) if names else []
        return {**batch, **{name: _laid_out(examples, name, places, batch["input_ids"].shape) for name in names}}


def _check_lengths(examples: list[dict[str, Any]], names: list[str]) -> None:
    for index, example in enumerate(examples):
        size = len(example["input_ids"])
        for name in names:
            if len(example[name]) != size:
                raise ValueError(
                    f"row {index} of a batch has {size} input_ids and {len(example[name])} {name}. Give "
                    "every token one; anything where there is no label."
                )


def _places(examples: list[dict[str, Any]], batch: dict[str, Any], names: list[str]) -> list[tuple[int, slice]]:
    """Return where each example's tokens lie in the batch: the row, and the places in it."""
    input_ids, mask = batch["input_ids"], batch.get("attention_mask")
    # Behind the padding of a collator that pads at the left.
    begins = [0] * len(input_ids) if mask is None or mask.dim() != 2 else mask.bool().int().argmax(dim=1).tolist()
    places = []
    for index, example in enumerate(examples):
        row = index if len(input_ids) == len(examples) else 0  # padding_free
        own = torch.as_tensor(example["input_ids"])
        place = slice(begins[row], begins[row] + len(own))
        if not torch.equal(input_ids[row, place], own):
            raise ValueError(
                f"row {index} of a batch does not hold the {len(own)} input_ids of its example in a row, so that its "
                f"{' and '.join(names)} cannot be laid beside them. Take a data_collator that pads rows, or lays them "
                "end to end."
            )
        begins[row] = place.stop
        places.append((row, place))
    return places


def _laid_out(
    examples: list[dict[str, Any]], name: str, places: list[tuple[int, slice]], shape: torch.Size
) -> torch.Tensor:
    values = torch.zeros(shape, dtype=torch.float32)
    for example, place in zip(examples, places, strict=True):
        values[place] = torch.tensor(example[name], dtype=torch.float32)
    return values
