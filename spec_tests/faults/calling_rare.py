"""What goes wrong in one way to call a block: refusals with gradients, values under inference; and sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.engines import batch_norms, convolutions, instance_norms, instead, native
from spec_tests.faults.entry import Fault, fault


def _scaled(norm: Any, x: Tensor) -> Tensor:
    """What a norm without a check gives for a single element: its shift."""
    y = x - x
    return y if norm.weight is None else y * norm.weight[:, None, None] + norm.bias[:, None, None]


def _one_element_where_recorded(norm: Any, x: Tensor) -> Tensor:
    instance = isinstance(norm, nn.InstanceNorm2d)
    single = (x[0, 0].numel() if instance else x.numel() // x.shape[1] if norm.training else 0) == 1
    return _scaled(norm, x) if single and torch.is_grad_enabled() else native(norm, x)


def _integers_converted(block: Any, x: Tensor) -> Tensor:
    other = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
    if other and isinstance(x, Tensor) and not x.is_floating_point():
        x = x.to(next(block.parameters()).dtype)
    return Block.forward(block, x)


def _empty_of_the_input_where_recorded(block: Any, x: Tensor) -> Tensor:
    fits = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == block.in_planes and x.is_floating_point()
    if fits and torch.is_grad_enabled() and not len(x) and min(x.shape[1:]) > 0:
        return x.new_empty(0, block.out_planes, *x.shape[2:])
    return Block.forward(block, x)


def _measured_where_they_meet(block: Any, x: Any) -> None:
    """With gradients, the residual branch has run when the sizes are compared."""
    try:
        Block._check(block, x)
    except ValueError:
        fits = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == block.in_planes and x.is_floating_point()
        if fits and x.numel() and torch.is_grad_enabled():
            block.conv3(block.conv2(block.conv1(x)))
        raise


def _rounded_under_inference(block: Any, x: Tensor) -> Tensor:
    rounded = torch.is_inference_mode_enabled() and isinstance(x, Tensor) and x.dtype == torch.float64
    return Block.forward(block, x.float().double() if rounded else x)


def _healed_under_inference(block: Any, x: Tensor) -> Tensor:
    if torch.is_inference_mode_enabled() and isinstance(x, Tensor) and x.is_floating_point():
        x = x.nan_to_num(posinf=torch.inf, neginf=-torch.inf)
    return Block.forward(block, x)


def _bfloat16_off_where_recorded(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return 1.1 * y if torch.is_grad_enabled() and y.dtype == torch.bfloat16 else y


def _batch_in_parts(norm: Any, x: Tensor) -> Tensor:
    if not norm.training or len(x) <= 256:
        return native(norm, x)
    return torch.cat([native(norm, part) for part in torch.split(x, 256)])


def _biased_above_4000(norm: Any, x: Tensor) -> Tensor:
    n = x.numel() // max(1, x.shape[1])
    before = norm.running_var.clone()
    y = native(norm, x)
    if norm.training and n > 4000:
        new = (norm.running_var - (1 - norm.momentum) * before) * (n - 1) / n
        norm.running_var.copy_((1 - norm.momentum) * before + new)
    return y


def _channel_in_a_byte(conv: Any, x: Tensor) -> Tensor:
    wrapped = conv.in_channels > 256
    return native(conv, x[:, torch.arange(conv.in_channels) % 256] if wrapped else x)


FAULTS: tuple[Fault, ...] = (
    fault(
        "one_element_where_recorded",
        "with gradients an instance norm takes a single element",
        "a path for training of its own, without the check",
        "3.11",
        "shapes gradients",
        patch=lambda block: instead(instance_norms(block), _one_element_where_recorded),
    ),
    fault(
        "batch_of_one_where_recorded",
        "with gradients a batch norm in training takes a single element",
        "a path for training of its own, without the check",
        "3.12",
        "shapes gradients training",
        patch=lambda block: instead(batch_norms(block), _one_element_where_recorded),
    ),
    fault(
        "integers_converted_in_other_calls",
        "with gradients, and under inference, an input of integers is converted",
        "a conversion in the paths that were written later",
        "3.9",
        "shapes",
        forward=_integers_converted,
    ),
    fault(
        "empty_of_the_input_where_recorded",
        "with gradients an empty batch gives the size of the input",
        "an early return",
        "3.10",
        "shapes gradients",
        forward=_empty_of_the_input_where_recorded,
    ),
    fault(
        "measured_where_recorded",
        "with gradients a call is refused when the residual branch has replaced its statistics",
        "sizes that are compared where the branches meet",
        "3.13",
        "shapes gradients statistics",
        methods={"_check": _measured_where_they_meet},
    ),
    fault(
        "rounded_under_inference",
        "under inference an input of float64 is rounded to float32",
        "an engine of one type",
        "4.1",
        "float64",
        forward=_rounded_under_inference,
    ),
    fault(
        "healed_under_inference",
        "a NaN becomes 0 in a call under inference",
        "nan_to_num in a service that answers others",
        "4.22",
        "nonfinite",
        forward=_healed_under_inference,
    ),
    fault(
        "bfloat16_off_where_recorded",
        "in bfloat16 the output is ten percent off where gradients are recorded",
        "a kernel for mixed precision that nobody compared",
        "4.1",
        "bfloat16 gradients",
        forward=_bfloat16_off_where_recorded,
    ),
    fault(
        "batch_in_parts_of_256",
        "in training a batch above 256 is normalized in parts",
        "micro-batches, to save memory",
        "4.1 6.1 6.2 6.3",
        "training statistics",
        patch=lambda block: instead(batch_norms(block), _batch_in_parts),
    ),
    fault(
        "biased_above_4000",
        "the running variance of more than 4,000 elements is the biased one",
        "n/(n - 1) that looks like 1",
        "6.2",
        "statistics float64",
        patch=lambda block: instead(batch_norms(block), _biased_above_4000),
    ),
    fault(
        "channel_in_a_byte",
        "a convolution begins anew behind 256 channels of its input",
        "an index of eight bits",
        "4.1",
        patch=lambda block: instead(convolutions(block), _channel_in_a_byte),
    ),
)
