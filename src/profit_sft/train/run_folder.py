"""The files of a run's folder: what is there, whether it may be used, and clearing what an earlier run left.

output_dir/
  config.yaml        every setting, resolved; `profit train --config` runs it again
  environment.json   versions, device, ranks, command line
  data.json          what was read, used, skipped and truncated, with a fingerprint of the tokens
  metrics.jsonl      one line a log
  report.html        the page of the run, and what it is made of beside the logs: run.json, rows.json
  checkpoint-N/      TRL's checkpoints, each with a manifest (`checkpoints.py`)
  README.md          model card
  .lock, .saving/    who is at work here; what is being written
  model.safetensors, tokenizer files
"""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from profit_sft.errors import ConfigurationError, DataError
from profit_sft.runs.record import ABOUT_FILE, METRICS_FILE, PAGE, ROWS_FILE, checkpoints
from profit_sft.train.checkpoints import SAVING, check_whole, last_whole
from profit_sft.train.engine import Engine

CONFIG_FILE, ENVIRONMENT_FILE, DATA_FILE, MODEL_CARD = "config.yaml", "environment.json", "data.json", "README.md"

# Whole or in shards, as safetensors or not: what from_pretrained would load beside a new configuration.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model*.safetensors", "adapter_model*.bin")
_MODEL = (*_WEIGHTS, "config.json", "adapter_config.json", "checkpoint-[0-9]*")
_OPTIMIZERS = {  # what a checkpoint's optimizer state lies in, by the engine that reads it
    "DeepSpeed": ("global_step*/*zero_pp_rank_*_optim_states.pt",),
    "FSDP": ("optimizer.bin", "optimizer_[0-9]*"),
    "DDP or one process": ("optimizer.pt",),
}
_BESIDE_THE_MODEL = (
    *("generation_config.json", "*.safetensors.index.json", "*.bin.index.json", "training_args.bin"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template.*", "additional_chat_templates", "processor_config.json", "preprocessor_config.json"),
)
_OF_THE_RUN = (SAVING, CONFIG_FILE, ENVIRONMENT_FILE, DATA_FILE, METRICS_FILE, MODEL_CARD, ABOUT_FILE, ROWS_FILE, PAGE)


def holds_weights(folder: Path) -> bool:
    """Say whether there is a model or an adapter that `from_pretrained` would load."""
    return any(True for _ in _found(folder, _WEIGHTS))


def choose_start(
    folder: Path,
    *,
    resume_from: str | bool | None,
    overwrite: bool,
    engine: Engine | None = None,
    contents: bool = True,
) -> str | None:
    """Return the checkpoint to resume from, or None for a new run; refuse a folder that is taken. Changes nothing.

    Args:
        folder: The run's output folder; it need not be there yet.
        resume_from: A checkpoint's folder, or `latest`, `true` or True for the last one in the output folder. One of
            another run is gone on from in a folder that is free.
        overwrite: Whether a new run may replace an earlier one.
        engine: Of the run that would go on from the checkpoint; None: one process.
        contents: Whether to read all files of the checkpoint, or to look at their sizes alone.

    Raises:
        ConfigurationError: The folder is taken, there is nothing to resume, or the checkpoint
            is another engine's, or of another number of ranks where that matters.
        DataError: The checkpoint that was named is not whole.
    """
    if resume_from is None or str(resume_from).lower() == "false":
        if not overwrite and _is_taken(folder):
            raise ConfigurationError(_taken(folder, "choose another folder, or pass --overwrite_output_dir."))
        return None
    if overwrite:
        raise ConfigurationError(
            f"overwrite_output_dir would delete the run that resume_from_checkpoint ({resume_from}) goes on with. "
            "Leave one of them out."
        )
    checkpoint = _checkpoint(folder, str(resume_from), contents)
    if checkpoint.absolute().parent.resolve() != folder.resolve() and _is_taken(folder):
        raise ConfigurationError(_taken(folder, f"or choose another folder to go on from '{checkpoint}' in."))
    _check_fits(checkpoint, engine or Engine())
    return str(checkpoint)


def _taken(folder: Path, otherwise: str) -> str:
    return f"output_dir: '{folder}' holds an earlier run. Go on with it by --resume_from_checkpoint latest, {otherwise}"


def _checkpoint(folder: Path, wanted: str, contents: bool) -> Path:
    if wanted.lower() not in ("true", "latest"):
        checkpoint = Path(wanted)
        if not checkpoint.is_dir():
            raise ConfigurationError(
                f"resume_from_checkpoint: there is no folder '{wanted}'. Name a checkpoint-N folder, or 'latest'."
            )
        try:
            check_whole(checkpoint, contents=contents)
        except DataError as fault:
            raise DataError(
                f"resume_from_checkpoint: {fault} Name an earlier checkpoint, or 'latest' for the last whole one; to "
                "start a new run from its model, name it with --model_name_or_path."
            ) from None
        return checkpoint
    last = last_whole(folder, contents=contents, say=lambda text: warnings.warn(text, stacklevel=2))
    if last is None:
        raise ConfigurationError(
            f"resume_from_checkpoint: '{folder}' holds no {'whole ' if checkpoints(folder) else ''}checkpoint. Leave "
            "the flag out to start a new run."
        )
    return last


def _check_fits(checkpoint: Path, engine: Engine) -> None:
    """Refuse a checkpoint whose optimizer state this engine would not load; some start Adam anew without a word."""
    kind = next((kind for kind, patterns in _OPTIMIZERS.items() if any(_found(checkpoint, patterns))), None)
    wanted = "DeepSpeed" if engine.zero_stage is not None else "FSDP" if engine.is_fsdp else "DDP or one process"
    start_anew = "or start a new run from its model, with --model_name_or_path"
    if kind is None:
        warnings.warn(
            f"resume_from_checkpoint: '{checkpoint}' holds no optimizer state (save_only_model), so Adam starts anew "
            "and the run does not go on as it would have.",
            stacklevel=3,
        )
        return
    if kind != wanted:
        raise ConfigurationError(
            f"resume_from_checkpoint: '{checkpoint}' was saved under {kind}, and this run's engine is {engine.name}. "
            f"Launch it as it was, {start_anew}."
        )
    saved_by = len({path.name for path in _found(checkpoint, _OPTIMIZERS["DeepSpeed"])})
    if kind == "DeepSpeed" and saved_by != engine.ranks:
        raise ConfigurationError(
            f"resume_from_checkpoint: '{checkpoint}' was saved by {saved_by} ranks under DeepSpeed, which goes on with "
            f"as many, not with {engine.ranks}. Launch {saved_by} processes, {start_anew}."
        )


def check_reaches(checkpoint: str | Path, step: int, max_steps: int) -> None:
    """Refuse to go on from a later step than the run is to end at, which would save a model of more steps than it says.

    Args:
        checkpoint: Its folder, for the message.
        step: Steps it has done.
        max_steps: Of the run; 0 or less where that is not known.

    Raises:
        ConfigurationError: There are fewer.
    """
    if 0 < max_steps < step:
        raise ConfigurationError(
            f"resume_from_checkpoint: '{checkpoint}' has done {step} steps, and this run ends after {max_steps}. Raise "
            "max_steps or num_train_epochs, or go on from an earlier checkpoint."
        )


def _is_taken(folder: Path) -> bool:
    return any(True for _ in _found(folder, _MODEL))


def clear_earlier_run(folder: Path) -> None:
    """Delete every file that an earlier run wrote, and nothing else: notes and data that somebody put there stay."""
    if not _is_taken(folder):
        return  # no run got as far as a model; what it began with is written anew
    for path in list(_found(folder, (*_MODEL, *_BESIDE_THE_MODEL, *_OF_THE_RUN))):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _found(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (path for pattern in patterns for path in folder.glob(pattern))
