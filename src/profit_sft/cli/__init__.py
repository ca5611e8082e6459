"""The command `profit`. Commands load what they need when they run, so that `--help` is quick."""

import sys

from profit_sft.cli.app import run_app


def main() -> None:
    """Entry point of the command `profit`; exits 0 done, 1 failed, 2 usage, 130 interrupted."""
    sys.exit(run_app(sys.argv[1:]))
