"""verl's SFT loss, on a stand-in for the module it is put into, called with its nested tensors."""

import importlib
import logging
import sys
import types

import pytest
import torch
from small_trainer import THRESHOLD, batch, oracle

from profit_sft import ProFit
from profit_sft.errors import ConfigurationError, LossBypassedError
from tiny import tiny_model

MODULE = "profit_sft.integrations.verl"


def plain_sft_loss(config, model_output, data, dp_group=None):
    """As verl's own: the masked sum, over the tokens of the whole step."""
    mask = torch.roll(data["loss_mask"].values(), shifts=-1, dims=0)
    return -(model_output["log_probs"].values() * mask).sum() / data["batch_num_tokens"] * data["dp_size"], {}


@pytest.fixture
def losses(monkeypatch):
    modules = {name: types.ModuleType(name) for name in ("verl", "verl.workers", "verl.workers.utils")}
    made = types.ModuleType("verl.workers.utils.losses")
    made.sft_loss = plain_sft_loss
    modules["verl.workers.utils"].losses = made
    for name, module in {**modules, made.__name__: made}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setenv("PROFIT_THRESHOLD", str(THRESHOLD))
    yield made
    sys.modules.pop(MODULE, None)


def rows():
    """Model, ids and label masks of the eight rows, without padding."""
    found = batch()
    for ids, labels, attention in zip(
        *(found[name] for name in ("input_ids", "labels", "attention_mask")), strict=True
    ):
        length = int(attention.sum())
        yield ids[:length], labels[:length] != -100


def nested(parts):
    return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)


def step(sft_loss, model, *, size=8, dp_size=1, form="nested"):
    """Return loss and metrics of a step in micro-batches of so many rows, as its engine calls for them."""
    examples = list(rows())
    count = sum(int(mask[1:].sum()) for _, mask in examples)
    total, metrics = 0.0, []
    for first in range(0, len(examples), size):
        log_probs = []
        for ids, _ in examples[first : first + size]:
            dense = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            # The last position predicts what the roll brings: the first token of the next row, which carries no label.
            log_probs.append(dense.gather(-1, torch.roll(ids, -1)[:, None]).squeeze(-1))
        masks = [mask for _, mask in examples[first : first + size]]
        data = {"batch_num_tokens": count, "dp_size": dp_size}
        if form == "nested":
            output, data["loss_mask"] = {"log_probs": nested(log_probs)}, nested(mask.long() for mask in masks)
        else:
            pad = torch.nn.utils.rnn.pad_sequence
            output = {"log_probs": pad(log_probs, batch_first=True)}
            data["response_mask"] = pad([torch.roll(mask.long(), -1) for mask in masks], batch_first=True)
        loss, found = sft_loss(None, output, data)
        total, metrics = total + loss, [*metrics, found]
    return total, metrics


@pytest.mark.parametrize("form", ["nested", "padded"])
@pytest.mark.parametrize("size", [8, 2])
def test_it_is_the_objective_over_any_micro_batches(losses, size, form):
    importlib.import_module(MODULE)
    assert losses.sft_loss is not plain_sft_loss
    model = tiny_model()
    loss, metrics = step(losses.sft_loss, model, size=size, form=form)
    norm = torch.stack([part.norm() for part in torch.autograd.grad(loss, list(model.parameters()))]).norm()
    expected, expected_norm, kept_share = oracle(ProFit(threshold=THRESHOLD))
    assert (loss.item(), norm.item()) == (pytest.approx(expected, rel=1e-5), pytest.approx(expected_norm, rel=1e-5))
    kept, labels = (sum(entry[f"profit/{name}_tokens"] for entry in metrics) for name in ("kept", "label"))
    assert kept / labels == pytest.approx(kept_share)


def test_ranks_and_validation_are_as_verl_has_them(losses):
    importlib.import_module(MODULE)
    one, _ = step(losses.sft_loss, tiny_model())
    two, _ = step(losses.sft_loss, tiny_model(), dp_size=2)
    assert two.item() == pytest.approx(2 * one.item())
    with torch.no_grad():
        assert step(losses.sft_loss, tiny_model()) == step(plain_sft_loss, tiny_model())


def test_it_says_what_is_trained_once(losses, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.WARNING):
        importlib.import_module(MODULE)
        assert caplog.messages == []
        losses.sft_loss = plain_sft_loss
        sys.modules.pop(MODULE)
        monkeypatch.setenv("RANK", "0")
        importlib.import_module(MODULE)
    assert caplog.messages == [f"ProFit trains ProFit(threshold={THRESHOLD})."]


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [
        ({"PROFIT_TRESHOLD": "0.1"}, ConfigurationError, "has no field 'treshold'"),
        ({"PROFIT_NORMALIZE": "kept"}, ConfigurationError, "normalize 'kept' is exact in ProFitTrainer alone"),
        (
            {"PROFIT_GRADIENT_BUDGET": "0.003"},
            ConfigurationError,
            "gradient_budget needs hidden states, which verl keeps",
        ),
        (
            {"PROFIT_OBJECTIVE": "eaft", "PROFIT_THRESHOLD": ""},
            ConfigurationError,
            "needs topk_entropy, which the log-prob",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_import(losses, monkeypatch, environment, error, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=message):
        importlib.import_module(MODULE)
    assert losses.sft_loss is plain_sft_loss


def test_where_verl_has_taken_its_own_loss_already_nothing_is_trained(losses, monkeypatch):
    early = types.ModuleType("verl.trainer.early")
    early.sft_loss = plain_sft_loss
    monkeypatch.setitem(sys.modules, early.__name__, early)
    with pytest.raises(LossBypassedError, match="verl.trainer.early has taken verl's own sft_loss already"):
        importlib.import_module(MODULE)


def test_a_mask_of_another_shape_or_losses_in_place_of_log_probs_are_refused(losses):
    importlib.import_module(MODULE)
    data = {"batch_num_tokens": 3, "dp_size": 1, "response_mask": torch.ones(1, 3)}
    with pytest.raises(ValueError, match="log_probs must be at most 0, got 1: pass log p in nats"):
        losses.sft_loss(None, {"log_probs": torch.ones(1, 3)}, data)
    with pytest.raises(ValueError, match="label_mask must have the shape of log_probs"):
        losses.sft_loss(None, {"log_probs": -torch.ones(1, 4)}, data)
