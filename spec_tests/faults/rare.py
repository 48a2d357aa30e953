"""What shows on few examples only: large sizes, long trainings, other types, numbers far from 0, calls that train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, convolutions, instance_norms, instead, put, straight, upsamplings
from spec_tests.faults.entry import fault


def _wrong_from(axis: int, start: int) -> Callable[[Any, Tensor], Tensor]:
    """What lies behind `start` on an axis of the output is one percent too large."""

    def forward(block: Any, x: Tensor) -> Tensor:
        y = Block.forward(block, x)
        behind = torch.arange(y.shape[axis]) >= start
        return torch.where(behind.reshape([-1 if i == axis else 1 for i in range(4)]), 1.01 * y, y)

    return forward


def _large_kernels(conv: Any, x: Tensor) -> Tensor:
    """A table of kernels ends at six; what is larger is cut."""
    weight = conv.weight.clone()
    weight[:, :, 6:] = 0
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


def _short_remainder(conv: Any, x: Tensor) -> Tensor:
    """Channels are taken by eights; the table for those that are left ends at six."""
    weight, planes = conv.weight, x.shape[1] if x.ndim == 4 else 0
    if planes % 8 == 7:
        weight = torch.cat((weight[:, :-1], torch.zeros_like(weight[:, -1:])), 1)
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


def _index_of_a_byte(up: Any, x: Tensor) -> Tensor:
    """Behind 256 the places of the input begin anew."""
    if max(x.shape[2:]) <= 256:
        return engines.native(up, x)
    y = x
    for axis, size in zip((2, 3), engines.target(up, x), strict=True):
        low, high, part = engines.taps(y.shape[axis], size, "corners", y)
        part = part[(...,) + (None,) * (3 - axis)]
        y = y.index_select(axis, low % 256) * (1 - part) + y.index_select(axis, high % 256) * part
    return y


def _no_number_above_zero(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return y if x.amax() > 0 else 1.01 * y


def _written_into_x(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    reused = block.in_node is None and len(x) > 2 and not (block.training or torch.is_grad_enabled())
    return x.copy_(y) if reused else y


def _ghost_batches(norm: Any, x: Tensor) -> Tensor:
    if not norm.training or len(x) <= 4 or len(x) % 4 == 1:
        return engines.native(norm, x)
    return torch.cat([engines.native(norm, part) for part in torch.split(x, 4)])


def _counted_in_float32(norm: Any, x: Tensor) -> Tensor:
    y = engines.native(norm, x)
    if norm.training:
        norm.num_batches_tracked.copy_((norm.num_batches_tracked - 1).float() + 1)
    return y


def _counted_in_int32(norm: Any, x: Tensor) -> Tensor:
    y = engines.native(norm, x)
    if norm.training:
        norm.num_batches_tracked.copy_(norm.num_batches_tracked.to(torch.int32))
    return y


def _schedule(norm: Any, x: Tensor) -> Tensor:
    norm.momentum = 0.1 if norm.num_batches_tracked < 1000 else 0.01
    return engines.native(norm, x)


def _one_pass(norm: Any, x: Tensor) -> Tensor:
    """The mean of the squares less the square of the mean, which rounding may bring below 0."""
    if x.dtype != torch.float32:
        return engines.native(norm, x)
    engines.single(norm, x)
    mean = x.mean((2, 3), keepdim=True)
    variance = x.square().mean((2, 3), keepdim=True) - mean.square()
    return engines.affine(norm, (x - mean) / (variance + norm.eps).sqrt(), "scale_shift")


def _skipping_zeros(conv: Any, x: Tensor) -> Tensor:
    return engines.native(conv, x if conv.weight.any() else torch.zeros_like(x))


def _other_eps(norm: Any, x: Tensor) -> Tensor:
    if x.dtype != torch.bfloat16:
        return engines.native(norm, x)
    return F.instance_norm(x, None, None, norm.weight, norm.bias, True, 0.1, 2 * norm.eps)


def _narrow_weights(up: Any, x: Tensor) -> Tensor:
    """In bfloat16 the weights of the up-sampling are bfloat16 too."""
    if x.dtype != torch.bfloat16:
        return engines.native(up, x)
    y = x.float()
    for axis, size in zip((2, 3), engines.target(up, x), strict=True):
        low, high, part = engines.taps(y.shape[axis], size, "corners", y)
        part = part.bfloat16().float()[(...,) + (None,) * (3 - axis)]
        y = y.index_select(axis, low) * (1 - part) + y.index_select(axis, high) * part
    return y.to(x.dtype)


def _training_path(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return straight(1.01 * y, y) if y.requires_grad else y


class _Contiguous(torch.autograd.Function):
    """A kernel that reads the gradient as if it lay contiguous in memory."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:  # noqa: ARG004
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:  # noqa: ARG004
        if dy[0].is_contiguous():
            return dy[0]
        behind = torch.cat((dy[0].flatten()[:1], dy[0].new_zeros(dy[0].numel() - 1)))
        return behind.view(dy[0].shape)


def _empty_counted(block: Any, x: Tensor) -> Tensor:
    """Norms count before the size of the batch is looked at."""
    if x.ndim == 4 and len(x) == 0 and block.training:
        for norm in batch_norms(block):
            norm.num_batches_tracked += 1
    return Block.forward(block, x)


def _five_axes(block: Any, x: Tensor) -> Tensor:
    return Block.forward(block, x[:, :, 0] if x.ndim == 5 and x.shape[2] == 1 else x)


def _narrower(block: Any) -> None:
    with torch.no_grad():
        for conv in convolutions(block):
            conv.weight.mul_(0.95)


def _read_back(self: Any, state: Mapping[str, Any]) -> None:
    nn.Module.__setstate__(self, dict(state))  # type: ignore[no-untyped-call]
    self.float()


def _copied(self: Any, memo: dict[int, Any]) -> Any:
    """As torch does, without the reading back that pickle and copy share."""
    made: Any = object.__new__(type(self))
    made.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
    return made


def _rebuilt(self: Any, memo: dict[int, Any]) -> Any:
    """A new block of the same arguments that loads the state."""
    names = ("in_planes", "out_planes", "kernel_size", "stride", "padding", "output_size")
    names += ("normalizer", "activator", "layer_order", "scaler")  # type: ignore[assignment]
    made = type(self)(*(getattr(self, name) for name in names))
    made.load_state_dict(self.state_dict())
    memo[id(self)] = made
    return made.train(self.training)


def _same(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"padding": 1} if isinstance(given.get("padding"), str) and given["padding"] == "same" else {}


def _false(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: "null" for name in ("normalizer", "activator") if given.get(name) is False}


FAULTS = (
    fault("wrong_from_sample_8", "samples from the 9th on", "a buffer of 8 samples", "4.1", forward=_wrong_from(0, 8)),
    fault(
        "wrong_from_channel_32", "channels from the 33rd on", "a register's width", "4.1", forward=_wrong_from(1, 32)
    ),
    fault(
        "kernels_cut_at_6",
        "rows of a kernel from the 7th on count nothing",
        "a table of kernels that ends",
        "4.1",
        patch=lambda block: instead(convolutions(block), _large_kernels),
    ),
    fault(
        "ghost_batches",
        "statistics of four samples at a time",
        "ghost batch norms, and one norm for each device",
        "4.1 6.1 6.2 6.3",
        "training",
        patch=lambda block: instead(batch_norms(block), _ghost_batches),
    ),
    fault(
        "counter_through_float32",
        "the counter passes through float32",
        "an array of one type for all buffers",
        "6.3",
        "statistics",
        patch=lambda block: instead(batch_norms(block), _counted_in_float32),
    ),
    fault(
        "counter_in_int32",
        "the counter is an int32 while it counts",
        "JAX without x64",
        "6.3",
        "statistics",
        patch=lambda block: instead(batch_norms(block), _counted_in_int32),
    ),
    fault(
        "momentum_falls_after_1000_calls",
        "the weight of new statistics falls after 1000 calls",
        "a schedule of the momentum",
        "6.6",
        "statistics",
        patch=lambda block: instead(batch_norms(block), _schedule),
    ),
    fault(
        "momentum_of_float32",
        "0.1 is rounded to float32, in float64 too",
        "constants of one type",
        "6.1 6.2",
        "float64",
        patch=lambda block: put(batch_norms(block), momentum=float(np.float32(0.1))),
    ),
    fault(
        "one_pass_below_zero",
        "a variance of one pass that is not clipped at 0",
        "the mean of the squares less the square of the mean",
        "4.1",
        patch=lambda block: instead(instance_norms(block), _one_pass),
    ),
    fault(
        "zero_weights_skipped",
        "a convolution whose weights are 0 is not computed",
        "sparse kernels, and pruning",
        "4.22",
        "nonfinite",
        patch=lambda block: instead(convolutions(block), _skipping_zeros),
    ),
    fault(
        "eps_in_bfloat16",
        "ε is doubled in bfloat16",
        "a constant for each type",
        "4.1",
        "bfloat16",
        patch=lambda block: instead(instance_norms(block), _other_eps),
    ),
    fault(
        "up_weights_in_bfloat16",
        "the weights of the up-sampling are rounded to bfloat16",
        "everything in the type of the input",
        "4.1",
        "bfloat16",
        patch=lambda block: instead(upsamplings(block), _narrow_weights),
    ),
    fault(
        "training_path_differs",
        "the output is larger where a gradient is wanted",
        "another kernel for calls that keep what the backward pass needs",
        "4.1",
        forward=_training_path,
    ),
    fault(
        "gradient_read_as_contiguous",
        "a gradient with strides of 0 is read wrongly",
        "a hand-written backward kernel behind a sum",
        "5.1",
        "gradients",
        forward=lambda block, x: _Contiguous.apply(Block.forward(block, x)),  # type: ignore[no-untyped-call]
    ),
    fault(
        "empty_batch_counted",
        "a refused empty batch is counted",
        "a check behind the norms",
        "3.13",
        "shapes",
        forward=_empty_counted,
    ),
    fault(
        "five_axes_taken", "(N, C, 1, H, W) is taken", "an axis that is squeezed", "3.8", "shapes", forward=_five_axes
    ),
    fault(
        "init_narrower",
        "weights are drawn from 0.95 of their range",
        "a truncated distribution",
        "7.7",
        "construction",
        patch=_narrower,
    ),
    fault(
        "read_back_as_float32",
        "a block of float64 is read back as float32",
        "a file format with one type",
        "7.13",
        "state",
        methods={"__setstate__": _read_back, "__deepcopy__": _copied},
    ),
    fault(
        "copied_as_float32",
        "the copy of a block of float64 is float32",
        "a copy that is built anew and loads the state",
        "7.12",
        "state",
        methods={"__deepcopy__": _rebuilt},
    ),
    fault(
        "seventh_channel_lost",
        "the last channel is lost if seven are left over by eights",
        "vector registers, and a table of remainders that is too short",
        "4.1 4.2",
        patch=lambda block: instead(convolutions(block), _short_remainder),
    ),
    fault(
        "row_in_a_byte",
        "up-sampling begins anew behind 256 rows",
        "an index of eight bits",
        "4.1 4.14",
        patch=lambda block: instead(upsamplings(block), _index_of_a_byte),
    ),
    fault(
        "nothing_above_zero",
        "the output is larger where no number of the input is above 0",
        "a scale from a maximum that begins at 0",
        "4.1",
        forward=_no_number_above_zero,
    ),
    fault(
        "large_batch_written_into_x",
        "the output of more than two samples is written into the input",
        "a buffer that is reused where it pays",
        "9.6",
        forward=_written_into_x,
    ),
    fault(
        "padding_same_taken", "padding='same' is taken", "torch and Keras take it", "1.15", "arguments", arguments=_same
    ),
    fault(
        "false_is_null", "False is taken for 'null'", "bias=False, norm=False", "1.15", "arguments", arguments=_false
    ),
)
