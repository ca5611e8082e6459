"""A Trainer on eight rows and the tiny model, and what its first step ought to log."""

import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from profit_sft.loss.reference import reference_loss
from tiny import VOCAB_SIZE, tiny_dataset, tiny_model, tiny_tokenizer

THRESHOLD = 1 / 64


def arguments(folder, **options):
    return TrainingArguments(
        str(folder),
        **{"max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1, **options},
        learning_rate=0.01,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )


def trainer(folder, model, *callbacks, trainer_class=Trainer, **options):
    return trainer_class(
        model=model,
        args=arguments(folder, **options),
        train_dataset=tiny_dataset(8),
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
        callbacks=list(callbacks),
    )


def logs(made):
    return [entry for entry in made.state.log_history if "loss" in entry]


def batch():
    return DataCollatorForSeq2Seq(tiny_tokenizer())(list(tiny_dataset(8)))


def oracle(objective):
    """Loss, norm of the gradient and kept share of the eight rows under the tiny model, densely in float64."""
    model, rows = tiny_model().double(), batch()
    labels = rows.pop("labels")
    shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    logits = model(**rows).logits.flatten(0, 1)
    head = torch.eye(VOCAB_SIZE, dtype=torch.float64)
    loss, values = reference_loss(logits, head, shifted.flatten(), objective=objective)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return loss.item(), norm.item(), (values["token_weights"] != 0).double().mean().item()


def shapes():
    """A step as one batch, and as four micro-batches of unequal numbers of labels."""
    return [
        {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts, "data_seed": 0}
        for parts in (1, 4)
    ]
