"""NaN in every fresh floating-point buffer, so that a backend which forgets an element fails."""

import fake_accelerator
import pytest
import torch

from profit_sft.loss import chunked, devices


def _poisoned(create):
    def made(*args, **kwargs):
        tensor = create(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    return made


@pytest.fixture(autouse=True)
def fresh_buffers_hold_nan(monkeypatch):
    monkeypatch.setattr(torch, "empty", _poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", _poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def accelerator(request, fresh_buffers_hold_nan):
    """The fake device, entered for the rows of the table that run on it; None for the others."""
    place = request.getfixturevalue("place") if "place" in request.fixturenames else None
    if place is None or place.device != fake_accelerator.DEVICE:
        yield None
        return
    with fake_accelerator.Accelerator() as entered:
        yield entered


@pytest.fixture(autouse=True)
def kept_buffers_hold_nan(monkeypatch):
    """The memory of logits that calls share is as good as fresh."""

    def give_back(memory):
        memory[:, : -devices._ROW_PADDING] = float("nan")
        devices.give_back_logits_memory(memory)

    monkeypatch.setattr(chunked, "give_back_logits_memory", give_back)
    devices._kept.clear()
    yield
    devices._kept.clear()
