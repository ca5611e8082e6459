"""Run a module as `python -m` would, and stop it when the process that started it dies.

    python -m profit_sft.study.child MODULE [ARGUMENTS]

Standard input is a pipe whose other end the parent holds. However the parent ends, even by SIGKILL, the pipe closes;
this process then gets SIGTERM from itself, at which `profit train` saves a checkpoint and everything else stops.
"""

import os
import runpy
import signal
import sys
import threading

from profit_sft.errors import ProFitError


def _watch_parent() -> None:
    # Read unbuffered: a thread inside a buffered read would hold the lock that Python's exit needs.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Start the watch and become the module."""
    threading.Thread(target=_watch_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except ProFitError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
