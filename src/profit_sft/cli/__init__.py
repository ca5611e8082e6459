"""The command `profit`. Commands load what they need when they run, so that `--help` is quick."""

import sys


def main() -> None:
    """Entry point of the command `profit`; exits 0 done, 1 failed, 2 usage, 130 interrupted."""
    try:
        from profit_sft.cli.app import run_app
    except ModuleNotFoundError as error:
        from profit_sft.errors import missing_extra

        missing = missing_extra(error.name, wanted_by="the command profit")
        if missing is None:
            raise
        sys.stderr.write(f"error: {missing}\n")
        sys.exit(2)
    sys.exit(run_app(sys.argv[1:]))
