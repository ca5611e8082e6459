"""`profit chat`: talk to a run, or any model, in the terminal."""

import io
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profit_sft.cli.options import AllowMissingWeights, ChatTemplatePath, flag
from profit_sft.cli.progress import quiet_libraries
from profit_sft.errors import ConfigurationError, blamed_on
from profit_sft.terminal import console

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = list[dict[str, str]]
_HELP = "A question a line; /clear begins anew, /exit or Ctrl-D ends."


def chat_command(
    model_name_or_path: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder `profit train` wrote (LoRA, too), hub name, or embedded.")
    ],
    system_prompt: Annotated[str | None, flag("system_prompt", "What the conversation begins with.")] = None,
    max_new_tokens: Annotated[int, flag("max_new_tokens", "Tokens of the longest answer.")] = 512,
    temperature: Annotated[
        float | None, flag("temperature", "Sample at it; 0: the likeliest token (default: the model's own settings).")
    ] = None,
    dtype: Annotated[str, flag("dtype", "float32, bfloat16, float16, or auto: the checkpoint's own.")] = "auto",
    chat_template_path: ChatTemplatePath = None,
    allow_missing_weights: AllowMissingWeights = False,
) -> int:
    """Ask a model in the terminal, turn by turn, as its chat template has it; answers are shown as they are written."""
    if max_new_tokens < 1:
        raise ConfigurationError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise ConfigurationError(f"temperature must be 0 or more, got {temperature}.")
    from profit_sft.data.chat_template import date_chats
    from profit_sft.models.pretrained import default_device, load_model, load_tokenizer

    quiet_libraries()
    tokenizer = load_tokenizer(model_name_or_path, chat_template_path=chat_template_path)
    if tokenizer.chat_template is None:
        raise ConfigurationError(
            f"model_name_or_path: the tokenizer of '{model_name_or_path}' has no chat template, so there is no "
            "telling how it was taught to answer. Name one with --chat_template_path, a Jinja file or another model."
        )
    date_chats(tokenizer, model_name_or_path)
    model = load_model(model_name_or_path, dtype=dtype, allow_missing_weights=allow_missing_weights)
    model.to(default_device())  # type: ignore[arg-type]  # transformers wraps it
    # One answer, shown as it is written, whatever the model's own settings say.
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": 1, "num_return_sequences": 1}
    if temperature is not None:
        settings |= {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    beginning = [{"role": "system", "content": system_prompt}] if system_prompt else []
    _talk(beginning, partial(_answer, model, tokenizer, settings))
    return 0


def _talk(beginning: Messages, answer: Callable[[Messages], str | None]) -> None:
    out, messages = console(), list(beginning)
    typed = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are none of a question
    if typed:
        out.print(_HELP, style="dim")
    while True:
        try:
            question = input("> " if typed else "").strip()
        except EOFError:
            return
        if question == "/exit":
            return
        if question == "/clear":
            messages = list(beginning)
        elif question:
            messages.append({"role": "user", "content": question})
            said = answer(messages)
            if said is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": said})


def _answer(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", settings: dict[str, Any], messages: Messages
) -> str | None:
    """Write the answer to the terminal as it comes; return it, or None where the model takes no more."""
    import torch
    from transformers import TextStreamer

    from profit_sft.models.pretrained import end_tokens

    out = console()

    class Shown(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            out.print(text, end="\n" if stream_end else "")  # no sequence in it can steer the terminal

    with blamed_on(
        "the model's chat template takes no such conversation",
        "Leave out --system_prompt if it knows none, or name another template with --chat_template_path.",
        ConfigurationError,
    ):
        batch: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    asked = batch["input_ids"].shape[1]
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    if asked >= room:
        out.print(
            f"(a conversation of {asked:,} tokens, and the model takes {room:,}: /clear begins anew)", style="dim"
        )
        return None
    most = min(settings["max_new_tokens"], room - asked)
    ends = end_tokens(model, tokenizer.eos_token_id)
    with torch.no_grad():
        generated: Any = model.generate(  # type: ignore[operator]  # transformers types it as Tensor | Module
            **batch.to(model.device),
            **settings | {"max_new_tokens": most},
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            streamer=Shown(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
    new_tokens = generated[0, asked:]
    if new_tokens[-1].item() not in ends:
        why = "--max_new_tokens" if most == settings["max_new_tokens"] else "the model takes no more"
        out.print(f"(cut off at {len(new_tokens)} tokens: {why})", style="dim")
    return str(tokenizer.decode(new_tokens, skip_special_tokens=True))
