"""The layers of the block by hand, each with options that get one thing wrong.

Without an option each is right, and a control of the catalogue runs it so: what a fault changes by an option is
then its only difference. `instead` puts one in the place of a layer's forward; names, shapes and types stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOW = (torch.float16, torch.bfloat16)


# ---------------------------------------------------------------- layers of a block


def layers(block: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    return [layer for layer in block.modules() if isinstance(layer, kinds)]


def norms(block: nn.Module) -> list[Any]:
    return layers(block, nn.BatchNorm2d, nn.InstanceNorm2d)


def batch_norms(block: nn.Module) -> list[Any]:
    return layers(block, nn.BatchNorm2d)


def instance_norms(block: nn.Module) -> list[Any]:
    return layers(block, nn.InstanceNorm2d)


def activations(block: nn.Module) -> list[Any]:
    return layers(block, nn.PReLU, nn.ReLU)


def convolutions(block: nn.Module) -> list[Any]:
    return layers(block, nn.Conv2d)


def upsamplings(block: nn.Module) -> list[Any]:
    return layers(block, nn.Upsample)


def branch(block: Any, name: str) -> nn.Module:
    """A branch; for a missing `in_node` one without layers."""
    found: nn.Module | None = getattr(block, name)
    return nn.Sequential() if found is None else found


def put(found: Iterable[Any], **attributes: Any) -> None:
    for layer in found:
        for name, value in attributes.items():
            setattr(layer, name, value)


def instead(found: Iterable[Any], function: Callable[..., Tensor], **options: Any) -> None:
    """`function(layer, x, **options)` in place of each layer's own forward; it must be a function of a module."""
    for layer in found:
        layer.forward = partial(function, layer, **options)


def native(layer: Any, x: Tensor) -> Tensor:
    """What the layer's class computes."""
    return type(layer).forward(layer, x)  # type: ignore[no-any-return]


def identity(_: Any, x: Tensor) -> Tensor:
    return x


# ---------------------------------------------------------------- gradients that are not those of the values


class _Scaled(torch.autograd.Function):
    """x, with its gradient times a number, or a number for each of its elements."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor, None]:
        return dy[0] * ctx.factor, None


class _Straight(torch.autograd.Function):
    """The value of the first, the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004
        return None, dy[0]


def scaled_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    found: Tensor = _Scaled.apply(x, factor)  # type: ignore[no-untyped-call]
    return found


def straight(value: Tensor, path: Tensor) -> Tensor:
    found: Tensor = _Straight.apply(value.detach(), path)  # type: ignore[no-untyped-call]
    return found


# ---------------------------------------------------------------- norm


def single(norm: Any, x: Tensor) -> None:
    """Refuse a single element, as torch's norms do."""
    batch = isinstance(norm, nn.BatchNorm2d)
    n = x[0, 0].numel() * (len(x) if batch else 1)
    if n == 1 and (norm.training or not batch):
        raise ValueError(f"a norm needs more than one element, got the shape {tuple(x.shape)}")


def affine(norm: Any, hat: Tensor, how: str) -> Tensor:
    if norm.weight is None:
        return hat
    g: Tensor = norm.weight.to(hat.dtype)[:, None, None]
    b: Tensor = norm.bias.to(hat.dtype)[:, None, None]
    if how == "twice":
        return (hat * g + b) * g + b
    # 0 * p: a parameter that is left out has the gradient 0, not none.
    return {
        "scale_shift": hat * g + b,
        "no_scale": hat + b + 0 * g,
        "no_shift": hat * g + 0 * b,
        "missing": hat + 0 * (g + b),
        "swapped": hat * b + g,
        "one_plus_scale": hat * (1 + g) + b,
    }[how]


def moments(x: Tensor, axes: tuple[int, ...], how: str) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over `axes`, by the formula `how`."""
    mean = x.mean(axes, keepdim=True)
    if how == "one_pass":
        return mean, (x.square().mean(axes, keepdim=True) - mean.square()).clamp(min=0)
    return mean, (x - mean).square().mean(axes, keepdim=True)


def normalize(
    norm: Any,
    x: Tensor,
    *,
    axes: tuple[int, ...] | None = None,
    outside: bool = False,
    floor: bool = False,
    centre: bool = True,
    unbiased: bool = False,
    scaling: str = "scale_shift",
    detached: str = "",
    formula: str = "two_pass",
    running: str = "unbiased",
    update: str = "training",
    step: int = 1,
    train: str = "batch",
    evaluate: str = "running",
) -> Tensor:
    """BatchNorm2d and InstanceNorm2d of torch; sums of half precision are taken in float32."""
    single(norm, x)
    batch = isinstance(norm, nn.BatchNorm2d)
    wide = x.float() if x.dtype in LOW else x
    over = axes or ((0, 2, 3) if batch else (2, 3))
    n = prod(wide.shape[axis] for axis in over)
    updates = batch and (update == "always" or (norm.training and update == "training")) and n > 1
    source = (train if norm.training else evaluate) if batch else "batch"
    mean, variance = moments(wide, over, formula)
    old = None if not batch else (norm.running_mean.clone(), norm.running_var.clone())
    if updates:
        corrections = {"biased": 0, "unbiased": 1, "corrected_twice": 2}[running]
        replace_statistics(norm, mean.detach(), variance.detach() * (n / (n - 1)) ** corrections, step)
    if old is not None and source != "batch":
        mean, variance = (t.to(wide.dtype)[:, None, None] for t in old)
        if source == "updated":
            mean, variance = (t.to(wide.dtype)[:, None, None] for t in (norm.running_mean, norm.running_var))
    elif unbiased:
        variance = variance * (n / max(n - 1, 1))
    mean = mean.detach() if detached in ("both", "mean") else mean
    variance = variance.detach() if detached in ("both", "variance") else variance
    if not centre:
        mean, variance = 0 * mean, wide.square().mean(over, keepdim=True)
    if outside:
        deviation = variance.sqrt() + norm.eps
    else:
        deviation = (variance.clamp(min=norm.eps) if floor else variance + norm.eps).sqrt()
    return affine(norm, (wide - mean) / deviation, scaling).to(x.dtype)


def replace_statistics(norm: Any, mean: Tensor, variance: Tensor, step: int = 1) -> None:
    """New running statistics from those of one call, which may be of another size: then their mean a channel."""
    channels = norm.num_features
    momentum = norm.momentum if norm.momentum is not None else 1 / (float(norm.num_batches_tracked) + 1)
    with torch.no_grad():
        norm.num_batches_tracked += step
        for buffer, new in ((norm.running_mean, mean), (norm.running_var, variance)):
            each = new.expand(-1, channels, -1, -1).mean((0, 2, 3))
            buffer.copy_((1 - momentum) * buffer + momentum * each.to(buffer.dtype))


# ---------------------------------------------------------------- activation


def slopes(a: Tensor, how: str) -> Tensor:
    if how in ("first", "mean"):
        return (a[:1] if how == "first" else a.mean(0, keepdim=True)).expand(len(a))
    changed = {"channel": a, "reversed": a.flip(0), "absolute": a.abs(), "clamped": a.clamp(0, 1)}
    return changed[how] if how in changed else 0 * a + float(how)


def prelu(act: Any, x: Tensor, *, slope: str = "channel", side: str = "negative", mean: str = "") -> Tensor:
    """PReLU of torch; with `mean` the gradient of the slopes is one over ``"samples"``, or ``"all"`` places too."""
    count = {"": 1, "samples": len(x), "all": x.numel() // x.shape[1]}[mean]
    a = scaled_gradient(act.weight, 1 / count) if mean else act.weight
    y = slopes(a, slope)[:, None, None] * x
    if side == "maximum":
        return torch.maximum(x, y)
    return torch.where(x > 0, x, y) if side == "negative" else torch.where(x < 0, x, y)


def function_of(act: Any, x: Tensor, *, name: str) -> Tensor:  # noqa: ARG001
    """A function of torch.nn.functional in place of an activation."""
    found: Tensor = getattr(F, name)(x)
    return found


# ---------------------------------------------------------------- convolution


def laid(w: Tensor, how: str) -> Tensor:
    """A weight read in another way, where its shape allows it."""
    if how == "flipped":
        return w.flip(2, 3)
    if how in ("hwio", "ohwi"):
        planes, channels, height, width = w.shape
        if how == "hwio":
            read = w.reshape(height, width, channels, planes).permute(3, 2, 0, 1)
        else:
            read = w.reshape(planes, height, width, channels).permute(0, 3, 1, 2)
        # With strides that only a kernel of one element allows, torch's backward pass writes where it must not.
        return read.flatten().view(w.shape)
    axes = (0, 1) if how == "in_out" else (2, 3)
    return w.transpose(*axes) if how and w.shape[axes[0]] == w.shape[axes[1]] else w


def length(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolve(
    conv: Any, x: Tensor, *, lay: str = "", mode: str = "zeros", same: bool = False, dilation: int = 1, bias: str = ""
) -> Tensor:
    """A convolution; where a changed padding or dilation would change its size, it is as it should be."""
    w, b = laid(conv.weight, lay), conv.bias
    if b is not None and bias:
        b = 0 * b if bias == "missing" else 2 * b
    size, padding = x.shape[2:], conv.padding
    axes = list(zip(size, conv.kernel_size, conv.stride, padding, strict=True))
    due = [length(*axis) for axis in axes]
    if [length(*axis, dilation) for axis in axes] != due:
        dilation = 1
    sides = [(p, p) for p in padding]
    if same and [-(-n // s) for n, _, s, _ in axes] == due:
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s, _ in axes]
        sides = [(total // 2, total - total // 2) for total in totals]
    # An axis that is too short has nothing to reflect or to repeat.
    if any(p >= n + (mode == "circular") for n, p in zip(size, padding, strict=True)) and mode != "replicate":
        mode = "zeros"
    pads = [*sides[1], *sides[0]]
    padded = F.pad(x, pads, mode="constant" if mode == "zeros" else mode) if any(pads) else x
    return F.conv2d(padded, w, b, conv.stride, 0, (dilation, dilation))


# ---------------------------------------------------------------- up-sampling


def target(up: Any, x: Tensor) -> tuple[int, int]:
    """The size that a layer up-samples to."""
    if up.size is not None:
        return (int(up.size[0]), int(up.size[1]))
    return (int(x.shape[2] * up.scale_factor[0]), int(x.shape[3] * up.scale_factor[1]))


def taps(old: int, new: int, how: str, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `new` elements: its two neighbours among `old`, and the weight of the second."""
    i = torch.arange(new, dtype=torch.float64)
    t = i * old / new if how == "asymmetric" else i * (old - 1) / max(new - 1, 1)
    low = t.floor().long()
    part = (t - low).to(like.dtype)
    return low, (low + 1).clamp(max=old - 1), part


def resample(up: Any, x: Tensor, *, how: str = "corners") -> Tensor:
    """Bilinear up-sampling, one axis after the other; sums of half precision are taken in float32."""
    y = x.float() if x.dtype in LOW else x
    for axis, new in zip((2, 3), target(up, x), strict=True):
        low, high, part = taps(y.shape[axis], new, how, y)
        part = part[:, None] if axis == 2 else part
        y = y.index_select(axis, low) * (1 - part) + y.index_select(axis, high) * part
    return y.to(x.dtype)


# ---------------------------------------------------------------- order


KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "norm": (nn.BatchNorm2d, nn.InstanceNorm2d),
    "act": (nn.PReLU, nn.ReLU),
    "up": (nn.Upsample,),
}


def ordered(sequential: Any, x: Tensor, *, order: str) -> Tensor:
    """The layers of a branch in the order of the kinds in `order`."""
    found: list[Any] = list(sequential)
    for kind in order.split():
        for layer in found:
            if isinstance(layer, KINDS.get(kind, (nn.Conv2d,))):
                x = layer(x)
    return x
