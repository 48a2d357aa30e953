"""Convolutions: how a weight is read, padding, stride, width, bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import convolutions, instead, put
from spec_tests.faults.entry import Fault, fault, given_by_name


def like(block: Any, in_planes: int, out_planes: int) -> Any:
    """A reference block of other channels, otherwise with the arguments of `block`."""
    names = list(given_by_name((), {"in_planes": 1, "out_planes": 1}))
    names += ["kernel_size", "stride", "padding", "output_size", "normalizer", "activator", "layer_order", "scaler"]
    kept = {name: getattr(block, name) for name in names if not name.endswith("planes")}
    return Block(in_planes, out_planes, **kept)


def _read(name: str, title: str, cause: str, clauses: str, rules: Any = None, **options: Any) -> Fault:
    patch = lambda block: instead(convolutions(block), engines.convolve, **options)  # noqa: E731
    return fault(name, title, cause, clauses, rules=rules, patch=patch)


def _middle(name: str, title: str, cause: str, clauses: str, rules: Any = None, **options: Any) -> Fault:
    patch = lambda block: instead(convolutions(block.conv2), engines.convolve, **options)  # noqa: E731
    return fault(name, title, cause, clauses, rules=rules, patch=patch)


def padded_first(sequential: Any, x: Tensor, *, padding: tuple[int, int]) -> Tensor:
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    for layer in sequential:
        x = F.conv2d(x, layer.weight, layer.bias, layer.stride) if isinstance(layer, nn.Conv2d) else layer(x)
    return x


def _pad_first(block: Any) -> None:
    if block.layer_order == "new" and block.normalizer != "null" and not engines.upsamplings(block.conv2):
        instead([block.conv2], padded_first, padding=block.padding)


def _stride_first(block: Any) -> None:
    # Elsewhere the size of the output would change.
    if block.scaler == "down" and block._agrees:
        put(convolutions(block.conv1), stride=block.stride)
        put(convolutions(block.conv2), stride=(1, 1))


def _stride_last(block: Any) -> None:
    if block.scaler == "down" and block._agrees:
        put(convolutions(block.conv2), stride=(1, 1))
        put(convolutions(block.conv3), stride=block.stride)


def dilated(conv: Any, x: Tensor) -> Tensor:
    """Dilation 2, and the padding that keeps the size."""
    more = [k - 1 for k in conv.kernel_size]
    padded = F.pad(x, (more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2))
    return F.conv2d(padded, conv.weight, conv.bias, conv.stride, conv.padding, 2)


def first_taps(conv: Any, x: Tensor) -> Tensor:
    """Each output channel sees its own input channel only."""
    w = conv.weight
    same = torch.eye(*w.shape[:2], dtype=w.dtype)[:, :, None, None]
    return F.conv2d(x, w * same, conv.bias, conv.stride, conv.padding)


def truncated_padding(conv: Any, x: Tensor) -> Tensor:
    """The padding of the height is used for both axes where they differ, and what is too much is cut off."""
    height, width = conv.padding
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    if height <= width:
        return y
    other = F.conv2d(x, conv.weight, conv.bias, conv.stride, (height, height))
    return other[..., : y.shape[3]]


def shuffled(conv: Any, x: Tensor) -> Tensor:
    """A channel shuffle in two groups."""
    y = engines.native(conv, x)
    return torch.cat((y[:, ::2], y[:, 1::2]), 1)


def _hidden(width: str) -> Any:
    def patch(block: Any) -> None:
        hidden = block.out_planes if width == "out" else max(block.out_planes // 4, 1)
        wide = like(block, hidden, block.out_planes)
        block.conv1, block.conv2, block.conv3 = like(block, block.in_planes, hidden).conv3, wide.conv2, wide.conv3

    return patch


def _grouped(block: Any) -> None:
    """A depthwise convolution in conv2."""
    for i, layer in enumerate(block.conv2):
        if isinstance(layer, nn.Conv2d):
            planes, bias = block.in_planes, layer.bias is not None
            settings = {"stride": layer.stride, "padding": layer.padding, "bias": bias, "groups": planes}
            block.conv2[i] = nn.Conv2d(planes, planes, block.kernel_size, **settings)


def _with_bias(block: Any, planes: int, kernel: Any, stride: Any, padding: Any, up: bool) -> list[nn.Module]:
    *first, _ = Block._conv(block, planes, kernel, stride, padding, up)
    return [*first, nn.Conv2d(block.in_planes, planes, kernel, stride=stride, padding=padding)]


def _without_bias(block: Any) -> None:
    for conv in convolutions(block):
        conv.register_parameter("bias", None)


FAULTS = (
    _read(
        "kernel_flipped",
        "the kernel is flipped",
        "a mathematical convolution, as scipy.signal.convolve2d",
        "4.2 4.1",
        ("kernel", "flipped"),
        lay="flipped",
    ),
    _read(
        "kernel_transposed",
        "height and width of the kernel are exchanged",
        "a weight read in another order",
        "4.2 4.1",
        ("kernel", "transposed"),
        lay="transposed",
    ),
    _read(
        "weight_in_out",
        "the first two axes of a weight are exchanged",
        "the layout of transposed convolutions, and of Keras",
        "4.2 4.1",
        ("kernel_channels", "in_out"),
        lay="in_out",
    ),
    _read(
        "weight_as_hwio",
        "the numbers of a weight are taken in the order (kh, kw, in, out)",
        "a buffer handed to Keras, Flax or TensorFlow.js without a transposition",
        "4.2 4.1",
        ("kernel_channels", "hwio"),
        lay="hwio",
    ),
    _read(
        "weight_as_ohwi",
        "the numbers of a weight are taken in the order (out, kh, kw, in)",
        "a buffer handed to TensorFlow Lite or a channels-last kernel without a transposition",
        "4.2 4.1",
        ("kernel_channels", "ohwi"),
        lay="ohwi",
    ),
    _read(
        "bias_not_added",
        "the bias of normalizer='null' is not added",
        "bias=False throughout",
        "4.1 5.2",
        ("convolution_bias", "missing"),
        bias="missing",
    ),
    _read("bias_twice", "the bias is added twice", "a fused kernel, followed by an addition", "4.1 5.2", bias="twice"),
    _middle(
        "padding_edge",
        "edges repeat",
        "padding_mode='replicate'",
        "4.2 4.1",
        ("padding_mode", "edge"),
        mode="replicate",
    ),
    _middle(
        "padding_reflect",
        "edges reflect",
        "padding_mode='reflect'",
        "4.2 4.1",
        ("padding_mode", "reflect"),
        mode="reflect",
    ),
    _middle(
        "padding_circular",
        "edges wrap",
        "padding_mode='circular'",
        "4.2 4.1",
        ("padding_mode", "circular"),
        mode="circular",
    ),
    _middle(
        "padding_same",
        "padding='SAME': asymmetric at stride 2",
        "TensorFlow and JAX",
        "4.4 4.1",
        ("padding_sides", "same"),
        same=True,
    ),
    fault(
        "padded_before_the_norm",
        "conv2 pads its input, then normalizes and activates",
        "a padding layer at the head of a branch",
        "4.3 4.1",
        rules=("padding_place", "norm"),
        patch=_pad_first,
    ),
    fault(
        "stride_on_conv1",
        "conv1 has the stride",
        "Caffe's ResNet: the first 1 x 1 convolution",
        "4.4 4.1",
        rules=("stride_place", "conv1"),
        patch=_stride_first,
    ),
    fault(
        "stride_on_conv3",
        "conv3 has the stride",
        "the last convolution takes the size of the output",
        "4.4 4.1",
        patch=_stride_last,
    ),
    _middle("dilation_2", "dilation 2, padding as it is", "DeepLab", "4.1 5.1", ("dilation", 2), dilation=2),
    fault(
        "dilation_2_same_size",
        "dilation 2, and the padding that keeps the size",
        "DeepLab",
        "4.2 4.1",
        patch=lambda block: instead(convolutions(block.conv2), dilated),
    ),
    fault(
        "only_its_own_channel",
        "conv2 connects a channel with itself only",
        "groups=C over a full weight",
        "4.2 4.1",
        patch=lambda block: instead(convolutions(block.conv2), first_taps),
    ),
    fault(
        "padding_of_the_height_for_both",
        "the larger padding of the height is used for the width",
        "padding[0] for both axes",
        "4.1 5.1",
        patch=lambda block: instead(convolutions(block.conv2), truncated_padding),
    ),
    fault(
        "channels_shuffled",
        "the channels behind conv1 are shuffled in two groups",
        "ShuffleNet",
        "4.1 5.1",
        patch=lambda block: instead(convolutions(block.conv1), shuffled),
    ),
    fault(
        "hidden_width_out",
        "the hidden width is out_planes",
        "torchvision's Bottleneck",
        "2.1 2.21 2.22",
        "state",
        patch=_hidden("out"),
    ),
    fault(
        "hidden_width_quarter",
        "the hidden width is out_planes / 4",
        "ResNet's expansion of 4",
        "2.1 2.21 2.22",
        "state",
        patch=_hidden("quarter"),
    ),
    fault("depthwise", "conv2 is a depthwise convolution", "MobileNet", "2.1 2.21 2.22", "state", patch=_grouped),
    fault(
        "bias_always",
        "a convolution before or behind a norm has a bias",
        "bias=True, the default",
        "2.5 2.22 7.1",
        "state",
        methods={"_conv": _with_bias},
    ),
    fault(
        "bias_never",
        "normalizer='null' has no bias",
        "bias=False throughout, for the sake of the norms",
        "2.5 2.22 7.1",
        "state",
        patch=_without_bias,
    ),
)
