"""Pretrained models and tokenizers: which one a name means, loading it, and telling whether it is still the same."""

import hashlib
import json
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from profit_sft.errors import ConfigurationError, ProFitError, blamed_on, brief, first_line
from profit_sft.files import check_regular_file, read_json, read_text, sha256_of, write_text
from profit_sft.models.embedded import default_cache, embedded_model_folder

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
DTYPES = ("float32", "bfloat16", "float16", "auto")
_ADAPTER = "adapter_config.json"
_CHECKED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TRIAL_SECONDS, _TRIAL_BYTES, _TRIAL_CHARACTERS = 2, 1 << 30, 10**6  # of a chat template's first rendering
_LARGE = 1 << 24  # bytes of a file that takes longer to read than to look up
_TICK_NS = 2_000_000_000  # the coarsest clock of a file system in use, FAT's
_AGAIN = "Download it again, or name another: config.json, weights and tokenizer must be of one causal language model."


def require_model(settings: Mapping[str, Any]) -> None:
    """Raise ConfigurationError unless `model_name_or_path` is among a command's settings: no model is chosen for it."""
    if settings.get("model_name_or_path") is None:
        raise ConfigurationError(
            "model_name_or_path is missing: name a hub model (--model_name_or_path Qwen/Qwen3-0.6B), a folder that "
            f"save_pretrained wrote, or the small model that needs no hub (--model_name_or_path {EMBEDDED})."
        )


def pretrained_path(name: str | None) -> str:
    """Return what transformers loads: a hub name, a folder, or the embedded model's folder, fetched on first use.

    Raises:
        ConfigurationError: The name can only be a folder's, and there is none.
    """
    if name in (None, EMBEDDED):
        return str(embedded_model_folder(progress=logger.warning))
    path = str(Path(name).expanduser()) if str(name).startswith("~") else str(name)
    if "\0" in path or not path.strip():
        raise ConfigurationError(f"model_name_or_path: {path!r} is no name of a model.")
    # A hub name is NAME or OWNER/NAME. Anything else would be refused by the hub as a malformed name.
    if (path.startswith(("/", ".")) or path.count("/") > 1) and not Path(path).is_dir():
        raise ConfigurationError(f"model_name_or_path: there is no folder '{path}'.")
    if Path(path).is_dir():
        _check_folder(Path(path))
    return path


def _check_folder(folder: Path) -> None:
    """Refuse what would be waited for, and the files that say what a model is where they say nothing."""
    for file in folder.iterdir():
        check_regular_file(file, ConfigurationError)
    if (folder / "config.json").exists():
        read_json(folder / "config.json", _AGAIN, ConfigurationError)
    chain = [folder.resolve()]
    while (base := adapter_base(chain[-1])) is not None and Path(base).is_dir():
        if Path(base).resolve() in chain:
            raise ConfigurationError(f"model_name_or_path: the adapter in '{folder}' has itself for its base.")
        chain.append(Path(base).resolve())


def adapter_base(folder: Path) -> str | None:
    """Return the name of the model that an adapter in this folder is for, or None where there is no adapter.

    Raises:
        ConfigurationError: The adapter names none.
    """
    path = folder / _ADAPTER
    if not path.exists():
        return None
    base = read_json(path, _AGAIN, ConfigurationError).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigurationError(f"'{path}' names no base_model_name_or_path, which the adapter is for. Add it.")
    return base


@contextmanager
def told_as_models(path: str, arguments: Sequence[str] = ()) -> Iterator[None]:
    """Tell what goes wrong when transformers loads a model from here.

    Args:
        path: What is loaded.
        arguments: Names of what transformers is told besides, which may be at fault.
    """
    what = f"model_name_or_path: no causal language model could be loaded from '{path}'"
    if not Path(path).is_dir():
        what += ": no folder here has that name, and on the hub"
    names = ", ".join(arguments)
    fix = f"Change or leave out {names} (of model_init_kwargs or load_in_*bit), or name another model."
    with blamed_on(what + (f" with {names}" if names else ""), fix if names else _AGAIN, ConfigurationError):
        yield


def load_tokenizer(
    name: str | None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template_path: str | None = None,
    eos_token: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. It has a padding token; where the model names none, that is EOS.

    Args:
        name: Hub name, folder, or None or `embedded` for the embedded model.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run code that comes with the model.
        chat_template_path: A Jinja file (`.jinja`, `.j2`), or another model whose chat template to take.
        eos_token: In place of the tokenizer's own EOS.

    Raises:
        ConfigurationError: There is no such tokenizer, template or token, or the template comes to no end.
    """
    path = pretrained_path(name)
    if revision not in (None, "main") and Path(path).is_dir():
        raise ConfigurationError(
            f"model_revision: '{path}' is a folder, and has no revision '{revision}'. Leave it out, or name a model of "
            "the hub."
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise ConfigurationError(
            f"model_name_or_path: no tokenizer could be loaded from '{path}' ({_why(path, error)}). Name a hub model, "
            f"a folder that save_pretrained wrote, or '{EMBEDDED}' for the small model that needs no hub."
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise ConfigurationError(f"eos_token: '{eos_token}' is not in the vocabulary of '{path}'. Leave it out.")
        tokenizer.eos_token = eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # where the model names none for either
    if tokenizer.pad_token is None:
        raise ConfigurationError(
            f"model_name_or_path: the tokenizer of '{path}' names no token for a text's end (eos_token) and none to "
            "pad with (pad_token). Name them in its tokenizer_config.json."
        )
    source = f"model_name_or_path: the chat template of '{path}'"
    if chat_template_path is not None:
        tokenizer.chat_template = _chat_template(chat_template_path)
        source = f"chat_template_path: the template of '{chat_template_path}'"
    if tokenizer.chat_template and not _ends(partial(_render_trial, tokenizer)):
        raise ConfigurationError(
            f"{source} comes to no end: over a chat of four short messages it took more than {_TRIAL_SECONDS} s, a "
            "gigabyte or a million characters. Name another with --chat_template_path."
        )
    return tokenizer


def _render_trial(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Render a short chat, with every template there is; say whether what is written is of a chat's length."""
    chat = [{"role": role, "content": "Hello"} for role in ("user", "assistant")] * 2
    named = tokenizer.chat_template
    for template in named.values() if isinstance(named, dict) else [named]:
        try:
            text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
        except MemoryError:
            return False
        except Exception:  # it takes no such chat, or none; rows that it refuses are told each
            continue
        if len(str(text)) > _TRIAL_CHARACTERS:
            return False
    return True


def _ends(trial: Callable[[], bool]) -> bool:
    """Say whether a function returns True within limits of processor time and memory, in a process of its own.

    Its own since nothing else stops what C code does, such as `'x' * 10**11`. Where a system knows no fork (Windows)
    nothing is tried.
    """
    if not hasattr(os, "fork"):
        return True
    with warnings.catch_warnings():  # of Python 3.12, that other threads may hold locks: the child takes none of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        ends = False
        with suppress(BaseException):
            _limit_trial()
            ends = trial()
        os._exit(0 if ends else 1)
    try:
        return os.waitpid(child, 0)[1] == 0
    except BaseException:  # Ctrl-C
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _limit_trial() -> None:
    import resource  # not of every system

    # macOS says nothing of the size, and limits none.
    pages = Path("/proc/self/statm")
    size = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    limits = [(resource.RLIMIT_CPU, _TRIAL_SECONDS), (resource.RLIMIT_CORE, 0)]
    for kind, limit in [*limits, *([(resource.RLIMIT_AS, size + _TRIAL_BYTES)] if size else [])]:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _chat_template(source: str) -> str:
    """Read a Jinja file, or take the template of another model's tokenizer."""
    if source.endswith((".jinja", ".j2")):
        try:
            return read_text(source, ConfigurationError)
        except ConfigurationError as error:
            raise ConfigurationError(f"chat_template_path: {error}") from None
    with blamed_on(
        f"chat_template_path: no tokenizer could be loaded from '{source}'",
        "Name a .jinja file, or a model that has a template.",
        ConfigurationError,
    ):
        template = AutoTokenizer.from_pretrained(pretrained_path(source)).chat_template
    if not isinstance(template, str):
        raise ConfigurationError(f"chat_template_path: the tokenizer of '{source}' has no chat template.")
    return template


def default_device() -> str:
    """Return where one process computes: a CUDA device where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def end_tokens(model: Any, eos_token_id: int | None) -> list[int]:
    """Return what ends an answer: the checkpoint's end tokens (chat models have several) and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in [*found, eos_token_id] if token is not None})


def load_model(
    name: str | None,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_missing_weights: bool = False,
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, on the CPU.

    A folder with a LoRA adapter loads the model it was trained on with the adapter in place.

    Args:
        name: As for `load_tokenizer`.
        dtype: One of `DTYPES`; `auto` is what the checkpoint is stored in.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run code that comes with the model.
        allow_missing_weights: As for `checked_weights`.

    Raises:
        ConfigurationError: There is no such model, or its weights are not whole.
    """
    path = pretrained_path(name)
    base = adapter_base(Path(path))
    if base is not None:  # loaded at once, it would not tell what the base lacks
        model = load_model(
            base, dtype=dtype, trust_remote_code=trust_remote_code, allow_missing_weights=allow_missing_weights
        )
        with told_as_models(path):
            found = model.load_adapter(path)
        info = {} if found is None else found.to_dict()  # transformers 4 does not tell
    else:
        with told_as_models(path):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, output_loading_info=True
            )
        model, info = loaded
    model.eval()
    return checked_weights(path, model, info, allow_missing_weights=allow_missing_weights)


def outline(name: str | None, *, revision: str | None = None, attention: str | None = None) -> PreTrainedModel:
    """Return a model without its weights, on the meta device, as its configuration describes it.

    Args:
        name: As for `load_tokenizer`; of an adapter it is its base.
        revision: Branch, tag or commit of a hub model.
        attention: How it is to compute its attention. None: as transformers chooses.

    Raises:
        ConfigurationError: There is no such model, or it has no such attention.
    """
    path = pretrained_path(name)
    path = adapter_base(Path(path)) or path
    with told_as_models(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, revision=revision)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    if attention is not None:
        what = f"attn_implementation: '{attention}' cannot be used with '{path}'"
        fix = (
            "Install what it needs (of flash_attention_2: pip install flash-attn), leave it out, or name eager or sdpa."
        )
        with blamed_on(what, fix, ConfigurationError), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model


def checked_weights(
    path: str, model: PreTrainedModel, info: Mapping[str, Any], *, allow_missing_weights: bool
) -> PreTrainedModel:
    """Return a model whose weights are those of its files, all of them and nothing but numbers.

    Args:
        path: Where it is from.
        model: The model.
        info: What `from_pretrained` says of the loading with `output_loading_info`.
        allow_missing_weights: Take weights that the files lack, which are random, and leave out what they have besides.

    Raises:
        ConfigurationError: They are not; names some.
    """
    found = [
        f"{words} {_some(info[name])}"
        for name, words in (
            ("missing_keys", "without"),
            ("unexpected_keys", "with"),
            ("mismatched_keys", "other shapes of"),
        )
        if info.get(name)
    ]
    if found and not allow_missing_weights:
        raise ConfigurationError(
            f"model_name_or_path: the files of '{path}' hold other weights than its config.json asks for: "
            f"{'; '.join(found)}. What is missing would be random. Copy the model again; if that is meant, pass "
            "--allow_missing_weights."
        )
    name = first_not_finite(model)
    if name is not None:
        raise ConfigurationError(
            f"model_name_or_path: of the weights of '{path}', {name} is not finite (NaN or infinity). The model is "
            "damaged, or its training failed: take an earlier checkpoint."
        )
    return model


def first_not_finite(model: nn.Module) -> str | None:
    """Return the name of the first weights that hold NaN or infinity, of sharded ones in this rank's share, or None."""
    for name, weights in model.named_parameters():
        share: Any = getattr(weights, "ds_tensor", weights)  # of ZeRO-3
        share = share.to_local() if hasattr(share, "to_local") else share  # of FSDP2
        # A sum of what is not finite is not finite, and it takes a tenth of the time in fp32. It may overflow, though.
        if (
            share.dtype in _CHECKED_DTYPES
            and not bool(share.detach().sum(dtype=torch.float32).isfinite())
            and not bool(share.isfinite().all())
        ):
            return name
    return None


def check_generation(path: str, model: PreTrainedModel) -> None:
    """Refuse a model whose settings of generation could not be saved again, or end answers at no token it has.

    Settings that only lack `do_sample: true` get it.

    Args:
        path: Where it is from.
        model: The model, which is going to be saved.

    Raises:
        ConfigurationError: They are such; says which.
    """
    settings = model.generation_config
    if settings is None:
        return
    what, fix = f"model_name_or_path: the generation_config.json of '{path}'", "Correct or delete that file."
    for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"):
        value = getattr(settings, name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigurationError(f"{what} has {name} {value!r}, which is no number. {fix}")
    try:
        try:
            settings.validate(strict=True)  # as a save does once the tokenizer's tokens have been put in
        except ValueError:
            if settings.do_sample:
                raise
            # Published models often have a temperature and do not say that they sample, which they mean.
            settings.do_sample = True
            settings.validate(strict=True)
            logger.warning("%s names how to sample, but not do_sample: true; the saved model's does", what)
    except (ValueError, TypeError, AttributeError) as error:
        said = " ".join(str(error).splitlines()[:2])
        raise ConfigurationError(f"{what} could not be saved again ({brief(said)}). {fix}") from None
    size = model.config.get_text_config().vocab_size
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    odd = next((end for end in ends if end is not None and not (isinstance(end, int) and 0 <= end < size)), None)
    if odd is not None:
        raise ConfigurationError(f"{what} has eos_token_id {odd!r}, and the model has {size:,} tokens. {fix}")


def check_kind(path: str, model: PreTrainedModel, *, revision: str | None, trust_remote_code: bool) -> None:
    """Refuse a model that was loaded as another kind than its config.json says, such as a BERT's as a Llama.

    Args:
        path: Where it is from.
        model: The model.
        revision: As it was loaded.
        trust_remote_code: As it was loaded.

    Raises:
        ConfigurationError: It was.
    """
    said = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    if not isinstance(model.config, (type(said), type(said.get_text_config()))):
        raise ConfigurationError(
            f"model_name_or_path: the config.json of '{path}' says model_type '{said.model_type}', and its "
            f"architectures are of '{model.config.model_type}'. {_AGAIN}"
        )


def _some(names: Iterable[Any]) -> str:
    words = sorted(str(name[0] if isinstance(name, tuple) else name) for name in names)
    return ", ".join(words[:2]) + (f" and {len(words) - 2} more" if len(words) > 2 else "")


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
    files = sorted(_model_files(folder))
    if not files:
        raise ConfigurationError(
            f"model_name_or_path: '{path}' holds no model (no config.json or {_ADAPTER}). Name a folder that "
            "save_pretrained wrote."
        )
    digest = hashlib.sha256()
    for file, contents in zip(files, _known_sha256_of(files), strict=True):
        digest.update(f"{file.name} {contents}\n".encode())
    base = adapter_base(folder)
    if base is not None:
        digest.update(model_fingerprint(base).encode())
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    for pattern in ("config.json", _ADAPTER, "*.safetensors", "*.bin"):
        yield from folder.glob(pattern)


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
            file = hf_hub_download(name, _ADAPTER, revision=revision)
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise ConfigurationError(
            f"model_name_or_path: '{name}' is neither a folder nor a model of the hub ({first_line(error)})."
        ) from None
    return Path(file).parent.name


def _why(path: str, error: Exception) -> str:
    return f"{'' if Path(path).is_dir() else 'no folder here has that name, and on the hub: '}{first_line(error)}"
