"""Up-sampling: the interpolation, and its target."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import branch, instead, put, upsamplings
from spec_tests.faults.entry import Fault, fault

_CAUSES = {
    "half_pixel": "align_corners=False, the default of torch and JAX",
    "asymmetric": "the legacy resize of TensorFlow 1 and Caffe",
    "nearest": "the default mode of torch's Upsample and Keras's UpSampling2D",
    "bicubic": "mode='bicubic'",
}
_PLACES = {"interpolation": "", "residual_interpolation": "conv2", "shortcut_interpolation": "in_node"}


def _interpolate(block: Any, where: str, how: str) -> None:
    found = upsamplings(branch(block, where) if where else block)
    if how == "half_pixel":
        put(found, align_corners=False)
    elif how == "nearest":
        put(found, mode="nearest", align_corners=None)
    elif how == "bicubic":
        put(found, mode="bicubic")
    else:
        instead(found, engines.resample, how=how)


def _interpolations() -> list[Fault]:
    found = []
    for field, where in _PLACES.items():
        for how, cause in _CAUSES.items():
            if where and how == "bicubic":
                continue
            title = f"{how.replace('_', '-')} interpolation" + (f" in {where} alone" if where else "")
            name = f"up_{how}_in_{where}" if where else f"up_{how}"
            patch = lambda block, where=where, how=how: _interpolate(block, where, how)  # noqa: E731
            rules = (field, how)
            found.append(
                fault(
                    name, title, cause, "4.14 4.20 4.1" if where == "in_node" else "4.14 4.1", rules=rules, patch=patch
                )
            )
    return found


def antialiased(up: Any, x: Tensor) -> Tensor:
    size = engines.target(up, x)
    low = x.dtype in engines.LOW
    y = F.interpolate(x.float() if low else x, size, mode="bilinear", align_corners=True, antialias=True)
    return y.to(x.dtype)


def swapped(up: Any, x: Tensor) -> Tensor:
    if up.size is not None:
        return F.interpolate(x, tuple(up.size)[::-1], mode="bilinear", align_corners=True)
    return F.interpolate(x, scale_factor=up.scale_factor[::-1], mode="bilinear", align_corners=True)


def nearest_backwards(up: Any, x: Tensor) -> Tensor:
    """Bilinear values with the gradient of the nearest neighbour."""
    y = engines.native(up, x)
    return engines.straight(y, F.interpolate(x, y.shape[2:], mode="nearest"))


def whole_steps(up: Any, x: Tensor) -> Tensor:
    """Weights in 1/256, as in the texture units of a GPU."""
    size = engines.target(up, x)
    y = x
    for axis, new in zip((2, 3), size, strict=True):
        low, high, part = engines.taps(y.shape[axis], new, "corners", y)
        part = (part * 256).round() / 256
        part = part[:, None] if axis == 2 else part
        y = y.index_select(axis, low) * (1 - part) + y.index_select(axis, high) * part
    return y


def _size_ignored(block: Any) -> None:
    if block.scaler == "up" and block.output_size is not None:
        put(upsamplings(block), size=None, scale_factor=tuple(map(float, block.stride)))


def _stride_too(block: Any) -> None:
    """`stride` multiplies the size that `output_size` gives."""
    for up in upsamplings(block):
        if up.size is not None:
            up.size = tuple(n * s for n, s in zip(up.size, block.stride, strict=True))


def _size_when_down(block: Any, x: Tensor) -> Tensor:
    y = Block.forward(block, x)
    return F.interpolate(y, block.output_size) if block.scaler == "down" and block.output_size is not None else y


def _dropped(block: Any) -> None:
    if block.in_node is not None and block.output_size is None and max(block.stride) == 1 and block.scaler == "up":
        block.in_node = nn.Sequential(*list(block.in_node)[1:])


def _in_conv3_too(block: Any) -> None:
    """An up-sampling that keeps the size, in front of conv3's convolution."""
    if upsamplings(block.conv2):
        block.conv3.insert(len(block.conv3) - 1, nn.Upsample(scale_factor=1.0, mode="bilinear", align_corners=True))


def _transposed(block: Any) -> None:
    """A transposed convolution in conv3, whose weight is (in, out)."""
    if block.scaler == "up":
        for i, layer in enumerate(block.conv3):
            if isinstance(layer, nn.Conv2d):
                bias = layer.bias is not None
                block.conv3[i] = nn.ConvTranspose2d(block.in_planes, block.out_planes, 1, bias=bias)


def by_a_factor(up: Any, x: Tensor) -> Tensor:
    """To int(L · (U / L)), which may be U - 1."""
    if up.size is None:
        return engines.native(up, x)
    size = tuple(int(length * (target / length)) for length, target in zip(x.shape[2:], up.size, strict=True))
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


FAULTS = (
    *_interpolations(),
    fault(
        "up_antialiased",
        "an output_size below the input's size is averaged",
        "antialias=True, the default of jax.image.resize",
        "4.14 4.1",
        patch=lambda block: instead(upsamplings(block), antialiased),
    ),
    fault(
        "up_sizes_swapped",
        "height and width of the target are exchanged",
        "(width, height), as in OpenCV and PIL",
        "3.3 1.12 3.14",
        "shapes",
        patch=lambda block: instead(upsamplings(block), swapped),
    ),
    fault(
        "up_weights_in_256ths",
        "the weights of the interpolation have 8 bits",
        "the texture units of a GPU",
        "4.14 4.1",
        patch=lambda block: instead(upsamplings(block), whole_steps),
    ),
    fault(
        "up_gradient_of_nearest",
        "the gradient goes to the nearest neighbour",
        "a backward pass that was written for another mode",
        "5.7 5.1",
        "gradients",
        patch=lambda block: instead(upsamplings(block), nearest_backwards),
    ),
    fault(
        "output_size_ignored",
        "stride is used although output_size is given",
        "the argument is stored and not passed on",
        "3.3 1.20",
        "shapes",
        patch=_size_ignored,
    ),
    fault(
        "stride_multiplies_output_size",
        "stride multiplies output_size",
        "both are passed on",
        "3.3 1.20",
        "shapes",
        patch=_stride_too,
    ),
    fault(
        "output_size_when_down",
        "output_size is honoured when scaling down",
        "a resize at the end of the block",
        "1.19 3.2",
        "shapes",
        forward=_size_when_down,
    ),
    fault(
        "idle_upsampling_dropped",
        "an up-sampling by 1 is left out of the projection, and the names move",
        "no layer for what does nothing",
        "2.8 2.20 7.1",
        "state",
        patch=_dropped,
    ),
    fault(
        "idle_upsampling_in_conv3",
        "conv3 has an up-sampling by 1, and the names move",
        "all branches built by the same code",
        "2.9 2.20 7.1",
        "state",
        patch=_in_conv3_too,
    ),
    fault(
        "transposed_convolution",
        "with scaler='up', conv3 is a transposed convolution, whose weight is (in, out)",
        "decoders with ConvTranspose2d",
        "2.1 2.21",
        "state",
        patch=_transposed,
    ),
    fault(
        "up_by_a_factor",
        "output_size is reached by the factor U / L, and is missed where that is cut off",
        "scale_factor in place of size",
        "3.3",
        "shapes",
        patch=lambda block: instead(upsamplings(block), by_a_factor),
    ),
)
