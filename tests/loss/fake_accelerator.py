"""An accelerator for tests: tensors that say they lie on a device that is no CPU, with their numbers on the CPU.

As strict as a real one: it has no float64, refuses to mix its tensors with the CPU's, and notes what waits for it. So
the loss runs on it as on MPS, XPU or an NPU, and its numbers can be judged. It poses as "meta", the one device besides
the CPU for which autograd needs no driver.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_WAITING = (_aten._local_scalar_dense, _aten.nonzero, _aten.is_nonzero, _aten.equal)


class OnAccelerator(torch.Tensor):
    """A tensor on the device; `host` has its numbers."""

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )

    def __init__(self, host):
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} ran on the accelerator's tensors outside of the mode, in another thread")


class Accelerator(TorchDispatchMode):
    """While it is entered there is such a device.

    Attributes:
        waits: The operations that made the host wait for the device, by name.
    """

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        inside = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, OnAccelerator)}
        wanted = kwargs.get("device")
        stays = bool(inside) if wanted is None else torch.device(wanted) == DEVICE
        copies = function.overloadpacket in (_aten.copy_, _aten._to_copy)
        if inside and not copies and any(t.dim() for t in tensors if not isinstance(t, OnAccelerator)):
            raise RuntimeError(f"{function}: expected all tensors to be on the same device")
        crosses = copies and tensors and (len(inside) < len(tensors) if stays else bool(inside))
        by_mask = function.overloadpacket is _aten.index and any(t.dtype == torch.bool for t in tensors[1:])
        if crosses or (inside and (by_mask or function.overloadpacket in _WAITING)):
            self.waits.append(function.overloadpacket.__name__)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda leaf: leaf.host if isinstance(leaf, OnAccelerator) else leaf, (args, kwargs))
        made = function(*args, **kwargs)
        return tree_map(lambda leaf: self._there(function, leaf, inside), made) if stays else made

    def _there(self, function, made, inside):
        if not isinstance(made, torch.Tensor):
            return made
        if made.dtype == torch.float64:
            raise TypeError(f"{function}: this device has no float64")
        return inside[id(made)] if id(made) in inside else OnAccelerator(made)
