"""Inputs with likely labels, the tolerance that rounding allows, and the backends and objectives under test."""

import math

import torch

from profit_sft import selective_linear_cross_entropy
from profit_sft.loss.reference import reference_log_probs_of, reference_loss
from profit_sft.objectives import ASFT, DFT, EAFT, NLL, Focal, Power, ProFit, Rho

BACKENDS = ["chunked"]  # "triton" has test_triton_kernels.py: the interpreter takes seconds for these sizes
THRESHOLD = 0.1
OBJECTIVES = [
    NLL(),
    ProFit(threshold=THRESHOLD),
    ProFit(threshold=THRESHOLD, direction="lower"),
    ProFit(threshold=0.02, upper_threshold=0.6, direction="middle"),
    ProFit(threshold=THRESHOLD, mask_source="reference"),
    DFT(),
    EAFT(alpha=0.5),
    Power(k=2.0),
    Focal(),
    ASFT(),
    Rho(keep_share=0.4),
]
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.7},
    "softcap": {"logit_softcap": 12.0},
    "all": {"bias": True, "logit_scale": 1.3, "logit_softcap": 15.0},
}
N, D, V = 257, 127, 5003


def planted_problem(dtype=torch.float32, *, bias=False, sizes=(N, D, V), seed=0, falling=0.0, **head):
    """Hidden states that lean toward their label's row; no p within rounding of a threshold under test.

    `randn` inputs would give every label p below 0.001, and a masked test is an empty one. `falling` is how far logits
    fall from the first column to the last; where they do not, no column is so small that a gradient budget drops it.
    """
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
    scale = head.get("logit_scale", 1.0), head.get("logit_softcap")
    dense = reference_log_probs_of(
        hidden.double(),
        lm_head_weight.double(),
        labels,
        bias=None if vector is None else vector.double(),
        logit_scale=scale[0],
        logit_softcap=scale[1],
    )
    log_probs = dense.gather(-1, labels[:, None]).squeeze(1)
    close = torch.zeros(tokens, dtype=torch.bool)
    for threshold in (THRESHOLD, 0.02, 0.6):
        close |= (log_probs - math.log(threshold)).abs() < 1e-3
    labels[close] = -100
    labels[5:12] = -100
    counted = labels != -100
    kept_share = (log_probs[counted] >= math.log(THRESHOLD)).double().mean()
    assert 0.2 < kept_share < 0.8, kept_share
    return hidden, lm_head_weight, labels, vector, reference


def tolerance(dtype, hidden, lm_head_weight):
    """Relative error of a gradient's norm: one rounding to the stored dtype, and fp32 arithmetic on the logits."""
    largest = (hidden.double() @ lm_head_weight.double().T).abs().max().item()
    return 0.5 * torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps * largest


def both(problem, objective, *, head=None, backend="chunked", reference_options=None, **options):
    """Run a backend and the float64 oracle on the same inputs; return (result, gradients) of each."""
    head = {name: value for name, value in (head or {}).items() if name != "bias"}
    hidden, lm_head_weight, labels, bias, reference = problem
    inputs = [
        tensor.detach().clone().requires_grad_() for tensor in (hidden, lm_head_weight, bias) if tensor is not None
    ]
    result = selective_linear_cross_entropy(
        inputs[0],
        inputs[1],
        labels,
        objective=objective,
        bias=inputs[2] if bias is not None else None,
        reference_log_probs=reference.view(labels.shape),
        backend=backend,
        **head,
        **options,
    )
    gradients = torch.autograd.grad(result.loss, inputs)
    exact = [tensor.detach().double().reshape(-1, tensor.shape[-1]) for tensor in inputs[:2]]
    exact += [tensor.detach().double() for tensor in inputs[2:]]
    exact = [tensor.requires_grad_() for tensor in exact]
    kept_options = {name: options[name] for name in ("normalize", "num_items", "ignore_index") if name in options}
    loss, values = reference_loss(
        exact[0],
        exact[1],
        labels.reshape(-1),
        objective=objective,
        bias=exact[2] if bias is not None else None,
        reference_log_probs=reference.double().reshape(-1),
        weights=options["weights"].reshape(-1) if options.get("weights") is not None else None,
        **head,
        **kept_options,
    )
    return (result, gradients), (loss, torch.autograd.grad(loss, exact), values)


def assert_close(actual, expected, bound):
    for found, wanted in zip(actual, expected, strict=True):
        error = (found.double().reshape(wanted.shape) - wanted).norm()
        assert error <= bound * wanted.norm(), (float(error / wanted.norm()), bound)
