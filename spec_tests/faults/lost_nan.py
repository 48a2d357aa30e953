"""A NaN that a layer keeps back; every other number is right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec_tests.faults.engines import activations, convolutions, instead, layers, native, norms
from spec_tests.faults.entry import fault


def preferring_numbers(act: Any, x: Tensor) -> Tensor:
    """max(x, 0) + a min(x, 0), by functions that return the number of a number and a NaN."""
    zero = torch.zeros_like(x)
    y = torch.fmax(x, zero)
    return y + act.weight[:, None, None] * torch.fmin(x, zero) if isinstance(act, nn.PReLU) else y


def of_numbers_only(norm: Any, x: Tensor) -> Tensor:
    """A norm by the mean and the variance of what is a number; the running statistics are as ever."""
    y = native(norm, x)
    batch = isinstance(norm, nn.BatchNorm2d)
    if (batch and not norm.training) or not x.isnan().any():
        return y
    axes = (0, 2, 3) if batch else (2, 3)
    mean = x.nanmean(axes, keepdim=True)
    variance = (x - mean).square().nanmean(axes, keepdim=True)
    hat: Tensor = (x - mean) / (variance + norm.eps).sqrt()
    return hat if norm.weight is None else hat * norm.weight[:, None, None] + norm.bias[:, None, None]


def sparse(conv: Any, x: Tensor) -> Tensor:
    """A convolution that leaves out what a weight of 0 multiplies."""
    if not x.isnan().any():
        return native(conv, x)
    read = F.conv2d(x.isnan().to(x.dtype), (conv.weight != 0).to(x.dtype), None, conv.stride, conv.padding) > 0
    return native(conv, x.nan_to_num()).masked_fill(read, torch.nan)


FAULTS = (
    fault(
        "relu_of_nan_is_0",
        "a ReLU makes 0 of NaN",
        "x > 0 ? x : 0, fmaxf, the maximum of many vector instructions",
        "4.22",
        "nonfinite",
        patch=lambda block: instead(layers(block, nn.ReLU), preferring_numbers),
    ),
    fault(
        "prelu_of_nan_is_0",
        "a PReLU makes 0 of NaN",
        "fmaxf(x, 0) + a * fminf(x, 0)",
        "4.22",
        "nonfinite",
        patch=lambda block: instead(layers(block, nn.PReLU), preferring_numbers),
    ),
    fault(
        "activations_of_nan_are_0",
        "either activation makes 0 of NaN",
        "one function for both",
        "4.22",
        "nonfinite",
        patch=lambda block: instead(activations(block), preferring_numbers),
    ),
    fault(
        "nan_left_out_of_norms",
        "a norm normalizes with the statistics of the numbers only",
        "nanmean, nanvar; masked statistics",
        "4.22",
        "nonfinite",
        patch=lambda block: instead(norms(block), of_numbers_only),
    ),
    fault(
        "weights_of_0_are_skipped",
        "a convolution leaves out what a weight of 0 multiplies",
        "sparse or pruned kernels",
        "4.22",
        "nonfinite",
        patch=lambda block: instead(convolutions(block), sparse),
    ),
)
