"""Where everything of a study lies, and that one process at a time hands out its cells.

output_dir/
  data/                   generated problems, train.jsonl and heldout.jsonl, where the study uses them
  scores/MODEL/           reference log-probabilities of the training data under a starting model
  scores/MODEL.job/       request and log of that job
  cells/CELL/
    settings.json         what the cell is; a later run with other settings refuses the folder
    config.yaml           settings of its `profit train` process
    run/                  the run folder of `profit train`
    model/                the untrained model with the chat template of the runs, where it has none
    measure.json          what the measuring process is to do
    trained.json          training is complete, and how long it took
    heldout.json          plain NLL on held-out data
    evaluation/           results and samples of the evaluation, and accuracies by token budget
    train.log, measure.log
    attempts.jsonl        who works or worked here, one line an attempt
    child.lock            held by the process that train.log or measure.log is of
    cell.json             figures of the finished cell, written last
  driver.json             who runs the study, while it runs; driver.lock
  report.html, report.md, results.json
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from profit_sft.files import sole_use, write_text


class CellFolder:
    """The files of one cell, as the tree above has them.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.config = path / "config.yaml"
        self.run = path / "run"
        self.trained = path / "trained.json"
        self.request = path / "measure.json"
        self.heldout = path / "heldout.json"
        self.evaluation = path / "evaluation"
        self.attempts = path / "attempts.jsonl"
        self.finished = path / "cell.json"


class StudyFolder:
    """The files of a study, as the tree above has them.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.driver = path / "driver.json"
        self.train_file = path / "data" / "train.jsonl"
        self.heldout_file = path / "data" / "heldout.jsonl"

    def scores(self, model_name: str) -> Path:
        """Return the score store of a starting model."""
        return self.path / "scores" / model_name

    def scored(self, model_name: str) -> bool:
        """Say whether it is complete."""
        return (self.scores(model_name) / "scores.json").exists()

    def scores_job(self, model_name: str) -> Path:
        """Return the folder of the job that makes it."""
        return self.path / "scores" / f"{model_name}.job"

    def cell(self, slug: str) -> CellFolder:
        """Return the folder of a cell."""
        return CellFolder(self.path / "cells" / slug)

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Be the study's driver, the process that hands out its cells; the lock dies with it, however it ends.

        Raises:
            ConfigurationError: Another process is; the message names its host and process id.
        """

        def refusal() -> str:
            return (
                f"{self._driver_name()} is running the study in '{self.path}'. Wait for it or stop it. To use more "
                "machines or GPUs, run one with --executor ray."
            )

        with sole_use(self.path, "study", lock_file="driver.lock", refusal=refusal):
            write_text(self.driver, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
            try:
                yield
            finally:
                self.driver.unlink(missing_ok=True)

    def _driver_name(self) -> str:
        try:
            driver = json.loads(self.driver.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):  # it has the lock, and is about to write this or gone again
            return "another process"
        return f"process {driver['pid']} on {driver['host']}"
