"""Sizes, and the inputs that are taken or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, instance_norms, instead
from spec_tests.faults.entry import Fault, fault
from spec_tests.faults.shortcut import cut, residual


def usual(x: Any) -> bool:
    """Whether `x` is a batch of images, so that a fault of the sizes applies."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point() and min(x.shape) > 0


def _disagrees(error: ValueError) -> bool:
    return "residual branch" in str(error)


def _unchecked(add: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Where the branches disagree, `add` does something of its own."""

    def forward(block: Any, x: Tensor) -> Tensor:
        try:
            block._check(x)
        except ValueError as error:
            if not _disagrees(error):
                raise
        try:
            return add(residual(block, x), cut(block, x))
        except RuntimeError as error:
            # They do not even broadcast, or one is empty: refused, as it must be.
            raise ValueError(f"the branches disagree: {error}") from error

    return forward


def _cropped(res: Tensor, other: Tensor) -> Tensor:
    height, width = (min(a, b) for a, b in zip(res.shape[2:], other.shape[2:], strict=True))
    return res[:, :, :height, :width] + other[:, :, :height, :width]


def _filled(res: Tensor, other: Tensor) -> Tensor:
    """Zeros are put around the smaller one, or it is cut."""
    down, right = (a - b for a, b in zip(res.shape[2:], other.shape[2:], strict=True))
    return res + F.pad(other, (0, right, 0, down))


def _resized(res: Tensor, other: Tensor) -> Tensor:
    return res + (other if res.shape == other.shape else F.interpolate(other, res.shape[2:]))


def _another_error(block: Any, x: Tensor) -> Tensor:
    try:
        return Block.forward(block, x)
    except ValueError as error:
        if _disagrees(error):
            raise RuntimeError("The size of tensor a must match the size of tensor b") from error
        raise


def _short_message(block: Any, x: Tensor) -> Tensor:
    try:
        return Block.forward(block, x)
    except ValueError as error:
        raise ValueError("shapes do not match") if _disagrees(error) else error from None


def _too_late(block: Any, x: Tensor) -> Tensor:
    try:
        return Block.forward(block, x)
    except ValueError as error:
        if _disagrees(error):
            block.conv1(x)
        raise


def _ceiling(block: Any, x: Tensor) -> Tensor:
    if block.scaler == "down" and usual(x):
        down, right = (-(n - 1) % s for n, s in zip(x.shape[2:], block.stride, strict=True))
        x = F.pad(x, (0, right, 0, down))
    return Block.forward(block, x)


def _odd_kernels_only(block: Any, x: Tensor) -> Tensor:
    if not block._agrees:
        raise ValueError("2 * padding must be kernel_size - 1")
    return Block.forward(block, x)


def _without_batch(block: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point() and min(x.shape) > 0:
        return Block.forward(block, x[None])[0]
    return Block.forward(block, x)


def _squeezed(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return y[0] if len(y) == 1 else y


def _more_channels(block: Any, x: Tensor) -> Tensor:
    """Of too many channels the first are taken."""
    return Block.forward(block, x[:, : block.in_planes] if usual(x) else x)


def _numbers_converted(block: Any, x: Tensor) -> Tensor:
    return Block.forward(block, x if x.is_floating_point() else x.float())


def _empty_as_it_comes(block: Any, x: Tensor) -> Tensor:
    """An empty batch is given back as it is, of the size of the input."""
    if isinstance(x, Tensor) and x.ndim == 4 and len(x) == 0:
        return x.new_zeros((0, block.out_planes, *x.shape[2:]))
    return Block.forward(block, x)


def _empty_axes(block: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == block.in_planes and 0 in x.shape[2:]:
        return x.new_zeros((len(x), block.out_planes, *x.shape[2:]))
    return Block.forward(block, x)


def one_element(norm: Any, x: Tensor) -> Tensor:
    """One element minus itself is 0, and that is that."""
    if x.shape[2] * x.shape[3] == 1:
        return engines.affine(norm, torch.zeros_like(x), "scale_shift")
    return engines.native(norm, x)


def one_sample(norm: Any, x: Tensor) -> Tensor:
    if norm.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
        return engines.affine(norm, torch.zeros_like(x), "scale_shift")
    return engines.native(norm, x)


def never_one(norm: Any, x: Tensor) -> Tensor:
    if x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError("Expected more than 1 value per channel")
    return engines.native(norm, x)


def _width_by_height(block: Any, x: Tensor) -> Tensor:
    """A wide input loses the columns that a square one would not have, where it is four times as wide."""
    return Block.forward(block, x[..., : 4 * x.shape[2]] if usual(x) else x)


def _sum(add: Callable[[Tensor, Tensor], Tensor], name: str, title: str, cause: str) -> Fault:
    return fault(name, title, cause, "3.6", "shapes", forward=_unchecked(add))


def _small_integers(block: Any, x: Tensor) -> Tensor:
    return Block.forward(block, x.float() if x.dtype in (torch.int8, torch.int16) else x)


def _integers_of_old(block: Any, x: Tensor) -> Tensor:
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        raise NotImplementedError(f"not implemented for {x.dtype}")
    return Block.forward(block, x)


def _empty_float32(block: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point() and not len(x) and x.shape[1] == block.in_planes:
        training = block.training
        y = Block.forward(block.train(False), x.new_ones((2, *x.shape[1:])))
        block.train(training)
        return torch.zeros((0, *y.shape[1:]))
    return Block.forward(block, x)


def _empty_as_it_is(block: Any, x: Tensor) -> Tensor:
    return x if block.layer_order == "old" and x.ndim == 4 and not len(x) else Block.forward(block, x)


def _half_is_enough(block: Any) -> None:
    block._agrees = all(2 * p == k for p, k in zip(block.padding, block.kernel_size, strict=True))


FAULTS = (
    _sum(torch.add, "branches_broadcast", "a side of length 1 is stretched", "the toolkit: a plain addition"),
    _sum(_cropped, "branches_cropped", "the larger branch is cropped", "U-Net's crop"),
    _sum(_filled, "branches_filled", "the shortcut is cut, or filled with zeros", "F.pad on the difference"),
    _sum(_resized, "branches_resized", "the shortcut is resized", "F.interpolate to the size of the other"),
    fault(
        "half_a_kernel_agrees",
        "sizes are not compared where the padding is half an even kernel, on both axes",
        "2 * padding == kernel_size, as the rule for sizes that stay the same",
        "3.6",
        "shapes",
        patch=_half_is_enough,
    ),
    fault(
        "disagreement_is_another_error",
        "branches that disagree end in torch's own error",
        "no check",
        "3.6",
        "shapes",
        forward=_another_error,
    ),
    fault(
        "disagreement_says_nothing",
        "the message of that refusal names no sizes",
        "a bare assertion",
        "3.7",
        "shapes",
        forward=_short_message,
    ),
    fault(
        "refused_too_late",
        "a refused call has already replaced statistics",
        "sizes are checked at the sum",
        "3.13",
        "shapes statistics",
        forward=_too_late,
    ),
    fault(
        "ceiling_for_floor",
        "a strided layer rounds up",
        "padding='same' at the far edge, ceil_mode",
        "3.2 3.4",
        "shapes",
        forward=_ceiling,
    ),
    fault(
        "odd_kernels_only",
        "refused unless 2 * padding = kernel_size - 1",
        "a check that is simpler than the rule",
        "3.5",
        "shapes",
        forward=_odd_kernels_only,
    ),
    fault(
        "taken_without_batch",
        "an input without a batch is taken",
        "torch's layers take (C, H, W)",
        "3.8",
        "shapes",
        forward=_without_batch,
    ),
    fault(
        "batch_of_one_squeezed",
        "a batch of one loses its axis",
        "squeeze() without an axis",
        "3.1 3.4",
        "shapes",
        forward=_squeezed,
    ),
    fault(
        "too_many_channels_taken",
        "of too many channels the first are taken",
        "a loop over in_planes channels",
        "3.8",
        "shapes",
        forward=_more_channels,
    ),
    fault(
        "integers_taken",
        "an input of integers is converted",
        "np.asarray(x, np.float32)",
        "3.9",
        "shapes",
        forward=_numbers_converted,
    ),
    fault(
        "empty_batch_of_the_input_size",
        "an empty batch gives an output of the size of the input",
        "an early return",
        "3.10",
        "shapes",
        forward=_empty_as_it_comes,
    ),
    fault(
        "empty_axes_taken",
        "an input without rows or columns is taken",
        "an early return",
        "3.8",
        "shapes",
        forward=_empty_axes,
    ),
    fault(
        "one_element_normalized",
        "an instance norm takes a single element",
        "a norm written by hand",
        "3.11",
        "shapes",
        patch=lambda block: instead(instance_norms(block), one_element),
    ),
    fault(
        "batch_of_one_element_taken",
        "a batch norm takes a single element in training",
        "a norm written by hand",
        "3.12",
        "shapes training",
        patch=lambda block: instead(batch_norms(block), one_sample),
    ),
    fault(
        "one_element_refused_in_evaluation",
        "a batch norm refuses a single element in evaluation too",
        "a check without the mode",
        "3.12",
        "shapes evaluation",
        patch=lambda block: instead(batch_norms(block), never_one),
    ),
    fault(
        "small_integers_taken",
        "an input of 8 or 16 bits a number is taken, where it has a sign",
        "audio and quantized images",
        "3.9",
        "shapes",
        forward=_small_integers,
    ),
    fault(
        "unsigned_integers_unknown",
        "an input of an unsigned type of 16 bits or more is no wrong type, but an error of torch's",
        "a list of the integer types of old",
        "3.9",
        "shapes",
        forward=_integers_of_old,
    ),
    fault(
        "empty_batch_is_float32",
        "an empty batch of another type gives an empty output of float32",
        "torch.zeros(shape)",
        "9.9",
        "float64 bfloat16",
        forward=_empty_float32,
    ),
    fault(
        "empty_batch_keeps_its_channels",
        "with layer_order='old' an empty batch is given back as it is",
        "if not len(x): return x",
        "3.10",
        "shapes",
        forward=_empty_as_it_is,
    ),
    fault(
        "width_bounded_by_height",
        "an input is cut off at four times its height",
        "a buffer of a fixed ratio",
        "3.14 3.2 3.4",
        "shapes",
        forward=_width_by_height,
    ),
)
