"""A pretend accelerator: finds on any machine what would fail only on a GPU.

Tensors on the device ``pretend:0`` say that they are there, and the processor computes them. As on a GPU, an operation
that has tensors of both devices raises, although the numbers would be right.

    register()
    with PretendDevice():
        ...  # anything, with --device pretend:0

Three things differ from a GPU: MetaTensors become plain tensors there (a tensor has one subclass), gradients are computed
in the calling thread, and there is no memory of its own that could run out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import monai.data
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

NAME = "pretend"
DEVICE = torch.device("cpu")  # until `register` has been called
_ATEN = torch.ops.aten
_MOVES = {_ATEN._to_copy.default, _ATEN.copy_.default}  # from one device to another
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}  # by indices of the processor, too


class PretendTensor(Tensor):
    """A tensor of the processor that says it is on the pretend device."""

    of_processor: Tensor
    affine = torch.eye(4)  # what a MetaTensor would have
    meta: Mapping[str, Any] = {}
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, tensor: Tensor) -> PretendTensor:
        sizes = {"strides": tensor.stride(), "storage_offset": tensor.storage_offset(), "dtype": tensor.dtype}
        made = Tensor._make_wrapper_subclass(
            cls, tensor.size(), **sizes, device=DEVICE, requires_grad=tensor.requires_grad
        )
        made.of_processor = tensor
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.of_processor.__reduce_ex__(protocol)

    def as_tensor(self) -> Tensor:
        return self


class PretendDevice(TorchDispatchMode):
    """Within it, tensors can be made on the pretend device and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Generator(torch._C.Generator):
    """Draws what a generator of the processor draws, on whichever device."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")

    def manual_seed(self, seed: int) -> _Generator:
        super().manual_seed(seed)
        return self


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> None:
    """Make the device known to this process, for good."""
    global DEVICE
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    DEVICE = torch.device(NAME, 0)
    torch.Generator = _Generator
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.autograd.set_multithreading_enabled(False)
    # A tensor that has a subclass cannot become a MetaTensor as well.
    new, convert = monai.data.MetaTensor.__new__, torch._tensor._convert
    monai.data.MetaTensor.__new__ = staticmethod(
        lambda cls, x, *args, **kwargs: x if isinstance(x, PretendTensor) else new(cls, x, *args, **kwargs)
    )
    torch._tensor._convert = lambda x, cls: x if isinstance(x, PretendTensor) else convert(x, cls)
    # What torch calls beneath all modes, such as for torch.tensor(..., device=...).
    torch.library.impl("aten::empty_strided", "privateuseone")(_empty_strided)
    torch.library.impl("aten::_copy_from", "privateuseone")(_copy_from)


def _compute(func: Any, args: Sequence, kwargs: Mapping[str, Any]) -> Any:
    """Any operation: refused where it mixes devices, or computed by the processor and put on the device it belongs to."""
    tensors = list(_tensors([args, kwargs]))
    pretended = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    if pretended and func not in _MOVES and not (func in _INDEXING and isinstance(args[0], PretendTensor)):
        others = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim()]
        if others:
            raise RuntimeError(f"{func}: tensors on {DEVICE} and one of {tuple(others[0].shape)} on {others[0].device}")
    to = kwargs.get("device")
    lands_there = pretended if to is None else torch.device(to).type == NAME
    if func is _ATEN.copy_.default:
        lands_there = isinstance(args[0], PretendTensor)
    on_processor = dict(kwargs) if to is None else {**kwargs, "device": "cpu" if lands_there else to}
    result = func(*tree_map(_unwrapped, args), **tree_map(_unwrapped, on_processor))
    written = [
        args[number] if number < len(args) else kwargs[argument.name]
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if written and isinstance(result, Tensor):
        return written[0]
    if pretended and not lands_there and result is _unwrapped(tensors[0]):  # of the same type: nothing was copied
        return result.clone()
    return tree_map(lambda x: PretendTensor(x) if lands_there and isinstance(x, Tensor) else x, result)


def _tensors(value: Any) -> Iterator[Tensor]:
    for part in value.values() if isinstance(value, Mapping) else value:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, list | tuple | Mapping):
            yield from _tensors(part)


def _unwrapped(value: Any) -> Any:
    return value.of_processor if isinstance(value, PretendTensor) else value


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _unwrapped(target).copy_(_unwrapped(source))
    return target
