"""The paper's decoding, by the family of the model, and its samples and limits, by task.

Source: Liu et al. 2026, arXiv:2601.09195v3, appendix, and the evaluation scripts of its repository. Both give Qwen3 and
OLMo-2 temperature 0.7, top-p 0.8 and top-k 20, and Llama 0.6 and 0.9 without a top-k; 32 samples of up to 32,768 tokens
for AIME 2024, 8 of up to 8,192 elsewhere. Only the scripts limit GSM8K, to 512 tokens.

The samples of table 3 are not told, but follow from its 15 figures: each one of ARC is a multiple of 1/295, of
MMLU-Pro's history and chemistry of 1/381 and 1/1,132, so they have one sample a question; those of HumanEval are
multiples of 1/(8 x 164) and of no fewer. HellaSwag has too many questions to tell; one sample is our choice.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from profit_sft.errors import ConfigurationError, blamed_on
from profit_sft.evaluation.settings import EvalSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How a token is chosen; `top_k` 0 keeps all."""

    temperature: float
    top_p: float
    top_k: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPreset:
    """How often a problem is answered, and the longest answer in tokens."""

    samples: int
    max_new_tokens: int


_QWEN_OLMO = Decoding(temperature=0.7, top_p=0.8, top_k=20)
_LLAMA = Decoding(temperature=0.6, top_p=0.9, top_k=0)

# By `model_type` of config.json. The paper's Qwen2.5 models have Qwen3's decoding here; theirs is not told.
DECODING: Mapping[str, Decoding] = {
    "qwen2": _QWEN_OLMO,
    "qwen3": _QWEN_OLMO,
    "olmo2": _QWEN_OLMO,
    "llama": _LLAMA,
}
TASKS: Mapping[str, TaskPreset] = {
    "aime24": TaskPreset(samples=32, max_new_tokens=32_768),
    "aime24_paper": TaskPreset(samples=32, max_new_tokens=32_768),
    "gsm8k_paper": TaskPreset(samples=8, max_new_tokens=512),
    "hellaswag_paper": TaskPreset(samples=1, max_new_tokens=8192),
    "arc_challenge_paper": TaskPreset(samples=1, max_new_tokens=8192),
    "mmlu_pro_history_paper": TaskPreset(samples=1, max_new_tokens=8192),
    "mmlu_pro_chemistry_paper": TaskPreset(samples=1, max_new_tokens=8192),
}
_OTHER_TASKS = TaskPreset(samples=8, max_new_tokens=8192)


def paper_decoding(model_type: str) -> Decoding:
    """Return the paper's decoding of a family of models.

    Args:
        model_type: As config.json names it.

    Raises:
        ConfigurationError: The paper has no model of the family.

    Example:
        >>> paper_decoding("llama")
        Decoding(temperature=0.6, top_p=0.9, top_k=0)
    """
    if model_type not in DECODING:
        raise ConfigurationError(
            f"preset paper: the paper has no model of the type '{model_type}', so no decoding for it. It has "
            f"{', '.join(DECODING)}. Leave out the preset and give temperature, top_p and top_k."
        )
    return DECODING[model_type]


def paper_task(task: str) -> TaskPreset:
    """Return the paper's samples and limit of a task.

    Example:
        >>> paper_task("gsm8k_paper")
        TaskPreset(samples=8, max_new_tokens=512)
    """
    return TASKS.get(task, _OTHER_TASKS)


def resolved(settings: EvalSettings, task: str) -> EvalSettings:
    """Return the settings of one task without a preset: what it sets is in them.

    Raises:
        ConfigurationError: The model's family is not known, or not the paper's.
    """
    if settings.preset is None:
        return settings
    preset = paper_task(task)
    decoding = {} if settings.greedy else asdict(paper_decoding(model_type_of(settings.model_name_or_path)))
    samples = settings.samples or (1 if settings.greedy else preset.samples)
    limit = settings.max_new_tokens or (None if task == "generated" else preset.max_new_tokens)
    return replace(settings, preset=None, **decoding, samples=samples, max_new_tokens=limit)


def model_type_of(model_name_or_path: str) -> str:
    """Return the `model_type` that a model's config.json names; of a LoRA adapter, that of its base model.

    Raises:
        ConfigurationError: It cannot be read.
    """
    from transformers import PretrainedConfig

    from profit_sft.models.pretrained import adapter_base, pretrained_path

    path = pretrained_path(model_name_or_path)
    base = adapter_base(Path(path))
    if base is not None:
        return model_type_of(base)
    with blamed_on(
        f"preset paper: the family of '{model_name_or_path}' is read from its config.json, which cannot be used",
        "Leave out the preset and give temperature, top_p and top_k.",
        ConfigurationError,
    ):
        return str(PretrainedConfig.get_config_dict(path)[0]["model_type"])
