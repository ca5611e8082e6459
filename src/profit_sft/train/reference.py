"""`--reference_scores`: stored log-probabilities beside the training data, checked to be of that very data."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from datasets import Dataset
from numpy.typing import NDArray

from profit_sft.data.prepare import PreparedData
from profit_sft.data.settings import DataSettings
from profit_sft.data.tokenize import IGNORE_INDEX
from profit_sft.errors import ConfigurationError, DataError
from profit_sft.objectives import ProFit
from profit_sft.scores.store import ScoreSet, as_stored, data_differences, load_scores
from profit_sft.train.config import REFERENCE_COLUMN, ProFitConfig


def settle_reference(config: ProFitConfig, *, given: bool, command: str) -> None:
    """Make objective and `--reference_scores` fit each other, before anything is loaded.

    ProFit with scores takes its mask from them, unless it is told otherwise; `config` then says so.

    Args:
        config: Trainer settings. `objective_kwargs` may get `mask_source`.
        given: Whether there are reference scores.
        command: The `profit score` command that would make them, for the message.

    Raises:
        ConfigurationError: The objective needs scores and there are none, or the other way round.
    """
    objective = config.make_objective()
    options: dict[str, Any] = dict(config.objective_kwargs or {})  # type: ignore[arg-type]  # parsed by the config
    if given and isinstance(objective, ProFit) and objective.direction != "random" and "mask_source" not in options:
        config.objective_kwargs = {**options, "mask_source": "reference"}
        objective = config.make_objective()
    needed = "reference_log_probs" in objective.needs
    if given and not needed:
        raise ConfigurationError(
            f"reference_scores: {objective} reads no reference log-probabilities. Leave --reference_scores out, or use "
            "an objective that does: profit with mask_source 'reference', stm, psft, asft or rho."
        )
    if needed and not given:
        raise ConfigurationError(
            f"{objective} reads log-probabilities under a reference model, which --reference_scores names. Compute "
            f"them once with\n  {command}\nand add --reference_scores FOLDER."
        )


def add_reference_log_probs(
    data: PreparedData, settings: DataSettings, folder: str | Path, *, command: str
) -> PreparedData:
    """Return the data with a column `reference_log_probs`, `log p` of each token in nats, 0 where it is no label.

    Args:
        data: The training data.
        settings: How it was prepared; named where the scores are of other data.
        folder: The store that `profit score` wrote.
        command: The `profit score` command that would score this data, for the message.

    Raises:
        ConfigurationError: The scores are of other tokens, labels, tokenizer or chat template; says which.
        DataError: There are no scores, they are unfinished, or a shard holds other tokens than the manifest says.
    """
    scores = load_scores(folder)
    manifest = scores.manifest
    differences = data_differences(manifest.data, manifest.data_settings, as_stored(data.report), as_stored(settings))
    if differences:
        raise ConfigurationError(
            f"reference_scores: '{folder}' holds scores of other data than this run trains on: "
            f"{'; '.join(differences)}. Train on what was scored, or score what is trained on:\n  {command}"
        )
    table = data.dataset.data.table.combine_chunks()
    input_ids, labels = (table.column(name).combine_chunks() for name in ("input_ids", "labels"))
    offsets = input_ids.offsets
    values = _log_probs(
        scores, input_ids.values.to_numpy(), _counts(labels.values.to_numpy(), offsets.to_numpy()), offsets.to_numpy()
    )
    column = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values))
    return dataclasses.replace(data, dataset=Dataset(table.append_column(REFERENCE_COLUMN, column)))


def _counts(labels: NDArray[np.int32], offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
    """True where a label is learned: not at a row's first token, which nothing predicts."""
    counts: NDArray[np.bool_] = labels != IGNORE_INDEX
    counts[offsets[:-1]] = False
    return counts


def _log_probs(
    scores: ScoreSet, input_ids: NDArray[np.int32], counts: NDArray[np.bool_], offsets: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Lay the scores out over all tokens of all rows; each row must be the one that was scored."""
    values = np.zeros(len(input_ids), np.float32)
    for index, example in enumerate(scores):
        row = slice(offsets[index], offsets[index + 1])
        if not (
            np.array_equal(input_ids[row], example.input_ids)
            and np.array_equal(np.flatnonzero(counts[row]), example.positions)
        ):
            raise DataError(
                f"'{scores.folder}': example {index} is not the one that its manifest speaks of, so a shard was "
                "exchanged or damaged. Delete the folder and score again."
            )
        if not np.isfinite(example.log_probs).all():
            raise DataError(
                f"'{scores.folder}': a log-probability of row {example.row} is not finite, so a shard was damaged. "
                "Delete the folder and score again."
            )
        values[row][example.positions] = example.log_probs
    return values
