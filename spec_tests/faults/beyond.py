"""What lies beyond ordinary calls: wide parameters and gradients, inputs that are not trained, memory, states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, convolutions, instead, layers, norms, straight
from spec_tests.faults.entry import fault


def _slope_in_range(act: Any, x: Tensor) -> Tensor:
    return F.prelu(x, act.weight.clamp(-2, 2))


def _scale_in_range(norm: Any, x: Tensor) -> Tensor:
    y = engines.native(norm, x)
    return y if norm.weight is None or norm.weight.abs().max() <= 4 else 1.01 * y


def _variance_in_range(norm: Any, x: Tensor) -> Tensor:
    if norm.training:
        return engines.native(norm, x)
    return F.batch_norm(x, norm.running_mean, norm.running_var.clamp(max=100), norm.weight, norm.bias, eps=norm.eps)


def _weights_in_range(conv: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight.clamp(-8, 8), conv.bias, conv.stride, conv.padding)


class _Scaled(torch.autograd.Function):
    """A gradient that is twice as large."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:  # noqa: ARG004
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:  # noqa: ARG004
        return 2 * dy[0]


def _doubled(y: Tensor) -> Tensor:
    found: Tensor = _Scaled.apply(y)  # type: ignore[no-untyped-call]
    return found


def _first_in_the_network(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return _doubled(y) if y.requires_grad and not x.requires_grad else y


def _differentiating(block: Any, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.is_leaf and not x.is_inference():
        x.requires_grad_()
    return Block.forward(block, x)


def _clipped(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if y.requires_grad:
        y = y.clone()
        y.register_hook(lambda dy: dy.clamp(-10, 10))  # type: ignore[no-untyped-call]
    return y


def _strides_in_training(block: Any, x: Tensor) -> Tensor:
    return Block.forward(block, _doubled(x) if x.requires_grad and not x.is_contiguous() else x)


def _strides_of_the_output(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return straight(1.01 * y, y) if x.requires_grad and not x.is_contiguous() else y


def _one_buffer(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if y.requires_grad or not y.numel():
        return y
    kept: dict[Any, Tensor] = block.__dict__.setdefault("_kept", {})
    return kept.setdefault((tuple(y.shape), y.dtype), torch.empty_like(y)).copy_(y)


def _filters_twice(block: Any) -> None:
    with torch.no_grad():
        for conv in convolutions(block):
            half = len(conv.weight) // 2
            conv.weight[half : 2 * half] = conv.weight[:half]


def _two_seeds(block: Any) -> None:
    """The seed's last bit alone is used."""
    state = torch.get_rng_state()
    torch.manual_seed(torch.initial_seed() % 2)
    for conv in convolutions(block):
        conv.reset_parameters()
    torch.set_rng_state(state)


def _broadcasting(self: Any, state: Any, *arguments: Any, **options: Any) -> Any:
    """As copy_ does, what has another shape is repeated if it can be."""
    found = type(state)(state)
    for name, own in self.state_dict().items():
        if name in found and found[name].shape != own.shape and found[name].numel() == 1:
            found[name] = found[name].expand(own.shape).clone()
    if hasattr(state, "_metadata"):
        found._metadata = state._metadata
    return nn.Module.load_state_dict(self, found, *arguments, **options)


def _tuples_and_lists(given: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("kernel_size", "stride", "padding", "output_size"):
        value = given.get(name)
        if hasattr(value, "__len__") and not isinstance(value, str) and type(value) not in (tuple, list):
            raise TypeError(f"`{name}` (={value!r}) must be an int or a tuple")
    return {}


FAULTS = (
    fault(
        "input_is_differentiated",
        "the input requires a gradient behind a call, and gathers gradients that nobody wants",
        "x.requires_grad_() for a penalty on gradients",
        "9.6",
        "history",
        forward=_differentiating,
    ),
    fault(
        "slope_within_2",
        "slopes are clamped to [-2, 2]",
        "a constraint that keeps a training stable",
        "4.1 4.11",
        patch=lambda block: instead(layers(block, nn.PReLU), _slope_in_range),
    ),
    fault(
        "large_scale_wrong",
        "a norm is larger where a scale is above 4",
        "a table for the common scales",
        "4.1",
        patch=lambda block: instead(norms(block), _scale_in_range),
    ),
    fault(
        "variance_clamped",
        "running variances are clamped at 100",
        "a guard against states that diverged",
        "4.1 4.7",
        "evaluation",
        patch=lambda block: instead(batch_norms(block), _variance_in_range),
    ),
    fault(
        "weights_clamped",
        "weights of convolutions are clamped to [-8, 8]",
        "a fixed-point format",
        "4.1 4.2",
        patch=lambda block: instead(convolutions(block), _weights_in_range),
    ),
    fault(
        "gradient_clipped_at_10",
        "the gradient that arrives is clipped to [-10, 10]",
        "gradient clipping inside of the block",
        "5.1 5.2",
        "gradients",
        forward=_clipped,
    ),
    fault(
        "first_block_trained_twice",
        "gradients are doubled where the input needs none",
        "a path of its own for the first block of a network",
        "5.2",
        "gradients",
        forward=_first_in_the_network,
    ),
    fault(
        "strides_in_backward",
        "the gradient of a strided input is doubled",
        "a backward kernel for contiguous inputs",
        "9.10",
        "gradients layout",
        forward=_strides_in_training,
    ),
    fault(
        "strides_where_differentiated",
        "the output of a strided input is larger where a gradient is wanted",
        "a training kernel for contiguous inputs",
        "9.10",
        "layout",
        forward=_strides_of_the_output,
    ),
    fault(
        "one_output_buffer",
        "every call of a shape returns the same memory",
        "a pool of buffers",
        "9.7",
        "history",
        forward=_one_buffer,
    ),
    fault(
        "filters_twice",
        "half of the filters of a new block are those of the other half",
        "an initialization that is tiled",
        "7.7",
        "construction",
        patch=_filters_twice,
    ),
    fault(
        "one_bit_of_the_seed",
        "seeds of one parity give the same block",
        "a seed that is shifted or masked",
        "7.9",
        "construction",
        patch=_two_seeds,
    ),
    fault(
        "load_broadcasts",
        "an entry of one element is loaded into any shape",
        "copy_, which repeats",
        "7.11",
        "state",
        methods={"load_state_dict": _broadcasting},
    ),
    fault(
        "pairs_of_two_types",
        "a pair is a tuple or a list and nothing else",
        "type(value) in (tuple, list)",
        "1.13",
        "arguments",
        arguments=_tuples_and_lists,
    ),
)
