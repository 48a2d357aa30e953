"""What ports compute in place of the specification, where it is more than another constant.

None of this is part of the block: a port's author need not read it. It backs the alternatives of `Rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import erf, pi, sqrt
from typing import Any, ClassVar

import numpy as np

from spec_tests.config import Pair
from spec_tests.oracle import activation
from spec_tests.oracle.bounds import Arith, Array, Bounded, NotApplicable
from spec_tests.oracle.norm import Moments
from spec_tests.oracle.upsample import Axis, resample, resample_vjp


def plus(a: Bounded, b: Bounded) -> Bounded:
    """The exact sum of two results, with the sum of their bounds."""
    return Bounded(a.value + b.value, a.bound + b.bound)


# ---------------------------------------------------------------- convolution


_ORDERS = {"hwio": (3, 2, 0, 1), "ohwi": (0, 3, 1, 2)}


def lay(w: Array, how: str) -> Array:
    """A weight (O, C, kh, kw) read in another way."""
    if how in _ORDERS:
        order = _ORDERS[how]
        stored = tuple(w.shape[order.index(axis)] for axis in range(4))
        read: Array = w.reshape(stored).transpose(order)
        return read
    if how == "flipped":
        return w[:, :, ::-1, ::-1]
    if w.shape[0 if how == "in_out" else 2] != w.shape[1 if how == "in_out" else 3]:
        raise NotApplicable(f"a weight of shape {w.shape} cannot be read as {how}")
    turned: Array = w.swapaxes(0, 1) if how == "in_out" else w.swapaxes(2, 3)
    return turned


def lay_back(dw: Array, how: str) -> Array:
    """The gradient of a weight (O, C, kh, kw) in the places of what `lay` read; the other ways undo themselves."""
    if how in _ORDERS:
        stored: Array = dw.transpose(np.argsort(_ORDERS[how])).reshape(dw.shape)
        return stored
    return lay(dw, how)


@lru_cache(maxsize=1024)
def selection(length: int, before: int, after: int, mode: str) -> Axis:
    """The matrix that pads an axis of `length`."""
    numpy_mode: Any = {"zeros": "constant", "circular": "wrap"}.get(mode, mode)
    index = np.pad(np.arange(length), (before, after), mode=numpy_mode)
    weight = np.zeros((length + before + after, length))
    weight[np.arange(len(weight)), index] = 1
    if mode == "zeros":
        weight[:before] = 0
        weight[length + before :] = 0
    return Axis(weight, np.zeros_like(weight))


@lru_cache(maxsize=1024)
def reduction(length: int, stride: int, how: str) -> Axis:
    """The matrix that reads every `stride`-th element, from 0 or 1, or averages windows of `stride`."""
    count = (length - 1) // stride + 1
    weight = np.zeros((count, length))
    for i in range(count):
        if how == "average":
            window = slice(i * stride, min((i + 1) * stride, length))
            weight[i, window] = 1 / (window.stop - window.start)
        else:
            place = i * stride + (how == "offset" and stride > 1)
            if place >= length:
                raise NotApplicable(f"no element {place} on an axis of length {length}")
            weight[i, place] = 1
    return Axis(weight, np.zeros_like(weight))


@dataclass(frozen=True)
class MapStep:
    """A linear map along both axes: a padding (`how` is its mode or "same") or a reduction."""

    name: str
    how: str
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    kernel: Pair = (1, 1)
    kind: ClassVar[str] = "map"

    def _axis(self, length: int, axis: int) -> Axis:
        if self.how in ("offset", "average", "slice"):
            return reduction(length, self.stride[axis], self.how)
        before = after = self.padding[axis]
        if self.how == "same":
            count = -(-length // self.stride[axis])
            total = max((count - 1) * self.stride[axis] + self.kernel[axis] - length, 0)
            before, after = total // 2, total - total // 2
        if (self.how == "reflect" and before >= length) or (self.how == "circular" and before > length):
            raise NotApplicable(f"an axis of length {length} is too short for the padding {before} by {self.how}")
        return selection(length, before, after, "zeros" if self.how == "same" else self.how)

    def forward(self, x: Bounded, run: Any) -> tuple[Bounded, Any]:
        rows, cols = self._axis(x.shape[2], 0), self._axis(x.shape[3], 1)
        return resample(x, rows, cols, run.arith), (rows, cols)

    def vjp(self, saved: Any, dy: Bounded, run: Any) -> Bounded:
        rows, cols = saved
        return resample_vjp(rows, cols, dy, run.arith)


# ---------------------------------------------------------------- activation


def effective_slope(a: Array, how: str) -> tuple[Array, Array]:
    """The slopes (C) that are used, and their Jacobian (C, C) in the parameter."""
    count = len(a)
    unit = np.eye(count)
    if how == "channel":
        return a, unit
    if how == "first":
        return np.full(count, a[0]), np.repeat(unit[:1], count, 0)
    if how == "mean":
        return np.full(count, a.mean()), np.full((count, count), 1 / count)
    if how == "reversed":
        return a[::-1], unit[::-1]
    if how == "absolute":
        return np.abs(a), unit * np.sign(a)
    if how == "clamped":
        return np.clip(a, 0, 1), unit * ((a > 0) & (a < 1))
    return np.full(count, float(how)), 0 * unit


def activate(x: Bounded, a: Array, how: str, side: str, arith: Arith) -> tuple[Bounded, Any]:
    """A PReLU with other slopes, or turned over: s p(s x) with s = -1 multiplies the positive side."""
    slope, jacobian = effective_slope(a, how)
    turned = slope > 1 if side == "maximum" else np.full(len(a), side == "positive")
    sign = np.where(turned, -1.0, 1.0).reshape(-1, 1, 1)
    y, saved = activation.activate(Bounded(sign * x.value, x.bound), slope.reshape(-1, 1, 1), arith)
    return Bounded(sign * y.value, y.bound), (saved, sign, jacobian)


def activate_vjp(
    saved: Any, dy: Bounded, arith: Arith, masked: bool = False, everywhere: bool = False
) -> tuple[Bounded, Bounded]:
    """The gradients dx (N, C, H, W) and da (C) of what `activate` of this module saved.

    `masked`: dx is that of a ReLU; `everywhere`: da sums dy x on both sides.
    """
    inner, sign, jacobian = saved
    dy = Bounded(sign * dy.value, dy.bound)
    back = inner
    if masked:
        back = activation.Activated(inner.x, activation.RELU, (inner.x.value > 0).astype(float), inner.doubtful)
    dx = activation.activate_vjp(back, dy, arith)
    da = _products(inner.x, dy, arith) if everywhere else activation.slope_vjp(inner, dy, arith)
    return Bounded(sign * dx.value, dx.bound), Bounded(jacobian.T @ da.value, np.abs(jacobian).T @ da.bound)


def _products(x: Bounded, dy: Bounded, arith: Arith) -> Bounded:
    """The sum of dy x over samples and places; shape (C)."""
    size = np.abs(x.value)
    c = arith.gamma(x.value.size // x.shape[1] + 1) + 2 * arith.storage
    errors = np.abs(dy.value) * x.bound + dy.bound * (size + x.bound)
    bound = ((1 + c) * errors + c * np.abs(dy.value) * size).sum((0, 2, 3))
    return arith.stored((dy.value * x.value).sum((0, 2, 3)), bound + x.value.size * arith.tiny)


@dataclass(frozen=True)
class FixedActStep:
    """An activation without parameters: "relu", "leaky", "prelu" (slope 0.25), "relu6" or "gelu"."""

    name: str
    how: str
    kind: ClassVar[str] = "fixed"

    def forward(self, x: Bounded, run: Any) -> tuple[Bounded, Any]:
        if self.how == "gelu":
            return self._gelu(x, run.arith)
        slope = {"leaky": np.array(0.01), "prelu": np.array(0.25)}.get(self.how, activation.RELU)
        y, saved = activation.activate(x, slope, run.arith)
        if self.how != "relu6":
            return y, (saved,)
        # min(y, 6) = y - max(y - 6, 0)
        over, cut = activation.activate(Bounded(y.value - 6, y.bound), activation.RELU, run.arith)
        return Bounded(y.value - over.value, y.bound), (saved, cut)

    def _gelu(self, x: Bounded, arith: Arith) -> tuple[Bounded, Any]:
        half = np.vectorize(lambda t: 0.5 * (1 + erf(t / sqrt(2))), otypes=[np.float64])(x.value)
        bell = np.exp(-np.square(x.value) / 2) / sqrt(2 * pi)
        y = arith.stored(x.value * half, 1.13 * x.bound + arith.gamma(16) * x.magnitude)
        return y, Bounded(half + x.value * bell, 0.8 * x.bound + arith.gamma(16))

    def vjp(self, saved: Any, dy: Bounded, run: Any) -> Bounded:
        arith: Arith = run.arith
        if isinstance(saved, Bounded):
            bound = np.abs(saved.value) * dy.bound + saved.bound * dy.magnitude
            return arith.stored(saved.value * dy.value, bound)
        inner, *cut = saved
        for over in cut:
            through = activation.activate_vjp(over, dy, arith)
            dy = Bounded(dy.value - through.value, dy.bound + through.bound)
        return activation.activate_vjp(inner, dy, arith)


# ---------------------------------------------------------------- norm


def unbiased(given: Moments) -> Moments:
    """The same mean with the variance times n/(n - 1)."""
    factor = given.n / (given.n - 1)
    variance = Bounded(factor * given.variance.value, factor * given.variance.bound)
    return Moments(given.mean, variance, given.spread, given.axes, given.n)


def each_channel(new: Bounded, channels: int) -> Bounded:
    """Statistics that were taken for each sample, or for all channels, as one for each channel (C)."""
    shape = (len(new.value), channels, 1, 1)
    return Bounded(np.broadcast_to(new.value, shape).mean((0, 2, 3)), np.broadcast_to(new.bound, shape).mean((0, 2, 3)))


def affine(g: Array | None, b: Array | None, how: str) -> tuple[Array | None, Array | None]:
    """Scale and shift, (C, 1, 1) each, as the wrong rule `how` uses them; None where it uses none."""
    if g is None or b is None:
        return g, b
    return {
        "no_scale": (None, b),
        "no_shift": (g, None),
        "missing": (None, None),
        "swapped": (b, g),
        "twice": (g * g, g * b + b),
        "one_plus_scale": (1 + g, b),
    }[how]


def scaled(dy: Bounded, g: Array, arith: Arith) -> Bounded:
    """The product g dy, rounded once."""
    size = np.abs(g)
    return Bounded(g * dy.value, size * dy.bound + arith.gamma(1) * size * dy.magnitude + arith.tiny)


def affine_vjp(dg: Bounded, db: Bounded, g: Array, b: Array, how: str) -> tuple[Bounded, Bounded]:
    """The gradients of the parameters from those of the scale and shift that were used."""

    def times(t: Bounded, factor: Array) -> Bounded:
        return Bounded(factor * t.value, np.abs(factor) * t.bound)

    zero = Bounded.exact(np.zeros_like(g))
    if how == "twice":
        # Of the shift two sums are added, one of them times g, and may cancel.
        return plus(times(dg, 2 * g), times(db, b)), plus(times(db, g), db)
    return {
        "no_scale": (zero, db),
        "no_shift": (dg, zero),
        "missing": (zero, zero),
        "swapped": (db, dg),
        "one_plus_scale": (dg, db),
    }[how]


# ---------------------------------------------------------------- up-sampling


def _cubic(t: float) -> float:
    """Keys's kernel with -0.75, as torch and OpenCV have it."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


@lru_cache(maxsize=1024)
def _axis(length: int, target: int, how: str, roundoff: float) -> Axis:
    weight = np.zeros((target, length))
    doubt = np.zeros((target, length))
    for i in range(target):
        if how == "nearest":
            weight[i, i * length // target] = 1
            continue
        if how == "half_pixel":
            t = max((i + 0.5) * length / target - 0.5, 0.0)
        elif how == "asymmetric":
            t = i * length / target
        else:
            t = i * (length - 1) / max(target - 1, 1)
        m = int(t)
        taps = range(m - 1, m + 3) if how == "bicubic" else range(m, m + 2)
        for tap in taps:
            part = _cubic(t - tap) if how == "bicubic" else max(1 - abs(t - tap), 0.0)
            place = min(max(tap, 0), length - 1)
            weight[i, place] += part
            doubt[i, place] += 8 * roundoff * (t + 1)
    return Axis(weight, doubt)


def axes(length: Pair, target: Pair, how: str, roundoff: float) -> tuple[Axis, Axis]:
    """The two maps from (H, W) to `target`, by the interpolation `how`."""
    return _axis(length[0], target[0], how, roundoff), _axis(length[1], target[1], how, roundoff)
