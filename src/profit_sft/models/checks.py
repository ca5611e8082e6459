"""Whether a model that was loaded is what its files describe: all of its weights, its kind, what ends its answers."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from profit_sft.errors import ConfigurationError, brief

logger = logging.getLogger(__name__)

FETCH_AGAIN = (
    "Download it again, or name another: config.json, weights and tokenizer must be of one causal language model."
)
_CHECKED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
            f"architectures are of '{model.config.model_type}'. {FETCH_AGAIN}"
        )


def _some(names: Iterable[Any]) -> str:
    words = sorted(str(name[0] if isinstance(name, tuple) else name) for name in names)
    return ", ".join(words[:2]) + (f" and {len(words) - 2} more" if len(words) > 2 else "")
