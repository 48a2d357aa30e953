"""Hypothesis strategies for configurations and input shapes; everything shrinks to the smallest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any, NamedTuple

from hypothesis import strategies as st

from spec_tests.config import BlockConfig


class Axis(NamedTuple):
    """Kernel, padding, stride and input length on one axis."""

    kernel: int
    padding: int
    stride: int
    length: int


class Sizes(NamedTuple):
    """The largest of what `cases` draws."""

    kernel: int = 5
    stride: int = 3
    length: int = 7
    planes: int = 5
    batch: int = 4


# Every new shape costs a subject that compiles a compilation of each of its layers: it gets fewer of them.
FEW_SHAPES = Sizes(kernel=3, stride=2, length=4, planes=3, batch=2)
_SIZES = [Sizes()]


@contextmanager
def sizes(chosen: Sizes) -> Iterator[None]:
    """Draw cases of these sizes, as long as it lasts."""
    before, _SIZES[0] = _SIZES[0], chosen
    try:
        yield
    finally:
        _SIZES[0] = before


class Case(NamedTuple):
    """A block and the shape (N, C, H, W) of an input for it."""

    config: BlockConfig
    shape: tuple[int, int, int, int]


@cache
def agreeing_axes(scaler: str, max_kernel: int = 5, max_stride: int = 3, max_length: int = 7) -> tuple[Axis, ...]:
    """Every axis on which the branches agree (clauses 3.2, 3.3), the smallest first."""
    found = []
    for length in range(1, max_length + 1):
        for stride in range(1, max_stride + 1):
            for kernel in range(1, max_kernel + 1):
                for padding in range(max_kernel):
                    residual = (length + 2 * padding - kernel) // stride if scaler == "down" else 2 * padding - kernel
                    shortcut = (length - 1) // stride if scaler == "down" else -1
                    if residual == shortcut:
                        found.append(Axis(kernel, padding, stride, length))
    # 2 * padding = kernel - 1 agrees always; the rest (even kernels, other paddings) only here and there.
    return tuple(sorted(found, key=lambda a: (a.length * a.stride * a.kernel, a)))


def planes(largest: int = 5) -> st.SearchStrategy[int]:
    """A number of channels."""
    return st.integers(1, largest)


def pairs(low: int, high: int) -> st.SearchStrategy[int | tuple[int, int]]:
    """An integer for both axes, or a pair."""
    return st.integers(low, high) | st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """The six numeric arguments of a legal block, whether or not any input fits it."""
    return {
        "in_planes": draw(planes(9)),
        "out_planes": draw(planes(9)),
        "kernel_size": draw(pairs(1, 6)),
        "stride": draw(pairs(1, 4)),
        "padding": draw(pairs(0, 4)),
        "output_size": draw(st.none() | pairs(1, 9)),
    }


@st.composite
def cases(draw: st.DrawFn, /, scaler: str, *, max_batch: int = 3, min_elements: int = 2, **named: str) -> Case:
    """A block and an input that it takes in both modes."""
    largest = _SIZES[0]
    batch = draw(st.integers(1, min(max_batch, largest.batch)))
    axes = agreeing_axes(scaler, largest.kernel, largest.stride, largest.length)
    first, second = draw(st.sampled_from(axes)), draw(st.sampled_from(axes))
    output_size = None
    if draw(st.booleans()):
        output_size = (draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    config = BlockConfig.of(
        draw(planes(largest.planes)),
        draw(planes(largest.planes)),
        kernel_size=(first.kernel, second.kernel),
        stride=(first.stride, second.stride),
        padding=(first.padding, second.padding),
        output_size=output_size,
        scaler=scaler,
        **named,
    )
    height, width = first.length, second.length
    # Every norm is to meet at least two elements of each sample: lengthen the width, in steps that keep agreement.
    while min(height * width, prod(config.shortcut_size((height, width)))) < min_elements:
        width += second.stride
        if config.output_size is not None and scaler == "up":
            config = replace(config, output_size=(config.output_size[0], config.output_size[1] + 1))
    return Case(config, (batch, config.in_planes, height, width))
