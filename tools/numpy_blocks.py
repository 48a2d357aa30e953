"""Correct implementations of the block in NumPy float32, each with its own algorithms.

They share nothing with `spec_tests.oracle`: every layer is written again, forward and backward, with
the order of summation, the convolution, the variance and the algebraic forms as parameters. Every
intermediate result is rounded to float32. `tools/soundness.py` holds them against the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spec_tests.config import BlockConfig, Layer, Pair

F = np.float32
Single = NDArray[np.float32]
EPS = F(1e-5)

# ---------------------------------------------------------------- sums along the last axis


def pairwise(a: Single) -> Single:
    total: Single = np.add.reduce(np.ascontiguousarray(a), axis=-1, dtype=F)
    return total


def sequential(a: Single) -> Single:
    return np.cumsum(a, axis=-1, dtype=F)[..., -1]


def backwards(a: Single) -> Single:
    return sequential(a[..., ::-1])


def ascending(a: Single) -> Single:
    return sequential(np.take_along_axis(a, np.argsort(np.abs(a), -1), -1))


def descending(a: Single) -> Single:
    return sequential(np.take_along_axis(a, np.argsort(-np.abs(a), -1), -1))


def ordinary_dot(a: Single, b: Single, add: Callable[[Single], Single]) -> Single:
    return add(a * b)


def fused_dot(a: Single, b: Single, add: Callable[[Single], Single]) -> Single:  # noqa: ARG001
    """One rounding for each product and its sum, one after the other."""
    a, b = np.broadcast_arrays(a, b)
    total = np.zeros(a.shape[:-1], F)
    for k in range(a.shape[-1]):
        total = (total.astype(np.float64) + a[..., k].astype(np.float64) * b[..., k]).astype(F)
    return total


# ---------------------------------------------------------------- convolutions, stride 1, no padding


def direct(x: Single, w: Single, how: Algorithm) -> Single:
    """Every product, then the sum over the window."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    n, _, rows, cols = windows.shape[:4]
    flat = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, 1, rows * cols, -1)
    y = how.dot(flat, w.reshape(1, len(w), 1, -1), how.add)
    return y.reshape(n, len(w), rows, cols)


def unfolded(x: Single, w: Single, how: Algorithm) -> Single:  # noqa: ARG001
    """Windows as columns, then one matrix product (BLAS)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    n, _, rows, cols = windows.shape[:4]
    flat = np.ascontiguousarray(windows.transpose(0, 2, 3, 1, 4, 5)).reshape(n * rows * cols, -1)
    y: Single = (flat @ w.reshape(len(w), -1).T).reshape(n, rows, cols, len(w)).transpose(0, 3, 1, 2)
    return y


def fourier(x: Single, w: Single, how: Algorithm) -> Single:
    """Products of discrete Fourier transforms, of all kernels larger than 1x1."""
    if w[0, 0].size == 1:
        return unfolded(x, w, how)
    size = x.shape[2:]
    a = np.fft.rfft2(x).astype(np.complex64)
    b = np.conj(np.fft.rfft2(w, size)).astype(np.complex64)
    c = np.einsum("nchw,ochw->nohw", a, b).astype(np.complex64)
    y = np.fft.irfft2(c, size).astype(F)
    return y[:, :, : size[0] - w.shape[2] + 1, : size[1] - w.shape[3] + 1]


def winograd(x: Single, w: Single, how: Algorithm) -> Single:
    """F(2x2, 3x3) of Lavin and Gray 2015, arXiv:1509.09308, of 3x3 kernels."""
    if w.shape[2:] != (3, 3):
        return unfolded(x, w, how)
    to_data = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], F)
    to_kernel = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], F)
    from_product = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], F)
    rows, cols = x.shape[2] - 2, x.shape[3] - 2
    x = np.pad(x, ((0, 0), (0, 0), (0, rows % 2), (0, cols % 2)))
    tiles = np.lib.stride_tricks.sliding_window_view(x, (4, 4), (2, 3))[:, :, ::2, ::2]
    data = to_data @ tiles @ to_data.T
    kernel = to_kernel @ w @ to_kernel.T
    product = np.einsum("nctsij,ocij->notsij", data, kernel).astype(F)
    y = (from_product @ product @ from_product.T).transpose(0, 1, 2, 4, 3, 5)
    n, o, t, _, s, _ = y.shape
    cropped: Single = y.reshape(n, o, 2 * t, 2 * s)[:, :, :rows, :cols]
    return cropped


# ---------------------------------------------------------------- variances along the last axis


def two_pass(x: Single, mean: Single, how: Algorithm) -> Single:
    d = x - mean[..., None]
    return how.mean(d * d)


def one_pass(x: Single, mean: Single, how: Algorithm) -> Single:
    clipped: Single = np.maximum(how.mean(x * x) - mean * mean, F(0))
    return clipped


def welford(x: Single, mean: Single, how: Algorithm) -> Single:  # noqa: ARG001
    running, squares = np.zeros(x.shape[:-1], F), np.zeros(x.shape[:-1], F)
    for k in range(x.shape[-1]):
        d = x[..., k] - running
        running = running + d / F(k + 1)
        squares = squares + d * (x[..., k] - running)
    variance: Single = squares / F(x.shape[-1])
    return variance


def welford_mean(x: Single) -> Single:
    running = np.zeros(x.shape[:-1], F)
    for k in range(x.shape[-1]):
        running = running + (x[..., k] - running) / F(k + 1)
    return running


# ---------------------------------------------------------------- an implementation


@dataclass(frozen=True)
class Algorithm:
    """How one implementation computes.

    `form` of the norm: "centred" g (x - mu) r + b, "affine" x (g r) + (b - mu g r), "divided"
    (x - mu) / s g + b, "split" (x r - mu r) g + b. `act`: "select", "parts" max(x, 0) + a min(x, 0),
    "blend" a x + (1 - a) max(x, 0). `coordinate`: "scaled" i ((L - 1) / (U - 1)), "ratio"
    (i (L - 1)) / (U - 1), "share" (i / (U - 1)) (L - 1). `round_factors` is applied to the factors of
    a convolution.
    """

    add: Callable[[Single], Single] = pairwise
    dot: Callable[..., Single] = ordinary_dot
    convolve: Callable[..., Single] = unfolded
    variance: Callable[..., Single] = two_pass
    average: Callable[[Single], Single] | None = None
    form: str = "centred"
    act: str = "select"
    coordinate: str = "scaled"
    round_factors: Callable[[Single], Single] | None = None

    def mean(self, a: Single) -> Single:
        if self.average is not None:
            return self.average(a)
        mean: Single = self.add(a) / F(a.shape[-1])
        return mean

    def run(
        self, config: BlockConfig, state: Mapping[str, Any], x: Single, dy: Single, training: bool
    ) -> dict[str, NDArray[Any]]:
        """Output, gradients (`dx`, `grad name`) and buffers."""
        call = _Call(self, config, dict(state), training, {}, {})
        branches: dict[str, list[tuple[Layer, Any]]] = {"residual": [], "shortcut": []}
        ends = {"residual": x, "shortcut": x}
        for layer in config.layers():
            branch = "shortcut" if layer.branch == "in_node" else "residual"
            ends[branch], saved = call.forward(layer, ends[branch])
            branches[branch].append((layer, saved))
        y = ends["residual"] + ends["shortcut"]

        starts = {}
        for branch, tape in branches.items():
            gradient = dy
            for layer, saved in reversed(tape):
                gradient = call.backward(layer, saved, gradient)
            starts[branch] = gradient
        buffers = {name: call.buffers.get(name, state[name]) for name in config.buffers()}
        return {"y": y, "dx": starts["residual"] + starts["shortcut"], **call.gradients, **buffers}


@dataclass
class _Call:
    how: Algorithm
    config: BlockConfig
    state: dict[str, Any]
    training: bool
    gradients: dict[str, Single]
    buffers: dict[str, Any]

    def forward(self, layer: Layer, x: Single) -> tuple[Single, Any]:
        return getattr(self, f"_{layer.kind}")(layer, x)  # type: ignore[no-any-return]

    def backward(self, layer: Layer, saved: Any, dy: Single) -> Single:
        return getattr(self, f"_{layer.kind}_back")(layer, saved, dy)  # type: ignore[no-any-return]

    def _factor(self, a: Single) -> Single:
        return a if self.how.round_factors is None else self.how.round_factors(a)

    # ------------------------------------------------------------ convolution

    def _conv(self, layer: Layer, x: Single) -> tuple[Single, Any]:
        (p, q), (s, t) = layer.padding, layer.stride
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (q, q)))
        w = self.state[f"{layer.name}.weight"]
        y = self.how.convolve(self._factor(padded), self._factor(w), self.how)[:, :, ::s, ::t]
        if layer.bias:
            y = y + self.state[f"{layer.name}.bias"][:, None, None]
        return y, (padded, w)

    def _conv_back(self, layer: Layer, saved: Any, dy: Single) -> Single:
        padded, w = saved
        (p, q), (s, t), (kh, kw) = layer.padding, layer.stride, layer.kernel
        n, planes, rows, cols = dy.shape
        height, width = padded.shape[2:]

        sparse = np.zeros((n, planes, height + kh - 1, width + kw - 1), F)
        sparse[:, :, kh - 1 : kh + s * (rows - 1) : s, kw - 1 : kw + t * (cols - 1) : t] = dy
        turned = np.ascontiguousarray(w[:, :, ::-1, ::-1].swapaxes(0, 1))
        dx = self.how.convolve(self._factor(sparse), self._factor(turned), self.how)

        windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), (2, 3))[:, :, ::s, ::t][:, :, :rows, :cols]
        met = windows.transpose(1, 4, 5, 0, 2, 3).reshape(1, layer.in_planes * kh * kw, -1)
        flat = dy.transpose(1, 0, 2, 3).reshape(planes, 1, -1)
        dw = self.how.dot(self._factor(flat), self._factor(met), self.how.add)
        self.gradients[f"grad {layer.name}.weight"] = dw.reshape(w.shape)
        if layer.bias:
            self.gradients[f"grad {layer.name}.bias"] = self.how.add(flat[:, 0])
        return dx[:, :, p : height - p, q : width - q]

    # ------------------------------------------------------------ activation

    def _act(self, layer: Layer, x: Single) -> tuple[Single, Any]:
        if self.config.activator == "relu":
            return np.maximum(x, F(0)), (x, F(0))
        a = self.state[f"{layer.name}.weight"][:, None, None]
        if self.how.act == "select":
            y = np.where(x > 0, x, a * x)
        elif self.how.act == "parts":
            y = np.maximum(x, F(0)) + a * np.minimum(x, F(0))
        else:
            y = a * x + (F(1) - a) * np.maximum(x, F(0))
        return y, (x, a)

    def _act_back(self, layer: Layer, saved: Any, dy: Single) -> Single:
        x, a = saved
        if self.config.activator == "prelu":
            products = (dy * np.minimum(x, F(0))).transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
            self.gradients[f"grad {layer.name}.weight"] = self.how.add(products)
        one = F(1)
        dx: Single
        if self.how.act == "select" or self.config.activator == "relu":
            dx = dy * np.where(x > 0, one, a)
        elif self.how.act == "parts":  # both parts pass the gradient at 0, as torch.clamp does
            dx = dy * (x >= 0) + (a * dy) * (x <= 0)
        else:
            dx = a * dy + ((one - a) * dy) * (x > 0)
        return dx

    # ------------------------------------------------------------ up-sampling

    def _weights(self, length: int, target: int) -> Single:
        i = np.arange(target, dtype=F)
        last, end = F(length - 1), F(max(target - 1, 1))
        if self.how.coordinate == "scaled":
            t = i * (last / end)
        elif self.how.coordinate == "ratio":
            t = (i * last) / end
        else:
            t = (i / end) * last
        if target == 1:
            t = np.zeros(1, F)
        m = np.minimum(np.floor(t).astype(int), length - 1)
        part = t - m.astype(F)
        weights = np.zeros((target, length), F)
        np.add.at(weights, (np.arange(target), m), F(1) - part)
        np.add.at(weights, (np.arange(target), np.minimum(m + 1, length - 1)), part)
        return weights

    def _up(self, _: Layer, x: Single) -> tuple[Single, Any]:
        target: Pair = self.config.upsampled_size(x.shape[2:])
        rows, cols = self._weights(x.shape[2], target[0]), self._weights(x.shape[3], target[1])
        return rows @ x @ cols.T, (rows, cols)

    def _up_back(self, _: Layer, saved: Any, dy: Single) -> Single:
        rows, cols = saved
        return rows.T @ dy @ cols  # type: ignore[no-any-return]

    # ------------------------------------------------------------ norm: groups as the last axis

    def _grouped(self, x: Single) -> Single:
        """(1, C, N H W) for batch norm, (N, C, H W) for instance norm."""
        n, c = x.shape[:2]
        if self.config.normalizer == "batch":
            return np.ascontiguousarray(x.transpose(1, 0, 2, 3)).reshape(1, c, -1)
        return x.reshape(n, c, -1)

    def _ungrouped(self, a: Single, shape: tuple[int, ...]) -> Single:
        n, c, h, w = shape
        if self.config.normalizer == "batch":
            a = a.reshape(c, n, h, w).transpose(1, 0, 2, 3)
        return a.reshape(shape)

    def _norm(self, layer: Layer, x: Single) -> tuple[Single, Any]:
        flat, name = self._grouped(x), layer.name
        own = self.config.normalizer != "batch" or self.training
        if own:
            mean = self.how.mean(flat)
            var = self.how.variance(flat, mean, self.how)
        else:
            mean, var = self.state[f"{name}.running_mean"][None], self.state[f"{name}.running_var"][None]
        if self.config.normalizer == "batch" and self.training:
            n = flat.shape[-1]
            for key, new in (("running_mean", mean[0]), ("running_var", var[0] * (F(n) / F(n - 1)))):
                old = self.state[f"{name}.{key}"]
                # Two forms of the same average.
                kept = F(0.9) * old + F(0.1) * new if self.how.form == "centred" else old + F(0.1) * (new - old)
                self.buffers[f"{name}.{key}"] = kept
            self.buffers[f"{name}.num_batches_tracked"] = self.state[f"{name}.num_batches_tracked"] + 1

        plain = self.config.normalizer == "inst"
        c = flat.shape[1]
        g = np.ones(c, F) if plain else self.state[f"{name}.weight"]
        b = np.zeros(c, F) if plain else self.state[f"{name}.bias"]
        mu, root = mean[..., None], np.sqrt(var + EPS)[..., None]
        r = F(1) / root
        g, b = g[:, None], b[:, None]
        if self.how.form == "affine":
            y = flat * (g * r) + (b - mu * (g * r))
        elif self.how.form == "divided":
            y = ((flat - mu) / root) * g + b
        elif self.how.form == "split":
            y = (flat * r - mu * r) * g + b
        else:
            y = g * ((flat - mu) * r) + b
        return self._ungrouped(y, x.shape), (flat, mu, r, g, own, x.shape)

    def _norm_back(self, layer: Layer, saved: Any, dy: Single) -> Single:
        x, mu, r, g, own, shape = saved
        flat = self._grouped(dy)
        add, n = self.how.add, F(x.shape[-1])
        if self.how.form in ("affine", "split"):
            # Backwards through y = x scale + shift, scale = g r, shift = b - mu scale, statement by statement.
            d_scale, d_shift = add(flat * x)[..., None], add(flat)[..., None]
            d_scale = d_scale - mu * d_shift
            dg, db = (d_scale * r)[..., 0], d_shift[..., 0]
            dx = flat * (g * r)
            if own:
                d_mu = -(g * r) * d_shift
                d_var = F(-0.5) * (r * r * r) * (g * d_scale)
                if self.how.variance is one_pass:
                    dx = dx + (F(2) * x / n) * d_var + (d_mu - F(2) * mu * d_var) / n
                else:
                    dx = dx + (F(2) * (x - mu) / n) * d_var + d_mu / n
        else:
            hat = (x - mu) * r
            db, dg = add(flat), add(flat * hat)
            dx = flat
            if own:
                dx = flat - (db / n)[..., None] - hat * (dg / n)[..., None]
            dx = (g * r) * dx
        if self.config.normalizer != "inst":
            self.gradients[f"grad {layer.name}.weight"] = add(np.ascontiguousarray(dg.T))
            self.gradients[f"grad {layer.name}.bias"] = add(np.ascontiguousarray(db.T))
        return self._ungrouped(dx, shape)


def to_tf32(a: Single) -> Single:
    """Round to a mantissa of 10 bits, half to even."""
    bits = np.ascontiguousarray(a).view(np.uint32).astype(np.uint64)
    bits = (bits + np.uint64(0xFFF) + ((bits >> np.uint64(13)) & np.uint64(1))) & np.uint64(0xFFFFE000)
    rounded: Single = bits.astype(np.uint32).view(F).reshape(a.shape)
    return rounded


ALGORITHMS: dict[str, Algorithm] = {
    "sequential sums": Algorithm(add=sequential, convolve=direct),
    "reversed sums": Algorithm(add=backwards, convolve=direct, coordinate="ratio"),
    "ascending sums": Algorithm(add=ascending, convolve=direct, coordinate="share"),
    "descending sums": Algorithm(add=descending, convolve=direct),
    "fused multiply-add": Algorithm(add=sequential, dot=fused_dot, convolve=direct),
    "unfold and matmul": Algorithm(),
    "Welford variance": Algorithm(variance=welford, average=welford_mean),
    "one-pass variance": Algorithm(variance=one_pass, add=sequential),
    "one-pass, affine norm": Algorithm(variance=one_pass, form="affine", act="parts"),
    "Winograd F(2x2, 3x3)": Algorithm(convolve=winograd),
    "FFT convolution": Algorithm(convolve=fourier),
    "affine norm": Algorithm(form="affine", add=sequential),
    "divided norm": Algorithm(form="divided", act="blend", coordinate="ratio"),
    "split norm": Algorithm(form="split", act="parts", coordinate="share"),
}
TF32_PRODUCTS = Algorithm(round_factors=to_tf32)
