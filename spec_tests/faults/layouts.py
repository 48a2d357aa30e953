"""How tensors lie in memory, and who else holds them: weights and inputs in another order, offsets, other layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.engines import convolutions, instead
from spec_tests.faults.entry import Fault, fault


def _dense_weight(conv: Any, x: Tensor) -> Tensor:
    """The weight is read in the order of memory."""
    _, planes, height, width = conv.weight.shape
    strides = (planes * height * width, height * width, width, 1)
    return F.conv2d(x, conv.weight.as_strided(conv.weight.shape, strides), conv.bias, conv.stride, conv.padding)


def _dense_unless_channels_last(conv: Any, x: Tensor) -> Tensor:
    weight = conv.weight
    if not weight.is_contiguous(memory_format=torch.channels_last):
        strides = torch.empty(weight.shape, device="meta").stride()
        weight = weight.as_strided(weight.shape, strides, weight.storage_offset())
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


def _weight_from_the_beginning(conv: Any, x: Tensor) -> Tensor:
    weight = conv.weight.as_strided(conv.weight.shape, conv.weight.stride(), 0)
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


class _InMemoryOrder(torch.autograd.Function):
    """Of a convolution, the way back reads the weight in the order of memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        strides = torch.empty(weight.shape, device="meta").stride()
        read = weight.as_strided(weight.shape, strides, weight.storage_offset())
        of_x: Any = conv2d_input
        of_weight: Any = conv2d_weight
        dx = of_x(x.shape, read, arriving[0], *ctx.how) if ctx.needs_input_grad[0] else None
        dw = of_weight(x, weight.shape, arriving[0], *ctx.how) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


def _back_in_memory_order(conv: Any, x: Tensor) -> Tensor:
    y: Tensor = _InMemoryOrder.apply(x, conv.weight, conv.stride, conv.padding)  # type: ignore[no-untyped-call]
    return y if conv.bias is None else y + conv.bias[:, None, None]


def _from_the_beginning(block: Any, x: Tensor) -> Tensor:
    """The input is read from the beginning of its memory."""
    if isinstance(x, Tensor) and x.ndim == 4 and x.is_contiguous() and x.storage_offset():
        x = x.as_strided(x.shape, x.stride(), 0)
    return Block.forward(block, x)


def _written_behind_a_layer(block: Any, x: Tensor) -> Tensor:
    y: Tensor = Block.forward(block, x)
    if x.grad_fn is not None and x.shape == y.shape:
        x.data.copy_(y)
    return y


FAULTS: tuple[Fault, ...] = (
    fault(
        "weight_in_memory_order",
        "a weight is read in the order of memory",
        "data_ptr() of a weight in channels_last",
        "9.10",
        "layout",
        patch=lambda block: instead(convolutions(block), _dense_weight),
    ),
    fault(
        "dense_unless_channels_last",
        "a weight lies plainly or in channels_last, or is read wrongly",
        "a switch over two memory formats",
        "7.10 9.10",
        "layout",
        patch=lambda block: instead(convolutions(block), _dense_unless_channels_last),
    ),
    fault(
        "weight_from_the_beginning",
        "a weight is read from the beginning of its storage",
        "storage().data_ptr() without storage_offset()",
        "7.10",
        "layout",
        patch=lambda block: instead(convolutions(block), _weight_from_the_beginning),
    ),
    fault(
        "back_in_memory_order",
        "the backward pass reads a weight in the order of memory",
        "data_ptr() of a saved tensor",
        "9.10",
        "layout gradients",
        patch=lambda block: instead(convolutions(block), _back_in_memory_order),
    ),
    fault(
        "offset_ignored",
        "an input that begins inside a larger one is read from the beginning of that",
        "storage().data_ptr() without storage_offset()",
        "9.10",
        "layout",
        forward=_from_the_beginning,
    ),
    fault(
        "written_behind_a_layer",
        "the output is written into an input that is another layer's output",
        "an addition in place, but for inputs that are leaves",
        "5.11",
        "gradients",
        forward=_written_behind_a_layer,
    ),
)
