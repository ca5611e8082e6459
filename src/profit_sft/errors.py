"""The exceptions a user can meet, and which extra brings an optional library.

    ProFitError                 everything below; the command line prints its text without a traceback
    ├── DataError               a row, a file or a data set cannot be used; names file, row and field
    ├── ConfigurationError      settings that contradict each other or name something that does not exist
    │   └── MissingExtraError   a library is not installed; names the extra that brings it
    ├── UnsupportedModelError   a model whose head this library would not reproduce exactly
    ├── LossBypassedError       a training step that would be on another loss than the installed one
    └── DownloadError           a file could not be fetched, or is not the expected one

Wrong values and types handed to a function are plain `ValueError` and `TypeError`.
"""

import sys
from importlib.util import find_spec


class ProFitError(Exception):
    """Base of every exception this library raises for a user to read."""


class DataError(ProFitError):
    """A row, a file or a data set cannot be used. The message names file, row, field and the fix."""


class ConfigurationError(ProFitError):
    """Settings contradict each other or name something that does not exist."""


class MissingExtraError(ConfigurationError, ImportError):
    """A library that an extra brings is not installed. The message names the extra."""


class UnsupportedModelError(ProFitError):
    """The model computes its logits in a way the selective head would not reproduce exactly."""


class LossBypassedError(ProFitError):
    """A training step would leave the selective loss that was installed, and train something else."""


class DownloadError(ProFitError):
    """A file could not be fetched, or its checksum is not the expected one."""


# What this package imports beyond torch and transformers, by the extra that declares it in pyproject.toml.
EXTRAS = {
    "train": (
        *("accelerate", "datasets", "filelock", "gguf", "huggingface_hub", "jinja2", "markupsafe", "numpy", "peft"),
        *("pyarrow", "pydantic", "rich", "scipy", "tokenizers", "trl", "typer", "yaml"),
    ),
    "eval": ("lm_eval", "math_verify", "sympy", "langdetect", "immutabledict", "nltk", "requests", "tqdm"),
    "ray": ("ray",),
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
