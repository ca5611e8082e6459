"""Run a module as `python -m` would, and stop it when the process that started it dies.

    python -m profit_sft.study.child LOCK_FILE MODULE [ARGUMENTS]

It stops as at SIGTERM, so that `profit train` saves a checkpoint and everything else ends. The next child
waits for the lock, which this one holds as long as it lives.
"""

import runpy
import sys

from filelock import FileLock

from profit_sft.errors import explained
from profit_sft.interrupts import stop_with_parent


def main() -> None:
    """Start the watch and become the module."""
    stop_with_parent()
    lock_file, *sys.argv = sys.argv[1:]
    try:
        with FileLock(lock_file):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except Exception as error:
        told = explained(error)
        if told is None:
            raise
        sys.exit(f"error: {told}")


if __name__ == "__main__":
    main()
