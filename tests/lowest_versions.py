"""Write pip constraints that pin everything core and `[train]` declare to its lower bound.

    python tests/lowest_versions.py CONSTRAINTS [torch==2.13.0 ...]

What is given after the file's name takes the place of the declared bound.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it


def declared(project: dict[str, Any], extra: str | None = None) -> Iterator[Requirement]:
    """What core or an extra declares, what other extras it includes taken apart."""
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    for requirement in map(Requirement, lines):
        if requirement.name == project["name"]:
            for included in sorted(requirement.extras):
                yield from declared(project, included)
        else:
            yield requirement


def read_project(path: Path = Path(__file__).parents[1] / "pyproject.toml") -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))["project"]


def lowest_versions(project: dict[str, Any], replaced: Sequence[str] = ()) -> list[str]:
    found = {}
    for requirement in [*declared(project), *declared(project, "train")]:
        (bound,) = [one.version for one in requirement.specifier if one.operator == ">="]
        found[canonicalize_name(requirement.name)] = f"{requirement.name}=={bound}"
    found.update({canonicalize_name(Requirement(line).name): line for line in replaced})
    return sorted(found.values())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("\n".join(lowest_versions(read_project(), sys.argv[2:])) + "\n", encoding="utf-8")
