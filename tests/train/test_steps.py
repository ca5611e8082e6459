"""Planned steps against those that transformers' Trainer sets itself."""

import itertools

import pytest

from profit_sft.train.config import ProFitConfig
from profit_sft.train.steps import planned_steps
from profit_sft.train.trainer import ProFitTrainer
from tiny import tiny_dataset, tiny_model, tiny_tokenizer


@pytest.mark.parametrize(("rows", "size"), [(7, 2), (9, 4), (1, 4)])
def test_steps_are_those_of_the_trainer(tmp_path, rows, size):
    # With max_steps the number of epochs says nothing.
    ends = ((0.5, -1), (1.0, -1), (2.3, -1), (0.5, 4))
    for micro_batches, (epochs, max_steps) in itertools.product((1, 3), ends):
        settings = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": micro_batches,
            "num_train_epochs": epochs,
            "max_steps": max_steps,
        }
        quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "probe_rows": 0, "threshold": 0.0}
        config = ProFitConfig(str(tmp_path), use_cpu=True, gradient_checkpointing=False, **quiet, **settings)
        trainer = ProFitTrainer(
            tiny_model(), config, train_dataset=tiny_dataset(rows), processing_class=tiny_tokenizer()
        )
        batches = len(trainer.get_train_dataloader())
        trainer.train()
        found, _ = planned_steps(batches, micro_batches=micro_batches, epochs=epochs, max_steps=max_steps)
        assert found == trainer.state.global_step, settings
