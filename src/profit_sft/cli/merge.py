"""`profit merge`: put a run's LoRA adapter into the model that it was trained on."""

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from profit_sft.cli.options import flag
from profit_sft.cli.progress import quiet_libraries
from profit_sft.errors import ConfigurationError, require_extra
from profit_sft.terminal import console


def merge_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder with an adapter, as `profit train` leaves it.")],
    output_dir: Annotated[Path, flag("output_dir", "The whole model; must not be there yet.")],
    dtype: Annotated[str, flag("dtype", "float32, bfloat16, float16, or auto: the base model's own.")] = "auto",
) -> int:
    """Write a LoRA run as one whole model, which loads without PEFT."""
    from profit_sft.files import check_output_folder
    from profit_sft.models.pretrained import adapter_base, end_tokens, load_model, load_tokenizer, merged

    require_extra("train", wanted_by="profit merge")  # for PEFT
    if output_dir.exists():
        raise ConfigurationError(f"output_dir: '{output_dir}' is there already. Choose another folder.")
    check_output_folder(output_dir)
    base = adapter_base(run)
    if base is None:
        raise ConfigurationError(
            f"'{run}' holds no adapter (adapter_config.json): a run without LoRA is a whole model already."
        )
    quiet_libraries()
    tokenizer = load_tokenizer(str(run))
    model = merged(str(run), load_model(base, dtype=dtype))
    # The end token that was trained is the run's tokenizer's; an adapter says nothing of it.
    model.generation_config.eos_token_id = end_tokens(model, tokenizer.eos_token_id)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and moved: a folder of this name is whole, or there is none.
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}.", dir=output_dir.parent) as beside:
        whole = Path(beside) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        whole.replace(output_dir)
    console().print(f"{output_dir}: {base} with the adapter of {run} in it. Try it:\n  ", end="")
    console().print(shlex.join(["profit", "chat", str(output_dir)]))
    return 0
