"""NeMo AutoModel's loss class, on a stand-in for its base class, called with its keywords."""

import importlib
import logging
import re
import sys
import types

import pytest
import torch
from small_trainer import THRESHOLD, batch, oracle

from profit_sft import ProFit
from profit_sft.errors import ConfigurationError
from tiny import tiny_model


class LinearCrossEntropy(torch.nn.Module):
    """Its head's matrix may be sharded; here it never is."""

    @staticmethod
    def materialize_lm_weight(lm_weight, *, grad_reduce_group=None):
        return lm_weight


@pytest.fixture
def nemo(monkeypatch):
    names = ("nemo_automodel", "nemo_automodel.components", "nemo_automodel.components.loss")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    base = types.ModuleType("nemo_automodel.components.loss.linear_ce_base")
    base.LinearCrossEntropy = LinearCrossEntropy
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "profit_sft.integrations.nemo_automodel", raising=False)
    yield importlib.import_module("profit_sft.integrations.nemo_automodel")
    sys.modules.pop("profit_sft.integrations.nemo_automodel", None)


def calls(parts):
    """What its recipe hands over for the eight rows, in so many micro-batches: labels shifted already."""
    rows, model = batch(), tiny_model()
    labels = torch.cat([rows.pop("labels")[:, 1:], torch.full((8, 1), -100)], dim=1)
    hidden_states = model.model(**rows).last_hidden_state
    num_label_tokens = int((labels != -100).sum())
    for some, theirs in zip(hidden_states.chunk(parts), labels.chunk(parts), strict=True):
        yield (
            model,
            {
                "num_label_tokens": num_label_tokens,
                "hidden_states": some,
                "labels": theirs,
                "lm_weight": model.lm_head.weight,
                "grad_reduce_group": None,
            },
        )


@pytest.mark.parametrize("parts", [1, 4])
def test_it_is_the_objective_over_any_micro_batches(nemo, parts):
    loss_fn = nemo.ProFitCrossEntropy(threshold=THRESHOLD)
    total, model = 0.0, None
    for made, keywords in calls(parts):
        model = made
        total = total + loss_fn(**keywords)
    norm = torch.stack([part.norm() for part in torch.autograd.grad(total, list(model.parameters()))]).norm()
    expected, expected_norm, _ = oracle(ProFit(threshold=THRESHOLD))
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert norm.item() == pytest.approx(expected_norm, rel=1e-5)


def test_validation_is_plain_nll_and_flat_rows_are_taken(nemo):
    loss_fn = nemo.ProFitCrossEntropy(threshold=THRESHOLD)
    ((_, keywords),) = calls(1)
    flat = {
        **keywords,
        "hidden_states": keywords["hidden_states"].flatten(0, 1),
        "labels": keywords["labels"].flatten(),
    }
    logits = flat["hidden_states"] @ keywords["lm_weight"].T
    with torch.no_grad():
        torch.testing.assert_close(loss_fn(**flat), torch.nn.functional.cross_entropy(logits, flat["labels"]))


def test_it_says_what_is_trained(nemo, caplog):
    with caplog.at_level(logging.WARNING):
        loss_fn = nemo.ProFitCrossEntropy(prob_threshold=0.3, final_logit_softcapping=30.0)
    assert caplog.messages == ["ProFit trains ProFit(threshold=0.3) on hidden states."]
    assert loss_fn.ignore_index == -100  # NeMo reads it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": 0.1}, "loss_fn: objective 'profit' has no field 'treshold'"),
        ({"normalize": "kept"}, "loss_fn: normalize 'kept' is exact in ProFitTrainer alone"),
        ({"objective": "asft"}, "loss_fn: ASFT(kl_coef=0.1) needs reference_log_probs beside"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_the_loss_is_made(nemo, settings, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        nemo.ProFitCrossEntropy(**settings)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loss_weights": torch.ones(8)}, "the data set's loss_weights and ProFit both weigh tokens"),
        ({"teacher_logits": torch.ones(8)}, "ProFit does not know what teacher_logits asks for"),
    ],
)
def test_what_would_be_left_out_is_refused(nemo, more, message):
    ((_, keywords),) = calls(1)
    with pytest.raises(ConfigurationError, match=message):
        nemo.ProFitCrossEntropy()(**keywords, **more)
