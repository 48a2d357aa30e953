"""The shortcut, and the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import branch, convolutions, instead, norms
from spec_tests.faults.entry import Fault, fault


def residual(block: Any, x: Tensor) -> Tensor:
    found: Tensor = block.conv3(block.conv2(block.conv1(x)))
    return found


def cut(block: Any, x: Tensor) -> Tensor:
    found: Tensor = x if block.in_node is None else block.in_node(x)
    return found


def added(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A forward in which the residual branch goes through `one`, the shortcut through `other`."""

    def forward(block: Any, x: Tensor) -> Tensor:
        block._check(x)
        return one(residual(block, x)) + other(cut(block, x))

    return forward


def _weight(which: str, name: str, weight: float, title: str, cause: str) -> Fault:
    plain, times = (lambda t: t), (lambda t: weight * t)
    forward = added(plain, times) if which == "shortcut" else added(times, plain)
    return fault(name, title, cause, "4.21 4.1", rules=(f"{which}_weight", weight), forward=forward)


def _identity_instead(block: Any, x: Tensor) -> Tensor:
    """No projection where neither the channels nor the size change."""
    block._check(x)
    res = residual(block, x)
    return res + (x if res.shape == x.shape else cut(block, x))


def _slice_instead(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    if block.in_node is None or block.in_planes != block.out_planes or block.scaler == "up":
        return residual(block, x) + cut(block, x)
    return residual(block, x) + x[:, :, :: block.stride[0], :: block.stride[1]]


def _bare(block: Any) -> None:
    instead(norms(branch(block, "in_node")), engines.identity)


def _shared_start(block: Any, x: Tensor) -> Tensor:
    """The projection starts behind the norm and activation of conv1."""
    if block.layer_order != "new" or block.normalizer == "null":
        return Block.forward(block, x)
    block._check(x)
    h = x
    for layer in [*block.conv1][:-1]:
        h = layer(h)
    res: Tensor = block.conv3(block.conv2(block.conv1[-1](h)))
    return res + cut(block, h)


def _from_conv1(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    h = block.conv1(x)
    res: Tensor = block.conv3(block.conv2(h))
    return res + cut(block, h)


def read_otherwise(conv: Any, x: Tensor, *, how: str) -> Tensor:
    """A slice that starts at 1, or an average in place of a stride, as far as the size stays."""
    stride = conv.stride
    if how == "average":
        read = F.avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)
        # A window that would begin in the padding is dropped: only windows with an element count.
        due = [(n - 1) // s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
        if list(read.shape[2:]) != due:
            return engines.native(conv, x)
        return F.conv2d(read, conv.weight, conv.bias)
    begin = [int(s > 1) for s in stride]
    last = [b + (n - 1) // s * s for b, n, s in zip(begin, x.shape[2:], stride, strict=True)]
    if any(place >= n for place, n in zip(last, x.shape[2:], strict=True)):
        return engines.native(conv, x)
    return F.conv2d(x[:, :, begin[0] :, begin[1] :], conv.weight, conv.bias, stride)


def _reading(how: str) -> Any:
    def patch(block: Any) -> None:
        if block.scaler == "down" and max(block.stride) > 1:
            instead(convolutions(branch(block, "in_node")), read_otherwise, how=how)

    return patch


def _always(block: Any) -> None:
    if block.in_node is None:
        block.in_node = nn.Sequential(*block._conv(block.out_planes, 1, 1, 0, False))
        if block.normalizer != "null":
            block.in_node.append(block._norm(block.out_planes))


def _for_channels_only(block: Any) -> None:
    if block.in_planes == block.out_planes and block.scaler == "down" and block.in_node is not None:
        block.in_node = nn.Sequential(nn.MaxPool2d(1, block.stride))


def _stochastic_depth(block: Any, x: Tensor) -> Tensor:
    """In training one sample of eight loses its residual branch."""
    block._check(x)
    res = residual(block, x)
    kept = torch.rand(len(x), 1, 1, 1) > 0.125 if block.training else torch.ones(1, 1, 1, 1, dtype=torch.bool)
    return torch.where(kept, res, 0 * res) + cut(block, x)


def _concatenated(block: Any, x: Tensor) -> Tensor:
    """The last channel of the shortcut is not added (a pad by zeros that is one too wide)."""
    block._check(x)
    other = cut(block, x)
    return residual(block, x) + F.pad(other[:, :-1], (0, 0, 0, 0, 0, 1))


FAULTS = (
    fault(
        "identity_where_the_size_stays",
        "the identity where a projection keeps channels and size",
        "a shortcut that looks at the shapes at hand",
        "4.20 4.1 5.1 5.2",
        rules=("shortcut", "identity"),
        forward=_identity_instead,
    ),
    fault(
        "slice_for_a_projection",
        "x[::s] in place of a projection where the channels stay",
        "ResNet's shortcut A",
        "4.1 5.1",
        rules=("shortcut", "slice"),
        forward=_slice_instead,
    ),
    fault(
        "projection_without_norm",
        "the projection's norm does nothing",
        "a bare 1 x 1 convolution",
        "4.19 4.20 4.1",
        rules=("shortcut_norm", False),
        patch=_bare,
    ),
    fault(
        "shortcut_pre_activated",
        "the shortcut starts behind the first norm and activation",
        "He et al. 2016: the projection shares the pre-activation",
        "4.18 4.1",
        rules=("shortcut_input", "pre_activated"),
        forward=_shared_start,
    ),
    fault(
        "shortcut_from_conv1",
        "the shortcut starts from the output of conv1",
        "a variable that is assigned again",
        "4.18 4.1",
        rules=("shortcut_input", "conv1"),
        forward=_from_conv1,
    ),
    fault(
        "projection_reads_from_1",
        "the projection reads the elements 1, 1 + s, …",
        "a slice with another start",
        "4.19 4.1",
        rules=("shortcut_reading", "offset"),
        patch=_reading("offset"),
    ),
    fault(
        "projection_averages",
        "the projection averages windows in place of its stride",
        "ResNet-D",
        "4.19 4.1",
        rules=("shortcut_reading", "average"),
        patch=_reading("average"),
    ),
    _weight("shortcut", "shortcut_dropped", 0.0, "the shortcut is not added", "a plain network"),
    _weight("shortcut", "shortcut_halved", 0.5, "half of the shortcut is added", "a mean in place of a sum"),
    _weight("shortcut", "shortcut_twice", 2.0, "the shortcut is added twice", "once in the branch, once behind it"),
    _weight("shortcut", "shortcut_subtracted", -1.0, "the shortcut is subtracted", "a sign"),
    _weight("residual", "residual_dropped", 0.0, "the residual branch is dropped", "stochastic depth left on"),
    _weight("residual", "residual_halved", 0.5, "half of the residual branch is added", "stochastic depth, rescaled"),
    _weight("residual", "residual_subtracted", -1.0, "the residual branch is subtracted", "x - f(x), as in denoisers"),
    fault(
        "always_projected",
        "a projection where the identity is due",
        "a shortcut that is built without a condition",
        "2.6 2.22 7.1",
        "state",
        patch=_always,
    ),
    fault(
        "projected_for_channels_only",
        "a slice, without parameters, where only the stride asks for a projection",
        "a condition on the channels alone",
        "2.6 2.22 7.1",
        "state",
        patch=_for_channels_only,
    ),
    fault(
        "stochastic_depth",
        "in training a sample may lose its residual branch",
        "DropPath, left in",
        "9.3 4.1",
        "training",
        forward=_stochastic_depth,
    ),
    fault(
        "last_channel_of_the_shortcut_lost",
        "the last channel of the shortcut is not added",
        "a loop over C - 1 channels",
        "4.21 4.1",
        forward=_concatenated,
    ),
)
