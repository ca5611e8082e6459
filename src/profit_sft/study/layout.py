"""Where everything of a study lies.

output_dir/
  data/                   generated problems, where the study uses them
  scores/MODEL/           reference log-probabilities of the training data under a starting model
  scores/MODEL.job/       request and log of that job
  cells/CELL/
    settings.json         what the cell is; a later run with other settings refuses the folder
    config.yaml           settings of its `profit train` process
    run/                  the run folder of `profit train`
    model/                the untrained model with the chat template of the runs, where it has none
    trained.json          training is complete, and how long it took
    heldout.json          plain NLL on held-out data
    evaluation/           results and samples of the evaluation, and scores by token budget
    train.log, measure.log
    attempts.jsonl        who works or worked here, one line an attempt
    child.lock            held by the process that train.log or measure.log is of
    cell.json             figures of the finished cell, written last
  driver.json             who runs the study, while it runs; driver.lock
  report.html, report.md, results.json
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CellFolder:
    """The files of one cell."""

    path: Path

    @property
    def settings(self) -> Path:
        """What the cell is."""
        return self.path / "settings.json"

    @property
    def config(self) -> Path:
        """What `profit train --config` gets."""
        return self.path / "config.yaml"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.path / "run"

    @property
    def trained(self) -> Path:
        """There once training is complete."""
        return self.path / "trained.json"

    @property
    def request(self) -> Path:
        """What the measuring process is to do."""
        return self.path / "measure.json"

    @property
    def heldout(self) -> Path:
        """Plain NLL on held-out data."""
        return self.path / "heldout.json"

    @property
    def evaluation(self) -> Path:
        """Output folder of the evaluation."""
        return self.path / "evaluation"

    @property
    def attempts(self) -> Path:
        """Who works or worked here, one line an attempt."""
        return self.path / "attempts.jsonl"

    @property
    def finished(self) -> Path:
        """There once the cell is finished."""
        return self.path / "cell.json"


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """The files of a study."""

    path: Path

    @property
    def driver(self) -> Path:
        """Who runs the study, while it runs."""
        return self.path / "driver.json"

    @property
    def train_file(self) -> Path:
        """Generated training problems."""
        return self.path / "data" / "train.jsonl"

    @property
    def heldout_file(self) -> Path:
        """Generated held-out problems."""
        return self.path / "data" / "heldout.jsonl"

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
