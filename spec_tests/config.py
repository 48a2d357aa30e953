"""The arguments of the block, and everything that follows from them alone.

Nothing here asks a framework or the implementation under test: shapes, parameter names, layers
and refusals are predicted from the formulas of SPEC.md, chapters 1, 2, 3, 7 and 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod
from numbers import Integral
from typing import Any

Pair = tuple[int, int]

NORMALIZERS = ("batch", "inst", "pinst", "null")
ACTIVATORS = ("prelu", "relu", "null")
LAYER_ORDERS = ("new", "old")
SCALERS = ("down", "up")
NAMED_VALUES: dict[str, tuple[str, ...]] = {
    "normalizer": NORMALIZERS,
    "activator": ACTIVATORS,
    "layer_order": LAYER_ORDERS,
    "scaler": SCALERS,
}


class BranchMismatchError(ValueError):
    """The residual branch and the shortcut have different sizes (clause 3.6)."""


@dataclass(frozen=True)
class Layer:
    """One layer of a branch: its name in the state (`conv2.1`), kind and hyperparameters.

    `kind` is ``"conv"``, ``"norm"``, ``"act"`` or ``"up"``. `in_planes` and `out_planes` are channels;
    `kernel`, `stride`, `padding` and `bias` describe a convolution only.
    """

    name: str
    kind: str
    in_planes: int
    out_planes: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    bias: bool = False

    @property
    def branch(self) -> str:
        return self.name.split(".")[0]


def _integer(argument: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{argument}` (={value!r}) must be an integer >= {low}")
    if value < low:
        raise ValueError(f"`{argument}` (={value!r}) must be at least {low}")
    return int(value)


def _pair(argument: str, value: Any, low: int) -> Pair:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        if len(value) != 2:
            raise ValueError(f"`{argument}` (={value!r}) must be one integer or two")
        return (_integer(argument, value[0], low), _integer(argument, value[1], low))
    number = _integer(argument, value, low)
    return (number, number)


@dataclass(frozen=True)
class BlockConfig:
    """The ten arguments of the block, validated; pairs are (height, width).

    An int is taken for both axes. Raises TypeError and ValueError as the block itself must
    (chapter 1).
    """

    in_planes: int
    out_planes: int
    kernel_size: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    output_size: Pair | None = None
    normalizer: str = "pinst"
    activator: str = "prelu"
    layer_order: str = "new"
    scaler: str = "down"

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("in_planes", _integer("in_planes", self.in_planes, 1))
        put("out_planes", _integer("out_planes", self.out_planes, 1))
        put("kernel_size", _pair("kernel_size", self.kernel_size, 1))
        put("stride", _pair("stride", self.stride, 1))
        put("padding", _pair("padding", self.padding, 0))
        if self.output_size is not None:
            put("output_size", _pair("output_size", self.output_size, 1))
        for name, allowed in NAMED_VALUES.items():
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"`{name}` (={value!r}) must be a name")
            if value not in allowed:
                raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(allowed)}")

    @classmethod
    def of(cls, *positional: Any, **named: Any) -> BlockConfig:
        """The configuration of any arguments, for callers that hold an int for a pair or untyped names."""
        return cls(*positional, **named)

    # ------------------------------------------------------------------ arguments

    def arguments(self) -> dict[str, Any]:
        """All ten arguments, by name, in the order of the signature."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def call(self, name: str = "BlockBottleneck2d") -> str:
        """The constructor call, with the arguments that differ from their defaults."""
        return render_call(self.arguments(), name)

    # ------------------------------------------------------------------ structure

    @property
    def rescales(self) -> bool:
        """Whether a branch changes the size on purpose (clause 2.6)."""
        return max(self.stride) > 1 or (self.scaler == "up" and self.output_size is not None)

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a projection (clause 2.6)."""
        return self.rescales or self.in_planes != self.out_planes

    @property
    def pre_activated(self) -> bool:
        """Whether norm and activation come before the convolution (clauses 2.2 to 2.4)."""
        return self.layer_order == "new" and self.normalizer != "null"

    @lru_cache(maxsize=512)  # noqa: B019 -- bounded, and the instances are small
    def layers(self) -> tuple[Layer, ...]:
        """Every layer, branch by branch in the order conv1, conv2, conv3, in_node."""
        found: list[Layer] = []
        up = self.scaler == "up"
        conv_stride: Pair = (1, 1) if up else self.stride
        geometry: dict[str, tuple[int, Pair, Pair, Pair, bool]] = {
            "conv1": (self.in_planes, (1, 1), (1, 1), (0, 0), False),
            "conv2": (self.in_planes, self.kernel_size, conv_stride, self.padding, up and self.rescales),
            "conv3": (self.out_planes, (1, 1), (1, 1), (0, 0), False),
        }
        if self.projects:
            geometry["in_node"] = (self.out_planes, (1, 1), conv_stride, (0, 0), up)
        for branch, (planes, kernel, stride, padding, upsamples) in geometry.items():
            convolution = ["up", "conv"] if upsamples else ["conv"]
            norm = [] if self.normalizer == "null" else ["norm"]
            act = [] if self.activator == "null" or branch == "in_node" else ["act"]
            first = self.pre_activated and branch != "in_node"
            kinds = norm + act + convolution if first else convolution + norm + act
            width = self.in_planes
            for index, kind in enumerate(kinds):
                name = f"{branch}.{index}"
                if kind == "conv":
                    bias = self.normalizer == "null"
                    found.append(Layer(name, kind, width, planes, kernel, stride, padding, bias))
                    width = planes
                else:
                    found.append(Layer(name, kind, width, width))
        return tuple(found)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name, in the order of the state; conv weights are (out, in, h, w)."""
        return {name: shape for name, (shape, is_buffer) in self._state().items() if not is_buffer}

    def buffers(self) -> dict[str, tuple[int, ...]]:
        """Shape of every buffer by name, in the order of the state."""
        return {name: shape for name, (shape, is_buffer) in self._state().items() if is_buffer}

    def state(self) -> dict[str, tuple[int, ...]]:
        """Shape of every entry of the state by name, in its order: layer by layer, parameters first."""
        return {name: shape for name, (shape, _) in self._state().items()}

    @lru_cache(maxsize=512)  # noqa: B019 -- as above
    def _state(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        found: dict[str, tuple[tuple[int, ...], bool]] = {}
        for layer in self.layers():
            width = (layer.out_planes,)
            if layer.kind == "conv":
                found[f"{layer.name}.weight"] = ((layer.out_planes, layer.in_planes, *layer.kernel), False)
                if layer.bias:
                    found[f"{layer.name}.bias"] = (width, False)
            elif layer.kind == "norm" and self.normalizer != "inst":
                found[f"{layer.name}.weight"] = (width, False)
                found[f"{layer.name}.bias"] = (width, False)
                if self.normalizer == "batch":
                    found[f"{layer.name}.running_mean"] = (width, True)
                    found[f"{layer.name}.running_var"] = (width, True)
                    found[f"{layer.name}.num_batches_tracked"] = ((), True)
            elif layer.kind == "act" and self.activator == "prelu":
                found[f"{layer.name}.weight"] = (width, False)
        return found

    def parameter_count(self) -> int:
        """The number of parameters in closed form (clause 2.22), independent of `layers`."""
        c, d = self.in_planes, self.out_planes
        shortcut = 1 if self.projects else 0
        count = c * c * (1 + prod(self.kernel_size)) + c * d * (1 + shortcut)
        inner = 3 * c if self.pre_activated else 2 * c + d
        if self.normalizer == "null":
            count += 2 * c + d * (1 + shortcut)
        elif self.normalizer != "inst":
            count += 2 * (inner + d * shortcut)
        if self.activator == "prelu":
            count += inner
        return count

    # ------------------------------------------------------------------ shapes

    def upsampled_size(self, size: Sequence[int]) -> Pair:
        """The size that up-sampling aims at (clause 3.3)."""
        if self.output_size is not None:
            return self.output_size
        return (size[0] * self.stride[0], size[1] * self.stride[1])

    def residual_size(self, size: Sequence[int]) -> Pair:
        """The size of the residual branch for the input `size`; may be less than 1 (clauses 3.2, 3.3)."""
        if self.scaler == "up":
            size, strides = self.upsampled_size(size), (1, 1)
        else:
            strides = self.stride
        a, b = (
            (n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, self.padding, self.kernel_size, strides, strict=True)
        )
        return (a, b)

    def shortcut_size(self, size: Sequence[int]) -> Pair:
        """The size of the shortcut for the input `size` (clauses 3.2, 3.3)."""
        if self.scaler == "up":
            return self.upsampled_size(size)
        a, b = ((n - 1) // s + 1 for n, s in zip(size, self.stride, strict=True))
        return (a, b)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Shape of the output for an input of `shape` (N, in_planes, H, W).

        Raises:
            ValueError: `shape` is none that the block takes (clauses 3.8, 3.10).
            BranchMismatchError: the two branches disagree (clause 3.6).
        """
        if len(shape) != 4 or shape[1] != self.in_planes or min(shape) < 1:
            raise ValueError(f"the input shape {tuple(shape)} must be (N, {self.in_planes}, H, W), nothing of it empty")
        residual, shortcut = self.residual_size(shape[2:]), self.shortcut_size(shape[2:])
        if residual != shortcut:
            raise BranchMismatchError(f"the residual branch gives {residual}, the shortcut {shortcut}")
        return (shape[0], self.out_planes, *shortcut)

    def layer_shapes(self, shape: Sequence[int]) -> Iterator[tuple[Layer, tuple[int, int, int, int]]]:
        """Every layer with the shape (N, C, H, W) of its output, for an input of `shape`.

        Raises:
            ValueError: the block does not take this shape (clauses 3.6, 3.8).
        """
        self.output_shape(shape)
        size: Pair = (shape[2], shape[3])
        branch = ""
        for layer in self.layers():
            if layer.branch == "in_node" and branch != "in_node":
                size = (shape[2], shape[3])
            branch = layer.branch
            if layer.kind == "up":
                size = self.upsampled_size(size)
            elif layer.kind == "conv":
                a, b = (
                    (n + 2 * p - k) // s + 1
                    for n, p, k, s in zip(size, layer.padding, layer.kernel, layer.stride, strict=True)
                )
                size = (a, b)
            yield layer, (shape[0], layer.out_planes, *size)

    def single_element_norm(self, shape: Sequence[int], training: bool) -> Layer | None:
        """The first norm with one element only to normalize, for an input of `shape` (clauses 3.11, 3.12).

        Raises:
            ValueError: the block does not take this shape (clauses 3.6, 3.8), whatever the norms.
        """
        if self.normalizer == "batch" and not training:
            return None
        for layer, (batch, _, height, width) in self.layer_shapes(shape):
            # A norm keeps the size, so the size of its output is that of its input.
            count = height * width * (batch if self.normalizer == "batch" else 1)
            if layer.kind == "norm" and count <= 1:
                return layer
        return None

    def takes(self, shape: Sequence[int], training: bool = True) -> bool:
        """Whether the block takes an input of `shape` (N, in_planes, H, W) in this mode."""
        try:
            self.output_shape(shape)
        except ValueError:
            return False
        return self.single_element_norm(shape, training) is None


DEFAULTS: dict[str, Any] = {
    field.name: getattr(BlockConfig(1, 1), field.name)
    for field in fields(BlockConfig)
    if field.name not in ("in_planes", "out_planes")
}


def render_call(arguments: Mapping[str, Any], name: str = "BlockBottleneck2d") -> str:
    """A constructor call that can be pasted; equal pairs become one int, defaults are left out."""
    parts: list[str] = []
    for key, value in arguments.items():
        if key in DEFAULTS and repr(value) == repr(DEFAULTS[key]):
            continue
        may_be_pair = not key.endswith("planes") and isinstance(value, tuple) and len(value) == 2
        is_plain_pair = may_be_pair and all(type(n) is int for n in value)
        shown = value[0] if is_plain_pair and value[0] == value[1] else value
        by_position = (len(parts), key) in ((0, "in_planes"), (1, "out_planes"))
        parts.append(repr(shown) if by_position else f"{key}={shown!r}")
    return f"{name}({', '.join(parts)})"
