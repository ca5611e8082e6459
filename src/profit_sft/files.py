"""Result files: written whole or not at all, where one may write, and with which versions they were made."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from profit_sft.errors import ConfigurationError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on any exception.

    Args:
        path: The file to write. Its folder is created.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "report.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("done")
        >>> target.read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's mode is private to the owner; a finished file gets what open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_output_folder(folder: str | Path, setting: str = "output_dir") -> None:
    """Refuse a folder that cannot be made or written to. Makes nothing.

    Args:
        folder: The folder; it and its parents need not be there yet.
        setting: What the message calls it.

    Raises:
        ConfigurationError: Something that is no folder is in the way, or a folder there may not be written to.
    """
    folder = Path(folder)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ConfigurationError(f"{setting}: '{folder}' cannot be a folder: '{there}' is none. Choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{setting}: '{there}' may not be written to. Choose another folder than '{folder}'.")


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
