"""BlockBottleneck2d in NumPy: a port that can be read in one go.

Each layer is a function of its input that returns its output and a function `back`, which turns the gradient
for the output into that for the input and notes the gradients of the layer's parameters on the way. The numbers
in parentheses are clauses of SPEC.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import sqrt

import numpy as np
import protocol
from layers import Block, Layer
from numpy.lib.stride_tricks import sliding_window_view
from protocol import Array, Call, Named

EPS, MOMENTUM = 1e-5, 0.1
EVERYWHERE = (0, 2, 3)  # the axes of samples and places

Back = Callable[[Array], Array]


class Run:
    """One forward pass, and the backward pass through it: `stats` are the new buffers, `grads` the gradients."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.stats: Named = {}
        self.grads: Named = {}
        branches = call.block.branches
        residual = [layer for name in ("conv1", "conv2", "conv3") for layer in branches[name]]
        y, self._residual_back = self._through(residual, call.x)
        shortcut, self._shortcut_back = self._through(branches.get("in_node", ()), call.x)
        self.y: Array = y + shortcut

    def _through(self, layers: Iterable[Layer], x: Array) -> tuple[Array, Back]:
        kinds = {"conv": self.convolve, "norm": self.normalize, "act": self.activate, "up": self.upsample}
        backs: list[Back] = []
        for layer in layers:
            x, back = kinds[layer.kind](layer, x)
            backs.append(back)

        def back_through(dy: Array) -> Array:
            for back in reversed(backs):
                dy = back(dy)
            return dy

        return x, back_through

    def back(self, dy: Array) -> Array:
        return self._residual_back(dy) + self._shortcut_back(dy)

    def convolve(self, layer: Layer, x: Array) -> tuple[Array, Back]:
        """A cross-correlation as one product of matrices (4.2 to 4.4)."""
        name, w = layer.name, self.call.params[f"{layer.name}.weight"]
        bias = self.call.params.get(f"{name}.bias")
        batch, planes, (kh, kw), (sh, sw), (ph, pw) = len(x), len(w), layer.kernel, layer.stride, layer.padding
        height, width = x.shape[2:]

        padded = np.zeros((*x.shape[:2], height + 2 * ph, width + 2 * pw), x.dtype) if ph or pw else x
        if ph or pw:
            padded[:, :, ph : ph + height, pw : pw + width] = x
        if layer.kernel == (1, 1):
            windows = padded[:, :, None, None, ::sh, ::sw]
        else:
            windows = sliding_window_view(padded, layer.kernel, (2, 3))[:, :, ::sh, ::sw].transpose(0, 1, 4, 5, 2, 3)
        rows, cols = windows.shape[4:]
        columns = windows.reshape(batch, -1, rows * cols)
        matrix = w.reshape(planes, -1)
        y = (matrix @ columns).reshape(batch, planes, rows, cols)
        if bias is not None:
            y += bias[:, None, None]

        def back(dy: Array) -> Array:
            if bias is not None:
                self.grads[f"{name}.bias"] = dy.sum(EVERYWHERE)
            dy = dy.reshape(batch, planes, -1)
            self.grads[f"{name}.weight"] = (dy @ columns.swapaxes(1, 2)).sum(0).reshape(w.shape)
            taps = (matrix.T @ dy).reshape(windows.shape)
            dx = np.zeros_like(padded)
            for i in range(kh):
                for j in range(kw):
                    dx[:, :, i : i + sh * rows : sh, j : j + sw * cols : sw] += taps[:, :, i, j]
            return dx[:, :, ph : ph + height, pw : pw + width]

        return y, back

    def normalize(self, layer: Layer, x: Array) -> tuple[Array, Back]:
        """The norm of 4.5 to 4.9, with the statistics of x or the running ones."""
        name, call = layer.name, self.call
        batch_norm = call.block.normalizer == "batch"
        axes = EVERYWHERE if batch_norm else (2, 3)
        own = call.training or not batch_norm
        scale, shift = (call.params.get(f"{name}.{entry}") for entry in ("weight", "bias"))

        if own:
            n = x[0, 0].size * (len(x) if batch_norm else 1)
            mean = np.add.reduce(x, axes, keepdims=True) / n
            distance = x - mean
            variance = np.add.reduce(distance * distance, axes, keepdims=True) / n
            if batch_norm:
                unbiased = variance * (n / (n - 1))
                for entry, value in (("running_mean", mean), ("running_var", unbiased)):
                    old = call.buffers[f"{name}.{entry}"]
                    self.stats[f"{name}.{entry}"] = (1 - MOMENTUM) * old + MOMENTUM * value.reshape(-1)
                self.stats[f"{name}.num_batches_tracked"] = call.buffers[f"{name}.num_batches_tracked"] + 1
        else:
            distance = x - call.buffers[f"{name}.running_mean"][:, None, None]
            variance = call.buffers[f"{name}.running_var"][:, None, None]
        inverse = 1 / np.sqrt(variance + EPS)
        hat = distance * inverse
        y = hat if scale is None or shift is None else hat * scale[:, None, None] + shift[:, None, None]

        def back(dy: Array) -> Array:
            if scale is not None:
                self.grads[f"{name}.weight"] = np.add.reduce(dy * hat, EVERYWHERE)
                self.grads[f"{name}.bias"] = np.add.reduce(dy, EVERYWHERE)
            dx = dy
            if own:
                slope = np.add.reduce(dy * hat, axes, keepdims=True) / n
                dx = dy - np.add.reduce(dy, axes, keepdims=True) / n - hat * slope
            factor: Array = inverse if scale is None else inverse * scale[:, None, None]
            return dx * factor

        return y, back

    def activate(self, layer: Layer, x: Array) -> tuple[Array, Back]:
        """The activations of 4.11 and 4.12; of x = 0, the slope is that of the negative side (5.6)."""
        name, slope = layer.name, self.call.params.get(f"{layer.name}.weight")
        if slope is None:
            return np.maximum(x, 0), lambda dy: np.where(x > 0, dy, 0)
        slope = slope[:, None, None]

        def back(dy: Array) -> Array:
            self.grads[f"{name}.weight"] = np.add.reduce(dy * np.minimum(x, 0), EVERYWHERE)
            return np.where(x > 0, dy, slope * dy)

        return np.where(x > 0, x, slope * x), back

    def upsample(self, _: Layer, x: Array) -> tuple[Array, Back]:
        """Bilinear up-sampling with aligned corners (4.14), along the height, then along the width."""
        height, width = x.shape[2:]
        target = self.call.block.upsampled(height, width)
        y, rows_back = _resample(x, height, target[0], axis=2)
        y, cols_back = _resample(y, width, target[1], axis=3)
        return y, lambda dy: rows_back(cols_back(dy))


def _resample(x: Array, length: int, target: int, axis: int) -> tuple[Array, Back]:
    if length == target:
        return x, lambda dy: dy
    first, second, part = aligned_corners(length, target, x.dtype.str)
    matrix_shape = (target, length)
    if axis == 2:
        part = part[:, None]
    y = x.take(first, axis) * (1 - part) + x.take(second, axis) * part

    def back(dy: Array) -> Array:
        matrix = np.zeros(matrix_shape, x.dtype)
        places = np.arange(target)
        matrix[places, first] = 1 - part.reshape(-1)
        matrix[places, second] += part.reshape(-1)
        return matrix.T @ dy if axis == 2 else dy @ matrix

    return y, back


@lru_cache(maxsize=256)
def aligned_corners(length: int, target: int, dtype: str) -> tuple[Array, Array, Array]:
    """For each element: its two neighbours, and the weight of the second; a place that is whole has one, twice."""
    first, rest = np.divmod(np.arange(target) * (length - 1), max(target - 1, 1))
    return first, first + (rest > 0), (rest / max(target - 1, 1)).astype(dtype)


def forward(call: Call) -> tuple[Array, Named]:
    run = Run(call)
    return run.y, run.stats


def backward(call: Call, dy: Array) -> tuple[Array, Named]:
    run = Run(call)
    return run.back(dy), run.grads


def init(block: Block, seed: int) -> Named:
    """The state of a new block (7.4 to 7.7)."""
    rng = np.random.default_rng(seed)
    constants = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}
    layers = {layer.name: layer for branch in block.branches.values() for layer in branch}
    state: Named = {}
    for name, shape in {**block.parameters, **block.buffers}.items():
        layer, entry = layers[name.rpartition(".")[0]], name.rpartition(".")[2]
        if layer.kind == "conv":
            limit = 1 / sqrt(layer.fan_in)
            state[name] = rng.uniform(-limit, limit, shape)
        elif layer.kind == "act":
            state[name] = np.full(shape, 0.25)
        else:
            state[name] = np.full(shape, constants.get(entry, float(entry == "weight")))
    return state


if __name__ == "__main__":
    about = {"name": "NumPy port", "version": np.__version__, "language": "Python"}
    np.seterr(all="ignore")  # numbers that are not finite are an input like any other (4.22)
    protocol.serve(about, forward, backward, init, dtypes={"F32": "<f4", "F64": "<f8"})
