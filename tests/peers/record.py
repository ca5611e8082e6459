"""Write what was tested into the table of the documentation: python tests/peers/record.py llamafactory."""

import datetime
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from peers import PEERS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "other-trainers.md"


def main() -> None:
    """Replace the row of the trainer whose tests have just passed in this environment."""
    name = sys.argv[1]
    versions = ", ".join(f"{package} {version(package)}" for package in PEERS[name].packages)
    row = f"| {name} | {versions} | {platform.python_version()} | {datetime.date.today()} |"
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    places = [index for index, line in enumerate(lines) if line.startswith(f"| {name} |") and line.count("|") == 5]
    if len(places) != 1:
        sys.exit(f"{PAGE} has {len(places)} rows of versions for {name}, not one.")
    lines[places[0]] = row
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
