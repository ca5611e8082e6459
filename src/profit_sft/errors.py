"""The exceptions a user can meet, and which extra brings an optional library.

    ProFitError                 everything below; the command line prints its text without a traceback
    ├── DataError               a row, a file or a data set cannot be used; names file, row and field
    ├── ConfigurationError      settings that contradict each other or name something that does not exist
    │   └── MissingExtraError   a library is not installed; names the extra that brings it
    ├── UnsupportedModelError   a model whose head this library would not reproduce exactly
    ├── LossBypassedError       a training step that would be on another loss than the installed one
    └── DownloadError           a file could not be fetched, or is not the expected one

Wrong values and types handed to a function are plain `ValueError` and `TypeError`.

What the operating system and other libraries raise becomes one of ours in two ways: `blamed_on` where a file from
outside is read, which knows the file and the fix, and `explained` at the command line, for a full disk and its like,
which come up wherever something is written. Everything else is a mistake of ours, and keeps its traceback.
"""

import errno
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
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
        *("psutil", "pyarrow", "pydantic", "rich", "scipy", "tokenizers", "trl", "typer", "yaml"),
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
        if not _is_there(module):
            error = missing_extra(module, wanted_by=wanted_by)
            assert error is not None
            raise error


_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_FIXES = {
    errno.EACCES: "Change its permissions, or name another.",
    errno.EPERM: "Change its permissions, or name another.",
    errno.EROFS: "Choose a folder that can be written to.",
    errno.ENOENT: "Check the path.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Its links lead in a circle; name the file itself.",
    errno.EMFILE: "Allow this process more open files (ulimit -n).",
    errno.EISDIR: "A folder is in the way of this file; move it, or choose another name.",
    errno.ENOTDIR: "A file is in the way of this folder; move it, or choose another name.",
}
# Of libraries that say it in words alone: Rust's (safetensors, tokenizers), Arrow's, torch's.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")
_TORCH_CANNOT_WRITE = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs|file write failed")
_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory")


def first_line(error: BaseException) -> str:
    """Return what an error says, without further lines and a last period; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    if isinstance(error, KeyError):
        said = f"{said} is missing"
    return brief(said).rstrip(".:") or type(error).__name__


def brief(text: str, longest: int = 300) -> str:
    """Return a text that was not written by us, without its middle where it is long."""
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 4 :]}"


def explained(error: BaseException) -> ProFitError | None:
    """Return what to tell a user of an error that is not this library's, or None where only a traceback will do.

    Args:
        error: Of the operating system: a file that cannot be read or written, a full disk; no memory. Of another
            library: that a package is to be installed.
    """
    if isinstance(error, ProFitError):
        return error
    if isinstance(error, ImportError):
        return _not_installed(error)
    number, place = _error_number(error), _place(error)
    if number in _NO_ROOM or _TORCH_CANNOT_WRITE.search(str(error)):
        why = "a limit on the size of files (ulimit -f)" if number == errno.EFBIG else "a full disk, or a quota"
        return ProFitError(
            f"{place}could not be written: {why}. What was complete before is still there. Make room, or name another "
            "folder; the same command goes on or says how."
        )
    if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
        return ProFitError(
            f"out of memory ({first_line(error)}). Lower the batch (per_device_train_batch_size, max_batch_tokens, "
            "batch_size) or max_length, or take a smaller model."
        )
    if isinstance(error, OSError):
        said = error.strerror if error.strerror else first_line(error)
        fix = f" {_FIXES[number]}" if number in _FIXES else ""
        return ProFitError(f"{place.strip() + ': ' if error.filename is not None else ''}{said}.{fix}")
    return None


def _not_installed(error: ImportError) -> ConfigurationError | None:
    """Return which package a setting asks for; None where a part of this package is missing, or of an installed one."""
    # transformers, accelerate and others say how; Python's own errors have a name, and may hold a path with that word.
    if error.name is None and "install" in str(error):
        return ConfigurationError(f"{first_line(error)}.")
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    library = error.name.split(".")[0]
    if library == __package__ or _is_there(library):
        return None
    return ConfigurationError(f"{library} is not installed. Run pip install {library}, or leave out what asks for it.")


def _is_there(module: str) -> bool:
    return sys.modules.get(module) is not None or find_spec(module) is not None


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found[1] or found[2]) if found else None


def _place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return "a file " if name is None else f"'{name}' "


@contextmanager
def blamed_on(what: str, fix: str, kind: type[ProFitError] = DataError, *, within: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises over something from outside into one error that names it.

    Libraries raise what is at hand over a broken file: KeyError, RuntimeError, RecursionError, or kinds of their own.
    So the body must do nothing but hand the thing to the library, or `within` must name the function that does.

    Args:
        what: Names it, with setting, value or place: `model_name_or_path: 'folder' holds no model that can be loaded`.
        fix: What to do.
        kind: Of the error.
        within: Only what is raised in a function of this name, or what it calls.
    """
    try:
        yield
    except ProFitError:
        raise
    except Exception as error:
        if _error_number(error) in _NO_ROOM or isinstance(error, MemoryError):
            raise
        called = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
        if within is not None and within not in called:
            raise
        raise kind(f"{what} ({first_line(error)}). {fix}") from error
