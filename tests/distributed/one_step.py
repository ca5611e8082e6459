"""The gradient of one optimizer step, as the optimizer sees it. Run by test_exactness.py."""

import os
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import TrainerCallback

from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer
from tiny import tiny_dataset, tiny_model, tiny_tokenizer

ROWS = 8
ACCUMULATION_STEPS = (1, 2, 4)
NORMALIZERS = ("all", "kept")


class CaptureGradients(TrainerCallback):
    """Copy the gradients after accumulation, reduction and rescaling, before the optimizer's step."""

    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        self.found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def likely_share_threshold() -> float:
    """Pick the threshold so that row 0 is masked as a whole while other rows keep tokens."""
    model, dataset = tiny_model().eval(), tiny_dataset(ROWS)
    largest = []
    with torch.no_grad():
        for row in dataset:
            input_ids = torch.tensor([row["input_ids"]])
            probs = model(input_ids=input_ids).logits[0, :-1].softmax(-1)
            labels = torch.tensor(row["labels"][1:])
            counted = labels != -100
            largest.append(probs[counted].gather(-1, labels[counted][:, None]).max().item())
    largest.sort()
    return (largest[0] + largest[1]) / 2


def gradient(steps: int, normalize: str, threshold: float) -> dict[str, torch.Tensor]:
    capture = CaptureGradients()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    args = ProFitConfig(
        tempfile.mkdtemp(),
        per_device_train_batch_size=ROWS // (steps * world_size),
        gradient_accumulation_steps=steps,
        max_steps=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        threshold=threshold,
        normalize=normalize,
        logging_steps=1,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = ProFitTrainer(
        tiny_model(), args, train_dataset=tiny_dataset(ROWS), processing_class=tiny_tokenizer(), callbacks=[capture]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a micro-batch without kept tokens warns, and is meant to be there
        trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    found = {name.removeprefix("module."): gradient for name, gradient in capture.found.items()}
    for name in ("loss", "kept_share", "nll", "mean_p_kept", "mean_p_masked"):
        found[f"log/{name}"] = torch.tensor(log[name], dtype=torch.float64)
    return found


def main(out: Path) -> None:
    threshold = likely_share_threshold()
    for steps in ACCUMULATION_STEPS:
        for normalize in NORMALIZERS:
            found = gradient(steps, normalize, threshold)
            if int(os.environ.get("RANK", "0")) == 0:
                torch.save(found, out / f"{normalize}-{steps}.pt")
