"""Which data a run trains and is evaluated on, and preparing it."""

import warnings

from transformers import PreTrainedTokenizerBase

from profit_sft.data.prepare import PreparedData, prepare_dataset, stream_dataset
from profit_sft.data.settings import TEST_SPLIT
from profit_sft.errors import ConfigurationError
from profit_sft.train.config import ProFitConfig
from profit_sft.train.job import TrainJob, plain
from profit_sft.train.reference import add_reference_log_probs


def check_data_is_named(job: TrainJob) -> None:
    """Refuse settings that name no data, name it twice, or ask for what it cannot do.

    Raises:
        ConfigurationError: Says which setting to change.
    """
    run, config, evaluating = job.run, job.config, job.evaluates
    if not (run.dataset_name or run.datasets):
        what = "missing" if run.dataset_name is None else "empty"
        raise ConfigurationError(f"dataset_name is {what}: name a file, a folder, or a hub data set.")
    if run.dataset_name is not None and run.datasets:
        raise ConfigurationError(
            f"dataset_name is '{run.dataset_name}', and datasets is a mixture: only one can be trained on. Leave one "
            "out, or make the first a part of the second."
        )
    if run.is_streamed:
        _check_streaming(job)
    if evaluating and job.evaluation_data() is None:
        raise ConfigurationError(
            f"eval_strategy is '{plain(config.eval_strategy)}' but there is nothing to evaluate on. Name it with "
            "--eval_dataset_name, hold some rows out with --test_split_size, or set --eval_strategy no."
        )
    if config.eval_on_start and not evaluating:
        raise ConfigurationError(
            "eval_on_start is True but eval_strategy is 'no', so there is nothing to evaluate on. Set --eval_strategy "
            "epoch or steps, or leave it out."
        )
    if run.eval_dataset_name is not None and not evaluating:
        raise ConfigurationError(
            f"eval_dataset_name is '{run.eval_dataset_name}' but eval_strategy is 'no', so it would not be looked at. "
            "Set --eval_strategy epoch or steps, or leave it out."
        )
    reads_split = evaluating and (run.eval_dataset_name is not None or run.test_split_size is None)
    if run.dataset_test_split != TEST_SPLIT and not reads_split:
        raise ConfigurationError(
            f"dataset_test_split is '{run.dataset_test_split}', and no split is evaluated on "
            f"({'test_split_size holds rows out' if evaluating else 'eval_strategy is no'}). Leave it out, or set "
            f"{'eval_dataset_name' if evaluating else 'eval_strategy'}."
        )
    if run.eval_dataset_name is not None and run.test_split_size is not None:
        raise ConfigurationError(
            f"eval_dataset_name is '{run.eval_dataset_name}', and test_split_size {run.test_split_size} holds rows out "
            "to evaluate on. Leave one of the two out."
        )


def _check_streaming(job: TrainJob) -> None:
    if job.config.max_steps <= 0:
        raise ConfigurationError(
            "streaming: nobody knows how many rows there are, so say how many steps to train: --max_steps."
        )
    for name, value, why in (
        ("test_split_size", job.run.test_split_size, "to hold rows out they must be counted"),
        ("reference_scores", job.run.reference_scores, "scores are of a data set as a whole"),
    ):
        if value is not None:
            raise ConfigurationError(f"streaming: {why}. Leave {name} or streaming out.")


def load_data(
    job: TrainJob, tokenizer: PreTrainedTokenizerBase, *, progress: bool
) -> tuple[PreparedData, PreparedData | None]:
    """Tokenize the training data, with reference scores if there are any, and the evaluation data."""
    settings, scores = job.training_data(), job.run.reference_scores
    streamed = job.run.is_streamed
    train = stream_dataset(settings, tokenizer) if streamed else prepare_dataset(settings, tokenizer, progress)
    if scores is not None:
        train = add_reference_log_probs(train, settings, scores, command=job.score_command())
    _check_weights(job.config, train)
    to_evaluate = job.evaluation_data()
    return train, None if to_evaluate is None else prepare_dataset(to_evaluate, tokenizer, progress)


def _check_weights(config: ProFitConfig, data: PreparedData) -> None:
    """Warn of weights that nothing reads; refuse an objective without the weights that it reads."""
    objective = config.make_objective()
    given, needed = "token_weights" in (data.dataset.column_names or ()), "token_weights" in objective.needs
    if given and not needed:
        warnings.warn(
            f"'{data.report.dataset_name}' has weights (a column 'token_weights', 'weight' in rows or messages, "
            f"given_weights), and {objective} does not read them: every label counts in full. To use them: "
            "--objective given.",
            stacklevel=2,
        )
    if needed and not given:
        raise ConfigurationError(
            f"{objective} reads weights, and '{data.report.dataset_name}' has none but 0 and 1. Give a column "
            "'token_weights', 'weight' in rows or messages, or --given_weights by kind, or take another objective."
        )
