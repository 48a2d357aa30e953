"""Wrong blocks, one difference each, and a correct one that looks unlike the reference.

Each wrong block has a habit of real ports; test_wrong_blocks.py says which clause must notice. Whatever such a
block does not mean to get wrong it does as the reference, so that nothing else earns the kill.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block


def like(block: Block, in_planes: int, out_planes: int) -> Block:
    """A reference block of other channels, otherwise with the arguments of `block`."""
    names = [*inspect.signature(Block.__init__).parameters][3:]
    return Block(in_planes, out_planes, **{name: getattr(block, name) for name in names})


class Correct(Block):
    """Another name, the layers one by one, the summands exchanged, and an empty batch is taken (clause 3.10)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and x.shape[0] == 0:
            return super().forward(x.new_zeros((2, *x.shape[1:])))[:0]
        self._check(x)
        res = x
        for branch in (self.conv1, self.conv2, self.conv3):
            for layer in branch.children():
                res = layer(res)
        return torch.add(x if self.in_node is None else self.in_node(x), res)


# ------------------------------------------------------------------ chapter 1


class ArgumentsChanged(Block):
    """Base of those that treat an argument before the reference sees it."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        bound = inspect.signature(Block.__init__).bind(self, *positional, **named).arguments
        bound.pop("self")
        super().__init__(**{**bound, **self.changed(bound)})

    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


class OtherDefault(ArgumentsChanged):
    default: ClassVar[dict[str, Any]] = {}

    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in self.default.items() if name not in given}


class StrideTwo(OtherDefault):
    default: ClassVar[dict[str, Any]] = {"stride": 2}


class BatchNormal(OtherDefault):
    default: ClassVar[dict[str, Any]] = {"normalizer": "batch"}


class OldOrder(OtherDefault):
    default: ClassVar[dict[str, Any]] = {"layer_order": "old"}


class ReluByDefault(OtherDefault):
    default: ClassVar[dict[str, Any]] = {"activator": "relu"}


class DecimalTruncated(ArgumentsChanged):
    """`int` of whatever has a value."""

    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: int(value) for name, value in given.items() if isinstance(value, (Decimal, Fraction))}


class KeepsTheList(Block):
    """The list that came is used at each call, and it is the caller's."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.lists = [(given, list(given)) for given in named.values() if isinstance(given, list)]

    def forward(self, x: Tensor) -> Tensor:
        if any(given != before for given, before in self.lists):
            raise ValueError("the sizes do not fit")
        return super().forward(x)


class AnyCase(ArgumentsChanged):
    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {n: v.lower() for n, v in given.items() if isinstance(v, str) and not n.endswith("planes")}


class NoneIsNull(ArgumentsChanged):
    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {n: "null" for n in ("normalizer", "activator") if n in given and given[n] is None}


class BoolIsInt(ArgumentsChanged):
    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        numbers = list(inspect.signature(Block.__init__).parameters)[1:7]
        return {n: int(v) for n, v in given.items() if n in numbers and v is True}


class FloatTruncated(ArgumentsChanged):
    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        numbers = list(inspect.signature(Block.__init__).parameters)[1:7]
        return {n: int(v) for n, v in given.items() if n in numbers and isinstance(v, float) and 0 < v < 9}


class PaddingClipped(ArgumentsChanged):
    """A negative padding becomes 0."""

    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        padding = given.get("padding", 1)
        return {"padding": max(padding, 0)} if type(padding) is int else {}


class ThreeNumbers(ArgumentsChanged):
    """Of a longer sequence the first two are taken."""

    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {n: v[:2] for n, v in given.items() if isinstance(v, (list, tuple)) and n not in NAMES and len(v) > 2}


NAMES = ("normalizer", "activator", "layer_order", "scaler")


class AxesSwapped(ArgumentsChanged):
    """Pairs are taken as (width, height)."""

    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {n: tuple(v)[::-1] for n, v in given.items() if isinstance(v, (list, tuple)) and n not in NAMES}


class UnknownNormIsBatch(ArgumentsChanged):
    """An if-elif-else over the names that ends in `else`."""

    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        name = given.get("normalizer", "pinst")
        return {"normalizer": "batch"} if isinstance(name, str) and name not in ("inst", "pinst", "null") else {}


class OutputSizeDown(Block):
    """`output_size` is honoured when scaling down."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.scaler == "down" and self.output_size is not None:
            return F.interpolate(y, self.output_size)
        return y


# ------------------------------------------------------------------ chapter 2


class HiddenOut(Block):
    """The hidden width is `out_planes`, as in torchvision's bottleneck."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        wide = like(self, self.out_planes, self.out_planes)
        self.conv1, self.conv2, self.conv3 = self.conv3, wide.conv2, wide.conv3


class AlwaysProjects(Block):
    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        if self.in_node is None:
            self.in_node = nn.Sequential(*self._conv(self.out_planes, 1, 1, 0, False))
            if self.normalizer != "null":
                self.in_node.append(self._norm(self.out_planes))


class ProjectsForChannelsOnly(Block):
    """The identity where a projection is due: a strided slice."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        if self.in_planes == self.out_planes and self.scaler == "down" and self.in_node is not None:
            self.in_node = nn.Sequential(nn.MaxPool2d(1, self.stride))


class BiasAlways(Block):
    def _conv(self, planes: int, kernel: Any, stride: Any, padding: Any, up: bool) -> list[nn.Module]:
        *first, _ = super()._conv(planes, kernel, stride, padding, up)
        return [*first, nn.Conv2d(self.in_planes, planes, kernel, stride=stride, padding=padding)]


class UpsampleDropped(Block):
    """An up-sampling by 1 is left out, and the names behind it move."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        if self.in_node is not None and self.output_size is None and max(self.stride) == 1 and self.scaler == "up":
            self.in_node = nn.Sequential(*list(self.in_node)[1:])


class NamesShifted(Block):
    """A dropout in front of everything."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.conv1 = nn.Sequential(nn.Dropout(0.0), *self.conv1)


class SharedSlope(Block):
    """One slope for all channels, the default of nn.PReLU."""

    def _branch(self, *positional: Any, **named: Any) -> nn.Sequential:
        return nn.Sequential(
            *(nn.PReLU() if isinstance(m, nn.PReLU) else m for m in super()._branch(*positional, **named))
        )


class FunctionalReLU(Block):
    """A ReLU that is no layer is not counted."""

    def _branch(self, *positional: Any, **named: Any) -> nn.Sequential:
        return nn.Sequential(*(m for m in super()._branch(*positional, **named) if not isinstance(m, nn.ReLU)))


class InstanceRunning(Block):
    """An instance norm keeps running statistics, as a batch norm does."""

    def _norm(self, planes: int) -> nn.Module:
        affine, running = self.normalizer == "pinst", self.normalizer in ("inst", "pinst")
        return nn.InstanceNorm2d(planes, affine=affine, track_running_stats=True) if running else super()._norm(planes)


# ------------------------------------------------------------------ chapter 3


class SizesUnchecked(Block):
    """Base of those that do something of their own where the branches disagree."""

    def _check(self, x: Tensor) -> None:
        try:
            super()._check(x)
        except ValueError as error:
            if "residual branch" not in str(error):
                raise

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        try:
            res = self.conv3(self.conv2(self.conv1(x)))
            return self.added(res, x if self.in_node is None else self.in_node(x))
        except RuntimeError as error:
            # The branches do not even broadcast, or one is empty: refused, as it must be.
            raise ValueError(f"the branches disagree: {error}") from error

    def added(self, res: Tensor, cut: Tensor) -> Tensor:
        raise NotImplementedError


class Broadcast(SizesUnchecked):
    """Adds in place, so that a side of length 1 is stretched."""

    def added(self, res: Tensor, cut: Tensor) -> Tensor:
        res += cut
        return res


class Cropped(SizesUnchecked):
    def added(self, res: Tensor, cut: Tensor) -> Tensor:
        height, width = (min(a, b) for a, b in zip(res.shape[2:], cut.shape[2:], strict=True))
        return res[:, :, :height, :width] + cut[:, :, :height, :width]


class WrongError(Block):
    """Where the branches disagree it raises torch's own error."""

    def _check(self, x: Tensor) -> None:
        try:
            super()._check(x)
        except ValueError as error:
            if "residual branch" in str(error):
                raise RuntimeError(*error.args) from error
            raise


class RefusedTooLate(Block):
    """The sizes are checked when the residual branch has already updated its statistics."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except ValueError as error:
            if "residual branch" in str(error):
                self.conv1(x)
            raise


class CeilForFloor(Block):
    """The strided layers round up, as with padding="same" at the far edge."""

    def forward(self, x: Tensor) -> Tensor:
        if self.scaler == "down" and x.ndim == 4 and x.is_floating_point() and min(x.shape) > 0:
            down, right = (-(n - 1) % s for n, s in zip(x.shape[2:], self.stride, strict=True))
            x = F.pad(x, (0, right, 0, down))
        return super().forward(x)


class OneElementNormalized(Block):
    """A norm written by hand: one element minus itself is 0, and that is that."""

    def _norm(self, planes: int) -> nn.Module:
        return (
            super()._norm(planes) if self.normalizer == "batch" else ByHand(planes, affine=self.normalizer == "pinst")
        )


class ByHand(nn.InstanceNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        var, mean = torch.var_mean(input, (2, 3), correction=0, keepdim=True)
        y = (input - mean) / torch.sqrt(var + self.eps)
        return y if self.weight is None else y * self.weight[:, None, None] + self.bias[:, None, None]


class BatchOfOneTaken(Block):
    """Batch norm takes a single element in training."""

    def _norm(self, planes: int) -> nn.Module:
        return Lenient(planes) if self.normalizer == "batch" else super()._norm(planes)


class Lenient(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return torch.zeros_like(input)
        return super().forward(input)


# ------------------------------------------------------------------ chapter 5


class AddedInPlace(Block):
    """The shortcut is added in place, as in the toolkit: onto the output that a ReLU keeps for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        res: Tensor = self.conv3(self.conv2(self.conv1(x)))
        res += x if self.in_node is None else self.in_node(x)
        return res


# ------------------------------------------------------------------ for tools/campaign.py


class RarelyWrong(Block):
    """1 % too large for inputs of one size alone, which few random examples have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.01 if x.shape[1:] == (4, 7, 5) else 1.0)
