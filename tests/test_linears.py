"""Linear layers by oneDNN: the numbers of PyTorch's own, for those layers alone that it can multiply."""

import copy
from contextlib import nullcontext

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from profit_sft import NLL, apply_profit, linears
from profit_sft.head import label_statistics
from profit_sft.linears import linears_by_onednn, onednn_is_faster
from profit_sft.models.embedded import embedded_model_folder
from profit_sft.models.pretrained import load_model

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


def test_layers_that_lie_elsewhere_are_not_touched(onednn_products):
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    with linears_by_onednn(layers):
        assert ["forward" in vars(part) for part in layers] == [True, False]


def test_a_forward_taken_away_meanwhile_leaves_no_other_behind(onednn_products):
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with linears_by_onednn(layers):
        del layers[0].forward
    assert not [part for part in layers if "forward" in vars(part)]
    assert not onednn_products


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
def without_outputs(layer, rows):
    layer.weight, layer.bias = nn.Parameter(layer.weight[:0]), nn.Parameter(layer.bias[:0])
    return layer(rows)


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


def with_a_linear_of_another_library(layer, rows):
    with pytest.MonkeyPatch.context() as patch:
        own = F.linear
        patch.setattr(F, "linear", lambda *inputs: own(*inputs))
        return layer(rows)


def with_what_is_saved_taken_by_hooks(layer, rows):
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
        return layer(rows)


WITH_GRADIENTS = [with_a_linear_of_another_library, with_what_is_saved_taken_by_hooks]
OTHERS = [
    *WITH_GRADIENTS,
    in_autocast,
    in_float64,
    in_bf16,
    without_rows,
    without_outputs,
    transposed,
    of_its_own_class,
]


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
    assert ours.requires_grad == (call in WITH_GRADIENTS)


@pytest.mark.parametrize(("shape", "device"), [((5, 23), "cpu"), ((), "cpu"), ((5, 24), "meta")], ids=str)
def test_a_mistake_is_pytorchs_own(shape, device, onednn_products):
    layer, rows, said = nn.Linear(24, 40), torch.ones(shape, device=device), []
    for within in (nullcontext(), linears_by_onednn(layer)):
        with within, pytest.raises(RuntimeError) as error:
            layer(rows)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert not onednn_products


@torch.no_grad()
def test_a_forward_that_another_library_installed_is_called(onednn_products):
    layer = nn.Linear(4, 4)
    layer.forward = lambda rows: rows + 1
    with linears_by_onednn(layer):
        assert layer(torch.zeros(1, 4)).tolist() == [[1.0] * 4]
    assert "forward" in vars(layer)
    assert not onednn_products


def contiguous(*shape):
    return torch.randn(shape)


def transposed_rows(*shape):
    return torch.randn(shape[::-1]).permute(*range(len(shape))[::-1])


def one_number(*shape):
    return torch.randn(()).expand(shape)


def gradients(layer, rows, upstream, dtype=torch.float32):
    """Output, dX, dW and db, None where nobody wants them."""
    layer = copy.deepcopy(layer).to(dtype)
    rows = rows.detach().to(dtype).requires_grad_(rows.requires_grad)
    output = layer(rows)
    if output.requires_grad:
        output.backward(upstream.to(dtype))
    return [output.detach(), rows.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad]


@pytest.mark.parametrize("wanted", ["all", "frozen", "input without gradient", "bias alone", "nothing"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("made", [contiguous, transposed_rows, one_number])
@pytest.mark.parametrize("shape", [(), (37,), (3, 41), (1, 1), (2, 0)], ids=str)
def test_gradients_are_off_those_of_float64_by_at_most_twice_pytorchs_own_error(
    shape, made, has_bias, wanted, onednn_products, monkeypatch
):
    torch.manual_seed(0)
    layer = nn.Linear(96, 80, bias=has_bias)
    layer.weight.requires_grad_(wanted in ("all", "input without gradient"))
    if has_bias:
        layer.bias.requires_grad_(wanted not in ("frozen", "nothing"))
    rows = made(*shape, 96).requires_grad_(wanted in ("all", "frozen"))
    upstream = made(*shape, 80)
    exact = gradients(layer, rows, upstream, torch.float64)
    own = gradients(layer, rows, upstream)
    monkeypatch.setattr(nn.Linear, "forward", linears._forward)
    found = gradients(layer, rows, upstream)
    products = 1 + rows.requires_grad + layer.weight.requires_grad
    assert len(onednn_products) == (products if rows.numel() else 0)
    for ours, torchs, true in zip(found, own, exact, strict=True):
        assert (ours is None) == (torchs is None) == (true is None)
        if ours is not None:
            assert ours.shape == torchs.shape
            assert ours.stride() == torchs.stride()
            # oneDNN adds in longer chains: measured 1.0 to 2.0 times MKL's error. A single entry may be off by chance.
            rounding = 2 * torch.finfo(torch.float32).eps * true.norm()
            assert (ours - true).norm() <= 2 * (torchs - true).norm() + rounding


def test_what_no_gradient_needs_is_not_kept(onednn_products):
    layer, rows = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    for of_rows, of_weight in ((True, False), (False, True)):
        rows.requires_grad_(of_rows)
        layer.weight.requires_grad_(of_weight)
        with linears_by_onednn(layer):
            node = layer(rows).grad_fn
        assert [saved is not None for saved in node.saved_tensors] == [of_weight, of_rows]
    assert onednn_products


def test_a_second_derivative_is_refused(onednn_products):
    layer, rows = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    with linears_by_onednn(layer):
        (first,) = torch.autograd.grad(layer(rows).square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_checkpointing_runs_again_give_the_same_gradients(reentrant, onednn_products):
    torch.manual_seed(0)
    layer, rows = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)), torch.randn(5, 24, requires_grad=True)
    found = []
    for within in (lambda layer: nullcontext(), linears_by_onednn):
        layer.zero_grad()
        with within(layer):
            output = checkpoint(layer, rows, use_reentrant=reentrant)
        output.square().sum().backward()  # outside, where the layers are PyTorch's own
        found.append([part.grad for part in layer.parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_what_was_compiled_is_not_compiled_again(onednn_products):
    for compiled in (False, True):
        model = nn.Sequential(nn.Linear(4, 4))
        if compiled:
            model[0].compile(backend="eager")
        for whole in (model, nn.Sequential(torch.compile(model, backend="eager")) if compiled else model):
            with linears_by_onednn(whole):
                assert ("forward" in vars(model[0])) == (not compiled)


def test_what_is_compiled_around_it_is_one_graph():
    layer, rows = nn.Linear(4, 4), torch.ones(2, 4)

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(rows):
        with linears_by_onednn(layer):
            return layer(rows)

    assert torch.equal(compiled(rows), layer(rows))


def step(model, input_ids):
    model.zero_grad()
    loss = model(input_ids=input_ids, labels=input_ids).loss
    loss.backward()
    return loss.detach(), {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # asked for by dynamo itself
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("uses", ["whole", "lora", "compiled layers", "hooks"])
def test_a_step_by_onednn_is_one_by_mkl(family, uses, onednn_products, monkeypatch):
    model, input_ids = make(family).train(), torch.arange(24).view(2, 12) % tiny.VOCAB_SIZE
    apply_profit(model, NLL())
    if uses == "lora":
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    if uses == "compiled layers":
        for layer in model.model.layers:
            layer.compile(backend="eager")
    seen: list[int] = []
    step(model, input_ids)  # the first one tries whether padding can be skipped
    onednn_products.clear()
    if uses == "hooks":
        for part in model.model.modules():
            if type(part) is nn.Linear:
                part.register_forward_hook(lambda *given: seen.append(0))
    found = step(model, input_ids)
    assert bool(onednn_products) == (uses != "compiled layers")
    called = len(seen)
    onednn_products.clear()
    monkeypatch.setattr(linears, "onednn_is_faster", lambda: False)
    torch.testing.assert_close(found, step(model, input_ids), rtol=1e-4, atol=1e-6)
    assert not onednn_products
    assert called * 2 == len(seen)
    copy.deepcopy(model)  # nothing was left behind
    assert not [part for part in model.modules() if type(part) is nn.Linear and "forward" in vars(part)]


@pytest.mark.model
def test_a_step_of_the_real_model_by_onednn_is_one_by_mkl(onednn_products, monkeypatch):
    model = load_model(embedded_model_folder()).train()
    input_ids = torch.arange(40).view(2, 20) * 37 + 100
    apply_profit(model, NLL())
    loss, found = step(model, input_ids)
    layers = [part for part in model.model.modules() if type(part) is nn.Linear]
    assert len(onednn_products) == 3 * len(layers)
    monkeypatch.setattr(linears, "onednn_is_faster", lambda: False)
    own_loss, own = step(model, input_ids)
    torch.testing.assert_close(loss, own_loss, rtol=1e-5, atol=0)
    for name, gradient in found.items():
        assert (gradient - own[name]).norm() <= 1e-4 * own[name].norm(), name


@pytest.mark.parametrize("has_head", [False, True])
def test_a_look_at_labels_takes_them(has_head, onednn_products):
    model, input_ids = make("llama"), torch.arange(24).view(2, 12) % tiny.VOCAB_SIZE
    if has_head:
        apply_profit(model, NLL())
    plain = label_statistics(model, input_ids=input_ids, labels=input_ids).log_probs
    layers = [part for part in model.model.modules() if type(part) is nn.Linear]
    assert len(onednn_products) >= len(layers)
    onednn_products.clear()
    with torch.no_grad():
        log_probs = model.eval()(input_ids=input_ids).logits.log_softmax(-1)[:, :-1]
    assert not onednn_products
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
