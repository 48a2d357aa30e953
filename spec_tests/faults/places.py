"""Views that an implementation takes for dense memory: parts of channels, rows apart, axes repeated by strides of 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.entry import Fault, fault

Condition = Callable[[Tensor], bool]


def _misread(x: Tensor) -> Tensor:
    """The numbers of x from another place: those of the elements before them."""
    return x.detach().reshape(-1).roll(1).reshape(x.shape)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Those of a dense tensor of the shape."""
    return torch.empty(x.shape, device="meta").stride()


def _some_channels(x: Tensor) -> bool:
    return len(x) > 1 and x.stride()[1:] == _strides(x)[1:] and x.stride(0) > _strides(x)[0]


def _apart(axis: int) -> Condition:
    """Whether what follows on an axis lies twice as far away as it must, and all behind it is dense."""

    def apart(x: Tensor) -> bool:
        behind = x.stride()[axis + 1 :] == _strides(x)[axis + 1 :]
        return x.shape[axis] > 1 and behind and x.stride(axis) == 2 * _strides(x)[axis]

    return apart


def _repeated(*axes: int) -> Condition:
    return lambda x: any(x.shape[axis] > 1 and x.stride(axis) == 0 for axis in axes)


def _input(condition: Condition) -> Callable[[Any, Tensor], Tensor]:
    def forward(block: Any, x: Tensor) -> Tensor:
        wrong = isinstance(x, Tensor) and x.ndim == 4 and x.numel() > 1 and condition(x)
        return Block.forward(block, x + (_misread(x) - x.detach()) if wrong else x)

    return forward


def _arriving(condition: Condition) -> Callable[[Any, Tensor], Tensor]:
    def forward(block: Any, x: Tensor) -> Tensor:
        y: Any = Block.forward(block, x)
        if y.requires_grad:
            y.register_hook(lambda dy: _misread(dy) if dy.ndim == 4 and dy.numel() > 1 and condition(dy) else dy)
        return y  # type: ignore[no-any-return]

    return forward


def _of_weights(condition: Condition, axes: int) -> Callable[[Any, Tensor], Tensor]:
    def forward(block: Any, x: Tensor) -> Tensor:
        y = Block.forward(block, x)
        found = [p for p in block.parameters() if p.ndim == axes and p.numel() > 1]
        return 1.01 * y if any(condition(p) for p in found) else y

    return forward


def _channels_by_mean(dy: Tensor) -> bool:
    return dy.stride(2) == dy.stride(3) == 0 != dy.stride(1) and dy.shape[2] * dy.shape[3] > 1


def _surrounded(weight: Tensor) -> bool:
    """Whether there are gaps inside its memory."""
    return sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True)) + 1 > weight.numel()


FAULTS: tuple[Fault, ...] = (
    fault(
        "some_channels_as_dense",
        "some of the channels of a larger tensor are read as if they were all",
        "x.chunk(2, 1) and data_ptr()",
        "9.10",
        "layout",
        forward=_input(_some_channels),
    ),
    fault(
        "channels_apart_as_dense",
        "every other channel is read as if they followed each other",
        "strides that are looked at for rows only",
        "9.10",
        "layout",
        forward=_input(_apart(1)),
    ),
    fault(
        "rows_apart_as_dense",
        "every other row is read as if they followed each other",
        "a stride that is looked at for columns only",
        "9.10",
        "layout",
        forward=_input(_apart(2)),
    ),
    fault(
        "grey_image_as_dense",
        "a channel that is repeated by a stride of 0 is read as if it were copied",
        "a grey image that is expanded to three channels",
        "9.10",
        "layout",
        forward=_input(_repeated(1)),
    ),
    fault(
        "repeated_rows_as_dense",
        "rows and columns that are repeated by a stride of 0 are read as if they were copied",
        "a mean that is expanded to the size of an image",
        "9.10",
        "layout",
        forward=_input(_repeated(2, 3)),
    ),
    fault(
        "bfloat16_as_dense",
        "an input of bfloat16 in another order is read in that of memory",
        "a fast path for channels_last in half precision",
        "4.1",
        "bfloat16 layout",
        forward=_input(lambda x: x.dtype == torch.bfloat16 and not x.is_contiguous()),
    ),
    fault(
        "part_of_a_gradient_as_dense",
        "a gradient that is some of the channels of a larger one is read as if it were all",
        "what torch.cat behind the block sends back",
        "5.1",
        "gradients layout",
        forward=_arriving(_some_channels),
    ),
    fault(
        "gradient_of_sums_as_dense",
        "a gradient with one number a channel, repeated, is read as if it were copied",
        "what y.sum((2, 3)) sends back",
        "5.1",
        "gradients layout",
        forward=_arriving(_channels_by_mean),
    ),
    fault(
        "vectors_as_dense",
        "slopes, scales and biases with a stride are read as if they had none",
        "data_ptr() of a part of a matrix",
        "7.10",
        "layout",
        forward=_of_weights(lambda p: p.stride(0) != 1, 1),
    ),
    fault(
        "weights_with_gaps_as_dense",
        "a weight that is a part of a larger one is read as if it were all",
        "data_ptr() of big[:, :C]",
        "7.10",
        "layout",
        forward=_of_weights(_surrounded, 4),
    ),
)
