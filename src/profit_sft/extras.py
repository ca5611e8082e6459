"""Which extra brings an optional library, and the one message for where it is missing."""

import sys
from importlib.util import find_spec

from profit_sft.errors import MissingExtraError

# What this package imports beyond torch and transformers, by the extra that declares it in pyproject.toml.
EXTRAS = {
    "train": (
        *("accelerate", "datasets", "filelock", "gguf", "huggingface_hub", "jinja2", "markupsafe", "numpy", "peft"),
        *("pyarrow", "pydantic", "rich", "tokenizers", "trl", "typer", "yaml"),
    ),
    "eval": ("lm_eval", "math_verify", "langdetect", "immutabledict", "nltk"),
    "stats": ("scipy",),
    "vllm": ("vllm",),
}


def missing_extra(module: str | None, *, wanted_by: str = "this part of ProFit") -> MissingExtraError | None:
    """Return the error that names the extra, or None where the module is none that an extra brings.

    A part of an installed library that its version lacks is none: what is missing there is no extra.

    Args:
        module: What could not be imported, such as `ModuleNotFoundError.name`.
        wanted_by: What asked for it.
    """
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None:
        return None
    return MissingExtraError(
        f"{wanted_by} needs the extra '{extra}': {module} is not installed. Run pip install '.[{extra}]' in a clone of "
        "ProFit."
    )


def require_extra(extra: str, *, wanted_by: str) -> None:
    """Refuse to begin where a library of the extra is missing.

    Raises:
        MissingExtraError: Names the first one that is.
    """
    for module in EXTRAS[extra]:
        if sys.modules.get(module) is None and find_spec(module) is None:
            error = missing_extra(module, wanted_by=wanted_by)
            assert error is not None
            raise error
