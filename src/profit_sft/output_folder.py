"""Whether results can be written where they are to go, known before the work that makes them."""

import os
from pathlib import Path

from profit_sft.errors import ConfigurationError


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
