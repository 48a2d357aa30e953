"""Arrays as tensors of torch, and tensors that a block gave as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from spec_tests.subjects.base import Array
from spec_tests.subjects.raised import Unfit


def kind_of(value: object) -> str:
    """What a value is, with its article."""
    name = type(value).__name__
    return "None" if value is None else f"a{'n' * (name[0] in 'AEIOUaeiou' or name == 'ndarray')} {name}"


def tensor_of(value: object, what: str) -> torch.Tensor:
    """`value`, called `what` in messages. Raises Unfit unless it is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise Unfit(f"{what} is {kind_of(value)}, not a tensor")
    return value


def array_of(value: object, what: str) -> Array:
    """A copy of a tensor that the block gave. Raises Unfit unless it is one of real numbers that NumPy can hold."""
    tensor = tensor_of(value, what).detach()
    if tensor.is_complex():
        raise Unfit(f"{what} is of {tensor.dtype}, not of real numbers")
    try:
        # NumPy has no bfloat16; float32 holds every bfloat16 number exactly.
        plain = tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor
        # A sign that torch has put off, as that of an imaginary part, is taken now.
        array: Array = plain.cpu().resolve_neg().numpy().copy()
    except torch.AcceleratorError:  # what went wrong in a kernel is told at the next copy
        raise
    except (TypeError, RuntimeError) as error:  # sparse, quantized, without memory, of a type of torch's own
        kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
        raise Unfit(f"{what} is no array of numbers in memory: {kind}") from error
    return array


def viewed(x: Array) -> torch.Tensor:
    """The memory of `x` as a tensor: a view of the whole array where `x` is one, so that it has an offset too."""
    whole = x.base
    if not isinstance(whole, np.ndarray) or whole.dtype != x.dtype or not whole.flags.c_contiguous or not x.size:
        return torch.from_numpy(x)
    offset, apart = divmod(x.ctypes.data - whole.ctypes.data, x.itemsize)
    strides = [step // x.itemsize for step in x.strides]
    if apart or min(strides, default=0) < 0:
        return torch.from_numpy(x)
    return torch.from_numpy(whole.reshape(-1)).as_strided(x.shape, strides, offset)


def copied(x: Array, device: str, dtype: torch.dtype) -> torch.Tensor:
    """A copy of `x` that lies in its memory as `x` does: `to` makes strided and expanded views dense."""
    tensor = torch.from_numpy(x)
    size = 1 + sum((n - 1) * step for n, step in zip(x.shape, tensor.stride(), strict=True)) if x.size else 0
    memory = tensor.as_strided((size,), (1,)).to(device, dtype, copy=True)
    return memory.as_strided(x.shape, tensor.stride())


def parts_of_one(tensors: Mapping[str, torch.Tensor], device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The same tensors, those of a type in one memory, each behind the last.

    Of four axes the first two come last, or swapped, with a gap behind each row of channels; of one axis, every other
    number counts.
    """
    places: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        places[tensor.dtype] = places.get(tensor.dtype, 1) + 2 * tensor.numel()
    memory = {dtype: torch.zeros(size, dtype=dtype, device=device) for dtype, size in places.items()}
    begin = dict.fromkeys(places, 1)
    for number, (name, tensor) in enumerate(tensors.items()):
        part = memory[tensor.dtype][begin[tensor.dtype] :][: 2 * tensor.numel()]
        begin[tensor.dtype] += 2 * tensor.numel()
        if tensor.ndim == 4:
            out, into, *kernel = tensor.shape
            swapped = part.view(into, 2 * out, *kernel)[:, :out].permute(1, 0, 2, 3)
            last = part[: tensor.numel()].view(*kernel, into, out).permute(3, 2, 0, 1)
            part = swapped if number % 2 else last
        else:
            part = part[::2].view(tensor.shape)
        # Each counts its own changes, as the tensors of a file do.
        yield name, part.copy_(tensor).data


class Places:
    """Where the elements of a tensor lie, on any device, as NumPy asks for it; nothing is to be read there."""

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), True),
            "shape": tuple(tensor.shape),
            "strides": tuple(step * size for step in tensor.stride()),
            "typestr": f"|V{size}",
        }


def overlap(one: Places, two: Places) -> bool:
    """Whether an element of one lies where an element of the other does; parts of one memory need not."""
    first, second = np.asarray(one), np.asarray(two)
    try:
        return np.shares_memory(first, second, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:  # two with many odd strides
        return np.may_share_memory(first, second)


def spans_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
    """First address and number of bytes of each entry."""
    return {name: (t.data_ptr(), t.numel() * t.element_size()) for name, t in state.items()}
