"""The probe of the collapse warning, in real runs. Two ranks are in tests/distributed."""

import json
import math

import pytest
import torch
from datasets import Dataset, IterableDataset

from profit_sft.head import selective_head
from profit_sft.train.collapse_probe import measure
from profit_sft.train.config import ProFitConfig
from profit_sft.train.trainer import ProFitTrainer
from tiny import tiny_dataset, tiny_model, tiny_tokenizer

SETTINGS = {
    "per_device_train_batch_size": 2,
    "max_steps": 8,
    "learning_rate": 0.05,
    "threshold": 1 / 64,
    "logging_steps": 1,
    "probe_measurements": 4,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "max_length": None,
}


def trainer(tmp_path, *, model=None, dataset=None, **overrides):
    return ProFitTrainer(
        tiny_model() if model is None else model,
        ProFitConfig(str(tmp_path / "run"), **{**SETTINGS, **overrides}),
        train_dataset=tiny_dataset(16) if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
    )


def probe_logs(run):
    return [entry for entry in run.state.log_history if "probe_nll" in entry]


def dense_log_probs(model, dataset):
    """Return `log p` of each row's label tokens in float64."""
    found = []
    with torch.no_grad():
        for row in dataset:
            dense = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double().log_softmax(-1)
            labels = torch.tensor(row["labels"][1:])
            found.append(dense[labels != -100].gather(-1, labels[labels != -100][:, None])[:, 0])
    return found


def with_dropout():
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return model


@pytest.mark.parametrize("padding_free", [False, True])
def test_figures_are_those_of_dense_logits_in_evaluation_mode(tmp_path, padding_free):
    run = trainer(tmp_path, model=with_dropout(), padding_free=padding_free)
    before = dense_log_probs(run.model.eval(), tiny_dataset(16))
    run.train()
    after = dense_log_probs(run.model.eval(), tiny_dataset(16))
    logs = probe_logs(run)
    assert [log["step"] for log in logs] == [0, 2, 4, 6, 8]
    for log, rows in ((logs[0], before), (logs[-1], after)):
        log_probs = torch.cat(rows)
        kept = log_probs >= math.log(1 / 64)
        assert 0.1 < kept.double().mean() < 0.9
        assert log["probe_nll"] == pytest.approx(-log_probs.mean().item(), rel=1e-5)
        assert log["probe_loss"] == pytest.approx(-log_probs[kept].sum().item() / len(log_probs), rel=1e-5)
    counts = torch.tensor([float(len(row)) for row in before])
    risen = torch.stack([old.sum() - new.sum() for old, new in zip(before, after, strict=True)])
    residuals = risen - risen.sum() / counts.sum() * counts
    expected = (residuals.square().sum() * 16 / 15).sqrt() / counts.sum()
    assert logs[-1]["probe_rise_se"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold_direction": "random", "objective_kwargs": {"rate": 0.5}},
        {"normalize": "kept", "gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:collapse:UserWarning")
def test_measuring_changes_nothing_of_the_run(tmp_path, settings):
    runs = []
    for rows in (16, 0):
        runs.append(trainer(tmp_path / str(rows), model=with_dropout(), probe_rows=rows, **settings))
        runs[-1].train()
    assert len(probe_logs(runs[0])) == 5
    assert probe_logs(runs[1]) == []
    for (name, found), expected in zip(runs[0].model.named_parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(found, expected), name
    losses = [[log["loss"] for log in run.state.log_history if "loss" in log] for run in runs]
    assert losses[0] == losses[1]


def test_without_rows_nothing_is_measured_however_often_it_was_asked_for(tmp_path):
    run = trainer(tmp_path, probe_rows=0, probe_measurements=None)
    run.train()
    assert run.state.global_step == 8
    assert probe_logs(run) == []


@pytest.mark.parametrize("direction", ["higher", "random"])
def test_a_model_that_does_not_change_measures_the_same_every_time(tmp_path, direction):
    drawn = {"threshold_direction": "random", "objective_kwargs": {"rate": 0.5}} if direction == "random" else {}
    run = trainer(tmp_path, learning_rate=0.0, **drawn)
    run.train()
    logs = probe_logs(run)
    for name in ("probe_nll", "probe_loss"):
        assert {log[name] for log in logs} == {logs[0][name]}
    assert {log["probe_rise_se"] for log in logs[1:]} == {0.0}
    assert 0 < logs[0]["probe_loss"] < logs[0]["probe_nll"]
    batches = [log["nll"] for log in run.state.log_history if "nll" in log]
    assert max(batches) > 1.01 * min(batches), "batches differ, as they do in any run"


@pytest.mark.filterwarnings("ignore:collapse:UserWarning")
def test_a_resumed_run_goes_on_with_the_rows_of_the_start(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-3"))
    found, expected = (
        [{name: log[name] for name in log if name == "step" or name.startswith("probe_")} for log in probe_logs(run)]
        for run in (resumed, whole)
    )
    assert found == expected
    lines = [json.loads(line) for line in (tmp_path / "whole" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "probe_nll" in line] == [0, 2, 4, 6, 8]


def test_a_checkpoint_without_these_rows_begins_a_new_comparison(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 0.001}
    trainer(tmp_path / "before", probe_rows=0, **settings).train()
    resumed = trainer(tmp_path / "after", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "before" / "run" / "checkpoint-3"))
    assert [(log["step"], "probe_rise_se" in log) for log in probe_logs(resumed)] == [
        (3, False),
        (4, True),
        (6, True),
        (8, True),
    ]


def test_the_same_trainer_trained_again_starts_anew(tmp_path):
    run = trainer(tmp_path, learning_rate=0.001)
    run.train()
    run.train()
    assert [log["step"] for log in probe_logs(run)] == [0, 2, 4, 6, 8]
    assert "probe_rise_se" not in probe_logs(run)[0]


def test_measurements_cost_about_a_twentieth_of_the_training_at_most(tmp_path):
    dataset = tiny_dataset(64)
    # 16 rows forward, against 3 x 2 rows a step: a measurement costs as much as 2.67 steps.
    for steps, times in ((60, 1), (120, 2), (1200, 20)):
        run = trainer(tmp_path, dataset=dataset, max_steps=steps, probe_measurements=None)
        assert run._probe._affordable_times(steps) == times


def test_an_objective_that_needs_a_reference_gets_it(tmp_path):
    rows = tiny_dataset(16)
    generator = torch.Generator().manual_seed(0)
    references = [torch.rand(len(row["input_ids"]), generator=generator).log().tolist() for row in rows]
    dataset = rows.add_column("reference_log_probs", references)
    run = trainer(
        tmp_path,
        dataset=dataset,
        threshold=0.5,
        objective_kwargs={"mask_source": "reference"},
        learning_rate=0.0,
        max_steps=1,
    )
    log_probs = dense_log_probs(run.model.eval(), rows)
    kept = [
        (torch.tensor(values) >= math.log(0.5))[torch.tensor(row["labels"]) != -100]
        for values, row in zip(references, rows, strict=True)
    ]
    run.train()
    expected = -sum(float(row[mask].sum()) for row, mask in zip(log_probs, kept, strict=True))
    assert probe_logs(run)[0]["probe_loss"] == pytest.approx(expected / sum(map(len, kept)), rel=1e-5)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (tiny_dataset(15), "takes 16 rows, not 15 rows"),
        (IterableDataset.from_generator(lambda: iter(tiny_dataset(16))), "not a IterableDataset, which cannot be"),
    ],
    ids=["few", "stream"],
)
def test_data_without_a_probe_is_trained_on_all_the_same_and_said_so(tmp_path, caplog, dataset, message):
    run = trainer(tmp_path, dataset=dataset, max_steps=2)
    run.train()
    assert probe_logs(run) == []
    assert message in caplog.text


def test_rows_are_drawn_from_all_over_the_data_and_columns_that_nobody_takes_are_left_out(tmp_path):
    tokens = [3 + index // 2 for index in range(99)]
    rows = [{"input_ids": [2, token, 5], "labels": [-100, token, 5], "id": "a"} for token in tokens]
    run = trainer(tmp_path, dataset=Dataset.from_list(rows), max_steps=1, learning_rate=0.0, probe_rows=20)
    run.train()
    seen = {int(token) for batch in run._probe._batches for token in batch["input_ids"][:, 1]}
    assert sum(len(batch["labels"]) for batch in run._probe._batches) == 20
    assert min(seen) < 20
    assert max(seen) > 40


def test_measure_puts_everything_back(tmp_path):
    model = trainer(tmp_path, model=with_dropout(), threshold=0.999).model
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    head = selective_head(model)
    objective, state = head.objective, torch.get_rng_state()
    batch = {"input_ids": torch.tensor([[2, 3, 4, 5]]), "labels": torch.tensor([[-100, 3, 4, 5]])}
    found = measure(model, batch)  # nothing is kept, which would be warned of in training
    assert [module.training for module in model.modules()] == modes
    assert (head.objective, head.statistics) == (objective, "objective")
    assert torch.equal(torch.get_rng_state(), state)
    assert found.num_labels == 3
    assert not found.loss.requires_grad
    with pytest.raises(ValueError, match="outside the vocabulary"):
        measure(model, {**batch, "labels": batch["labels"] + 1000})
    assert [module.training for module in model.modules()] == modes
