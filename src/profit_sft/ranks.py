"""What the ranks of a command must agree on before they go on together, and commands that use one rank alone."""

import os
from collections.abc import Callable
from typing import TypeVar

from profit_sft.errors import ProFitError
from profit_sft.terminal import console

_T = TypeVar("_T")
# What torch and accelerate would read, and wait for the others by.
_MARKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ENGINES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def first_decides(decide: Callable[[], _T]) -> _T:
    """Let the first rank decide; every rank gets the result, or raises the error.

    Args:
        decide: Called on the first rank alone. Its result must be picklable.

    Raises:
        ProFitError: `decide` did.
        OSError: `decide` did.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    found: list[object] = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = decide()
        except (ProFitError, OSError) as error:
            found[1] = error
    broadcast_object_list(found)
    if isinstance(found[1], Exception):
        raise found[1]
    return found[0]  # type: ignore[return-value]  # what the first rank's `decide` returned


def works_here(command: str) -> bool:
    """Say whether this process does the work of a command that uses one; the first says so, and forgets the others.

    Args:
        command: What the message calls it.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return True
    if int(os.environ.get("RANK", "0")) != 0:
        return False
    console(stderr=True).print(
        f"profit {command} uses one process: of the {ranks} that were launched, {ranks - 1} have nothing to do."
    )
    for name in (*_MARKS, *_ENGINES):
        os.environ.pop(name, None)
    return True
