"""How each trainer is told to train the tiny chat model on eight rows: its own command, its own spellings."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

import profit_sft

ROWS = 8
_PLUGIN = Path(profit_sft.__file__).parent / "integrations" / "ms_swift" / "plugin.py"
THRESHOLD = 0.0035  # a random model gives every token of its vocabulary about 1/320, half of the answers' more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is to be trained: `ours` are settings of ProFit (None: plain SFT), `more` the trainer's own."""

    ours: dict[str, Any] | None
    batch: tuple[int, int] = (4, 1)  # a micro-batch, and how many make a step
    lora: bool = False
    more: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A trainer.

    Attributes:
        packages: Distributions whose versions the table of the documentation names.
        trained_ending: What it trains after the answer's own text, of ChatML's `<|im_end|>` and newline.
        write: Writes what the run needs into a folder and returns the command.
        refusals: Runs that must not train, each with words of its message.
        spelled: Its spelling of the threshold; that of the objective's name has the same beginning.
        parallel: What it has to be told for two processes to train one model on CPUs; None: they do not.
    """

    packages: tuple[str, ...]
    trained_ending: str
    write: Callable[[Path, Path, Run], Sequence[str]]
    refusals: dict[str, tuple[Run, str]]
    spelled: str
    parallel: dict[str, Any] | None

    def ours(self, **more: Any) -> dict[str, Any]:
        return {self.spelled: THRESHOLD, **more}

    def named(self, objective: str) -> dict[str, Any]:
        return {"profit_objective" if self.spelled.startswith("profit_") else "objective": objective}


def chats(count: int = ROWS) -> list[tuple[str, str]]:
    """Questions and answers of unequal length."""
    words = [
        "What",
        "is",
        "two",
        "plus",
        "four",
        "It",
        "user",
        "assistant",
        "system",
        "and",
        "some",
        "of",
        "the",
        "more",
    ]
    return [
        (
            " ".join(words[(3 * row + i) % len(words)] for i in range(3 + row % 4)),
            " ".join(words[(5 * row + 2 * i) % len(words)] for i in range(2 + 3 * (row % 5))),
        )
        for row in range(count)
    ]


def write_chats(path: Path) -> Path:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
        for question, answer in chats()
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def _llama_factory(folder: Path, model: Path, run: Run) -> Sequence[str]:
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in chats()]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    config = {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora" if run.lora else "full",
        "dataset": "rows",
        "dataset_dir": str(folder),
        "template": "chatml",
        "cutoff_len": 256,
        "disable_shuffling": True,
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": run.batch[0],
        "gradient_accumulation_steps": run.batch[1],
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        **(run.ours or {}),
        **run.more,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["llamafactory-cli"] if run.ours is None else ["profit", "llamafactory"]
    return [*command, "train", str(folder / "config.yaml")]


def _ms_swift(folder: Path, model: Path, run: Run) -> Sequence[str]:
    flags = {
        "model": str(model),
        "model_type": "llama",
        "template": "chatml",
        "dataset": str(write_chats(folder / "rows.jsonl")),
        "tuner_type": "lora" if run.lora else "full",
        "torch_dtype": "float32",
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "split_dataset_ratio": "0",
        "output_dir": str(folder / "run"),
        "add_version": "false",
        "per_device_train_batch_size": run.batch[0],
        "gradient_accumulation_steps": run.batch[1],
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "bf16": "false",
        "fp16": "false",
        "dataset_num_proc": 1,
        "check_model": "false",
        "dataloader_num_workers": 0,
    }
    if run.ours is not None:
        flags |= {"external_plugins": str(_PLUGIN), "callbacks": "profit", "model_kwargs": json.dumps(run.ours)}
    flags |= run.more
    return [
        "swift",
        "sft",
        *(text for name, value in flags.items() if value is not None for text in (f"--{name}", str(value))),
    ]


def _axolotl(folder: Path, model: Path, run: Run) -> Sequence[str]:
    config = {
        "base_model": str(model),
        "datasets": [{"path": str(write_chats(folder / "rows.jsonl")), "ds_type": "json", "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "sequence_len": 256,
        "sample_packing": False,
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,
        "shuffle_before_merging_datasets": False,
        "val_set_size": 0,
        "output_dir": str(folder / "run"),
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 1,
        "micro_batch_size": run.batch[0],
        "gradient_accumulation_steps": run.batch[1],
        "max_steps": 2,
        "num_epochs": 1,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "attn_implementation": "sdpa",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "gradient_checkpointing": False,
        "use_wandb": False,
        "strict": False,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
    }
    if run.lora:
        config |= {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    if run.ours is not None:
        config |= {"plugins": ["profit_sft.integrations.axolotl.ProFitPlugin"], **run.ours}
    config |= run.more
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return ["axolotl", "train", str(folder / "config.yaml"), "--launcher", "python"]


def _refused(spelled: str, **rows: tuple[dict[str, Any], dict[str, Any], str]) -> dict[str, tuple[Run, str]]:
    return {
        name: (Run(ours={spelled: THRESHOLD, **ours}, more=more), message)
        for name, (ours, more, message) in rows.items()
    }


PEERS = {
    "llamafactory": Peer(
        packages=("llamafactory", "torch", "transformers", "trl", "peft", "accelerate"),
        trained_ending="<|im_end|>\n",
        parallel={},
        write=_llama_factory,
        spelled="prob_threshold",
        refusals=_refused(
            "prob_threshold",
            dft=({}, {"use_dft_loss": True}, "use_dft_loss=True"),
            smoothing=({}, {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
            misspelt=({"prob_treshold": 0.1}, {}, "prob_treshold"),
            kept=({"normalize": "kept"}, {}, "normalize 'kept' is exact in ProFitTrainer alone"),
            reference=({"objective": "rho", "prob_threshold": None}, {}, "needs reference_log_probs beside the labels"),
        ),
    ),
    "ms-swift": Peer(
        packages=("ms-swift", "torch", "transformers", "trl", "peft", "accelerate"),
        trained_ending="<|im_end|>\n",
        parallel={"use_cpu": "true"},
        write=_ms_swift,
        spelled="profit_threshold",
        refusals=_refused(
            "profit_threshold",
            dft=({}, {"enable_dft_loss": "true"}, "--enable_dft_loss=True"),
            weighed=({}, {"loss_scale": "react"}, "--loss_scale"),
            misspelt=({"profit_treshold": 0.1}, {}, "has no field 'treshold'"),
            not_asked_for=({}, {"callbacks": None}, "but nothing asks for it"),
            kept=({"profit_normalize": "kept"}, {}, "normalize 'kept' is exact in ProFitTrainer alone"),
        ),
    ),
    "axolotl": Peer(
        packages=("axolotl", "torch", "transformers", "trl", "peft", "accelerate"),
        trained_ending="<|im_end|>",
        parallel=None,
        write=_axolotl,
        spelled="profit_threshold",
        refusals=_refused(
            "profit_threshold",
            eaft=({}, {"use_eaft": True}, "use_eaft=True"),
            misspelt=({"profit_treshold": 0.1}, {}, "Did you mean profit_threshold?"),
            kept=({"profit_normalize": "kept"}, {}, "normalize 'kept' is exact in ProFitTrainer alone"),
            smoothing=({}, {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ),
    ),
}
