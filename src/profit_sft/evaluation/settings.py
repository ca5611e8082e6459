"""What to evaluate and how, and what the paper's preset makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from profit_sft.errors import ConfigurationError, blamed_on
from profit_sft.models import DTYPES
from profit_sft.ranges import check_values

TASK_FOLDER = Path(__file__).with_name("tasks")
_DEFAULT_SAMPLES = 8  # the paper's
DEFAULT_LONGEST = 8192  # tokens of an answer, the paper's; of a task whose file says nothing


def task_files(task_dir: Path | None = None) -> dict[str, Path]:
    """Return the file of every task by name: ours, and those of a folder, which go before ours."""
    folders = [TASK_FOLDER] if task_dir is None else [TASK_FOLDER, task_dir]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("[!_]*.yaml"))}


TASKS = tuple(task_files())


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSettings:
    """One evaluation. The defaults of the decoding are the paper's (Liu et al. 2026, arXiv:2601.09195).

    What most of the settings mean, their help texts say, which are those of `profit eval`.

    Attributes:
        model_name_or_path: Hub name, folder (with a whole model or a LoRA adapter), or `embedded`.
        tasks: Names from `TASKS`, which are the task files in `evaluation/tasks`, or of files in `task_dir`.
        output_dir: Records and results go here; an unfinished evaluation there is gone on with.
        apply_chat_template: Put problems into the model's chat template. False for a base model that has none.
        engine_args: Further arguments of what `engine` names, as the harness's `model_args`.

    Raises:
        TypeError: A value is of another type.
        ValueError: A value is unknown or out of range, or contradicts another.
    """

    model_name_or_path: str
    tasks: tuple[str, ...]
    output_dir: Path
    data_dir: Path | None = field(
        default=None,
        metadata={
            "help": "Folder with gsm8k_test.jsonl, math500.jsonl, aime24.jsonl, ifeval.jsonl (default: from the hub)."
        },
    )
    task_dir: Path | None = field(
        default=None, metadata={"help": "Folder of tasks of your own, NAME.yaml as lm-eval has them, and their data."}
    )
    greedy: bool = field(default=False, metadata={"help": "The likeliest token each time, one sample a problem."})
    samples: int | None = field(
        default=None, metadata={"help": "Samples a problem (default: 8, the paper's; 1 if greedy)."}
    )
    temperature: float = field(default=0.7, metadata={"help": "Logits are divided by it."})
    top_p: float = field(default=0.8, metadata={"help": "The likeliest tokens of this probability are kept; 1: all."})
    top_k: int = field(default=20, metadata={"help": "So many of the likeliest tokens are kept, before top_p; 0: all."})
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of the longest answer; fewer where the model's window is shorter, which is said (default: "
            "8192; generated: 128)."
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Answers generated together, or asked a server for."})
    limit: int | None = field(default=None, metadata={"help": "Only the first N problems of each task."})
    seed: int = field(default=0, metadata={"help": "Of the sampling."})
    dtype: str = field(
        default="auto", metadata={"help": "float32, bfloat16, float16, or auto: what the checkpoint is stored in."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message before every problem (default: the task's own, of generated)."}
    )
    apply_chat_template: bool = True
    engine: str = field(
        default="hf", metadata={"help": "What generates, as lm-eval's --model: hf, vllm, sglang and others."}
    )
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = field(
        default=None,
        metadata={
            "help": "paper: its decoding for the model's family, each task's samples and longest answer unless given."
        },
    )
    confirm_run_unsafe_code: bool = field(
        default=False, metadata={"help": "Run the code that the model writes (humaneval_paper)."}
    )
    allow_missing_weights: bool = field(
        default=False, metadata={"help": "Load a model whose files lack weights, or hold others; --engine hf only."}
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir))
        object.__setattr__(self, "data_dir", None if self.data_dir is None else Path(self.data_dir))
        object.__setattr__(self, "task_dir", None if self.task_dir is None else Path(self.task_dir))
        if self.task_dir is not None and not self.task_dir.is_dir():
            raise ValueError(f"task_dir: there is no folder '{self.task_dir}'.")
        if isinstance(self.tasks, str):
            raise TypeError(f"tasks must be a tuple of names, got the text {self.tasks!r}. Write ('{self.tasks}',).")
        object.__setattr__(self, "tasks", tuple(dict.fromkeys(self.tasks)))
        known = task_files(self.task_dir)
        unknown = [name for name in self.tasks if name not in known]
        if unknown or not self.tasks:
            raise ValueError(f"tasks: {', '.join(unknown) or 'none'} given. Known are {', '.join(known)}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        self._check_preset()
        if not isinstance(self.engine_args, Mapping):
            raise TypeError(f"engine_args must be a mapping of names to values, got {self.engine_args!r}.")
        self._check_numbers()

    def _check_preset(self) -> None:
        if self.preset not in (None, "paper"):
            raise ValueError(f"preset must be paper, got {self.preset!r}.")
        defaults = {entry.name: entry.default for entry in fields(self)}
        for name in ("temperature", "top_p", "top_k"):
            value = getattr(self, name)
            if self.preset is not None and value != defaults[name]:
                raise ValueError(f"{name} is {value}, but preset {self.preset} sets it. Leave out one of the two.")

    def _check_numbers(self) -> None:
        check_values(self, unlimited=("temperature", "top_p", "top_k", "seed"))
        if self.greedy and self.samples not in (None, 1):
            raise ValueError(
                f"samples is {self.samples}, but greedy decoding gives the same answer each time. Leave out one of the "
                "two."
            )
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}. For the likeliest answer use greedy."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be a probability in (0, 1], got {self.top_p}. 1 keeps all tokens.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}. 0 keeps all tokens.")

    @property
    def samples_per_problem(self) -> int:
        """Samples a problem, with the default resolved."""
        if self.samples is not None:
            return self.samples
        return 1 if self.greedy else _DEFAULT_SAMPLES

    @property
    def generation_arguments(self) -> dict[str, Any]:
        """`decoding` as lm-evaluation-harness calls it; what would keep all tokens is left out."""
        if self.greedy:
            return {"do_sample": False, "temperature": 0.0}
        bounds = {"top_p": self.top_p if self.top_p < 1 else None, "top_k": self.top_k or None}
        kept = {name: value for name, value in bounds.items() if value is not None}
        return {"do_sample": True, "temperature": self.temperature, **kept}

    @property
    def decoding(self) -> dict[str, Any]:
        """How the next token is chosen, as plain values."""
        if self.greedy:
            return {"greedy": True}
        return {"greedy": False, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


# The paper's decoding, by the family of the model; its samples and limits are those of the task files.
# Source: Liu et al. 2026, arXiv:2601.09195v3, appendix, and the evaluation scripts of its repository. Both give Qwen3
# and OLMo-2 temperature 0.7, top-p 0.8 and top-k 20, and Llama 0.6 and 0.9 without a top-k; 32 samples of up to 32,768
# tokens for AIME 2024, 8 of up to 8,192 elsewhere. Only the scripts limit GSM8K, to 512 tokens.
# The samples of table 3 are not told, but follow from its 15 figures: each one of ARC is a multiple of 1/295, of
# MMLU-Pro's history and chemistry of 1/381 and 1/1,132, so they have one sample a question; those of HumanEval are
# multiples of 1/(8 x 164) and of no fewer. HellaSwag has too many questions to tell; one sample is our choice.
_QWEN_OLMO = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
_LLAMA = {"temperature": 0.6, "top_p": 0.9, "top_k": 0}

# By `model_type` of config.json. The paper's Qwen2.5 models have Qwen3's decoding here; theirs is not told.
DECODING = {"qwen2": _QWEN_OLMO, "qwen3": _QWEN_OLMO, "olmo2": _QWEN_OLMO, "llama": _LLAMA}


def paper_decoding(model_type: str) -> Mapping[str, Any]:
    """Return the paper's decoding of a family of models; `top_k` 0 keeps all.

    Args:
        model_type: As config.json names it.

    Raises:
        ConfigurationError: The paper has no model of the family.

    Example:
        >>> paper_decoding("llama")
        {'temperature': 0.6, 'top_p': 0.9, 'top_k': 0}
    """
    if model_type not in DECODING:
        raise ConfigurationError(
            f"preset paper: the paper has no model of the type '{model_type}', so no decoding for it. It has "
            f"{', '.join(DECODING)}. Leave out the preset and give temperature, top_p and top_k."
        )
    return DECODING[model_type]


class _TaskFile(yaml.SafeLoader):
    """Reads a task file; a function is its name."""


_TaskFile.add_constructor("!function", lambda loader, node: node.value)


def task_file(task: str, task_dir: Path | None = None) -> dict[str, Any]:
    """Return what the file of a task says, and those that it includes.

    Args:
        task: Its name.
        task_dir: As in `EvalSettings`.

    Raises:
        ConfigurationError: One of them is not there, or is no YAML with names for keys.

    Example:
        >>> task_file("gsm8k_paper")["metadata"]["problems"]
        1319
    """
    content = _content(task_files(task_dir)[task])
    return {key: value for key, value in content.items() if value is not None}  # what is left empty is not said


def _content(path: Path) -> dict[str, Any]:
    with blamed_on(f"task file '{path}' cannot be read", "Mend it, or leave it out.", ConfigurationError):
        content: dict[str, Any] = dict(yaml.load(path.read_text(encoding="utf-8"), _TaskFile))
        included = content.get("include", [])
        files = [included] if isinstance(included, str) else included
        return {key: value for file in files for key, value in _content(path.parent / file).items()} | content


def task_limits(settings: EvalSettings, task: str) -> tuple[int, int]:
    """Return the samples of a problem and the longest answer in tokens: as given, else the preset's or the task's."""
    of_paper = settings.preset == "paper"
    is_ours = task_files(settings.task_dir)[task].parent == TASK_FOLDER
    of_other = of_paper and is_ours and task == "aime24"
    file = task_file("aime24_paper") if of_other else task_file(task, settings.task_dir)
    samples = 1 if settings.greedy else file.get("repeats", 1) if of_paper else _DEFAULT_SAMPLES
    longest = file.get("generation_kwargs", {}).get("max_gen_toks", DEFAULT_LONGEST)
    return settings.samples or samples, settings.max_new_tokens or longest


def resolved(settings: EvalSettings, task: str) -> EvalSettings:
    """Return the settings of one task without a preset: what it sets is in them.

    Raises:
        ConfigurationError: The model's family is not known, or not the paper's.
    """
    if settings.preset is None:
        return settings
    samples, longest = task_limits(settings, task)
    decoding = {} if settings.greedy else paper_decoding(model_type_of(settings.model_name_or_path))
    return replace(settings, preset=None, **decoding, samples=samples, max_new_tokens=longest)


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
