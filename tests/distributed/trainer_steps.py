"""Two steps of a trainer under the engine that a launcher asked for, evaluated after each. Run by test_engines.py."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from distributed.cases import TRAINERS
from distributed.problem import (
    EPSILON,
    LEARNING_RATE,
    ROWS,
    VOCAB,
    lora_config,
    make_problem,
    plain_name,
    tiny_causal_lm,
)
from distributed.recording import STEPS, gathers_counted, gradients_of, parameters_of, rank, record_cases, whole
from profit_sft import ProFit, ProFitConfig, ProFitTrainer, apply_profit

SETTINGS = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "max_steps": STEPS,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "train_sampling_strategy": "sequential",  # with one row a batch, a rank has every other row
    "learning_rate": LEARNING_RATE,
    "adam_epsilon": EPSILON,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
PROFIT_SETTINGS = {
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": 64,
    "dataset_kwargs": {"skip_prepare_dataset": True},
}


class Recorder(TrainerCallback):
    """Copy parameters before each step, and gradients after reduction and rescaling, before the optimizer's step."""

    def __init__(self, record):
        self.record = record
        self.trainer = None

    def on_step_begin(self, args, state, control, **kwargs):
        self.record["steps"].append({"parameters": self.parameters()})

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if not self.trainer.is_deepspeed_enabled:
            self.record["steps"][-1]["gradients"] = gradients_of(self.trainer.model_wrapped)

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.record["steps"][-1].update({name: logs[name] for name in ("loss", "kept_share") if name in logs})
        elif state.global_step == 1:
            self.record["evaluation"] = logs["eval_loss"]

    def parameters(self):
        if not self.trainer.is_deepspeed_enabled:
            return parameters_of(self.trainer.model_wrapped)
        import deepspeed

        found = {}
        for name, parameter in self.trainer.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                found[plain_name(name)] = whole(parameter)
        return found

    def record_deepspeed_gradients(self, engine):
        """DeepSpeed steps inside of accelerate's backward, so they are copied as that step begins."""
        from deepspeed.utils import safe_get_full_grad

        own_step = engine.step

        def step(*args, **kwargs):
            if engine.is_gradient_accumulation_boundary():
                found = {}
                for name, parameter in self.trainer.model.named_parameters():
                    if parameter.requires_grad:
                        gradient = safe_get_full_grad(parameter)
                        found[plain_name(name)] = gradient.clone().view(getattr(parameter, "ds_shape", parameter.shape))
                self.record["steps"][-1]["gradients"] = found
            return own_step(*args, **kwargs)

        engine.step = step

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.is_deepspeed_enabled:
            self.record_deepspeed_gradients(self.trainer.model_wrapped)


def tokenizer():
    words = {f"w{index}": index for index in range(VOCAB)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2")


def data_sets(problem):
    rows = [{"input_ids": problem.input_ids[row].tolist(), "labels": problem.labels[row].tolist()} for row in ROWS]
    return {
        "train_dataset": Dataset.from_list(rows),
        "eval_dataset": Dataset.from_list([rows[row] for row in ROWS if problem.labeled([row])]),
    }


def profit_trainer(case, model, settings, data, recorder):
    if case.lora is not None:
        torch.manual_seed(3)
        data["peft_config"] = lora_config(case.lora)
    return ProFitTrainer(
        model,
        ProFitConfig(**{**settings, **PROFIT_SETTINGS, **case.settings}, normalize=case.normalize),
        processing_class=tokenizer(),
        callbacks=[recorder],
        **data,
    )


def plain_trainer(case, model, settings, data, recorder):
    threshold = settings.pop("threshold")
    return Trainer(
        apply_profit(model, ProFit(threshold=threshold)),
        TrainingArguments(**{**settings, **case.settings}),
        data_collator=DataCollatorForSeq2Seq(tokenizer()),
        callbacks=[recorder],
        **data,
    )


def given_model(case, launch, folder):
    """Return the model, or the folder for the trainer to load, or the model split over tensor-parallel ranks."""
    model = tiny_causal_lm(case.family, tied=case.tied)
    if not case.by_name:
        return model
    if rank() == 0:
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    dist.barrier()
    if launch != "trainer-tp":
        return str(folder)
    return AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32)


def run(case, record, launch, folder):
    model = tiny_causal_lm(case.family, tied=case.tied)
    problem = make_problem(model, masked=case.masked, unlabeled=case.unlabeled)
    settings = {**SETTINGS, "weight_decay": case.weight_decay, "threshold": problem.threshold}
    settings["output_dir"] = tempfile.mkdtemp()
    recorder = Recorder(record)
    make = {"profit": profit_trainer, "transformers": plain_trainer}[case.trainer]
    trainer = make(case, given_model(case, launch, folder), settings, data_sets(problem), recorder)
    recorder.trainer = trainer
    if case.count_gathers:
        with gathers_counted(record, case.name):
            trainer.train()
    else:
        trainer.train()


def main(launch, out):
    torch.set_num_threads(1)
    cases = TRAINERS[launch]
    before = dict(os.environ)

    def run_in_environment(case, record, folder):
        os.environ.update(case.environment)
        try:
            run(case, record, launch, folder)
        finally:
            os.environ.clear()
            os.environ.update(before)

    TrainingArguments(tempfile.mkdtemp(), report_to=[]).device  # noqa: B018  # starts the processes' group
    record_cases(cases, run_in_environment, Path(out) / launch)
