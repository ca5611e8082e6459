"""A study folder has one driver, the process that hands out its cells; the lock dies with it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from profit_sft.files import sole_use, write_text
from profit_sft.study.layout import StudyFolder


@contextmanager
def sole_driver(study: StudyFolder) -> Iterator[None]:
    """Hold the folder for this process. The operating system frees it however the process ends.

    Raises:
        ConfigurationError: Another process holds it; the message names its host and process id.
    """

    def refusal() -> str:
        return (
            f"{_driver_name(study.driver)} is running the study in '{study.path}'. Wait for it or stop it. To use more "
            "machines or GPUs, run one with --executor ray."
        )

    with sole_use(study.path, "study", lock_file="driver.lock", refusal=refusal):
        write_text(study.driver, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        try:
            yield
        finally:
            study.driver.unlink(missing_ok=True)


def _driver_name(path: Path) -> str:
    try:
        driver = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):  # it has the lock, and is about to write this or gone again
        return "another process"
    return f"process {driver['pid']} on {driver['host']}"
