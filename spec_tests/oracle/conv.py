"""The convolution (clauses 4.2 to 4.4) and its vector-Jacobian product.

    y[n, o, i, j] = b[o] + sum over c, a, b' of w[o, c, a, b'] * x[n, c, i s1 + a - p1, j s2 + b' - p2]

with zeros where x is read outside. Shapes: x (N, C, H, W), w (O, C, kh, kw), b (O), y (N, O, Ho, Wo),
Ho = floor((H + 2 p1 - kh) / s1) + 1.

Errors: n products are summed in any order, fused or not, so that |error| <= gamma_n * sum |w| |x|
(Higham 2002, section 3.1). A fast convolution (Winograd, FFT) is accurate in norm only: its error at one
place is measured by the largest |x| of the channel; 100 roundoffs of that are chosen, not derived.
"""

from __future__ import annotations

import numpy as np

from spec_tests.config import Pair
from spec_tests.oracle.bounds import Arith, Array, Bounded, NotApplicable

FAST = 100
"""Roundoffs granted to a fast convolution; chosen."""

ONE: Pair = (1, 1)


def columns(x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = ONE) -> tuple[Array, Pair]:
    """The windows of x (N, C, H, W) side by side: (N, C kh kw, Ho Wo), and (Ho, Wo)."""
    batch, channels, height, width = x.shape
    if kernel == ONE and padding == (0, 0):
        x = x[:, :, :: stride[0], :: stride[1]]
        return x.reshape(batch, channels, -1), (x.shape[2], x.shape[3])
    padded = np.zeros((batch, channels, height + 2 * padding[0], width + 2 * padding[1]))
    padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    rows = (padded.shape[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    cols = (padded.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    n, c, h, w = padded.strides
    strides = (n, c, h * dilation[0], w * dilation[1], h * stride[0], w * stride[1])
    if rows < 1 or cols < 1:
        raise NotApplicable(f"a kernel of {kernel} does not fit into the size {x.shape[2:]}")
    # A view built by hand: numpy's own helpers cost more than the product does at these sizes.
    view: Array = np.ndarray((batch, channels, *kernel, rows, cols), np.float64, padded, 0, strides)
    return view.reshape(batch, -1, rows * cols), (rows, cols)


def _correlate(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair) -> Array:
    found, size = columns(x, (w.shape[2], w.shape[3]), stride, padding, dilation)
    y: Array = w.reshape(len(w), -1) @ found
    return y.reshape(len(x), len(w), *size)


def _spread(dy: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, size: Pair) -> Array:
    """The adjoint of `_correlate` in x: each dy is spread over the window that it came from."""
    batch, planes, rows, cols = dy.shape
    _, channels, kh, kw = w.shape
    taps: Array = w.reshape(planes, -1).T @ dy.reshape(batch, planes, -1)
    if (kh, kw) == stride == ONE and padding == (0, 0):
        return taps.reshape(batch, channels, rows, cols)
    taps = taps.reshape(batch, channels, kh, kw, rows, cols)
    dx = np.zeros((batch, channels, size[0] + 2 * padding[0], size[1] + 2 * padding[1]))
    for a in range(kh):
        top = a * dilation[0]
        for b in range(kw):
            left = b * dilation[1]
            bottom, right = top + stride[0] * (rows - 1) + 1, left + stride[1] * (cols - 1) + 1
            dx[:, :, top : bottom : stride[0], left : right : stride[1]] += taps[:, :, a, b]
    return dx[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def convolve(
    x: Bounded,
    w: Array,
    b: Array | None,
    stride: Pair,
    padding: Pair,
    arith: Arith,
    dilation: Pair = ONE,
    folded: bool = False,
) -> Bounded:
    """The output y = b + w * x, see the formula of this module; w and b are exact.

    `folded`: a norm behind it may be folded into w, which rounds w once more, and one more sum adds the shift.
    """
    n = w[0].size + (b is not None) + (2 if folded else 0)
    c = arith.gamma_products(n)

    value = _correlate(x.value, w, stride, padding, dilation)
    bound = _correlate((1 + c) * x.bound + c * np.abs(x.value), np.abs(w), stride, padding, dilation)

    bound = arith.claimed(bound, bound / c) + n * arith.tiny
    if arith.fast_convolution and w[0, 0].size > 1:
        peak = x.magnitude.max((2, 3))
        bound = bound + (arith.gamma(FAST) * (peak @ np.abs(w).sum((2, 3)).T))[:, :, None, None]
    if b is not None:
        if arith.storage:  # the sum may be written before the bias is added to it
            bound = bound + arith.storage * (np.abs(value) + bound)
        b = b[:, None, None]
        value = value + b
        bound = bound + c * np.abs(b)
    return arith.stored(value, bound)


def convolve_vjp(
    x: Bounded, w: Array, has_bias: bool, stride: Pair, padding: Pair, dy: Bounded, arith: Arith, dilation: Pair = ONE
) -> tuple[Bounded, Bounded, Bounded | None]:
    """dx, dw and db from dy.

    dx is the adjoint of the convolution in x: dx[n, c, r, q] = sum of w[o, c, a, b'] dy[n, o, i, j] over
    the places that read x[n, c, r, q]; dw[o, c, a, b'] = sum over n, i, j of dy[n, o, i, j] times what
    that weight met; db[o] = sum over n, i, j of dy[n, o, i, j].
    """
    planes, _, kh, kw = w.shape
    size = (x.shape[2], x.shape[3])
    fast = arith.fast_convolution and kh * kw > 1
    size_w = np.abs(w)

    n = planes * kh * kw
    c = arith.gamma_products(n)
    dx = _spread(dy.value, w, stride, padding, dilation, size)
    dx_bound = _spread((1 + c) * dy.bound + c * np.abs(dy.value), size_w, stride, padding, dilation, size)
    dx_bound = arith.claimed(dx_bound, dx_bound / c) + n * arith.tiny
    if fast:
        peak = dy.magnitude.max((2, 3))
        dx_bound = dx_bound + (arith.gamma(FAST) * (peak @ size_w.sum((2, 3))))[:, :, None, None]

    places = dy.shape[2] * dy.shape[3]
    m = len(dy.value) * places
    c = arith.gamma_products(m)
    met, _ = columns(x.value, (kh, kw), stride, padding, dilation)
    met_bound, _ = columns(x.bound, (kh, kw), stride, padding, dilation)
    met, met_bound = met.swapaxes(1, 2), met_bound.swapaxes(1, 2)
    met_size = np.abs(met)
    flat = (len(dy.value), planes, places)
    g, g_bound = dy.value.reshape(flat), dy.bound.reshape(flat)
    g_size = np.abs(g)

    dw = (g @ met).sum(0)
    dw_bound = (g_size @ ((1 + c) * met_bound + c * met_size) + (1 + c) * (g_bound @ (met_size + met_bound))).sum(0)
    dw_bound = (arith.claimed(dw_bound, dw_bound / c) + m * arith.tiny).reshape(w.shape)
    if fast:
        total, peak = dy.magnitude.sum((2, 3)), x.magnitude.max((2, 3))
        dw_bound = dw_bound + (arith.gamma(FAST + m) * (total.T @ peak))[:, :, None, None]

    db = None
    if has_bias:
        c = arith.gamma(m) + 2 * arith.storage
        db = arith.stored(g.sum((0, 2)), ((1 + c) * g_bound + c * g_size).sum((0, 2)))
    return arith.stored(dx, dx_bound), arith.stored(dw.reshape(w.shape), dw_bound), db
