"""Checkpoints: they appear whole or not at all, are known to be whole by their manifest, and are kept by step.

run folder/
  .saving/           what is being written or deleted; a start takes from there what a kill left whole, and clears it
  checkpoint-N/
    manifest.json    written last: size and SHA-256 of every file, tokens trained on, what a resumed run must not change

A checkpoint is written into `.saving` by however many ranks, gets its manifest there, and is renamed. Both, and so the
weights, are read once more to be hashed: about a second a gigabyte and process, files at the same time.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profit_sft.errors import DataError
from profit_sft.files import check_regular_file, sha256_of, write_text
from profit_sft.runs.record import checkpoints, is_checkpoint, step_number

SAVING, MANIFEST = ".saving", "manifest.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest:
    """What a checkpoint is.

    Attributes:
        format: Version of this file.
        step: Optimizer steps done.
        num_tokens: Tokens trained on so far, those of steps that were not logged included.
        fixed: What a resumed run must not change, see `profit_sft.train.fixed`; empty where it is not known.
        files: Size in bytes and SHA-256 of every file, by its path in the checkpoint.
    """

    format: int = FORMAT
    step: int
    num_tokens: int
    fixed: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]


def publish(staged: Path, target: Path, *, num_tokens: int, fixed: Mapping[str, Any]) -> None:
    """Let a checkpoint appear that lies complete in `.saving`; one that is there already gives way.

    Args:
        staged: Its folder in `.saving`.
        target: Its place in the run folder.
        num_tokens: As in the manifest.
        fixed: As in the manifest.
    """
    manifest = CheckpointManifest(
        step=step_number(target), num_tokens=num_tokens, fixed=fixed, files=_described(staged)
    )
    content = dataclasses.asdict(manifest)
    write_text(staged / MANIFEST, json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n")
    if os.path.lexists(target):
        retire(target)
    staged.rename(target)


def _described(folder: Path) -> dict[str, tuple[int, str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, digest)
        for path, digest in zip(files, sha256_of(files), strict=True)
    }


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = checkpoint / MANIFEST
    check_regular_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256")
        if content["format"] != FORMAT:
            raise DataError(f"'{path}' has format {content['format']!r}; this version reads {FORMAT}.")
        if digest != _digest(content):
            raise ValueError("its contents are not those that were written")
        return CheckpointManifest(**content)
    except FileNotFoundError:
        raise DataError(
            f"'{checkpoint}' has no {MANIFEST}: its writing was cut off, or another program wrote it."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"'{path}' is damaged ({error}).") from None


def check_whole(checkpoint: Path, *, contents: bool = True) -> CheckpointManifest:
    """Return the manifest of a checkpoint whose files are those that were written.

    Args:
        checkpoint: Its folder.
        contents: Whether to read all files, or to look at their sizes alone.

    Raises:
        DataError: It is not whole; names the file.
    """
    manifest = read_manifest(checkpoint)
    if is_checkpoint(checkpoint) and step_number(checkpoint) != manifest.step:
        raise DataError(
            f"'{checkpoint}' is of step {manifest.step}: it was copied or renamed. Call it checkpoint-{manifest.step}."
        )
    for name, (size, _) in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise DataError(f"'{path}' is missing.")
        if path.stat().st_size != size:
            raise DataError(
                f"'{path}' is damaged: it has {path.stat().st_size:,} bytes, and was written with {size:,}."
            )
    if contents:
        digests = sha256_of([checkpoint / name for name in manifest.files])
        for (name, (_, written)), digest in zip(manifest.files.items(), digests, strict=True):
            if digest != written:
                raise DataError(f"'{checkpoint / name}' is damaged: its contents are not those that were written.")
    return manifest


def last_whole(folder: Path, *, contents: bool = True, say: Callable[[str], None] = lambda text: None) -> Path | None:
    """Return the whole checkpoint of the latest step, or None where there is none.

    Args:
        folder: The run folder.
        contents: As in `check_whole`.
        say: Called with a line for each one that is passed over.
    """
    for checkpoint in checkpoints(folder):
        try:
            check_whole(checkpoint, contents=contents)
        except DataError as fault:
            say(f"{fault} The checkpoint before it is looked at.")
            continue
        return checkpoint
    return None


def rotate(folder: Path, *, limit: int | None, step: int, keep: Iterable[str | None] = ()) -> None:
    """Delete the oldest checkpoints until `limit` are left, by step whatever the clock says.

    Those of later steps than this, which a run left that was resumed from an earlier one, count as the oldest.

    Args:
        folder: The run folder.
        limit: Checkpoints to keep; None or 0: all.
        step: Of the newest checkpoint, which stays.
        keep: Folders that stay besides, such as the best one's.
    """
    if not limit:
        return
    kept = {Path(path).name for path in keep if path is not None} | {f"checkpoint-{step}"}
    found = sorted(checkpoints(folder), key=lambda path: (step_number(path) <= step, step_number(path)))
    for checkpoint in [path for path in found if path.name not in kept][: max(0, len(found) - limit)]:
        retire(checkpoint)


def retire(checkpoint: Path) -> None:
    """Delete a checkpoint; at no moment is a part of it to be seen. Of a link to one the link alone goes."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    aside = checkpoint.parent / SAVING / f"deleted-{checkpoint.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def finish_publishing(folder: Path) -> None:
    """Put in its place what a kill left between `publish`'s last two steps: there it lay whole, and nowhere else."""
    for staged in [] if (folder / SAVING).is_symlink() else checkpoints(folder / SAVING):
        with suppress(DataError):
            check_whole(staged, contents=False)
            if not os.path.lexists(folder / staged.name):
                staged.rename(folder / staged.name)


def clear_saving(folder: Path) -> None:
    """Delete what a run that was killed was writing, and had not finished."""
    finish_publishing(folder)
    if (folder / SAVING).is_symlink() or (folder / SAVING).is_file():
        (folder / SAVING).unlink()
    elif (folder / SAVING).is_dir():
        shutil.rmtree(folder / SAVING)


def move_into_place(staged: Path, folder: Path) -> None:
    """Move files that lie complete in `.saving` into the run folder, weights last; each replaces its predecessor."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(staged.iterdir(), key=lambda path: (path.suffix in (".safetensors", ".bin"), path.name)):
        if (folder / path.name).is_dir():
            shutil.rmtree(folder / path.name)
        os.replace(path, folder / path.name)
