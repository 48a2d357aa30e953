"""Numbers that are the same on every machine, of the kinds of spec_tests/generators.py on which faults show.

They come from SHAKE-256 and from operations that IEEE 754 rounds alike everywhere: no generator of NumPy's, no
power, no sum whose order matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spec_tests.config import BlockConfig
from spec_tests.laws import State

Array = NDArray[Any]
Shape = tuple[int, int, int, int]


class Draw:
    """Numbers that depend on a text alone; each call continues where the one before ended."""

    def __init__(self, text: str) -> None:
        self.text, self.calls = text, 0

    def bits(self, shape: Sequence[int]) -> Array:
        """Integers of 24 bits, as float64."""
        self.calls += 1
        size = int(np.prod(shape, dtype=np.int64))
        raw = hashlib.shake_256(f"{self.text} {self.calls}".encode()).digest(8 * size)
        whole: Array = np.frombuffer(raw, "<u8") >> np.uint64(64 - 24)
        return whole.astype(np.float64).reshape(shape)

    def uniform(self, low: float, high: float, shape: Sequence[int] = ()) -> Array:
        return low + (high - low) * (self.bits(shape) / 2**24)

    def bell(self, shape: Sequence[int]) -> Array:
        """The sum of three uniform numbers: mean 0, variance 1, at most 3."""
        a, b, c = (self.uniform(-1, 1, shape) for _ in range(3))
        return (a + b) + c

    def below(self, end: int, shape: Sequence[int] = ()) -> Array:
        """Whole numbers from 0 to end - 1."""
        return np.floor(self.uniform(0, end, shape))

    def scale(self, low: int, high: int, shape: Sequence[int] = ()) -> Array:
        """Factors from 2^low to 2^high, as many in each octave."""
        return np.asarray(np.ldexp(self.uniform(1, 2, shape), low + self.below(high - low, shape).astype(int)))


def draw_state(config: BlockConfig, parameters: str, buffers: str, kind: str) -> State:
    """The state, of the kind "distinct", "near_eps" or "ties"; each entry has draws of its own."""
    roles = {f"{layer.name}.weight": layer.kind for layer in config.layers()}
    state: State = {}
    for name, shape in config.state().items():
        draw, entry = Draw(f"{buffers if name in config.buffers() else parameters} {name}"), name.rpartition(".")[2]
        if entry == "num_batches_tracked":
            state[name] = draw.below(1000).astype(np.int64)
            continue
        if entry == "running_var":
            value = draw.scale(-16, 2, shape)
        elif entry == "running_mean":
            value = draw.bell(shape) / 2
        elif entry == "bias":
            value = draw.below(3, shape) - 1 if kind == "ties" else draw.bell(shape) / 2
        elif roles[name] == "act":
            value = draw.uniform(-0.3, 1.3, shape)
        elif roles[name] == "norm":
            value = draw.uniform(0.3, 1.7, shape) * np.where(draw.uniform(0, 1, shape) < 0.3, -1, 1)
        else:
            value = draw.bell(shape) / np.sqrt(np.prod(shape[1:], dtype=np.float64))
            if kind == "ties":
                value = np.rint(value * 4) / 4
            if kind == "near_eps" and draw.uniform(0, 1) < 0.6:
                value = value * draw.scale(-11, -5)
        state[name] = value.astype(np.float32)
    return state


def draw_input(shape: Shape, draw: Draw, kind: str) -> Array:
    """The input (N, C, H, W)."""
    channels = (1, shape[1], 1, 1)
    value = draw.bell(shape)
    if kind == "near_eps":
        # Whole numbers, so that the sum is exact in any order.
        whole = draw.bits(shape)
        value = (whole - whole.sum((2, 3), keepdims=True) / (shape[2] * shape[3])) / 2**23
        value = value * draw.scale(-11, -5, channels)
    elif kind == "offset":
        value = value + draw.scale(-1, 3, channels) * np.where(draw.uniform(0, 1, channels) < 0.5, -1, 1)
    elif kind == "large":
        value = value * 8
    elif kind == "ties":
        # Opposite elements cancel: the mean is exactly 0, and with it the middle of a norm's output.
        value = (draw.below(5, shape) - 2) / 2
        value = (value - value[:, :, ::-1, ::-1]) / 2
    elif kind == "impulse":
        value = np.zeros(shape)
        value[:, 0, shape[2] // 2, shape[3] // 2] = 1 + draw.below(4, shape[:1])
    elif kind == "ramp":
        steps = (0.25, 1.25, 0.75, 0.125)
        value = np.full(shape, -2.5)
        for step, axis in zip(steps, np.ogrid[tuple(map(slice, shape))], strict=True):
            value = value + step * axis
    elif kind != "normal":
        raise ValueError(f"`kind` (={kind!r}) is none of this module")
    return np.asarray(value).astype(np.float32)
