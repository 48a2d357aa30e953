"""``mdnc-spec`` with a device that stands in for a GPU: ``cpu:0``, whose tensors do not mix with those of ``cpu``.

It chooses its kernels by the shapes and the order in memory of what it is given, so that sums are rounded in several
ways, and multiplies in TF32 where torch's settings allow that. To torch, both devices are the CPU: what is there cannot
be brought back, and `x.device` does not lead there, so that a block that makes tensors on it cannot be judged.

``python -m spec_tests.meta.device_apart run --subject … --device cpu:0``
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing import reductions
from torch.utils import _python_dispatch
from torch.utils._pytree import tree_map_only

from spec_tests import arguments, cli
from spec_tests.faults.arithmetic import ten_bits
from spec_tests.subjects import in_process

# Torch gives them no types.
_Reference: Any = reductions.StorageWeakRef
_Mode: Any = _python_dispatch.TorchDispatchMode

THERE = torch.device("cpu:0")
_CONVOLUTIONS = {"conv2d", "convolution", "convolution_backward"}
_NORMS = {"native_batch_norm", "native_batch_norm_backward"}
_SEVERAL_KERNELS = {*_CONVOLUTIONS, *_NORMS, "sum", "upsample_bilinear2d", "upsample_bilinear2d_backward"}
_storages: dict[int, Any] = {}


def is_there(storage: torch.UntypedStorage) -> bool:
    return _Reference(storage).cdata in _storages


def put_there(storage: torch.UntypedStorage) -> None:
    # The address of a storage is not used again while something refers to it, if weakly.
    reference = _Reference(storage)
    _storages[reference.cdata] = reference
    if len(_storages) > 10_000:
        for address in [address for address, held in _storages.items() if held.expired()]:
            del _storages[address]


def _tensors(*values: object) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.layout == torch.strided:
                yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(*value)


def _computed(name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation on the tensors of the device gives: of float32, by one of two kernels, or in TF32."""
    if name not in _SEVERAL_KERNELS or "dtype" in kwargs:
        return func(*args, **kwargs)
    given = list(_tensors(*args, *kwargs.values()))
    if any(tensor.dtype != torch.float32 for tensor in given if tensor.ndim):
        return func(*args, **kwargs)
    if name in _CONVOLUTIONS and torch.backends.cudnn.allow_tf32:
        factors = args[: 3 if name == "convolution_backward" else 2]
        found = func(*map(ten_bits, factors), *args[len(factors) :], **kwargs)
        # The gradient of a bias is a sum of no products.
        return (*found[:2], func(*args, **kwargs)[2]) if name == "convolution_backward" else found
    looks = [name, *((tuple(tensor.shape), tensor.stride()) for tensor in given)]
    if zlib.crc32(repr(looks).encode()) % 2:
        return func(*args, **kwargs)
    wide = tree_map_only(torch.Tensor, torch.Tensor.double, args)
    found = func(*wide, **kwargs)
    for tensor, new in zip(_tensors(*args), _tensors(*wide), strict=True):
        if name == "native_batch_norm" and tensor.ndim == 1:  # running statistics, and what does not change
            tensor.copy_(new)
    return tree_map_only(torch.Tensor, torch.Tensor.float, found)


class Apart(_Mode):  # type: ignore[misc]
    """Every operation has its tensors on one device, but for copies and for numbers without axes; as on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name == "copy_":
            return func(*args, **kwargs)
        given = [(tensor, is_there(tensor.untyped_storage())) for tensor in _tensors(*args, *kwargs.values())]
        if len({there for tensor, there in given if tensor.ndim}) > 1:
            told = ", ".join(f"{tuple(tensor.shape)} on {THERE if there else 'cpu'}" for tensor, there in given)
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {told}")
        there = any(there for _, there in given)
        found = _computed(name, func, args, kwargs) if there else func(*args, **kwargs)
        if there or any(isinstance(value, torch.device) and value == THERE for value in (*args, *kwargs.values())):
            for tensor in _tensors(found):
                put_there(tensor.untyped_storage())
        return found


def _read_there(read: Callable[..., Any], *how: Any) -> Any:
    storage = read(*how)
    put_there(storage._untyped_storage)
    return storage


def stand_in() -> None:
    """Make ``--device cpu:0`` such a device, for copies and pickles too, which take memory as it is."""
    clone: Any = torch.UntypedStorage.clone
    reduce: Any = torch.storage.TypedStorage.__reduce__
    rand = torch.rand

    def cloned(storage: Any) -> Any:
        found = clone(storage)
        if is_there(storage):
            put_there(found)
        return found

    def reduced(storage: Any) -> Any:
        read, how = reduce(storage)
        return (_read_there, (read, *how)) if is_there(storage._untyped_storage) else (read, how)

    replaced: list[tuple[object, str, object]] = [
        (torch.UntypedStorage, "clone", cloned),
        (torch.storage.TypedStorage, "__reduce__", reduced),
        (
            torch,
            "rand",
            lambda *size, **how: rand(*size, **how).to(THERE),
        ),  # torchsummary knows of no other devices than two
        (arguments, "_device", str),
        (in_process, "prepare", lambda *_: Apart().__enter__()),
    ]
    for owner, name, new in replaced:
        setattr(owner, name, new)


if __name__ == "__main__":
    stand_in()
    sys.exit(cli.main(sys.argv[1:]))
