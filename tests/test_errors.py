"""What becomes of errors that are not ours: of the system, and of libraries over something from outside."""

import errno
import os

import pyarrow
import pytest
import torch
from safetensors import SafetensorError

from profit_sft.errors import ConfigurationError, DataError, ProFitError, blamed_on, brief, explained, first_line

FULL = "a full disk, or a quota"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/x"), f"'run/x' could not be written: {FULL}"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "a file could not be written: a limit on the size of files"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (pyarrow.ArrowException("Error writing bytes to file. Detail: [errno 28] No space left on device"), FULL),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), FULL),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "'x': Permission denied. Change its permissions"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "'x': No such file or directory. Check"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "File name too long. Choose a shorter name."),
        (OSError("Can't load it.\nMore of it."), "Can't load it."),
        (MemoryError(), "out of memory (MemoryError). Lower the batch"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory (CUDA out of memory"),
        (DataError("a row"), "a row"),
    ],
)
def test_what_the_system_refuses_is_told_with_place_and_fix(error, told):
    found = explained(error)
    assert isinstance(found, ProFitError)
    assert told in str(found)
    assert "\n" not in str(found)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), AssertionError(), RuntimeError("a mistake")])
def test_a_mistake_of_ours_keeps_its_traceback(error):
    assert explained(error) is None


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError(), RecursionError("deep"), SafetensorError("a\nb")])
def test_what_a_library_raises_over_a_file_names_the_file(error):
    told = pytest.raises(ConfigurationError, match=r"^the model 'm' cannot be read \(.+\)\. Name another\.$")
    with told as caught, blamed_on("the model 'm' cannot be read", "Name another.", ConfigurationError):
        raise error
    assert caught.value.__cause__ is error


def test_only_what_the_named_function_raises_is_blamed():
    def load():
        raise KeyError("its own")

    with pytest.raises(DataError, match="'its own' is missing"), blamed_on("m", "Fix.", within="load"):
        load()
    with pytest.raises(KeyError), blamed_on("m", "Fix.", within="load"):
        raise KeyError("ours")


def test_a_full_disk_and_no_memory_are_not_blamed_on_the_file():
    for error in (OSError(errno.ENOSPC, "No space left on device"), MemoryError()):
        with pytest.raises(type(error)), blamed_on("m", "Fix."):
            raise error


def test_what_others_wrote_is_cut_in_the_middle():
    assert brief("x" * 300) == "x" * 300
    assert len(brief("x" * 5000)) < 300
    assert first_line(ValueError("first:\n\n  second.\nthird")) == "first: second"
