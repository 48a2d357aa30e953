"""The bottleneck residual block of MDNC, as plain torch layers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

__all__ = ["BlockBottleneck2d"]

NAMES = {
    "normalizer": ("batch", "inst", "pinst", "null"),
    "activator": ("prelu", "relu", "null"),
    "layer_order": ("new", "old"),
    "scaler": ("down", "up"),
}


def _integer(argument: str, value: Any, low: int, allowed: str, whole: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{argument}` (={whole!r}) must be {allowed}, not {type(value).__name__}")
    if value < low:
        raise ValueError(f"`{argument}` (={whole!r}) must be {allowed}")
    return int(value)


def _pair(argument: str, value: Any, low: int = 1, optional: bool = False) -> tuple[int, int]:
    allowed = f"an int >= {low}, or a sequence of two of them" + (", or None" if optional else "")
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        if len(value) != 2:
            raise ValueError(f"`{argument}` (={value!r}) must be {allowed}")
        first, second = (_integer(argument, item, low, allowed, value) for item in value)
        return first, second
    number = _integer(argument, value, low, allowed, value)
    return number, number


def _name(argument: str, value: Any) -> str:
    allowed = "one of " + ", ".join(map(repr, NAMES[argument]))
    if not isinstance(value, str):
        raise TypeError(f"`{argument}` (={value!r}) must be {allowed}, not {type(value).__name__}")
    if value not in NAMES[argument]:
        raise ValueError(f"`{argument}` (={value!r}) must be {allowed}")
    return value


class BlockBottleneck2d(nn.Module):
    """Bottleneck residual block: ``y = conv3(conv2(conv1(x))) + shortcut(x)``.

    ``conv1`` and ``conv3`` have a 1 x 1 kernel; ``conv2`` has `kernel_size` and rescales. The
    shortcut is a 1 x 1 projection if the channels change, or the arguments rescale, otherwise the identity.
    Sources: He et al. 2015, arXiv:1512.03385 (the block); He et al. 2016, arXiv:1603.05027
    (`layer_order="new"`); the MDNC page of the block. Every rule: chapters 1 to 9 of SPEC.md.

    Args:
        in_planes, out_planes: channels of the input and of the output; the hidden width is `in_planes`.
        kernel_size, padding: int or pair (height, width), of ``conv2``; zeros pad both edges.
        stride: int or pair; the factor of down-sampling, or of up-sampling with ``scaler="up"``.
        output_size: int or pair; the size after up-sampling, in place of the factors `stride`.
        normalizer: ``"batch"``, ``"inst"``, ``"pinst"`` (with scale and shift) or ``"null"``.
        activator: ``"prelu"`` (a slope for each channel), ``"relu"`` or ``"null"``.
        layer_order: ``"new"`` (norm, activation, conv) or ``"old"`` (conv, norm, activation).
        scaler: ``"down"`` (strided convolution) or ``"up"`` (bilinear, corners aligned).

    Attributes:
        conv1, conv2, conv3: the residual branch, in sequence.
        in_node: the projection, or None where the shortcut is the identity.

    Raises:
        TypeError, ValueError: an argument of a wrong type, or of a wrong value.
    """

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 1,
        output_size: int | Sequence[int] | None = None,
        normalizer: str = "pinst",
        activator: str = "prelu",
        layer_order: str = "new",
        scaler: str = "down",
    ) -> None:
        super().__init__()
        self.in_planes = _integer("in_planes", in_planes, 1, "an int >= 1", in_planes)
        self.out_planes = _integer("out_planes", out_planes, 1, "an int >= 1", out_planes)
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride = _pair("stride", stride)
        self.padding = _pair("padding", padding, low=0)
        self.output_size = None if output_size is None else _pair("output_size", output_size, optional=True)
        self.normalizer = _name("normalizer", normalizer)
        self.activator = _name("activator", activator)
        self.layer_order = _name("layer_order", layer_order)
        self.scaler = _name("scaler", scaler)

        self._agrees = all(2 * p == k - 1 for p, k in zip(self.padding, self.kernel_size, strict=True))
        up = self.scaler == "up"
        rescales = max(self.stride) > 1 or (up and self.output_size is not None)
        self.conv1 = self._branch(self.in_planes)
        self.conv2 = self._branch(
            self.in_planes, self.kernel_size, 1 if up else self.stride, self.padding, up and rescales
        )
        self.conv3 = self._branch(self.out_planes)
        self.in_node: nn.Sequential | None = None
        if rescales or self.in_planes != self.out_planes:
            self.in_node = nn.Sequential(*self._conv(self.out_planes, 1, 1 if up else self.stride, 0, up))
            if self.normalizer != "null":
                self.in_node.append(self._norm(self.out_planes))

    def _branch(
        self, planes: int, kernel: Any = 1, stride: Any = 1, padding: Any = 0, up: bool = False
    ) -> nn.Sequential:
        conv = self._conv(planes, kernel, stride, padding, up)
        pre_activated = self.layer_order == "new" and self.normalizer != "null"
        width = self.in_planes if pre_activated else planes
        norm_act: list[nn.Module] = [] if self.normalizer == "null" else [self._norm(width)]
        if self.activator != "null":
            norm_act.append(nn.PReLU(width) if self.activator == "prelu" else nn.ReLU())
        return nn.Sequential(*norm_act, *conv) if pre_activated else nn.Sequential(*conv, *norm_act)

    def _conv(self, planes: int, kernel: Any, stride: Any, padding: Any, up: bool) -> list[nn.Module]:
        bias = self.normalizer == "null"
        conv = nn.Conv2d(self.in_planes, planes, kernel, stride=stride, padding=padding, bias=bias)
        if not up:
            return [conv]
        factor = None if self.output_size is not None else tuple(map(float, self.stride))
        return [nn.Upsample(self.output_size, factor, mode="bilinear", align_corners=True), conv]

    def _norm(self, planes: int) -> nn.Module:
        if self.normalizer == "batch":
            return nn.BatchNorm2d(planes)
        return nn.InstanceNorm2d(planes, affine=self.normalizer == "pinst")

    def _check(self, x: Any) -> None:
        """Refuse the type and the shape of `x` before a layer runs and changes statistics."""
        if isinstance(x, Proxy):  # torch.fx records the layers; there is no shape to look at
            return
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"`x` ({kind}) must be a tensor of a floating-point dtype")
        shape = x.shape
        if len(shape) != 4 or shape[1] != self.in_planes or min(shape) < 1:
            raise ValueError(
                f"`x` (shape {tuple(shape)}) must have the shape (N, {self.in_planes}, H, W), nothing of it empty"
            )
        if self._agrees:
            return
        res, cut = self._sizes(shape[2:])
        if res != cut:
            names = ("kernel_size", "padding", "stride", "output_size", "scaler")
            cause = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            raise ValueError(
                f"`x` (shape {tuple(shape)}) gives the size {tuple(res)} in the residual branch, {tuple(cut)} in the "
                f"shortcut, because of {cause}; they agree for every input where 2 * padding = kernel_size - 1"
            )

    def _sizes(self, size: Sequence[int]) -> tuple[list[int], list[int]]:
        res, cut = [], []
        for axis, length in enumerate(size):
            stride, margin = self.stride[axis], 2 * self.padding[axis] - self.kernel_size[axis]
            if self.scaler == "up":
                cut.append(length * stride if self.output_size is None else self.output_size[axis])
                res.append(cut[-1] + margin + 1)
            else:
                cut.append((length - 1) // stride + 1)
                res.append((length + margin) // stride + 1)
        return res, cut

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (N, in_planes, H, W) to (N, out_planes, H', W'); the sizes are those of SPEC.md, chapter 3.

        Raises:
            TypeError: `x` is not of a floating-point dtype.
            ValueError: `x` has a wrong shape, the branches disagree on the size of the output, or a
                norm has a single element to normalize.
        """
        self._check(x)
        res: Tensor = self.conv3(self.conv2(self.conv1(x)))
        # Out of place: the ReLU that may end the branch keeps its output for the backward pass.
        shortcut: Tensor = x if self.in_node is None else self.in_node(x)
        return res + shortcut

    def extra_repr(self) -> str:
        names = ("kernel_size", "stride", "padding", "output_size", *NAMES)
        return ", ".join([str(self.in_planes), str(self.out_planes), *(f"{n}={getattr(self, n)!r}" for n in names)])
