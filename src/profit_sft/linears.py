"""Linear layers on CPUs where oneDNN multiplies fp32 faster than MKL, which is what PyTorch takes.

MKL uses AVX-512 on Intel's processors alone. On one core of an AMD Zen 5, rows times a matrix of 1,536 x 576:

    rows           1     8    16    64   256  1024
    MKL, ms     0.22  0.38  0.53  1.31  4.45  16.0
    oneDNN, ms  0.17  0.28  0.34  0.76  2.40  7.5

Both sum in fp32, in another order, so results differ by rounding. There is no gradient, so it is for looking on:
scoring, probes, generation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
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
    """Have the linear layers in a module multiply by oneDNN where that is faster, while no gradients are recorded.

    Args:
        module: A model or part of one. Afterwards it is as it was. Layers that another library has given a forward of
            its own are left alone, as is what is not fp32 on a CPU.
    """
    changed = []
    if onednn_is_faster():
        changed = [part for part in module.modules() if type(part) is nn.Linear and "forward" not in vars(part)]
    for linear in changed:
        linear.forward = partial(_forward, linear)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in changed:
            del linear.forward


def _forward(linear: nn.Linear, input: Tensor) -> Tensor:  # the name that nn.Linear has for it
    weight, bias = linear.weight, linear.bias
    if not _fits(input, weight):
        return F.linear(input, weight, bias)
    found: Tensor = _PRODUCT(input, weight, bias, "none", [], "")
    return found


def _fits(input: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and type(weight) in (nn.Parameter, Tensor)  # neither sharded nor quantized
        and weight.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and weight.is_contiguous()
        and input.numel() > 0
    )
