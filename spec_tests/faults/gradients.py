"""Gradients: the values are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import batch_norms, convolutions, instead, layers, norms
from spec_tests.faults.entry import Fault, fault
from spec_tests.faults.shortcut import cut, residual


def _detached(name: str, title: str, cause: str, rule: str, how: str) -> Fault:
    patch = lambda block: instead(norms(block), engines.normalize, detached=how)  # noqa: E731
    return fault(name, title, cause, "5.3 5.1", "gradients", rules=("statistics_gradient", rule), patch=patch)


def _slope(name: str, title: str, cause: str, rule: str, function: Any, **options: Any) -> Fault:
    patch = lambda block: instead(layers(block, nn.PReLU), function, **options)  # noqa: E731
    return fault(name, title, cause, "5.5 5.2", "gradients", rules=("slope_gradient", rule), patch=patch)


def _batch_mean(block: Any, x: Tensor) -> Tensor:
    """The gradients of the parameters are divided by the number of samples, that of the input is not."""
    n = max(len(x), 1)
    y = Block.forward(block, engines.scaled_gradient(x, n) if x.is_floating_point() else x)
    return engines.scaled_gradient(y, 1 / n)


def _residual_detached(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    return residual(block, x.detach()) + cut(block, x)


def _shortcut_detached(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    return residual(block, x) + cut(block, x.detach())


def _in_place(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    res = residual(block, x)
    res += cut(block, x)
    return res


def _adding_up(block: Any, set_to_none: bool = True) -> None:
    """Gradients are not forgotten between calls."""


def _dy_overwritten(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    if y.requires_grad:

        def hook(dy: Tensor) -> Tensor:
            kept = dy.clone()
            dy.detach().zero_()
            return kept

        hooked: Any = y
        hooked.register_hook(hook)
    return y


def evaluated_through(norm: Any, x: Tensor) -> Tensor:
    """In evaluation the running statistics give the values, those of the input the gradient."""
    y = engines.native(norm, x)
    if norm.training or not x.requires_grad or x[:, 0].numel() == 1:
        return y
    path = F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    return engines.straight(y, path)


class _Formula(torch.autograd.Function):
    """A norm by given statistics, whose gradient is as if they were those of the input."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        x, mean, inverse = given
        hat = (x - mean) * inverse
        ctx.save_for_backward(hat, inverse)
        return hat

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, None, None]:
        hat, inverse = ctx.saved_tensors
        over = (0, 2, 3)
        core = dy[0] - dy[0].mean(over, keepdim=True) - hat * (dy[0] * hat).mean(over, keepdim=True)
        return inverse * core, None, None


def evaluated_by_formula(norm: Any, x: Tensor) -> Tensor:
    """In evaluation the formula of training takes the gradient, with the running statistics in it."""
    if norm.training or not x.requires_grad or x[:, 0].numel() == 1:
        return engines.native(norm, x)
    mean, variance = (t.to(x.dtype)[:, None, None] for t in (norm.running_mean, norm.running_var))
    hat: Tensor = _Formula.apply(x, mean, (variance + norm.eps).rsqrt())  # type: ignore[no-untyped-call]
    return engines.affine(norm, hat, "scale_shift")


def positive_only(act: Any, x: Tensor) -> Tensor:
    """A PReLU whose input receives the gradient of a ReLU."""
    slope = F.prelu(x.detach(), act.weight)
    return engines.straight(engines.native(act, x), slope + F.relu(x))


def slope_gradient(act: Any, x: Tensor, *, times: str) -> Tensor:
    """The gradient of a slope with another sign, or times the slope."""
    factor: Any = -1.0 if times == "-1" else act.weight.detach()
    return F.prelu(x, engines.scaled_gradient(act.weight, factor))


def through_everything(act: Any, x: Tensor) -> Tensor:
    """A ReLU that passes every gradient on."""
    return engines.straight(engines.native(act, x), x)


def without_bias_gradient(conv: Any, x: Tensor) -> Tensor:
    bias = None if conv.bias is None else conv.bias.detach()
    return F.conv2d(x, conv.weight, bias, conv.stride, conv.padding)


def clipped(conv: Any, x: Tensor) -> Tensor:
    y = engines.native(conv, x)
    if y.requires_grad:
        hooked: Any = y
        hooked.register_hook(lambda dy: dy.clamp(-1, 1))
    return y


def flipped_gradient(conv: Any, x: Tensor) -> Tensor:
    """The gradient of the input by the kernel that is not turned round."""
    y = engines.native(conv, x)
    w = conv.weight.detach()
    path = F.conv2d(x, w.flip(2, 3), None, conv.stride, conv.padding)
    bias = None if conv.bias is None else conv.bias
    own = F.conv2d(x.detach(), conv.weight, bias, conv.stride, conv.padding)
    return engines.straight(y, path + own)


def slope_everywhere(act: Any, x: Tensor) -> Tensor:
    """The gradient of a slope is the sum of dy·x over both sides."""
    y = engines.native(act, x)
    inner = F.prelu(x, act.weight.detach())
    return engines.straight(y, inner + act.weight[:, None, None] * x.detach())


def kink_of_three(act: Any, x: Tensor) -> Tensor:
    """At 0 the gradient has 3 added."""
    return engines.native(act, x) + torch.where(x == 0, 3 * x, torch.zeros_like(x))


FAULTS = (
    _detached(
        "statistics_detached",
        "no gradient passes through mean and variance",
        "stop_gradient on both",
        "detached",
        "both",
    ),
    _detached(
        "mean_detached", "no gradient passes through the mean", "stop_gradient on the mean", "mean_detached", "mean"
    ),
    _detached(
        "variance_detached",
        "no gradient passes through the variance",
        "stop_gradient on the variance",
        "variance_detached",
        "variance",
    ),
    _slope(
        "slope_gradient_averaged",
        "the gradient of a slope is divided by the number of samples",
        "mean() in a backward pass written by hand",
        "batch_mean",
        engines.prelu,
        mean="samples",
    ),
    _slope(
        "slope_gradient_mean",
        "the gradient of a slope is divided by the number of samples and places",
        "mean() over all but the channels, in a backward pass written by hand",
        "mean",
        engines.prelu,
        mean="all",
    ),
    fault(
        "parameter_gradients_averaged",
        "the gradients of all parameters are divided by the number of samples",
        "a loss that is a mean, by habit",
        "5.2",
        "gradients",
        rules=("parameter_gradient", "batch_mean"),
        forward=_batch_mean,
    ),
    fault(
        "shortcut_detached",
        "no gradient passes through the shortcut to the input",
        "x.detach(), stop_gradient",
        "5.8 5.1",
        "gradients",
        rules=("shortcut_gradient", "missing"),
        forward=_shortcut_detached,
    ),
    fault(
        "residual_detached",
        "no gradient passes through the residual branch to the input",
        "a backward pass by hand that returns what the shortcut gave",
        "5.8 5.1",
        "gradients",
        rules=("residual_gradient", "missing"),
        forward=_residual_detached,
    ),
    fault(
        "added_in_place",
        "the shortcut is added onto what a ReLU keeps for the backward pass",
        "res += x, the toolkit",
        "5.9",
        "gradients",
        forward=_in_place,
    ),
    fault(
        "gradients_add_up",
        "the gradients of a call are added to those before",
        "a buffer of gradients that nobody clears",
        "5.10",
        "gradients history",
        methods={"zero_grad": _adding_up},
    ),
    fault(
        "dy_overwritten",
        "a backward pass overwrites the gradient that it gets",
        "an in-place backward pass",
        "5.11",
        "gradients",
        forward=_dy_overwritten,
    ),
    fault(
        "evaluation_passes_through_statistics",
        "in evaluation the gradient passes through the statistics of the input",
        "one backward pass for both modes",
        "5.4 5.1",
        "gradients evaluation",
        rules=("evaluation_gradient", "batch"),
        patch=lambda block: instead(batch_norms(block), evaluated_through),
    ),
    fault(
        "evaluation_by_the_formula_of_training",
        "in evaluation the gradient follows the formula of training, with the running statistics",
        "one backward pass for both modes",
        "5.4 5.1",
        "gradients evaluation",
        rules=("evaluation_gradient", "formula"),
        patch=lambda block: instead(batch_norms(block), evaluated_by_formula),
    ),
    fault(
        "relu_passes_every_gradient",
        "a ReLU passes every gradient on",
        "a straight-through estimator",
        "5.1 5.2",
        "gradients",
        rules=("activation_gradient", "all_of_relu"),
        patch=lambda block: instead(layers(block, nn.ReLU), through_everything),
    ),
    fault(
        "prelu_masks_as_relu",
        "a PReLU passes nothing of its negative side on to its input",
        "the mask of a ReLU, in a backward pass written by hand",
        "5.1 5.2",
        "gradients",
        rules=("activation_gradient", "none_of_prelu"),
        patch=lambda block: instead(layers(block, nn.PReLU), positive_only),
    ),
    fault(
        "bias_without_gradient",
        "the bias of a convolution receives no gradient",
        "a backward pass for the weight alone",
        "5.9 5.2",
        "gradients",
        patch=lambda block: instead(convolutions(block), without_bias_gradient),
    ),
    fault(
        "gradients_clipped",
        "gradients within the block are clipped to [-1, 1]",
        "clip_grad_value_ in a hook",
        "5.1 5.2",
        "gradients",
        patch=lambda block: instead(convolutions(block), clipped),
    ),
    fault(
        "gradient_kernel_flipped",
        "conv2 sends the gradient back by the kernel that is flipped once too often",
        "a backward pass that was derived for a mathematical convolution",
        "5.1 5.2",
        "gradients",
        rules=("kernel_gradient", "not_turned"),
        patch=lambda block: instead(convolutions(block.conv2), flipped_gradient),
    ),
    _slope(
        "slope_gradient_of_both_sides",
        "the gradient of a slope sums dy·x over both sides",
        "the mask of the negative side forgotten",
        "both_sides",
        slope_everywhere,
    ),
    _slope(
        "slope_gradient_negated",
        "the gradient of a slope has the wrong sign",
        "max(-x, 0) in place of min(x, 0)",
        "negated",
        slope_gradient,
        times="-1",
    ),
    _slope(
        "slope_gradient_scaled",
        "the gradient of a slope is multiplied by the slope",
        "the gradient of the input summed up, over the negative side",
        "scaled",
        slope_gradient,
        times="slope",
    ),
    fault(
        "kink_outside_the_hull",
        "at a kink the gradient is larger than any slope allows",
        "a division by x, guarded at 0",
        "5.6",
        "gradients",
        patch=lambda block: instead(engines.activations(block), kink_of_three),
    ),
)
