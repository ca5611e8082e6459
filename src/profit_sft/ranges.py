"""Which values a setting may have, whatever it is of: its kind, as it is annotated, and a range by its name.

transformers takes nearly any number, and makes of a wrong one another run: -1 epochs train nothing, and succeed.
"""

import dataclasses
import enum
import math
import types
from collections.abc import Collection
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from profit_sft.errors import brief

_Range = tuple[float, float]  # both allowed

_LARGEST = 2**31 - 1
_ABOVE_0: _Range = (1e-12, _LARGEST)
_BELOW_1: _Range = (0.0, 1.0 - 1e-9)
_SEED: _Range = (0, 2**32 - 1)  # numpy's
_WORKERS: _Range = (0, 1024)
_ANY: _Range = (0, 1e12)

_COUNTS = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_steps"),
    *("eval_accumulation_steps", "torch_empty_cache_steps", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"),
    *("ddp_timeout", "max_length", "pad_to_multiple_of", "loss_chunk_size", "save_total_limit"),
    "max_skipped_steps",
    *("lora_r", "lora_alpha", "max_samples", "num_processes"),
    *("max_batch_tokens", "shard_rows", "samples", "max_new_tokens", "batch_size", "limit"),
)
# Of numbers that are not just 0 or more. A negative number that means something is in `_MEANING`.
_RANGES: dict[str, _Range] = {
    **dict.fromkeys(_COUNTS, (1, _LARGEST)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _ABOVE_0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "lora_dropout"), _BELOW_1),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    "num_train_epochs": (1e-12, 1e6),
    "learning_rate": (0.0, 1e4),
    "adam_epsilon": (0.0, 1.0),
    "dataloader_num_workers": _WORKERS,
    "dataset_num_proc": (1, _WORKERS[1]),
}
_MEANING = {("max_steps", -1): "num_train_epochs decides", ("local_rank", -1): "no launcher"}
# ModelConfig makes a word of a list of one, such as all-linear; names with commas between are one word.
_A_WORD_TOO = ("lora_target_modules", "allow_changes")


def check_values(settings: Any, *, unlimited: Collection[str] = ()) -> None:
    """Refuse a setting whose value is of another kind than it takes, or a number that cannot be meant.

    Args:
        settings: An instance of a dataclass.
        unlimited: Numbers of which its owner says more than a range.

    Raises:
        TypeError: A value is of another kind.
        ValueError: A number is out of range, infinite, or not a number.
    """
    kinds = get_type_hints(type(settings))
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name, None)
        if not entry.init or (entry.name in _A_WORD_TOO and isinstance(value, str)):
            continue
        if value is None and (entry.default is None or kinds[entry.name] not in (int, float, bool)):
            continue  # which stands for a default, whatever the field is said to take
        if not _fits(value, kinds[entry.name]):
            raise TypeError(f"{entry.name} must be {_words(kinds[entry.name])}, got {_short(value)}.")
        if isinstance(value, str) and int in get_args(kinds[entry.name]) and value.lstrip("+-").isdecimal():
            value = int(value)  # as the flag of a setting that takes words as well comes in
        # A default is its library's affair, and may mean something else than a number: -1 for none.
        is_limited = entry.name not in unlimited and value != entry.default
        if is_limited and isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_number(entry.name, value)


def _check_number(name: str, value: float) -> None:
    low, high = _RANGES.get(name, _ANY)
    if (name, value) in _MEANING or (math.isfinite(value) and low <= value <= high):
        return
    said = next((f", or {number}: {meaning}" for (of, number), meaning in _MEANING.items() if of == name), "")
    raise ValueError(f"{name} must be {_range_words(low, high, value)}{said}, got {_short(value)}.")


def _range_words(low: float, high: float, value: float) -> str:
    """Say the end of the range that a value is beyond, or both where it is no number."""
    bottom = "above 0" if 0 < low < 1 else f"at least {low:g}"
    top = "below 1" if high == _BELOW_1[1] else f"at most {high:,.0f}"
    return bottom if value < low else top if value > high else f"{bottom} and {top}"


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if origin is Literal:
        return value in get_args(kind)
    if origin is list and isinstance(value, list):
        return all(_fits(item, get_args(kind)[0]) for item in value)
    kind = origin or kind
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return isinstance(value, (str, kind))
    return isinstance(value, kind) if kind in (str, bool, list, dict) else True


def _words(kind: Any) -> str:
    """Say what a setting takes."""
    named = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list"}
    named |= {dict: "a mapping", type(None): ""}
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    words: list[str] = []
    for part in parts:
        known = ", ".join(map(str, get_args(part))) if get_origin(part) is Literal else None
        enumerated = isinstance(part, type) and issubclass(part, enum.Enum)
        if get_origin(part) is list and get_args(part)[0] in named:
            known = f"a list of {named[get_args(part)[0]]}"
        words.append(known or ("text" if enumerated else named.get(get_origin(part) or part, "")))
    return " or ".join(dict.fromkeys(filter(None, words))) or "of another kind"


def _short(value: Any) -> str:
    # Python writes no number of more than 4,300 digits.
    return brief(repr(value), 80) if not isinstance(value, int) or abs(value) < 10**30 else "one of over 30 digits"
