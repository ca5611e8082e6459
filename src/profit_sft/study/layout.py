"""Where everything of a study lies.

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
    evaluation/           results and samples of the evaluation, and scores by token budget
    train.log, measure.log
    attempts.jsonl        who works or worked here, one line an attempt
    child.lock            held by the process that train.log or measure.log is of
    cell.json             figures of the finished cell, written last
  driver.json             who runs the study, while it runs; driver.lock
  report.html, report.md, results.json
"""

from pathlib import Path


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
