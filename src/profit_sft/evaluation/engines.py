"""Which engine of lm-evaluation-harness a name means, and starting it."""

import inspect
from typing import Any

from profit_sft.errors import ConfigurationError, brief
from profit_sft.evaluation.engine import Engine, ServedEngine
from profit_sft.evaluation.settings import EvalSettings
from profit_sft.models.pretrained import pretrained_path

_SEEDED_BY_REQUEST = ("vllm",)


def engine_class(settings: EvalSettings) -> Any:
    """Return the harness's class of an engine.

    Raises:
        ConfigurationError: There is none of that name, or a library it needs is not installed.
    """
    from lm_eval.api.registry import get_model

    try:
        return get_model(settings.engine)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"engine: '{settings.engine}' cannot be used ({brief(str(error), 1000).rstrip('.')}). Install what it "
            "needs, or leave it out for hf."
        ) from None


def loads_model(settings: EvalSettings) -> bool:
    """Say whether the engine loads the model itself; otherwise its name is one that a server knows."""
    return "pretrained" in inspect.signature(engine_class(settings).__init__).parameters


def start_engine(settings: EvalSettings) -> Engine:
    """Load the model, or get ready to ask its server.

    Raises:
        ConfigurationError: There is no such model, the engine does not take the arguments, or prompts cannot be put
            the way that is asked for.
    """
    if settings.engine == "hf":
        from profit_sft.evaluation.hf_engine import HFEngine  # takes seconds, and a server needs none of it

        engine: Engine = HFEngine(settings)
    else:
        engine = _harness_engine(settings)
    if settings.apply_chat_template and getattr(engine.tokenizer, "chat_template", "") is None:
        raise ConfigurationError(
            f"the tokenizer of '{settings.model_name_or_path}' has no chat template. Evaluate a model that has one, or "
            "leave templates out with --no_chat_template (apply_chat_template=False)."
        )
    return engine


def _harness_engine(settings: EvalSettings) -> Engine:
    from lm_eval.models.api_models import TemplateAPI
    from lm_eval.models.openai_completions import LocalChatCompletion

    made_by = engine_class(settings)
    served = issubclass(made_by, TemplateAPI)
    if issubclass(made_by, LocalChatCompletion) and not settings.apply_chat_template:
        raise ConfigurationError(
            f"engine {settings.engine} sends messages, which the server puts into the model's chat template. Leave out "
            "--no_chat_template, or take local-completions, which sends texts."
        )
    if loads_model(settings):
        arguments: dict[str, Any] = {"pretrained": pretrained_path(settings.model_name_or_path)}
        arguments |= {} if settings.dtype == "auto" else {"dtype": settings.dtype}
    else:
        arguments = {"model": settings.model_name_or_path}
    try:
        # Served, a batch is that many requests at the same time.
        lm = made_by(**{**arguments, "batch_size": 1 if served else settings.batch_size, **settings.engine_args})
    except (TypeError, ValueError, OSError, ImportError, AssertionError) as error:
        raise ConfigurationError(f"engine {settings.engine} cannot be started: {error}") from None
    if served:
        return ServedEngine(lm)
    return Engine(lm, seeded=settings.engine in _SEEDED_BY_REQUEST)
