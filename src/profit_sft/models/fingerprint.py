"""Whether a model is still the same: a hash of its files, or the commit of the hub that they are of."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from profit_sft.errors import ConfigurationError, ProFitError, first_line
from profit_sft.files import read_json, sha256_of, write_text
from profit_sft.models.embedded import default_cache
from profit_sft.models.pretrained import ADAPTER_FILE, adapter_base, pretrained_path

_LARGE = 1 << 24  # bytes of a file that takes longer to read than to look up
_TICK_NS = 2_000_000_000  # the coarsest clock of a file system in use, FAT's


def model_fingerprint(name: str | None, *, revision: str | None = None) -> str:
    """Return a SHA-256 that changes when the model's numbers may.

    Of a folder: names and whole contents of config.json, of every file with weights, and of an adapter's configuration
    and base model. Reading all weights takes about a second a gigabyte, so a large file's hash is kept in the cache,
    until its size, inode or a time of change is another. Of a hub model: its name and commit, under which the hub keeps
    its files for good.

    Args:
        name: As for `load_tokenizer`.
        revision: Branch, tag or commit of a hub model.

    Raises:
        ConfigurationError: The folder holds no model.
    """
    path = pretrained_path(name)
    folder = Path(path)
    if not folder.is_dir():
        return hashlib.sha256(f"{path}@{_hub_commit(path, revision)}".encode()).hexdigest()
    kinds = ("config.json", ADAPTER_FILE, "*.safetensors", "*.bin")
    files = sorted(file for kind in kinds for file in folder.glob(kind))
    if not files:
        raise ConfigurationError(
            f"model_name_or_path: '{path}' holds no model (no config.json or {ADAPTER_FILE}). Name a folder that "
            "save_pretrained wrote."
        )
    digest = hashlib.sha256()
    for file, contents in zip(files, _known_sha256_of(files), strict=True):
        digest.update(f"{file.name} {contents}\n".encode())
    base = adapter_base(folder)
    if base is not None:
        digest.update(model_fingerprint(base).encode())
    return digest.hexdigest()


def _known_sha256_of(files: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of files of one folder, of large ones that are as they were from the cache."""
    folder = os.fsencode(files[0].parent.resolve())
    kept = default_cache() / "sha256" / f"{hashlib.sha256(folder).hexdigest()[:32]}.json"
    known: dict[str, Any] = {}
    with suppress(ProFitError):  # it is damaged, and written anew
        known = read_json(kept, "") if kept.is_file() else {}
    states = {file: file.stat() for file in files}
    keys = {file: f"{file.name} {s.st_size} {s.st_ino} {s.st_mtime_ns} {s.st_ctime_ns}" for file, s in states.items()}
    unread = [file for file in files if keys[file] not in known]
    read = dict(zip(unread, sha256_of(unread), strict=True))
    found = {file: read[file] if file in read else str(known[keys[file]]) for file in files}
    # One that was written a moment ago may be written again within a tick of the clock that times of change are from.
    settled = time.time_ns() - _TICK_NS
    worth = [file for file, s in states.items() if s.st_size >= _LARGE and max(s.st_mtime_ns, s.st_ctime_ns) < settled]
    if read.keys() & set(worth):
        with suppress(OSError):  # a cache that cannot be written costs the next start its time
            write_text(kept, json.dumps({keys[file]: found[file] for file in worth}))
    return list(found.values())


def _hub_commit(name: str, revision: str | None) -> str:
    """Return the commit of a hub model. The cache keeps each file under the commit it came from."""
    try:
        try:
            file = hf_hub_download(name, "config.json", revision=revision)
        except EntryNotFoundError:
            file = hf_hub_download(name, ADAPTER_FILE, revision=revision)
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise ConfigurationError(
            f"model_name_or_path: '{name}' is neither a folder nor a model of the hub ({first_line(error)})."
        ) from None
    return Path(file).parent.name
