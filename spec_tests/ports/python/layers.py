"""What follows from the ten arguments of the block alone: its layers, their parameters, the sizes, the refusals.

The numbers in parentheses are clauses of SPEC.md. Any port in Python can use this file as it is: `Block.parse`
reads the arguments of a request, and the rest can be looked up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

Pair = tuple[int, int]
Shape = tuple[int, ...]

# In their order: the default as text (1.1), and the least integer (1.2 to 1.7) or the names (1.8 to 1.11).
ARGUMENTS: dict[str, tuple[str | None, int | tuple[str, ...]]] = {
    "in_planes": (None, 1),
    "out_planes": (None, 1),
    "kernel_size": ("3", 1),
    "stride": ("1", 1),
    "padding": ("1", 0),
    "output_size": ("null", 1),
    "normalizer": ("pinst", ("batch", "inst", "pinst", "null")),
    "activator": ("prelu", ("prelu", "relu", "null")),
    "layer_order": ("new", ("new", "old")),
    "scaler": ("down", ("down", "up")),
}
_INTEGER = "(-?(?:0|[1-9][0-9]*))"
_NUMBERS = re.compile(rf"{_INTEGER}|\[{_INTEGER},{_INTEGER}\]")


class InvalidInput(Exception):
    """An argument or an input that SPEC.md refuses."""


@dataclass(frozen=True)
class Layer:
    """One layer: `kind` is ``"norm"``, ``"act"``, ``"up"`` or ``"conv"``; the last three fields are a convolution's."""

    name: str
    kind: str
    in_planes: int
    out_planes: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)

    @property
    def fan_in(self) -> int:
        """Products in each sum of a convolution; 1/sqrt of it is the range at construction (7.7)."""
        return self.in_planes * prod(self.kernel)


@dataclass(frozen=True)
class Block:
    """The ten arguments, validated; pairs are (height, width)."""

    in_planes: int
    out_planes: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    output_size: Pair | None
    normalizer: str
    activator: str
    layer_order: str
    scaler: str

    @staticmethod
    def parse(metadata: Mapping[str, str]) -> Block:
        """The block of `cfg.*` in the metadata of a request. Raises InvalidInput."""
        return _parse(tuple(metadata.get(f"cfg.{name}", default) for name, (default, _) in ARGUMENTS.items()))

    @cached_property
    def branches(self) -> dict[str, tuple[Layer, ...]]:
        """The layers of `conv1`, `conv2`, `conv3` and, for a projection, `in_node` (2.1 to 2.19)."""
        up = self.scaler == "up"
        rescales = max(self.stride) > 1 or (up and self.output_size is not None)
        stride: Pair = (1, 1) if up else self.stride
        found = {
            "conv1": self._branch("conv1", self.in_planes),
            "conv2": self._branch("conv2", self.in_planes, self.kernel_size, stride, self.padding, up and rescales),
            "conv3": self._branch("conv3", self.out_planes),
        }
        if rescales or self.in_planes != self.out_planes:
            found["in_node"] = self._branch("in_node", self.out_planes, stride=stride, up=up)
        return found

    def _branch(
        self,
        branch: str,
        planes: int,
        kernel: Pair = (1, 1),
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        up: bool = False,
    ) -> tuple[Layer, ...]:
        norm = [] if self.normalizer == "null" else ["norm"]
        act = [] if self.activator == "null" or branch == "in_node" else ["act"]
        conv = ["up", "conv"] if up else ["conv"]
        first = self.layer_order == "new" and norm and branch != "in_node"
        layers, width = [], self.in_planes
        for i, kind in enumerate([*norm, *act, *conv] if first else [*conv, *norm, *act]):
            if kind == "conv":
                layers.append(Layer(f"{branch}.{i}", kind, width, planes, kernel, stride, padding))
                width = planes
            else:
                layers.append(Layer(f"{branch}.{i}", kind, width, width))
        return tuple(layers)

    @cached_property
    def parameters(self) -> dict[str, Shape]:
        """The shape of every parameter by name (2.5, 2.13 to 2.21)."""
        found: dict[str, Shape] = {}
        for layer in self._layers():
            width = (layer.out_planes,)
            if layer.kind == "conv":
                found[f"{layer.name}.weight"] = (layer.out_planes, layer.in_planes, *layer.kernel)
                if self.normalizer == "null":
                    found[f"{layer.name}.bias"] = width
            elif layer.kind == "norm" and self.normalizer != "inst":
                found[f"{layer.name}.weight"] = found[f"{layer.name}.bias"] = width
            elif layer.kind == "act" and self.activator == "prelu":
                found[f"{layer.name}.weight"] = width
        return found

    @cached_property
    def buffers(self) -> dict[str, Shape]:
        """The shape of every buffer by name (2.13); those called `num_batches_tracked` are 64-bit integers."""
        found: dict[str, Shape] = {}
        for layer in self._layers():
            if layer.kind == "norm" and self.normalizer == "batch":
                found[f"{layer.name}.running_mean"] = found[f"{layer.name}.running_var"] = (layer.out_planes,)
                found[f"{layer.name}.num_batches_tracked"] = ()
        return found

    def entries(self, kind: str) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every parameter, `p.<name>`, and buffer, `b.<name>`, of a block of the type `kind`."""
        return dict(_entries(self, kind))

    def _layers(self) -> list[Layer]:
        return [layer for layers in self.branches.values() for layer in layers]

    def upsampled(self, height: int, width: int) -> Pair:
        """The size behind up-sampling (3.3)."""
        return self.output_size or (height * self.stride[0], width * self.stride[1])

    def output_shape(self, shape: Sequence[int], training: bool) -> Shape:
        """The shape of the output for an input of `shape` (3.1 to 3.12). Raises InvalidInput."""
        if len(shape) != 4 or shape[1] != self.in_planes or min(shape) < 1:
            raise InvalidInput(f"x has the shape {list(shape)}; it must be (N, {self.in_planes}, H, W), N, H, W >= 1")
        batch, _, *size = shape
        if self.scaler == "up":
            start = shortcut = self.upsampled(*size)
            stride: Pair = (1, 1)
        else:
            start, stride = (size[0], size[1]), self.stride
            shortcut = ((size[0] - 1) // stride[0] + 1, (size[1] - 1) // stride[1] + 1)
        axes = zip(start, self.padding, self.kernel_size, stride, strict=True)
        residual = tuple((length + 2 * p - k) // s + 1 for length, p, k, s in axes)
        if residual != shortcut:
            raise InvalidInput(
                f"x has the shape {list(shape)}, for which the residual branch has the size {list(residual)} and the "
                f"shortcut {list(shortcut)}; the cause is kernel_size={list(self.kernel_size)} with "
                f"padding={list(self.padding)}, stride={list(self.stride)}, output_size={self.output_size}"
            )
        self._check_norms(batch, (size[0], size[1]), shortcut, training)
        return (batch, self.out_planes, *shortcut)

    def _check_norms(self, batch: int, before: Pair, after: Pair, training: bool) -> None:
        """Refuse a norm that meets a single element (3.11, 3.12)."""
        if self.normalizer == "null" or (self.normalizer == "batch" and not training):
            return
        samples = batch if self.normalizer == "batch" else 1
        for branch, layers in self.branches.items():
            kinds = [layer.kind for layer in layers]
            # The size changes at conv2 and the projection, and each norm stands on one side of it.
            behind = branch == "conv3" or (branch != "conv1" and kinds.index("conv") < kinds.index("norm"))
            if samples * prod(after if behind else before) == 1:
                raise InvalidInput(f"the norm of {branch} meets a single element; with one, there is no variance")


@lru_cache(maxsize=1024)
def _entries(block: Block, kind: str) -> dict[str, tuple[str, Shape]]:
    found = {f"p.{name}": (kind, shape) for name, shape in block.parameters.items()}
    # The only integers are the counters, whose shape is that of a number.
    return found | {f"b.{name}": (kind if shape else "I64", shape) for name, shape in block.buffers.items()}


@lru_cache(maxsize=1024)
def _parse(texts: tuple[str | None, ...]) -> Block:
    values = [_value(name, text) for name, text in zip(ARGUMENTS, texts, strict=True)]
    return Block(*values)  # type: ignore[arg-type]


def _value(name: str, text: str | None) -> int | Pair | str | None:
    """One argument from its text; every other text than those that are allowed is refused (1.15 to 1.18)."""
    _, allowed = ARGUMENTS[name]
    if not isinstance(allowed, int):
        if text in allowed:
            return text
        raise InvalidInput(f"`{name}` (={text}) must be one of {', '.join(allowed)}")
    pair = not name.endswith("planes")
    if name == "output_size" and text == "null":
        return None
    match = _NUMBERS.fullmatch(text or "")
    if match:
        one, first, second = match.groups()
        numbers = [int(one), int(one)] if one else [int(first), int(second)]
        if min(numbers) >= allowed and (one or pair):
            return (numbers[0], numbers[1]) if pair else numbers[0]
    or_pair = ", or a pair of such integers" if pair else ""
    or_null = ", or null" if name == "output_size" else ""
    raise InvalidInput(f"`{name}` (={text}) must be an integer of at least {allowed}{or_pair}{or_null}")
