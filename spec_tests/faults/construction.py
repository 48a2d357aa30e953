"""What a new block holds: defaults of the arguments, and initial values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.engines import batch_norms, convolutions, layers, norms
from spec_tests.faults.entry import Fault, fault


def _default(argument: str, value: Any, cause: str) -> Fault:
    def arguments(given: Any) -> dict[str, Any]:
        return {} if argument in given else {argument: value}

    title = f"{argument} is {value!r} by default"
    return fault(f"default_{argument}_{value}", title, cause, "1.1", "arguments", arguments=arguments)


def _each(find: Callable[[Any], list[Any]], change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def patch(block: Any) -> None:
        with torch.no_grad():
            for layer in find(block):
                change(layer)

    return patch


def _slope(value: float) -> Callable[[Any], None]:
    return _each(lambda block: layers(block, nn.PReLU), lambda act: act.weight.fill_(value))


def _weights(init: Callable[[Any], Any]) -> Callable[[Any], None]:
    return _each(convolutions, lambda conv: init(conv.weight))


def _normal(w: Any) -> None:
    """The deviation of the uniform distribution, cut off at its bound."""
    limit = w[0].numel() ** -0.5
    nn.init.trunc_normal_(w, std=limit / 3**0.5, a=-limit, b=limit)


def _fan_out(w: Any) -> None:
    limit = (w.shape[0] * w[0, 0].numel()) ** -0.5
    nn.init.uniform_(w, -limit, limit)


def _halves(w: Any) -> None:
    """Only one of the two signs: what is drawn from [0, 1) and not shifted."""
    w.abs_()


def _in_pairs(w: Any) -> None:
    half = len(w) // 2
    w[half : 2 * half] = -w[:half]


def _flipped(w: Any) -> None:
    half = len(w) // 2
    if half:
        w[-half:] = w[:half].flip(1, 2, 3)


def _antithetic(w: Any) -> None:
    half = w.shape[1] // 2
    if half:
        w[:, -half:] = -w[:, :half].flip(1)


def _zero_bias(conv: Any) -> None:
    if conv.bias is not None:
        conv.bias.zero_()


def _last_scale_zero(block: Any) -> None:
    for norm in norms(block.conv3):
        if norm.weight is not None:
            nn.init.zeros_(norm.weight)


def _shift(norm: Any) -> None:
    if norm.bias is not None:
        norm.bias.fill_(0.1)


def _same_draw(block: Any) -> None:
    """Every convolution begins with the same seed."""
    seed = int(torch.randint(2**31, (1,)))
    for conv in convolutions(block):
        torch.manual_seed(seed)
        conv.reset_parameters()


def _own_seed(block: Any, *positional: Any, **named: Any) -> None:
    torch.manual_seed(0)
    Block.__init__(block, *positional, **named)


def _entropy(block: Any) -> None:
    """A generator of its own, which the seed of the framework does not reach."""
    generator = torch.Generator()
    generator.seed()
    for conv in convolutions(block):
        limit = conv.weight[0].numel() ** -0.5
        for tensor in conv.parameters():
            nn.init.uniform_(tensor, -limit, limit, generator=generator)


def _frozen_slopes(block: Any) -> None:
    for act in layers(block, nn.PReLU):
        act.requires_grad_(False)


def _in_double(block: Any) -> None:
    block.double()


def _planes_exchanged(block: Any, *positional: Any, **named: Any) -> None:
    """out_planes comes first."""
    if len(positional) > 1:
        positional = (positional[1], positional[0], *positional[2:])
    Block.__init__(block, *positional, **named)


def _start(name: str, title: str, cause: str, clauses: str, patch: Any) -> Fault:
    return fault(name, title, cause, clauses, "construction", patch=patch)


FAULTS = (
    _default("stride", 2, "the block that begins a stage"),
    _default("kernel_size", 1, "a bottleneck without a middle"),
    _default("padding", 0, "the default of torch's Conv2d"),
    _default("normalizer", "batch", "the usual norm of a ResNet"),
    _default("activator", "relu", "the usual activation of a ResNet"),
    _default("layer_order", "old", "ResNet v1"),
    _default("scaler", "up", "the decoder's block"),
    fault(
        "planes_exchanged",
        "out_planes comes first",
        "the order (out, in) of weights",
        "1.1",
        "arguments",
        methods={"__init__": _planes_exchanged},
    ),
    _start(
        "last_scale_zero",
        "the scale of conv3's norm is 0 at start",
        "recipes for deep networks",
        "7.5",
        _last_scale_zero,
    ),
    _start("shifts_start_at_0_1", "a shift is 0.1 at start", "a bias against dead units", "7.5", _each(norms, _shift)),
    _start(
        "running_variance_starts_at_0",
        "running_var is 0 at start",
        "np.zeros for every buffer",
        "7.6",
        _each(batch_norms, lambda norm: norm.running_var.zero_()),
    ),
    _start(
        "counter_starts_at_1",
        "num_batches_tracked is 1 at start",
        "a counter of the next call",
        "7.6",
        _each(batch_norms, lambda norm: norm.num_batches_tracked.fill_(1)),
    ),
    _start("slopes_start_at_0", "a slope is 0 at start", "PReLU of Keras", "7.4", _slope(0.0)),
    _start("slopes_start_at_0_01", "a slope is 0.01 at start", "LeakyReLU", "7.4", _slope(0.01)),
    _start("glorot", "weights are Glorot's", "the default of Keras", "7.7", _weights(nn.init.xavier_uniform_)),
    _start("he", "weights are He's", "the default of torchvision's ResNet", "7.7", _weights(nn.init.kaiming_normal_)),
    _start(
        "truncated_normal",
        "weights are normal, cut off at the bound",
        "JAX and Flax: lecun_normal",
        "7.7",
        _weights(_normal),
    ),
    _start(
        "uniform_by_fan_out",
        "the range follows the output channels",
        "mode='fan_out'",
        "7.7",
        _weights(_fan_out),
    ),
    _start(
        "weights_of_one_sign",
        "weights are drawn from [0, 1/√f]",
        "a draw from [0, 1) that is not shifted",
        "7.7",
        _weights(_halves),
    ),
    _start(
        "biases_start_at_0",
        "the bias of a convolution is 0 at start",
        "Keras, Flax",
        "7.7 7.8",
        _each(convolutions, _zero_bias),
    ),
    _start(
        "every_layer_the_same_seed",
        "every convolution is drawn from the same seed",
        "a key that is not split (JAX)",
        "7.8",
        _same_draw,
    ),
    _start(
        "filters_in_pairs",
        "every other filter is the one before it, negated",
        "concatenated ReLUs, or antithetic draws",
        "7.7",
        _weights(_in_pairs),
    ),
    _start(
        "filters_flipped",
        "half of the filters are the others, flipped",
        "symmetric pairs",
        "7.7",
        _weights(_flipped),
    ),
    _start(
        "filters_antithetic_inside",
        "half of each filter is the other half, negated",
        "antithetic draws",
        "7.7",
        _weights(_antithetic),
    ),
    fault(
        "own_seed",
        "every block is the same",
        "a seed that is set in the constructor",
        "7.9",
        "construction",
        methods={"__init__": _own_seed},
    ),
    _start("seed_has_no_effect", "the seed of the framework has no effect", "a generator of its own", "7.9", _entropy),
    fault(
        "slopes_frozen",
        "slopes are not trained",
        "requires_grad=False",
        "7.2 2.23 5.9",
        "state gradients",
        patch=_frozen_slopes,
    ),
    _start(
        "float64_at_start", "a new block is float64", "the default type of NumPy and JAX with x64", "7.3", _in_double
    ),
)
