"""Sizes for which an implementation has a path of its own: multiples, limits of counters and tables, extreme ratios."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.entry import Fault, fault

Condition = Callable[[Any, Tensor], bool]


def _off_where(condition: Condition) -> Callable[[Any, Tensor], Tensor]:
    """The output is one percent too large where a path of its own is taken."""

    def forward(block: Any, x: Tensor) -> Tensor:
        y = Block.forward(block, x)
        return 1.01 * y if condition(block, x) else y

    return forward


def _path(name: str, where: str, cause: str, condition: Condition, visible: str = "float32") -> Fault:
    title = f"the path for {where} is wrong"
    return fault(name, title, cause, "4.1", visible, forward=_off_where(condition))


def _longer_up(block: Any, x: Tensor, ratio: float) -> bool:
    ratios = [to / of for of, to in zip(x.shape[2:], block.output_size or (0, 0), strict=True) if of > 1]
    return block.scaler == "up" and any(r > ratio if ratio > 1 else 0 < r < ratio for r in ratios)


def _geometry(block: Any, kernel: int, stride: int, padding: int) -> bool:
    found = (block.kernel_size, block.stride, block.padding)
    return found == ((kernel, kernel), (stride, stride), (padding, padding)) and block.scaler == "down"


def _gradient_of_a_large_plane(block: Any, x: Tensor) -> Tensor:
    y: Any = Block.forward(block, x)
    if y.requires_grad and math.prod(y.shape[2:]) > 5000:
        y.register_hook(lambda dy: 1.01 * dy)
    return y  # type: ignore[no-any-return]


def _identity_of_four(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if block.in_node is not None or len(x) <= 4:
        return y
    return torch.cat([y[:4], y[4:] - x[4:]])


def _identity_detached(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    lost = block.in_node is None and len(x) > 8
    return y - x + x.detach() if lost and y.requires_grad else y


FAULTS: tuple[Fault, ...] = (
    fault(
        "identity_of_the_first_four_samples",
        "samples from the fifth on lose the identity shortcut",
        "a buffer for four samples",
        "4.21 4.1",
        forward=_identity_of_four,
    ),
    fault(
        "identity_detached_in_large_batches",
        "the identity shortcut of more than eight samples has no gradient",
        "a fused addition with a backward pass of its own",
        "5.1",
        "gradients",
        forward=_identity_detached,
    ),
    _path(
        "channels_by_16",
        "channels in sixteens",
        "a blocked order of channels, for float32",
        lambda block, x: block.in_planes % 16 == 0 and x.dtype == torch.float32,
    ),
    _path("planes_by_64", "filters in 64s", "tensor cores", lambda block, _: block.out_planes % 64 == 0),
    _path(
        "sums_over_512",
        "sums of more than 512 terms",
        "a buffer for columns, a sum in blocks",
        lambda block, _: block.in_planes * math.prod(block.kernel_size) > 512,
    ),
    _path("batch_by_8", "batches of a multiple of 8", "tiles", lambda _, x: len(x) % 8 == 0),
    _path("batch_above_65", "batches above 65", "a table of micro-batches", lambda _, x: len(x) > 65),
    _path(
        "tiles_of_8",
        "images of whole tiles",
        "Winograd, without a remainder",
        lambda _, x: x.shape[2] % 8 == x.shape[3] % 8 == 0,
    ),
    _path("rows_by_32", "rows of a multiple of 32", "vector registers", lambda _, x: x.shape[3] % 32 == 0),
    _path(
        "plane_above_16_bits",
        "planes of more than 65,535 elements",
        "a counter in uint16",
        lambda _, x: math.prod(x.shape[2:]) > 65535,
        "float64",
    ),
    _path(
        "planes_above_a_byte",
        "more than 255 filters",
        "a counter in uint8",
        lambda block, _: block.out_planes > 255,
    ),
    _path("kernel_of_7", "a kernel of 7 x 7", "a table of kernels", lambda block, _: block.kernel_size == (7, 7)),
    _path("kernel_above_11", "kernels above 11", "a table of kernels", lambda block, _: max(block.kernel_size) > 11),
    _path("stride_above_7", "strides above 7", "a table of strides", lambda block, _: max(block.stride) > 7),
    _path("up_by_8", "up-sampling by more than 8", "a table of ratios", lambda b, x: _longer_up(b, x, 8)),
    _path("up_to_an_eighth", "up-sampling to less than 1/8", "a table", lambda b, x: _longer_up(b, x, 1 / 8)),
    _path(
        "up_from_one_element",
        "up-sampling of a single element",
        "a division by L - 1, and what is done instead",
        lambda block, x: block.scaler == "up" and x.shape[2:] == (1, 1) and block.output_size is not None,
    ),
    _path(
        "halving_of_4",
        "a kernel of 4 that halves, in the old order",
        "the usual way to halve in generators",
        lambda block, _: _geometry(block, 4, 2, 1) and block.layer_order == "old",
    ),
    _path(
        "patches_of_2",
        "patches of 2 x 2 that do not overlap, with 'pinst'",
        "a reshape in place of a convolution",
        lambda block, _: _geometry(block, 2, 2, 0) and block.normalizer == "pinst",
    ),
    fault(
        "gradient_of_a_large_plane",
        "the gradient for an output of more than 5,000 elements a plane is wrong",
        "the second stage of a sum",
        "5.1 5.2",
        "gradients float64",
        forward=_gradient_of_a_large_plane,
    ),
)
