"""Files: results written whole or not at all, text, JSON and YAML read within bounds, where one may write, and who.

What is read may be anything that a path can name: a pipe that nobody writes to, a device without end, a YAML file of
a kilobyte that stands for a billion values. Each is refused before it is waited for.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profit_sft.errors import ConfigurationError, DataError, ProFitError, first_line

if TYPE_CHECKING:
    import yaml

MAX_YAML_VALUES = 100_000  # with every alias written out; the longest of our recipes has a few hundred

LOCK_FILE = ".lock"
_BLOCK_BYTES = 1 << 20


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):
            error.filename = str(path)  # what a full disk raises names no file, or the temporary one
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        # A path may hold bytes that are no UTF-8, which Python keeps as halves of surrogate pairs.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_regular_file(
    path: str | Path,
    kind: type[ProFitError] = DataError,
    fix: str = "Write what it gives to a file and name that.",
) -> None:
    """Refuse what is there and is neither a file nor a folder, directly or by links; reading it may never end."""
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise kind(f"'{path}' is a pipe or a device, not a file. {fix}")


def check_regular_files(folder: str | Path) -> None:
    """Refuse a folder of ours where something lies that `check_regular_file` refuses, as deep as our files lie.

    Raises:
        ConfigurationError: Names it.
    """
    for pattern in ("[!.]*", "[!.]*/*", "cells/*/*", "cells/*/*/*", "cells/*/*/*/*"):
        for path in Path(folder).glob(pattern):
            check_regular_file(path, ConfigurationError, "Take it out of the folder, or name another folder.")


def read_text(path: str | Path, kind: type[ProFitError] = DataError) -> str:
    """Return the text of a small file in UTF-8, a byte order mark left out.

    Args:
        path: The file.
        kind: Of the error.

    Raises:
        ProFitError: There is none, it cannot be read, or it is not UTF-8.
    """
    check_regular_file(path, kind)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"'{path}' is not UTF-8 (byte {error.start + 1}). Convert it first.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        said = error.strerror if isinstance(error, OSError) else error
        raise kind(f"'{path}' cannot be read ({said}). Check the path and its permissions.") from None


def read_json(path: str | Path, fix: str, kind: type[ProFitError] = DataError) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: The file.
        fix: What to do where it is none.
        kind: Of the error.

    Raises:
        ProFitError: It cannot be read, or is no JSON object.
    """
    text = read_text(path, kind)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number of more digits than Python reads
        raise kind(f"'{path}' is not JSON ({first_line(error)}). {fix}") from None
    if not isinstance(content, dict):
        raise kind(f"'{path}' is a JSON {type(content).__name__}, not an object. {fix}")
    return content


def read_yaml(path: str | Path) -> "tuple[dict[str, Any], yaml.MappingNode]":
    """Return the content of a YAML file that is a mapping with names for keys, and its node, which knows the lines.

    Raises:
        ConfigurationError: It cannot be read, is no such mapping, says a key twice, or is too large with its aliases
            written out.
    """
    import yaml

    text = read_text(path, ConfigurationError)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        _check_nodes(root, path)
        content = None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigurationError(f"'{path}'{line}: not YAML ({error.problem}). Mend that line.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"'{path}' is not YAML ({first_line(error)}). Mend it.") from None
    except (ValueError, OverflowError) as error:  # of a date that does not exist, a number of 5,000 digits
        raise ConfigurationError(f"'{path}' holds a value that cannot be read ({first_line(error)}).") from None
    except RecursionError:
        raise ConfigurationError(f"'{path}' is nested too deeply to read.") from None
    if not isinstance(content, dict) or not isinstance(root, yaml.MappingNode):
        shown = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigurationError(f"'{path}' must be a mapping of names to values, such as `seed: 0`, and is {shown}.")
    odd = next((key for key in content if not isinstance(key, str)), None)
    if odd is not None:
        raise ConfigurationError(f"'{path}': the key {odd!r} is no name. Put it in quotes, or take it out.")
    return content, root


def _check_nodes(root: "yaml.Node | None", path: str | Path) -> None:
    """Refuse more values than `MAX_YAML_VALUES`, an alias counted as what it stands for, and keys that come twice."""
    import yaml

    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # while it is counted: an alias inside of what it stands for
            children: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                children = node.value
            elif isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
                _check_keys([key for key, _ in node.value], path)
            sizes[id(node)] = 1 + sum(map(size, children))
        return sizes[id(node)]

    if root is not None and size(root) > MAX_YAML_VALUES:
        raise ConfigurationError(
            f"'{path}' stands for more than {MAX_YAML_VALUES:,} values with its aliases (*name) written out. Write "
            "less of it."
        )


def _check_keys(keys: "list[yaml.Node]", path: str | Path) -> None:
    seen = {"<<"}  # may come again: what a mapping says itself wins over what it takes in
    for key in keys:
        name = key.value if isinstance(key.value, str) else None
        if name in seen and name != "<<":
            raise ConfigurationError(
                f"'{path}', line {key.start_mark.line + 1}: {name} is there twice, and one would count. "
                "Take the other out."
            )
        seen.add(str(name))


def check_output_folder(folder: str | Path, setting: str = "output_dir") -> None:
    """Refuse a folder that cannot be made or written to, or with a pipe where files are. Makes nothing.

    Args:
        folder: The folder; it and its parents need not be there yet.
        setting: What the message calls it.

    Raises:
        ConfigurationError: Something that is no folder is in the way, a folder there may not be written to, or see
            `check_regular_files`.
    """
    _check_writable(Path(folder), setting)
    check_regular_files(folder)


def check_output_file(path: str | Path) -> None:
    """Refuse a file that cannot be written: a folder or a pipe is there, or its own folder cannot be one.

    What else is in that folder, which may be a home or /tmp, is not looked at.
    """
    path = Path(path)
    _check_writable(path.parent, "output_file")
    if path.is_dir():
        raise ConfigurationError(f"output_file: '{path}' is a folder. Name a file in it.")
    check_regular_file(path, ConfigurationError, "Name another file.")


def _check_writable(folder: Path, setting: str) -> None:
    if not str(folder).isascii() and str(folder).encode("utf-8", "replace").decode() != str(folder):
        raise ConfigurationError(f"{setting}: '{folder}' is no name in UTF-8, which not every library writes to.")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ConfigurationError(f"{setting}: '{folder}' cannot be a folder: '{there}' is none. Choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{setting}: '{there}' may not be written to. Choose another folder than '{folder}'.")


@contextmanager
def sole_use(
    folder: str | Path, what: str, *, lock_file: str = LOCK_FILE, refusal: Callable[[], str] | None = None
) -> Iterator[None]:
    """Hold a folder for this process: what two wrote at a time would be mixed up. It is made if it is not there.

    The operating system frees it however the process ends. A folder that was new and stays empty is removed again.

    Args:
        folder: The folder.
        what: What is at work in it, for the message: `run`.
        lock_file: Its lock.
        refusal: Called for another message.

    Raises:
        ConfigurationError: Another process holds it, or see `check_output_folder`.
    """
    from filelock import FileLock, Timeout  # here, for the core does without

    folder = Path(folder)
    check_output_folder(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        told = f"another {what} is at work in '{folder}'. Wait for it, or choose another folder."
        raise ConfigurationError(f"output_dir: {refusal() if refusal else told}") from None
    try:
        yield
    finally:
        if made and [path.name for path in folder.iterdir()] == [lock_file]:
            (folder / lock_file).unlink()
            with suppress(OSError):  # somebody has put something there
                for path in made:
                    path.rmdir()
        lock.release()


def sha256_of(files: Iterable[Path]) -> list[str]:
    """Return the SHA-256 of each file's contents; several are read at the same time."""
    with ThreadPoolExecutor() as threads:  # hashing lets other threads run
        return list(threads.map(_sha256, files))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


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
