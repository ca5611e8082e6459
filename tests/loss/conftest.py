"""NaN in every fresh floating-point buffer, so that a backend which forgets an element fails."""

import pytest
import torch


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
