"""Commands that work in one process, when a launcher started several."""

import os

from profit_sft.terminal import console

# What torch and accelerate would read, and wait for the others by.
_MARKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ENGINES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


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
