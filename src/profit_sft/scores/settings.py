"""What to score, under which model, and the command line that says so. Imports nothing heavy."""

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from profit_sft.data.settings import DataSettings
from profit_sft.models import DTYPES
from profit_sft.ranges import check_values

MOST_LIKELIEST = 100  # beyond that the scores would be logits in all but name


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """What to score, under which model, into which folder.

    What most of the settings mean, their help texts say, which are those of `profit score`.

    Attributes:
        model_name_or_path: Frozen model: hub name, folder (LoRA adapters too), or `embedded`.
        data: Which data, prepared how.
        output_dir: The store, see `profit_sft.scores.store`.

    Raises:
        TypeError: A value is of another kind.
        ValueError: A value is out of range.
    """

    model_name_or_path: str
    data: DataSettings
    output_dir: Path
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a hub model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    allow_missing_weights: bool = field(
        default=False, metadata={"help": "Load a model whose files lack weights, or hold others."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Of the model: float32, bfloat16, float16, or auto: the checkpoint's own. Logits: fp32."},
    )
    max_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a batch, padding included; a longer row is a batch of its own (default: 2048 on CPU, "
            "else 16384)."
        },
    )
    shard_rows: int = field(default=256, metadata={"help": "Rows in a shard."})
    likeliest: int = field(
        default=5, metadata={"help": "Likeliest tokens to keep with each label token, with their log p; 0: none."}
    )
    chat_template_path: str | None = field(default=None, metadata={"help": "Jinja file, or a model to take it from."})

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        check_values(self, unlimited=("likeliest",))
        if not 0 <= self.likeliest <= MOST_LIKELIEST:
            raise ValueError(f"likeliest must be from 0 to {MOST_LIKELIEST}, got {self.likeliest}.")


def flags(settings: DataSettings | ScoreSettings) -> dict[str, str]:
    """Return the fields that differ from their defaults, as the command line spells them; a switch has no value."""
    found = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if value != entry.default and not isinstance(value, DataSettings):
            found[f"--{entry.name}"] = "" if value is True else str(value)
    return found


def command_line(settings: ScoreSettings) -> str:
    """Return the `profit score` command with these settings, to paste into a shell."""
    data = flags(settings.data)
    words = ["profit", "score", data.pop("--dataset_name")]
    for name, value in {**data, **flags(settings)}.items():
        words += [name, value] if value else [name]
    return shlex.join(words)
