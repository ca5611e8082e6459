"""A process that answers under limits: `python limited_worker.py MODULE_FILE CPU_SECONDS`, JSON lines in and out.

An answer of a model is input nobody has checked: computer algebra, or a pattern that backtracks, can take for ever or
all memory over it, in C code that no signal handler interrupts. So the operating system limits this process, which then
ends without an answer. The limit is one of processor time, each request's own: on a busy machine it leaves as much room
as on an idle one. The module has a function `answer`, from a request to what is written; it is run by path, so that it
can be had without the package.
"""

import importlib.util
import json
import os
import sys
from contextlib import suppress

if __name__ == "__main__":
    # Python puts a script's folder first, and modules of this one would hide others of the same name.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(os.path.abspath(__file__))]

MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answer lines on stdin until it ends."""
    spec = importlib.util.spec_from_file_location("limited", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        allow_cpu(int(sys.argv[2]))
        found = json.dumps(module.answer(request))
        sys.stdout.write(found + "\n")
        sys.stdout.flush()


def limit_memory() -> None:
    """Limit the address space, and leave no core file where a limit ends this process."""
    if os.name == "posix":
        import resource

        for kind, size in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
            with suppress(ValueError, OSError):  # macOS knows no limit of address space
                resource.setrlimit(kind, (size, resource.getrlimit(kind)[1]))


def allow_cpu(seconds: int) -> None:
    """Let this process take so many seconds of processor time from now on."""
    if os.name == "posix":
        import resource
        import time

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        limit = int(time.process_time()) + 1 + seconds
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (limit if hard < 0 else min(limit, hard), hard))


if __name__ == "__main__":
    main()
