"""Inputs with likely labels, the tolerance that rounding allows, and the places and objectives under test."""

import dataclasses
import functools
import math
import os
from importlib.util import find_spec

import fake_accelerator
import pytest
import torch

from profit_sft import selective_linear_cross_entropy
from profit_sft.loss.reference import reference_log_probs_of, reference_loss
from profit_sft.objectives import (
    ASFT,
    DEFT,
    DFT,
    EAFT,
    FROM_THE_BATCH,
    NLL,
    PSFT,
    STM,
    Focal,
    Given,
    HighEntropy,
    Power,
    ProFit,
    Rho,
    TrSFT,
)

THRESHOLD = 0.1
OBJECTIVES = [
    NLL(),
    ProFit(threshold=THRESHOLD),
    ProFit(threshold=THRESHOLD, direction="lower"),
    ProFit(threshold=0.02, upper_threshold=0.6, direction="middle"),
    ProFit(threshold=THRESHOLD, mask_source="reference"),
    TrSFT(alpha=0.4),
    DFT(),
    DFT(threshold=THRESHOLD),
    DEFT(),
    EAFT(alpha=0.5, scale=1.0),
    HighEntropy(keep_share=0.4),
    Power(k=2.0),
    Power(k=0.5, threshold=THRESHOLD),
    Focal(),
    Given(),
    STM(),
    PSFT(),
    ASFT(),
    Rho(keep_share=0.4),
]
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.7},
    "softcap": {"final_logit_softcapping": 12.0},
    "all": {"bias": True, "logit_scale": 1.3, "final_logit_softcapping": 15.0},
}
N, D, V = 257, 127, 5003


@dataclasses.dataclass(frozen=True)
class Place:
    """A row of the table: a backend, the device it runs on, and the sizes N, D, V it does in a fraction of a second.

    `chunk_size` splits N tokens into several chunks.
    """

    backend: str
    device: torch.device
    sizes: tuple[int, int, int] = (N, D, V)
    chunk_size: int = 64

    @property
    def native(self):
        """Whether 16-bit operands are multiplied as they are."""
        return self.device.type == "cuda"


def _row(backend, device, *marks, **options):
    place = Place(backend, torch.device(device), **options)
    return pytest.param(place, id=f"{backend}-{'accelerator' if device == 'meta' else device}", marks=marks)


def _needed(condition, reason):
    return pytest.mark.skipif(not condition, reason=reason)


_TRITON = _needed(find_spec("triton"), "the package triton is not installed")
_INTERPRETER = _needed(os.environ.get("TRITON_INTERPRET") == "1", "with a GPU the kernels are compiled for it")
_CUDA = pytest.mark.gpu, _needed(torch.cuda.is_available(), "needs a CUDA device")
CPU = Place("chunked", torch.device("cpu"))
PLACES = [
    _row("chunked", "cpu"),
    # Just large enough to be screened, and no block divides them: the interpreter takes a millisecond for each.
    _row("triton", "cpu", _TRITON, _INTERPRETER, sizes=(41, 33, 2311), chunk_size=17),
    _row("chunked", fake_accelerator.DEVICE.type, sizes=(61, 33, 2311), chunk_size=24),
    _row("chunked", "cuda", *_CUDA),
    _row("triton", "cuda", _TRITON, *_CUDA),
]


def planted_problem(place=None, dtype=torch.float32, *, sizes=None, **options):
    """Hidden states that lean toward their label's row; no p within rounding of a threshold under test.

    `randn` inputs would give every label p below 0.001, and a masked test is an empty one. `falling` is how far logits
    fall from the first column to the last; where they do not, no column is so small that a gradient budget drops it.
    """
    made = _planted(sizes or (place or CPU).sizes, dtype, **options)
    return tuple(None if tensor is None else tensor.clone() for tensor in made)


@functools.lru_cache(maxsize=64)  # a quarter of the time of these tests, which plant the same again and again
def _planted(sizes, dtype, *, bias=False, seed=0, falling=0.0, **head):
    generator = torch.Generator().manual_seed(seed)
    tokens, width, vocab_size = sizes
    spread = 0.15 * (D / width) ** 0.5
    lm_head_weight = (spread * torch.randn(vocab_size, width, generator=generator)).to(dtype)
    if falling:
        lm_head_weight[:, 0] = (-falling * torch.arange(vocab_size) / vocab_size).to(dtype)
    # Frequent tokens come first, as in byte-pair vocabularies.
    labels = (vocab_size ** torch.rand(tokens, generator=generator) - 1).long().clamp(0, vocab_size - 1)
    labels[:2] = torch.tensor([0, vocab_size - 1])
    lean = 8 * torch.rand(tokens, 1, generator=generator)
    hidden = (torch.randn(tokens, width, generator=generator) + lean * lm_head_weight[labels].float()).to(dtype)
    if falling:
        hidden[:, 0] = 1.0
    vector = (0.5 * torch.randn(vocab_size, generator=generator)).to(dtype) if bias else None
    reference = -3.0 * torch.rand(tokens, generator=generator)
    scale = head.get("logit_scale", 1.0), head.get("final_logit_softcapping")
    dense = reference_log_probs_of(
        hidden.double(),
        lm_head_weight.double(),
        labels,
        bias=None if vector is None else vector.double(),
        logit_scale=scale[0],
        final_logit_softcapping=scale[1],
    )
    log_probs = dense.gather(-1, labels[:, None]).squeeze(1)
    close = torch.zeros(tokens, dtype=torch.bool)
    for threshold in (THRESHOLD, 0.02, 0.4, 0.6):
        close |= (log_probs - math.log(threshold)).abs() < 1e-3
    labels[close] = -100
    labels[5:12] = -100
    counted = labels != -100
    kept_share = (log_probs[counted] >= math.log(THRESHOLD)).double().mean()
    assert 0.2 < kept_share < 0.8, kept_share
    return hidden, lm_head_weight, labels, vector, reference


def beside(objective, reference):
    """What comes with the labels: the reference and, where the objective reads them, weights of which half are 0."""
    given = {"reference_log_probs": reference}
    if "token_weights" in objective.needs:
        likely = reference.exp()
        given["token_weights"] = torch.where(likely > 0.22, 2 * likely, torch.zeros_like(likely))
    return given


def tolerance(dtype, hidden, lm_head_weight, place=None):
    """Relative error of a gradient's norm: one rounding to the stored dtype, and fp32 arithmetic on the logits.

    Where 16-bit operands are multiplied as they are, the gradient of the logits is rounded to their dtype before.
    """
    largest = (hidden.double() @ lm_head_weight.double().T).abs().max().item()
    roundings = 2 if place is not None and place.native and dtype.itemsize == 2 else 1
    return roundings * 0.5 * torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps * largest


def skip_without_float64(place):
    if place.backend == "triton" or place.device == fake_accelerator.DEVICE:
        pytest.skip("the kernels compute in fp32" if place.backend == "triton" else "no float64 on this device")


def selective_loss(place, hidden, lm_head_weight, labels, **options):
    """Call the loss at a place, on inputs that lie on the CPU; what it finds comes back there, and so do gradients."""

    def there(value):
        return value.to(place.device) if isinstance(value, torch.Tensor) else value

    result = selective_linear_cross_entropy(
        there(hidden),
        there(lm_head_weight),
        there(labels),
        backend=place.backend,
        **{name: there(value) for name, value in options.items()},
    )
    found = {name: getattr(result, name) for name in (field.name for field in dataclasses.fields(result))}
    return dataclasses.replace(
        result, **{name: value.cpu() for name, value in found.items() if isinstance(value, torch.Tensor)}
    )


def both(problem, objective, *, place, head=None, **options):
    """Run a backend and the float64 oracle on the same inputs; return (result, gradients) of each."""
    return ours(problem, objective, place=place, head=head, **options), oracle(problem, objective, head=head, **options)


def ours(problem, objective, *, place, head=None, **options):
    """Run a backend; return its result and the gradients of hidden states, head and bias."""
    hidden, lm_head_weight, labels, bias, reference = problem
    inputs = [
        tensor.detach().clone().requires_grad_() for tensor in (hidden, lm_head_weight, bias) if tensor is not None
    ]
    result = selective_loss(
        place,
        *inputs[:2],
        labels,
        objective=objective,
        bias=inputs[2] if bias is not None else None,
        **without_bias(head),
        **{**beside(objective, reference.view(labels.shape)), **options},
    )
    return result, torch.autograd.grad(result.loss, inputs)


def oracle(problem, objective, *, head=None, **options):
    """Run the float64 oracle; return its loss, the same gradients, and its values by token."""
    hidden, lm_head_weight, labels, bias, reference = problem
    exact = [tensor.detach().double().reshape(-1, tensor.shape[-1]) for tensor in (hidden, lm_head_weight)]
    exact += [] if bias is None else [bias.detach().double()]
    exact = [tensor.requires_grad_() for tensor in exact]
    kept_options = {
        name: options[name] for name in ("normalize", "num_items_in_batch", "ignore_index") if name in options
    }
    loss, values = reference_loss(
        exact[0],
        exact[1],
        labels.reshape(-1),
        objective=objective,
        bias=exact[2] if bias is not None else None,
        **{
            name: value.double().reshape(-1)
            for name, value in {**beside(objective, reference.view(labels.shape)), **options}.items()
            if name in FROM_THE_BATCH and value is not None
        },
        **without_bias(head),
        **kept_options,
    )
    return loss, torch.autograd.grad(loss, exact), values


def without_bias(head):
    return {name: value for name, value in (head or {}).items() if name != "bias"}


def assert_close(actual, expected, bound):
    for found, wanted in zip(actual, expected, strict=True):
        error = (found.double().reshape(wanted.shape) - wanted).norm()
        assert error <= bound * wanted.norm(), (float(error / wanted.norm()), bound)


def assert_within_budget(problem, result, d_hidden, exact, values, *, logit_scale=1.0, rounding=1e-5):
    """Check the bound that a gradient budget states, `sum_t ||dH_t - exact_t|| <= share * sum |G| * max_v ||W_v||`."""
    # sum |G| <= 2 w (1 - p) * scale * slope, with slope <= 1
    mass = (
        (2 * values["token_weights"] * (1 - values["log_probs"].exp())).sum() / (problem[2] != -100).sum() * logit_scale
    )
    largest_row = problem[1].double().norm(dim=-1).max()
    error = (d_hidden.double() - exact).norm(dim=-1).sum()
    slack = rounding * exact.norm(dim=-1).sum()
    assert error <= float(result.dropped_share) * mass * largest_row + slack
