"""Types and precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, convolutions, instance_norms, instead, norms
from spec_tests.faults.entry import fault


def _always_float32(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return y.float()


def _wide_is_narrowed(block: Any, x: Tensor) -> Tensor:
    """float64 is rounded to float32 on its way."""
    y = Block.forward(block, x)
    return y.float().double() if y.dtype == torch.float64 else y


def half(conv: Any, x: Tensor) -> Tensor:
    """Input and weight of a convolution in float16, the sum in float32."""
    if x.dtype != torch.float32:
        return engines.native(conv, x)
    return F.conv2d(x.half().float(), conv.weight.half().float(), conv.bias, conv.stride, conv.padding)


def tf32(conv: Any, x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return engines.native(conv, x)
    return F.conv2d(ten_bits(x), ten_bits(conv.weight), conv.bias, conv.stride, conv.padding)


def ten_bits(x: Tensor) -> Tensor:
    """Round x to the ten bits of TF32, with the gradient of x."""
    bits = x.detach().contiguous().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return engines.straight(torch.where(x.isfinite(), rounded, x), x)


def rounded_sum(conv: Any, x: Tensor) -> Tensor:
    """The output of a convolution is kept in float16."""
    y = engines.native(conv, x)
    return y.half().to(y.dtype) if y.dtype == torch.float32 else y


def rounded_halves(conv: Any, x: Tensor) -> Tensor:
    """The sums over the two halves of the input channels are rounded to bfloat16, then added."""
    middle = x.shape[1] // 2
    if not middle or x.dtype != torch.bfloat16:
        return engines.native(conv, x)
    one = F.conv2d(x[:, :middle], conv.weight[:, :middle], conv.bias, conv.stride, conv.padding)
    return one + F.conv2d(x[:, middle:], conv.weight[:, middle:], None, conv.stride, conv.padding)


def _one_by_one(x: Tensor) -> Tensor:
    """The sum of the last axis in the type of x, after each element rounded to it."""
    total = torch.zeros_like(x[..., :1])
    for i in range(x.shape[-1]):
        total = total + x[..., i : i + 1]
    return total


def sums_in_bfloat16(norm: Any, x: Tensor) -> Tensor:
    """Mean and variance come from sums that are kept in bfloat16."""
    y = engines.native(norm, x)
    batch = isinstance(norm, nn.BatchNorm2d)
    if x.dtype != torch.bfloat16 or (batch and not norm.training):
        return y
    rows = x.transpose(0, 1).flatten(1) if batch else x.flatten(2)
    mean = _one_by_one(rows) / rows.shape[-1]
    variance = _one_by_one((rows - mean) ** 2) / rows.shape[-1]
    mean, variance = (t[None, ..., None] if batch else t[..., None] for t in (mean, variance))
    return engines.affine(norm, (x - mean) / (variance + norm.eps).sqrt(), "scale_shift")


def sums_in_evaluation(norm: Any, x: Tensor) -> Tensor:
    return engines.native(norm, x) if norm.training else sums_in_bfloat16(norm, x)


def _behind_convolutions(block: Any) -> None:
    if block.layer_order == "old":
        instead(norms(block), sums_in_bfloat16)


def fast_root(norm: Any, x: Tensor) -> Tensor:
    """1/√ to 12 bits, as the instruction of a processor gives it."""
    y = engines.native(norm, x)
    return y * (1 + 2**-12) if y.dtype == torch.float32 else y


def reading_half(norm: Any, x: Tensor) -> Tensor:
    """The input of a norm is rounded to float16."""
    if x.dtype != torch.float32:
        return engines.native(norm, x)
    low = engines.straight(x.half().float(), x)
    return engines.native(norm, low)


def _sum_in_bfloat16(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    res: Tensor = block.conv3(block.conv2(block.conv1(x)))
    other = x if block.in_node is None else block.in_node(x)
    if x.dtype != torch.float32:
        return res + other
    return (res.to(torch.bfloat16) + other.to(torch.bfloat16)).float()


def _bfloat16_sums(block: Any, x: Tensor) -> Tensor:
    """Between two layers a bfloat16 block keeps three bits less."""
    y = Block.forward(block, x)
    if y.dtype != torch.bfloat16:
        return y
    return (y.float() * 16).to(torch.float8_e4m3fn).to(torch.bfloat16) / 16


def statistics_in_half(norm: Any, x: Tensor) -> Tensor:
    """running_mean and running_var are rounded to float16."""
    y = engines.native(norm, x)
    if norm.training and norm.running_mean.dtype == torch.float32:
        for buffer in (norm.running_mean, norm.running_var):
            buffer.data.copy_(buffer.half().float())
    return y


FAULTS = (
    fault(
        "output_is_float32",
        "the output is float32 whatever comes in",
        "float() at the end of a mixed-precision block",
        "9.9",
        "float64 bfloat16",
        forward=_always_float32,
    ),
    fault(
        "float64_narrowed",
        "float64 passes through float32",
        "one float32 step in the chain",
        "4.1",
        "float64",
        forward=_wide_is_narrowed,
    ),
    fault(
        "bfloat16_narrowed",
        "bfloat16 passes through 8 bits",
        "quantized activations",
        "4.1",
        "bfloat16",
        forward=_bfloat16_sums,
    ),
    fault(
        "bfloat16_partial_sums",
        "partial sums of a convolution are rounded to bfloat16",
        "allow_bf16_reduced_precision_reduction, on by default on a GPU",
        "4.1",
        "bfloat16",
        patch=lambda block: instead(convolutions(block), rounded_halves),
    ),
    fault(
        "bfloat16_statistics",
        "the sums behind mean and variance are kept in bfloat16",
        "statistics by hand, without a float32 accumulator",
        "4.1",
        "bfloat16 training",
        patch=lambda block: instead(norms(block), sums_in_bfloat16),
    ),
    fault(
        "bfloat16_statistics_in_evaluation",
        "in evaluation, the sums behind mean and variance are kept in bfloat16",
        "an engine for inference, which holds one type",
        "4.1",
        "bfloat16 evaluation",
        patch=lambda block: instead(instance_norms(block), sums_in_evaluation),
    ),
    fault(
        "bfloat16_statistics_of_the_old_order",
        "behind a convolution, the sums of a norm are kept in bfloat16",
        "a norm that is fused into the convolution before it",
        "4.1",
        "bfloat16",
        patch=_behind_convolutions,
    ),
    fault(
        "float16_products",
        "convolutions multiply in float16",
        "autocast",
        "4.2 4.1",
        patch=lambda block: instead(convolutions(block), half),
    ),
    fault(
        "tf32_products",
        "convolutions multiply in TF32",
        "cudnn.allow_tf32, on by default on a GPU",
        "4.1 5.2",
        patch=lambda block: instead(convolutions(block), tf32),
    ),
    fault(
        "float16_between_layers",
        "the output of a convolution is kept in float16",
        "autocast",
        "4.1 5.2",
        patch=lambda block: instead(convolutions(block), rounded_sum),
    ),
    fault(
        "sum_in_bfloat16",
        "the sum is taken in bfloat16",
        "a fused kernel of low precision",
        "4.21 4.1",
        forward=_sum_in_bfloat16,
    ),
    fault(
        "root_of_12_bits",
        "1/√(σ² + ε) has 12 bits",
        "the reciprocal root of a processor without a Newton step",
        "4.5 4.1",
        patch=lambda block: instead(norms(block), fast_root),
    ),
    fault(
        "norm_reads_float16",
        "a norm reads its input in float16",
        "autocast before a norm",
        "4.1 5.1",
        patch=lambda block: instead(norms(block), reading_half),
    ),
    fault(
        "statistics_in_float16",
        "the running statistics are kept in float16",
        "buffers of half the size",
        "6.1 6.2",
        "statistics",
        patch=lambda block: instead(batch_norms(block), statistics_in_half),
    ),
)
