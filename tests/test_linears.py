"""Linear layers by oneDNN: the numbers of PyTorch's own, for those layers alone that it can multiply."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from profit_sft import NLL, apply_profit, linears
from profit_sft.head import label_statistics
from profit_sft.linears import linears_by_onednn, onednn_is_faster

AMD = {"avx512_f": True, "cpu_name": "AMD EPYC"}
FAMILIES = {"llama": {}, "qwen2": {}, "gpt2": {}}  # no bias, a bias of some, no nn.Linear but the head


def make(family, **overrides):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**tiny.SIZES, **FAMILIES[family], **overrides})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_as_near_to_those_of_float64_as_pytorchs_own(family, onednn_products):
    model, input_ids = make(family), torch.arange(24).view(2, 12) % tiny.VOCAB_SIZE
    own = model(input_ids=input_ids).logits
    assert not onednn_products
    with linears_by_onednn(model):
        found = model(input_ids=input_ids).logits
    layers = [part for part in model.modules() if type(part) is nn.Linear]
    assert len(onednn_products) == len(layers)
    assert any(has_bias for _, has_bias in onednn_products) == any(layer.bias is not None for layer in layers)
    wanted = model.double()(input_ids=input_ids).logits
    # Sums of a few dozen onednn_products in another order, through a few layers.
    assert (found - wanted).norm() <= 4 * (own - wanted).norm()


def test_the_model_is_afterwards_as_it_was(onednn_products):
    model = make("llama")
    forward = model.lm_head.forward
    with pytest.raises(RuntimeError, match="stop"), linears_by_onednn(model):
        assert "forward" in vars(model.lm_head)
        raise RuntimeError("stop")
    assert not [part for part in model.modules() if "forward" in vars(part)]
    assert model.lm_head.forward == forward


def with_gradients(layer, rows):
    return layer(rows)


@torch.no_grad()
def in_autocast(layer, rows):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(rows)


@torch.no_grad()
def in_float64(layer, rows):
    return layer.double()(rows.double())


@torch.no_grad()
def in_bf16(layer, rows):
    return layer.bfloat16()(rows.bfloat16())


@torch.no_grad()
def without_rows(layer, rows):
    return layer(rows[:0])


@torch.no_grad()
def transposed(layer, rows):
    layer.weight.data = layer.weight.data.T.contiguous().T
    return layer(rows)


class Tagged(torch.Tensor):
    """As quantized and sharded matrices are: a tensor of a class of its own."""


@torch.no_grad()
def of_its_own_class(layer, rows):
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Tagged))
    return layer(rows)


OTHERS = [with_gradients, in_autocast, in_float64, in_bf16, without_rows, transposed, of_its_own_class]


@pytest.mark.parametrize("call", OTHERS)
def test_what_onednn_is_not_asked_for_is_pytorchs_own(call, onednn_products):
    found = []
    for within in (lambda layer: nullcontext(), linears_by_onednn):
        torch.manual_seed(0)
        layer, rows = nn.Linear(24, 40), torch.randn(5, 24)
        with within(layer):
            found.append(call(layer, rows))
    assert not onednn_products
    own, ours = found
    assert ours.dtype == own.dtype
    assert torch.equal(ours, own)
    assert ours.requires_grad == (call is with_gradients)


@torch.no_grad()
def test_a_forward_that_another_library_installed_is_called(onednn_products):
    layer = nn.Linear(4, 4)
    layer.forward = lambda rows: rows + 1
    with linears_by_onednn(layer):
        assert layer(torch.zeros(1, 4)).tolist() == [[1.0] * 4]
    assert "forward" in vars(layer)
    assert not onednn_products


@pytest.mark.parametrize("has_head", [False, True])
def test_a_look_at_labels_takes_them_and_a_step_does_not(has_head, onednn_products):
    model, input_ids = make("llama"), torch.arange(24).view(2, 12) % tiny.VOCAB_SIZE
    if has_head:
        apply_profit(model, NLL())
    plain = label_statistics(model, input_ids=input_ids, labels=input_ids).log_probs
    layers = [part for part in model.model.modules() if type(part) is nn.Linear]
    assert len(onednn_products) >= len(layers)
    onednn_products.clear()
    apply_profit(model.train(), NLL())(input_ids=input_ids, labels=input_ids).loss.backward()
    assert not onednn_products
    with torch.no_grad():
        log_probs = model.eval()(input_ids=input_ids).logits.log_softmax(-1)[:, :-1]
    wanted = log_probs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(plain[:, :-1], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("found", "faster"),
    [
        (AMD, True),
        ({**AMD, "avx512_f": False}, False),
        ({**AMD, "cpu_name": "Intel(R) Xeon(R) Platinum 8480+"}, False),
        ({}, False),
    ],
)
def test_it_is_for_processors_that_mkl_leaves_half_unused(found, faster, monkeypatch):
    if linears._PRODUCT is None or not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        pytest.skip("nothing to choose: this build of torch has not both MKL and oneDNN")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert onednn_is_faster.__wrapped__() == faster
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not onednn_is_faster.__wrapped__()
