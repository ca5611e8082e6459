"""The callback in a plain transformers Trainer: it installs, counts, and stops a run on another loss."""

import pytest
import torch
import transformers
from small_trainer import THRESHOLD, batch, logs, trainer
from transformers import Trainer, TrainerCallback

from profit_sft import NLL, ProFit, ProFitCallback, apply_profit
from profit_sft.errors import LossBypassedError, UnsupportedModelError
from profit_sft.head import head_counts, label_statistics
from profit_sft.runs.record import read_run
from tiny import tiny_model


@pytest.mark.parametrize("steps", [1, 4])
def test_a_trainer_with_the_callback_trains_the_objective_and_logs_it(tmp_path, steps):
    found = label_statistics(tiny_model(), **batch(), objective=ProFit(threshold=THRESHOLD))
    assert 0.2 < found.num_kept / found.num_labels < 0.8
    sizes = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
    made = trainer(tmp_path, tiny_model(), ProFitCallback(ProFit(threshold=THRESHOLD), statistics="all"), **sizes)
    made.train()
    first = logs(made)[0]
    kept = -(found.log_probs * found.token_weights).sum() / found.num_labels
    assert first["loss"] == pytest.approx(kept.item(), rel=1e-4)
    assert first["kept_share"] == pytest.approx((found.num_kept / found.num_labels).item())
    assert first["nll"] == pytest.approx((-found.log_probs.sum() / found.num_labels).item(), rel=1e-5)
    assert logs(made)[1]["kept_share"] != first["kept_share"]


def test_plain_nll_is_left_out_where_it_was_not_computed(tmp_path):
    made = trainer(tmp_path, tiny_model(), ProFitCallback(ProFit(threshold=THRESHOLD)), _ScreenedTokens())
    made.train()
    assert "nll" not in logs(made)[0]
    assert 0 < logs(made)[0]["kept_share"] < 1


class _ScreenedTokens(TrainerCallback):
    """As after a step in which the prescreen of a large vocabulary has left log p of some tokens out."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        head_counts(model)._sums[2].fill_(float("nan"))


class OwnLoss(Trainer):
    """A trainer that computes its loss past the model it was given, as fused losses do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.model_beside = getattr(self, "model_beside", None) or tiny_model(seed=3)
        parameter = next(model.parameters())
        return self.model_beside(**inputs).loss + 0.0 * parameter.sum()


def test_a_run_that_never_calls_the_head_is_stopped_after_its_first_step(tmp_path):
    made = trainer(tmp_path, tiny_model(), ProFitCallback(NLL()), trainer_class=OwnLoss)
    with pytest.raises(LossBypassedError, match="the first optimizer step did not use the selective loss"):
        made.train()
    assert made.state.global_step == 1


def test_a_second_run_of_the_same_trainer_is_watched_as_well(tmp_path):
    callback = ProFitCallback(NLL())
    made = trainer(tmp_path, tiny_model(), callback)
    made.train()
    made.compute_loss = OwnLoss.compute_loss.__get__(made)
    with pytest.raises(LossBypassedError, match="the first optimizer step did not use"):
        made.train()


def test_a_callback_added_too_late_says_so(tmp_path):
    made = trainer(tmp_path, tiny_model())
    made.add_callback(ProFitCallback())
    with pytest.raises(LossBypassedError, match=r"added after the Trainer was made.*callbacks=\[...\]"):
        made.train()


def test_a_family_whose_micro_batches_the_trainer_would_average_is_refused(tmp_path):
    class Refusing(type(tiny_model())):
        accepts_loss_kwargs = False

    model = tiny_model()
    model.__class__ = Refusing
    with pytest.raises(UnsupportedModelError, match="Refusing says that its loss takes no num_items_in_batch"):
        trainer(tmp_path, model, ProFitCallback())
    made = trainer(tmp_path, apply_profit(model), ProFitCallback(NLL()))
    made.train()
    assert logs(made)[0]["kept_share"] == 1.0


def test_under_mixed_precision_the_loss_runs_in_autocast(tmp_path):
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer(tmp_path, model, ProFitCallback(NLL()), bf16=True).train()
    assert seen == [True, True]


class Averaging(Trainer):
    """As trainers do for models with a processor: told after it is made that the model's loss takes no count."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


@pytest.mark.parametrize("parts", [1, 4])
def test_micro_batches_that_the_trainer_averages_end_the_run(tmp_path, parts):
    sizes = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
    made = trainer(tmp_path, tiny_model(), ProFitCallback(NLL()), trainer_class=Averaging, **sizes)
    if parts == 1:
        made.train()
        return
    with pytest.raises(LossBypassedError, match="no num_items_in_batch, so the 4 parts of an optimizer step were aver"):
        made.train()


def test_reporters_see_what_is_added(tmp_path, monkeypatch):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Reporter])
    made = trainer(tmp_path, tiny_model(), ProFitCallback(ProFit(threshold=THRESHOLD), statistics="all"))
    made.train()
    assert [(entry["kept_share"], entry["nll"]) for entry in seen if "loss" in entry] == [
        (entry["kept_share"], entry["nll"]) for entry in logs(made)
    ]
    assert len(logs(made)) == 2


def test_any_trainer_gets_the_page_of_its_run(tmp_path):
    run = trainer(tmp_path, tiny_model(), ProFitCallback(ProFit(threshold=THRESHOLD)))
    run.train()
    record = read_run(run.args.output_dir)
    assert record.has_ended
    assert record.facts["objective"].startswith("ProFit(")
    assert all("kept_share" in log for log in record.logs if "loss" in log)
    assert (record.folder / "report.html").is_file()
