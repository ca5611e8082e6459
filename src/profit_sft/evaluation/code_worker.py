"""Runs one program that a model wrote, under limits, and says whether it came to its end. A process of its own.

Reads a line of JSON with `program`, `token` and the limits; writes `token` if the program ended without an error. The
program cannot see the token, so that exiting early with success is not taken for having passed. Imports nothing but
the standard library: it is run by path.
"""

import contextlib
import json
import os
import sys
from typing import Any


def _limit(cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # counts all of the user's processes, and not root's
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _main() -> None:
    request = json.loads(sys.stdin.readline())
    verdict = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    _limit(request["cpu_seconds"], request["memory_bytes"], request["file_bytes"])
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(request["program"], "<answer>", "exec"), names)
    verdict.write(request["token"])
    verdict.flush()
    os._exit(0)  # threads the program left behind are not waited for


if __name__ == "__main__":
    _main()
