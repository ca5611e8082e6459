"""Linear layers on CPUs where oneDNN multiplies fp32 faster than MKL, which is what PyTorch takes.

MKL uses AVX-512 on Intel's processors alone. On one core of an AMD Zen 5, rows times a matrix of 1,536 x 576:

    rows           1     8    16    64   256  1024
    MKL, ms     0.22  0.38  0.53  1.31  4.45  16.0
    oneDNN, ms  0.17  0.28  0.34  0.76  2.40  7.5

So do both products of the backward, of transposed matrices as they lie: 16.0 and 16.5 ms for 1,024 rows by MKL, 7.4 and
9.1 by oneDNN. Transposing them first costs more than it saves. Both libraries sum in fp32, oneDNN in longer chains:
its outputs and gradients are 2.5e-7 to 5e-7 off those of float64 where MKL's are 2.5e-7 (relative, 1,024 rows).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# What torch.compile makes of a linear layer. Private, and not in every build; without it MKL is what is left.
_PRODUCT: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@cache
def onednn_is_faster() -> bool:
    """Say whether this machine's CPU is one that MKL leaves half unused: AMD's with AVX-512."""
    # Not in every version of torch; without it nothing is known of the processor.
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_width = bool(found.get("avx512_f")) and str(found.get("cpu_name", "")).startswith("AMD")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return has_width and has_both and _PRODUCT is not None


@contextmanager
def linears_by_onednn(module: nn.Module) -> Iterator[None]:
    """Have the linear layers in a module multiply by oneDNN where that is faster, and their backward as well.

    Args:
        module: A model or part of one. Afterwards it is as it was. Layers that another library has given a forward of
            its own are left alone, as is what is not fp32 on a CPU, and a module of which torch.compile has a part.
    """
    changed = []
    if not torch.compiler.is_compiling() and onednn_is_faster():
        parts = list(module.modules())
        if not any(map(_is_compiled, parts)):
            changed = [part for part in parts if type(part) is nn.Linear and _may_be_changed(part)]
    for linear in changed:
        linear.forward = partial(_forward, linear)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in changed:
            vars(linear).pop("forward", None)  # another library, or thread, may have been first


def _may_be_changed(linear: nn.Linear) -> bool:
    """Say whether its forward is nn.Linear's own, and its weight not on a GPU beside this CPU."""
    return "forward" not in vars(linear) and linear.weight.device.type == "cpu"


def _is_compiled(module: nn.Module) -> bool:
    """Say whether it was compiled: what was would be compiled again for layers with a forward of their own."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def _forward(linear: nn.Linear, input: Tensor) -> Tensor:  # the name that nn.Linear has for it
    weight, bias = linear.weight, linear.bias
    if not _fits(input, weight):
        return F.linear(input, weight, bias)
    found: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return found


def _fits(input: Tensor, weight: Tensor) -> bool:
    return (
        input.device.type == weight.device.type == "cpu"
        and type(weight) in (nn.Parameter, Tensor)  # neither sharded nor quantized
        and input.dtype == weight.dtype == torch.float32
        and weight.is_contiguous()
        and input.shape[-1:] == weight.shape[1:]  # PyTorch says what is wrong, oneDNN does not
        and input.numel() > 0
        and weight.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and F.linear is torch._C._nn.linear  # DeepSpeed has one of its own, which gathers matrices
        and not (torch.is_grad_enabled() and _is_computed_again())
    )


def _is_computed_again() -> bool:
    """Say whether hooks take what is saved for the backward, as checkpointing of activations does.

    It runs the layers again in the backward, when they are PyTorch's own, and wants the same to be saved as before.
    """
    # Private, and not in every version of torch; without it there is no telling.
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or hooks(True) is not None


class _Linear(torch.autograd.Function):
    """`X W^T + b`, and of a gradient G: `G W`, `G^T X` and the sum of G's rows, each where somebody wants it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_d_input, wants_d_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if wants_d_weight else None, weight if wants_d_input else None)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        # Contiguous, since a sum's gradient is one number that all entries share.
        rows = gradient.reshape(-1, gradient.shape[-1]).contiguous()  # (N, V)
        d_input = None if weight is None else _product(rows, weight.T).view(*gradient.shape[:-1], -1)
        d_weight = None if input is None else _product(rows.T, input.reshape(-1, input.shape[-1]).T)
        return d_input, d_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `rows @ weight.T + bias`."""
    found: Tensor = _PRODUCT(rows, weight, bias, "none", [], "")
    return found
