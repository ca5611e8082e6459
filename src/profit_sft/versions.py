"""Which versions of packages a result was made with."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def package_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is not installed.

    Args:
        packages: Names of distributions.

    Example:
        >>> package_versions(["no-such-package"])
        {'no-such-package': None}
    """
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
