"""Weights of the data follow their tokens: cut, packed, padded, and into the gradients of a step."""

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

from profit_sft import ProFitConfig, ProFitTrainer
from profit_sft.train.beside import CollatesBeside
from tiny import tiny_dataset, tiny_model, tiny_tokenizer


def weighted_rows(count=8):
    """Rows whose tokens have the weight 0, 0.5 or 2, told by the token, so that a lost place shows."""
    rows = tiny_dataset(count).to_list()
    return [{**row, "token_weights": [weight_of(token) for token in row["input_ids"]]} for row in rows]


def weight_of(token):
    return (0.0, 0.5, 2.0)[token % 3]


def trainer(tmp_path, rows, **settings):
    config = ProFitConfig(
        str(tmp_path / "run"),
        **{
            "objective": "given",
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "report_to": [],
            "gradient_checkpointing": False,
            "max_steps": 1,
            "max_grad_norm": 0,
            "save_strategy": "no",
            "disable_tqdm": True,
            **settings,
        },
    )
    return ProFitTrainer(tiny_model(), config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer())


def gradients_of_one_step(run):
    seen = {}
    clip = run.accelerator.clip_grad_norm_

    def noting(*args, **kwargs):
        seen.update({name: parameter.grad.clone() for name, parameter in run.model.named_parameters()})
        return clip(*args, **kwargs)

    run.accelerator.clip_grad_norm_ = noting
    run.args.max_grad_norm = 1e9
    run.train()
    return seen


def test_a_step_has_the_gradient_of_the_weighted_loss(tmp_path):
    rows = weighted_rows(4)
    run = trainer(tmp_path, rows, gradient_accumulation_steps=2)
    model = tiny_model().double()
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels, weights = torch.tensor(row["labels"])[1:], torch.tensor(row["token_weights"]).double()[1:]
        counted = labels != -100
        log_probs = logits.log_softmax(-1)[counted].gather(-1, labels[counted][:, None])[:, 0]
        total, count = total - (weights[counted] * log_probs).sum(), count + int(counted.sum())
    (total / count).backward()
    found = gradients_of_one_step(run)
    for name, parameter in model.named_parameters():
        assert (found[name].double() - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": True, "packing_strategy": "bfd", "max_length": 32},
        {"packing": True, "packing_strategy": "wrapped", "max_length": 16},
        {"max_length": 6, "truncation_mode": "keep_start"},
        {"max_length": 6, "truncation_mode": "keep_end"},
        {},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")  # TRL's advice about attention kernels, which nothing runs here
def test_weights_stay_with_their_tokens(tmp_path, settings):
    run = trainer(tmp_path, weighted_rows(), **settings)
    trained = 0
    for batch in run.get_train_dataloader():
        for token, label, weight in zip(
            *(batch[name].flatten().tolist() for name in ("input_ids", "labels", "token_weights")), strict=True
        ):
            assert label == -100 or weight == weight_of(token)
            trained += label != -100
    assert trained > 20


def padded(side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    return DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)


@pytest.mark.parametrize(
    "collator", [padded("right"), padded("left"), DataCollatorWithFlattening()], ids=["right", "left", "end to end"]
)
def test_weights_stay_with_their_tokens_in_a_collator_of_ones_own(collator):
    rows = [{**row, "reference_log_probs": [-1.0 * token for token in row["input_ids"]]} for row in weighted_rows()]
    batch = CollatesBeside(collator)(rows)
    names = ("input_ids", "labels", "token_weights", "reference_log_probs")
    places = list(zip(*(batch[name].flatten().tolist() for name in names), strict=True))
    trained = [place for place in places if place[1] != -100]
    assert len(trained) == sum(len(row["input_ids"]) - 2 for row in rows)
    assert all(weight == weight_of(token) and log_prob == -token for token, _, weight, log_prob in trained)


def test_a_mask_that_numbers_the_texts_of_a_row_moves_no_weights():
    ids = torch.tensor([[1, 2, 3, 4]])
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.tensor([[1, 1, 2, 2]])}
    weights = [0.5, 1.0, 0.25, 1.0]
    laid_out = CollatesBeside(lambda examples: batch)([{"input_ids": [1, 2, 3, 4], "token_weights": weights}])
    assert laid_out["token_weights"].tolist() == [weights]


@pytest.mark.parametrize("mask", [None, torch.ones(1, 4)], ids=["no mask", "mask"])
def test_a_collator_that_moves_tokens_is_refused(mask):
    batch = {"input_ids": torch.tensor([[1, 2, 9, 3]]), "labels": torch.tensor([[1, 2, 9, 3]]), "attention_mask": mask}
    with pytest.raises(ValueError, match="row 0 of a batch does not hold the 3 input_ids of its example in a row"):
        CollatesBeside(lambda examples: batch)([{"input_ids": [1, 2, 3], "token_weights": [1.0, 1.0, 0.5]}])


def test_tokens_of_weight_zero_never_reach_the_head(tmp_path):
    run = trainer(tmp_path, weighted_rows(2), logging_strategy="no")
    seen = []
    compute_loss = run.compute_loss

    def noting(model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = compute_loss(model, inputs, True, num_items_in_batch)
        seen.append(outputs["selective"])
        return loss

    run.compute_loss = noting
    run.train()
    found = seen[0]
    assert found.log_probs[found.label_mask].isnan().equal(found.token_weights[found.label_mask] == 0)
    assert 0 < found.num_kept < found.num_labels


def test_an_objective_that_reads_no_weights_is_left_alone(tmp_path):
    without = [{name: row[name] for name in ("input_ids", "labels")} for row in weighted_rows(2)]
    found = gradients_of_one_step(trainer(tmp_path, weighted_rows(2), objective="dft"))
    for name, wanted in gradients_of_one_step(trainer(tmp_path, without, objective="dft")).items():
        assert torch.equal(found[name], wanted), name


def test_a_column_of_another_length_is_refused():
    collate = CollatesBeside(lambda examples: {"labels": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match="row 0 of a batch has 3 input_ids and 2 token_weights"):
        collate([{"input_ids": [1, 2, 3], "token_weights": [1.0, 1.0]}])
