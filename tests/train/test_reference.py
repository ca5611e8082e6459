"""Training on stored log-probabilities: which objectives read them, and that they never end up beside another token."""

import dataclasses
import json
import math
import shutil
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from profit_sft.errors import ConfigurationError, DataError
from profit_sft.head import selective_head
from profit_sft.models.pretrained import load_tokenizer
from profit_sft.scores.score import score_dataset
from profit_sft.scores.settings import ScoreSettings
from profit_sft.scores.store import ScoreWriter, load_scores
from profit_sft.train.config import ProFitConfig
from profit_sft.train.reference import add_reference_log_probs, settle_reference
from profit_sft.train.trainer import ProFitTrainer
from tiny import save_tiny_chat_model, tiny_dataset, tiny_model, tiny_tokenizer

THRESHOLD = 1 / 64


def config(tmp_path, **overrides):
    settings = {
        "max_steps": 1,
        "learning_rate": 0.0,
        "threshold": THRESHOLD,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **overrides,
    }
    return ProFitConfig(str(tmp_path / "run"), **settings)


def reference_dataset(rows=8):
    """Rows with made reference log-probabilities, about half of them above the threshold; 0.0 where not a label."""
    generator = torch.Generator().manual_seed(3)
    dataset = []
    for row in tiny_dataset(rows):
        values = 2 * THRESHOLD * torch.rand(len(row["labels"]), generator=generator)
        values[torch.tensor(row["labels"]) == -100] = 1.0
        dataset.append({**row, "reference_log_probs": values.log().tolist()})
    return Dataset.from_list(dataset)


def trainer(tmp_path, dataset=None, **overrides):
    settings = {"objective_kwargs": {"mask_source": "reference"}, **overrides}
    return ProFitTrainer(
        tiny_model(),
        config(tmp_path, **settings),
        train_dataset=reference_dataset() if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
    )


class CaptureGradients(TrainerCallback):
    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        self.found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def one_step(tmp_path, dataset=None, **overrides):
    """Return the gradients of one optimizer step and its log."""
    run = trainer(tmp_path, dataset, **overrides)
    capture = CaptureGradients()
    run.add_callback(capture)
    run.train()
    return capture.found, next(entry for entry in run.state.log_history if "loss" in entry)


def dense_gradients(dataset, *, normalize):
    """Of the masked sum over all rows, from dense logits."""
    model = tiny_model()
    total, kept, labels_seen = 0.0, 0, 0
    for row in dataset:
        labels, reference = torch.tensor(row["labels"])[1:], torch.tensor(row["reference_log_probs"])[1:]
        log_probs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        counted = labels != -100
        mask = counted & (reference >= math.log(THRESHOLD))
        total = total - log_probs.gather(1, labels.clamp(min=0)[:, None])[:, 0][mask].sum()
        kept, labels_seen = kept + int(mask.sum()), labels_seen + int(counted.sum())
    (total / (labels_seen if normalize == "all" else kept)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, kept / labels_seen


@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize(("batch_size", "steps"), [(8, 1), (4, 2)])
def test_one_step_over_micro_batches_has_the_gradient_of_the_masked_sum(tmp_path, normalize, batch_size, steps):
    settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
    gradients, log = one_step(tmp_path, normalize=normalize, max_grad_norm=0, **settings)
    expected, kept_share = dense_gradients(reference_dataset(), normalize=normalize)
    assert 0.3 < kept_share < 0.7
    assert log["kept_share"] == pytest.approx(kept_share, abs=1e-12)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_masked_tokens_reach_the_head_on_logged_steps_only(tmp_path):
    seen = []
    run = trainer(tmp_path, per_device_train_batch_size=4, max_steps=2, logging_steps=2)
    compute_loss = run.compute_loss

    def recording(model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = compute_loss(model, inputs, True, num_items_in_batch)
        seen.append(outputs["selective"])
        return loss

    run.compute_loss = recording
    run.train()
    not_logged, logged = seen
    masked = not_logged.label_mask & (not_logged.token_weights == 0)
    assert 0.3 < masked.sum() / not_logged.num_labels < 0.7
    # What was never projected has no log-probability; what was kept has one.
    assert not_logged.log_probs[masked].isnan().all()
    assert not not_logged.log_probs[~masked].isnan().any()
    assert not logged.log_probs.isnan().any()


def test_scores_follow_their_tokens_into_a_padded_batch(tmp_path):
    run = trainer(tmp_path, per_device_train_batch_size=8)
    batch = next(iter(run.get_train_dataloader()))
    assert batch["labels"].shape == batch["reference_log_probs"].shape
    rows = {tuple(row["input_ids"]): row["reference_log_probs"] for row in reference_dataset()}
    for index in range(8):
        length = int(batch["attention_mask"][index].sum())
        wanted = rows.pop(tuple(batch["input_ids"][index, :length].tolist()))
        torch.testing.assert_close(batch["reference_log_probs"][index, :length], torch.tensor(wanted), rtol=0, atol=0)
        assert (batch["reference_log_probs"][index, length:] == 0).all()
    assert not rows


def test_scores_follow_their_tokens_into_a_batch_without_padding(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's advice about attention kernels, which nothing runs here
        run = trainer(tmp_path, padding_free=True, max_length=None)
    rows = list(reference_dataset(3))
    batch = run.data_collator([dict(row) for row in rows])
    wanted = [value for row in rows for value in row["reference_log_probs"]]
    torch.testing.assert_close(batch["reference_log_probs"], torch.tensor([wanted]), rtol=0, atol=0)
    assert batch["input_ids"].tolist() == [[token for row in rows for token in row["input_ids"]]]


def test_evaluation_data_needs_no_scores(tmp_path):
    dataset = tiny_dataset(4, seed=5)
    run = ProFitTrainer(
        tiny_model(),
        config(tmp_path, objective_kwargs={"mask_source": "reference"}),
        train_dataset=reference_dataset(),
        eval_dataset=dataset,
        processing_class=tiny_tokenizer(),
    )
    assert run.evaluate()["eval_loss"] == pytest.approx(math.log(64), rel=0.05)


@pytest.mark.parametrize("objective", ["asft", "rho"])
def test_objectives_with_a_reference_train_on_it(tmp_path, objective):
    settings = {"objective": objective, "threshold": None, "objective_kwargs": None, "per_device_train_batch_size": 8}
    gradients, log = one_step(tmp_path / "a", **settings)
    assert math.isfinite(log["loss"])
    other = reference_dataset().map(lambda row: {"reference_log_probs": row["reference_log_probs"][::-1]})
    changed, _ = one_step(tmp_path / "b", other, **settings)
    name = "lm_head.weight"
    assert (gradients[name] - changed[name]).norm() > 1e-3 * gradients[name].norm()


def test_a_data_set_without_scores_trains_as_before(tmp_path):
    with pytest.raises(ValueError, match="needs 'reference_log_probs', which was not given"):
        one_step(tmp_path, tiny_dataset(8))
    run = trainer(tmp_path, tiny_dataset(8), objective_kwargs=None)
    assert selective_head(run.model).objective.mask_source == "online"
    assert "reference_log_probs" not in next(iter(run.get_train_dataloader()))


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"objective": "nll", "threshold": None}, True, "NLL.*reads no reference log-probabilities. Leave"),
        ({"objective_kwargs": {"mask_source": "online"}}, True, "reads no reference log-probabilities"),
        (
            {"objective_kwargs": {"rate": 0.5}, "threshold_direction": "random"},
            True,
            "reads no reference log-probabilities",
        ),
        ({"objective": "rho", "threshold": None}, False, r"Compute them once with\n  profit score DATA\nand add"),
        ({"objective": "asft", "threshold": None}, False, "reads log-probabilities under a reference model"),
        ({"objective_kwargs": {"mask_source": "reference"}}, False, "mask_source='reference'.*--reference_scores"),
    ],
)
def test_objective_and_scores_must_fit(tmp_path, settings, given, message):
    with pytest.raises(ConfigurationError, match=message):
        settle_reference(config(tmp_path, **settings), given=given, command="profit score DATA")


@pytest.mark.parametrize("objective", ["profit", "use_profit_loss"])
def test_profit_with_scores_takes_its_mask_from_them(tmp_path, objective):
    chosen = config(tmp_path, objective=objective, threshold_direction="lower")
    settle_reference(chosen, given=True, command="")
    assert chosen.objective_kwargs == {"mask_source": "reference"}
    assert chosen.make_objective().needs == {"reference_log_probs"}
    settle_reference(chosen, given=True, command="")  # as `--config config.yaml` of a run does


def test_without_scores_nothing_is_changed(tmp_path):
    chosen = config(tmp_path)
    settle_reference(chosen, given=False, command="")
    assert chosen.objective_kwargs is None


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Data, settings and scores of it under a tiny model."""
    root = tmp_path_factory.mktemp("scored")
    rows = ({"question": f"What is {n} + 1?", "answer": f"It is {n + 1}. " * (1 + n % 2)} for n in range(10))
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(dataset_name=str(root / "train.jsonl"))
    folder = save_tiny_chat_model(root / "model")
    scores = score_dataset(
        ScoreSettings(model_name_or_path=folder, data=settings, output_dir=root / "scores", shard_rows=4)
    )
    return prepare_dataset(settings, load_tokenizer(folder)), settings, scores


def test_the_column_lines_up_with_the_tokens(scored):
    data, settings, scores = scored
    found = add_reference_log_probs(data, settings, scores.folder, command="").dataset
    assert found.column_names == [*data.dataset.column_names, "reference_log_probs"]
    for row, example in zip(found, scores, strict=True):
        expected = [0.0] * len(row["input_ids"])
        for position, value in zip(example.positions, example.log_probs.tolist(), strict=True):
            expected[position] = value
        assert row["reference_log_probs"] == expected
        assert all((value == 0.0) == (label == -100) for value, label in zip(expected, row["labels"], strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 30}, r"max_length 1024, not 30; \d+ label tokens, not \d+"),
        ({"max_samples": 9}, "max_samples None, not 9; 10 rows, not 9"),
        ({"system_prompt": "Be brief."}, "system_prompt None, not 'Be brief.'"),
    ],
)
def test_scores_of_other_data_are_refused_by_what_differs(scored, changes, message):
    _, settings, scores = scored
    changed = dataclasses.replace(settings, **changes)
    data = prepare_dataset(changed, scores.tokenizer())
    with pytest.raises(ConfigurationError, match=f"holds scores of other data than this run trains on: {message}"):
        add_reference_log_probs(data, changed, scores.folder, command="profit score DATA")


def test_scores_of_another_template_are_refused(scored):
    _, settings, scores = scored
    tokenizer = scores.tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("\n{% endfor %}", "{% endfor %}")
    data = prepare_dataset(settings, tokenizer)
    with pytest.raises(ConfigurationError, match="another tokenizer or chat template.*\n  profit score DATA"):
        add_reference_log_probs(data, settings, scores.folder, command="profit score DATA")


def exchanged(folder):
    """The first eight rows are as long, pair by pair; only their tokens tell the two shards apart."""
    examples = list(load_scores(folder))
    return [dataclasses.replace(examples[4 + index], example=index) for index in range(4)]


def shifted(folder):
    return [dataclasses.replace(example, positions=example.positions - 1) for example in list(load_scores(folder))[:4]]


@pytest.mark.parametrize("damage", [exchanged, shifted])
def test_a_damaged_shard_is_no_shifted_mask(scored, tmp_path, damage):
    data, settings, scores = scored
    folder = shutil.copytree(scores.folder, tmp_path / "copy")
    ScoreWriter(folder, scores.manifest).write_shard(0, damage(folder))
    with pytest.raises(DataError, match="example 0 is not the one that its manifest speaks of"):
        add_reference_log_probs(data, settings, folder, command="")


def test_a_first_token_that_nothing_predicts_needs_no_score(scored, tmp_path):
    _, _, scores = scored
    (tmp_path / "train.jsonl").write_text('{"prompt": "W", "completion": "hat is two?"}\n')
    settings = DataSettings(dataset_name=str(tmp_path / "train.jsonl"))
    model = scores.manifest.model_name_or_path
    out = score_dataset(ScoreSettings(model_name_or_path=model, data=settings, output_dir=tmp_path / "scores"))
    data = prepare_dataset(settings, scores.tokenizer())
    assert data.dataset[0]["labels"][0] != -100  # "What" is one token, so the completion begins with it
    values = add_reference_log_probs(data, settings, out.folder, command="").dataset[0]["reference_log_probs"]
    assert values[0] == 0.0
    assert all(value < 0.0 for value in values[1:])
