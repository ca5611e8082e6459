"""Pretrained models and tokenizers: which one a name means, and loading it."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from profit_sft.errors import ConfigurationError, blamed_on, first_line
from profit_sft.files import check_regular_file, read_json, read_text
from profit_sft.models.checks import FETCH_AGAIN, checked_weights
from profit_sft.models.embedded import embedded_model_folder

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
ADAPTER_FILE = "adapter_config.json"
_TRIAL_SECONDS, _TRIAL_BYTES, _TRIAL_CHARACTERS = 2, 1 << 30, 10**6  # of a chat template's first rendering


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
        read_json(folder / "config.json", FETCH_AGAIN, ConfigurationError)
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
    path = folder / ADAPTER_FILE
    if not path.exists():
        return None
    base = read_json(path, FETCH_AGAIN, ConfigurationError).get("base_model_name_or_path")
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
    with blamed_on(what + (f" with {names}" if names else ""), fix if names else FETCH_AGAIN, ConfigurationError):
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
    """Return where one process computes: an accelerator where there is one."""
    return str(torch.accelerator.current_accelerator(check_available=True) or "cpu")


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
    if base is not None:
        model = load_model(
            base, dtype=dtype, trust_remote_code=trust_remote_code, allow_missing_weights=allow_missing_weights
        )
        whole: PreTrainedModel = adapted(path, model, allow_missing_weights).get_base_model()
        return whole
    with told_as_models(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    model, info = loaded
    model.eval()
    return checked_weights(path, model, info, allow_missing_weights=allow_missing_weights)


def adapted(path: str, model: PreTrainedModel, allow_missing_weights: bool = False) -> Any:
    """Put an adapter into the model that it is for, by PEFT as in training: transformers lacks DoRA's magnitudes.

    Args:
        path: Folder of the adapter.
        model: Its base. Changed in place.
        allow_missing_weights: As for `checked_weights`.

    Returns:
        The `PeftModel` around it, in evaluation mode.

    Raises:
        ConfigurationError: It cannot be loaded, is not whole, or lies outside of the model's layers.
    """
    from peft import PeftConfig, PeftModel

    if hasattr(model, "peft_config"):
        raise ConfigurationError(
            f"model_name_or_path: the base of the adapter in '{path}' is an adapter itself. Put that one into its "
            "model first (profit merge), and name the result as base_model_name_or_path in adapter_config.json."
        )
    with told_as_models(path):
        config = PeftConfig.from_pretrained(path)
    if config.is_prompt_learning:
        raise ConfigurationError(
            f"model_name_or_path: the adapter in '{path}' ({config.peft_type.value}) learns a prompt, not weights, and "
            "only PEFT can run it. Train with LoRA instead."
        )
    with told_as_models(path), _ties_seen_to():
        config.inference_mode = True
        whole = PeftModel(model, config)
        found = whole.load_adapter(path, "default")
    whole.eval()
    info = {
        name: [key.removeprefix("base_model.model.") for key in getattr(found, name)]
        for name in ("missing_keys", "unexpected_keys")
    }
    checked_weights(path, whole.get_base_model(), info, allow_missing_weights=allow_missing_weights)
    return whole


def merged(path: str, model: PreTrainedModel) -> PreTrainedModel:
    """Put an adapter into its base for good. Embeddings that were one and are told apart by it are no longer tied.

    Args:
        path: Folder of the adapter.
        model: Its base. Changed in place.

    Raises:
        ConfigurationError: As `adapted`, or PEFT cannot merge it.
    """
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    whole = adapted(path, model)
    _untie(whole)
    what = f"the adapter in '{path}' cannot be put into its model for good"
    with blamed_on(what, "profit chat, eval and score take it as it is.", ConfigurationError), _ties_seen_to():
        found: PreTrainedModel = whole.merge_and_unload()
        head: Any = found.get_output_embeddings()
        embedding: Any = found.get_input_embeddings()
        found.config.tie_word_embeddings = tied and head is not None and torch.equal(head.weight, embedding.weight)
        found.tie_weights()
    return found


@contextmanager
def _ties_seen_to() -> Iterator[None]:
    """Leave out PEFT's warnings of tied embeddings."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"(Model (has|with) `tie_word_|Input and output embeddings are no long)"
        )
        yield


def _untie(model: torch.nn.Module) -> None:
    """Give every module its own weights: what is merged into one must not change another."""
    seen = set()
    for module in model.modules():
        for name, weights in module._parameters.items():
            if weights is not None and id(weights) in seen:
                module._parameters[name] = torch.nn.Parameter(weights.detach().clone(), requires_grad=False)
            seen.add(id(weights))


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


def _why(path: str, error: Exception) -> str:
    return f"{'' if Path(path).is_dir() else 'no folder here has that name, and on the hub: '}{first_line(error)}"
