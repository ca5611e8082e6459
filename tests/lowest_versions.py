"""Print the lowest versions that pyproject.toml declares, as constraints for pip: python tests/lowest_versions.py."""

import re
import sys
from pathlib import Path

import tomllib

_BOUND = re.compile(r"^([A-Za-z0-9_.-]+)>=([0-9][0-9A-Za-z.]*)$")


def lowest(pyproject: str) -> dict[str, str]:
    """Return {distribution: version} of the core's and the trainer's requirements, without torch."""
    project = tomllib.loads(pyproject)["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    found = dict(match.groups() for text in requirements if (match := _BOUND.match(text)))
    assert len(found) == len(requirements), "every requirement has a lower bound and nothing else"
    found.pop("torch")
    return found


if __name__ == "__main__":
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    sys.stdout.write("\n".join(f"{name}=={version}" for name, version in lowest(text).items()) + "\n")
