"""The snippets of the page on other trainers, in stand-ins for what they replace: OpenRLHF 0.11, litgpt 0.5."""

import re
import sys
import types

import pytest
import torch
from small_trainer import THRESHOLD, batch, oracle

from profit_sft import NLL, ProFit, selective_cross_entropy, token_weights
from tiny import tiny_model


class SFTLoss(torch.nn.Module):
    """OpenRLHF's: the masked sum over the tokens of the whole step."""

    def forward(self, per_token_logps, loss_mask, dp_size=1, batch_num_tokens=None, global_batch_size=None):
        return -(per_token_logps * loss_mask).sum() / batch_num_tokens * dp_size


@pytest.fixture
def snippet(repo_root, monkeypatch):
    """Run the block that imports a module, and return what it leaves in the module's stand-in."""

    def run(name, **contents):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], sys.modules[".".join(parts[:end])])
        module = sys.modules[name]
        vars(module).update(contents)
        page = (repo_root / "docs" / "how-to" / "other-trainers.md").read_text(encoding="utf-8")
        block = next(text for text in re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL) if name in text)
        space = {"torch": torch, "token_weights": token_weights, "ProFit": ProFit, "NLL": NLL}
        code = block.replace("threshold=0.1", f"threshold={THRESHOLD}")
        exec(code, {**space, "selective_cross_entropy": selective_cross_entropy})
        return module

    return run


@pytest.fixture
def rows():
    """Logits and labels of the eight rows, lined up, with gradients."""
    found, model = batch(), tiny_model()
    labels = found.pop("labels")
    return model, model(**found).logits[:, :-1], labels[:, 1:]


def assert_is_the_objective(loss, model):
    expected, expected_norm, _ = oracle(ProFit(threshold=THRESHOLD))
    norm = torch.stack([part.norm() for part in torch.autograd.grad(loss, list(model.parameters()))]).norm()
    assert (loss.item(), norm.item()) == (pytest.approx(expected, rel=1e-5), pytest.approx(expected_norm, rel=1e-5))


def test_openrlhf(snippet, rows):
    model, logits, labels = rows
    loss_fn = snippet("openrlhf.trainer.sft_trainer", SFTLoss=SFTLoss).SFTLoss()
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    mask = (labels != -100).float()
    counts = {"dp_size": 1, "batch_num_tokens": mask.sum()}
    assert_is_the_objective(loss_fn(log_probs, mask, **counts), model)
    with torch.no_grad():
        torch.testing.assert_close(loss_fn(log_probs, mask, **counts), SFTLoss()(log_probs, mask, **counts))


@pytest.mark.parametrize("chunked", [True, False])
def test_litgpt(snippet, rows, chunked):
    model, logits, labels = rows
    loss = snippet("litgpt.finetune.full").chunked_cross_entropy
    given = list(logits.split(5, dim=1)) if chunked else logits
    assert_is_the_objective(loss(given, labels), model)
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        torch.testing.assert_close(loss(given, labels, chunk_size=0), plain)
