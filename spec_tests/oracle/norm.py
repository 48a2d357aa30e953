"""Normalization (clauses 4.5 to 4.9), its vector-Jacobian product, and the running statistics (chapter 6).

    y = g (x - mu) / sqrt(var + eps) + b

with mu and the biased variance var of x over (H, W) for each sample and channel (`inst`, `pinst`), over
(N, H, W) for each channel (`batch` in training), or given (`batch` in evaluation). Shapes: x and y
(N, C, H, W), g and b (C, 1, 1) or None, mu and var (N or 1, C, 1, 1).

Errors, with n the number of elements that share mu and var:
- The mean of Welford's recurrence adds at most n + 4 + 2 (1 + 1/2 + ... + 1/n) roundings of the mean |x|;
  any other order of summation has n + 1 (Higham 2002, section 3.1, and problem 1.10 for the variance).
- Welford's variance is off by about n u sqrt(var * mean x^2) (Chan, Golub, LeVeque, Algorithms for computing
  the sample variance, The American Statistician 37, 1983), the one-pass variance by about n u mean x^2.
- The affine step may be x (g r) + (b - mu g r), whose terms are as large as |x| and |mu| allow.
- Folded into a convolution of n products before it, w' = w (g r) and b' = b - mu g r, the n sums may begin with
  b': another n roundoffs of it. Those of w' and of the added sum are granted to the convolution (`conv.convolve`).
  w' is a normal number or 0.
- 1/sqrt is granted 4 ulp (8 roundoffs); chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from spec_tests.oracle.bounds import Arith, Array, Bounded

RSQRT = 8
"""Roundoffs granted to 1/sqrt; chosen."""


class SingleElement(ValueError):
    """A norm has a single element to take its statistics from (clauses 3.11, 3.12)."""


@dataclass(slots=True)
class Moments:
    """Mean and variance (N or 1, C, 1, 1) that normalize n elements each.

    `spread` bounds the error of x - mean at each place. `n` is 0 where they do not come from x.
    """

    mean: Bounded
    variance: Bounded
    spread: Array
    axes: tuple[int, ...]
    n: int


@dataclass(slots=True)
class Normalized:
    """What the backward pass needs.

    `hat` is (x - mu) r, `inverse` is r with its bound, `steepest` the largest correct r, and `reach` bounds
    |x| + |mu|, the size of the terms that cancel in x - mu.
    """

    hat: Bounded
    inverse: Array
    inverse_bound: Array
    steepest: Array
    reach: Array
    moments: Moments
    curvature: Array | float


def moments(x: Bounded, axes: tuple[int, ...], arith: Arith) -> Moments:
    """Mean and biased variance of x over `axes`."""
    n = 1
    for axis in axes:
        n *= x.shape[axis]
    if n <= 1:
        raise SingleElement(f"a norm needs more than one element, got the shape {x.shape}")

    def mean_of(a: Array) -> Array:
        total: Array = np.add.reduce(a, axes, keepdims=True)
        return total / n

    size = x.magnitude
    mean_size, mean_bound, mean_square = mean_of(size), mean_of(x.bound), mean_of(size * size)

    mean = mean_of(x.value)
    rounding = arith.gamma(n + 6 + 2 * log(n)) * mean_size + arith.tiny
    rounding = rounding + (arith.u + arith.storage) * (np.abs(mean) + mean_bound + rounding)

    distance = x.value - mean
    variance = mean_of(distance * distance)
    far = np.abs(distance)
    # var(x + d) - var(x) = 2 mean((x - mu) d) + var(d), and a wrong mean adds its square.
    wrong = 2 * mean_of(far * x.bound) + mean_of(x.bound * x.bound) + rounding * rounding
    wrong = wrong + arith.gamma(n + 5) * (variance + wrong)
    c = arith.gamma(4 * n)
    wrong = wrong + 2 * c * mean_of((far + x.bound + mean_bound) * size) + c * c * mean_square
    if arith.one_pass:
        wrong = wrong + arith.gamma(n + 3) * mean_square + arith.gamma(2 * n + 6) * mean_size * mean_size
    wrong = arith.claimed(wrong, 2 * n * mean_square) + n * arith.tiny

    spread = x.bound * (1 - 2 / n) + mean_bound + rounding
    return Moments(Bounded(mean, mean_bound + rounding), Bounded(variance, wrong), spread, axes, n)


def given_moments(x: Bounded, mean: Bounded, variance: Bounded) -> Moments:
    """Statistics (1, C, 1, 1) that do not come from x."""
    return Moments(mean, variance, x.bound + mean.bound, (), 0)


def _inverse(variance: Bounded, inside: float, outside: float, arith: Arith) -> tuple[Array, Array, Array]:
    """1 / (sqrt(var + inside) + outside), its bound, and the largest that is correct.

    The difference of two roots is a quotient here, and that of their inverses another: taken as they stand, they would
    be rounding errors of float64 where the bound is one of float64.
    """
    relative = arith.gamma(4 + RSQRT) + arith.storage
    root = np.sqrt(variance.value + inside)
    low = np.sqrt(np.maximum(variance.value - variance.bound, 0.0) + inside)
    high = np.sqrt(variance.value + variance.bound + inside)
    inverse = 1 / (root + outside)
    steepest = (1 + relative) / (low + outside)

    below = np.minimum(variance.bound, variance.value) / np.maximum(root + low, arith.tiny)
    above = variance.bound / np.maximum(root + high, arith.tiny)
    steeper = (relative + below * inverse) / (low + outside)
    flatter = (relative + above * inverse) / (high + outside)
    # Where the variance may have overflowed, this is no number, and of what follows no claim is made (`Arith.stored`).
    return inverse, np.maximum(steeper, flatter), steepest


def normalize(
    x: Bounded,
    g: Array | None,
    b: Array | None,
    eps: float,
    given: Moments,
    arith: Arith,
    eps_outside: bool = False,
    folded: int = 0,
) -> tuple[Bounded, Normalized]:
    """The output y = g (x - mu) / sqrt(var + eps) + b.

    `eps_outside` for the wrong rule sqrt(var) + eps; `folded`: the products of the convolution that it may be
    folded into, 0 for none.
    """
    mean, variance = given.mean, given.variance
    inside, outside = (0.0, eps) if eps_outside else (eps, 0.0)
    inverse, inverse_bound, steepest = _inverse(variance, inside, outside, arith)

    distance = x.value - mean.value
    hat = distance * inverse
    hat_bound = given.spread * steepest + np.abs(distance) * inverse_bound
    reach = x.magnitude + np.abs(mean.value) + mean.bound
    hat_bound = hat_bound + ((arith.gamma(6) + 2 * arith.storage) * steepest + arith.tiny) * reach
    saved = Normalized(Bounded(hat, hat_bound), inverse, inverse_bound, steepest, reach, given, 1.0)
    if eps_outside:
        saved.curvature = 1 / (inverse * np.sqrt(variance.value))

    c = arith.gamma(3) + arith.storage
    value, bound = hat, hat_bound + c * (np.abs(hat) + hat_bound)
    if g is not None:
        # In the form x (g r) + (b - mu g r), the product g r may be flushed to zero.
        value, bound = g * value, np.abs(g) * bound + arith.tiny * reach
    if folded:
        scale = steepest if g is None else np.abs(g) * steepest
        bound = bound + arith.gamma(folded) * scale * np.abs(mean.value)
        c += arith.gamma(folded)
    if b is not None:
        value, bound = value + b, bound + c * np.abs(b)
    return arith.stored(value, bound), saved


def normalize_vjp(
    saved: Normalized,
    g: Array | None,
    dy: Bounded,
    arith: Arith,
    through_mean: bool = True,
    through_variance: bool = True,
) -> Bounded:
    """The gradient dx = g r (dy - mean(dy) - hat mean(dy hat)), or g r dy for given statistics (5.3, 5.4)."""
    hat, inverse, steepest, reach = saved.hat, saved.inverse, saved.steepest, saved.reach
    n, axes = saved.moments.n, saved.moments.axes
    size = dy.magnitude
    core, core_bound, terms = dy.value, dy.bound, size

    if n:

        def mean_of(a: Array) -> Array:
            total: Array = np.add.reduce(a, axes, keepdims=True)
            return total / n

        mean_size = mean_of(size)
        if through_mean:
            core = core - mean_of(dy.value)
            core_bound = dy.bound * (1 - 2 / n) + mean_of(dy.bound) + arith.gamma(n + 1) * mean_size + arith.tiny
            terms = terms + mean_size
        if through_variance:
            slope = saved.curvature * mean_of(dy.value * hat.value)
            core = core - hat.value * slope

            hat_size = np.abs(hat.value)
            cancelling = mean_of(size * reach)
            wrong = mean_of(np.abs(dy.value) * hat.bound + dy.bound * (hat_size + hat.bound))
            wrong = wrong + arith.gamma(n + 6) * steepest * cancelling + n * arith.tiny
            wrong = arith.claimed(saved.curvature * wrong, n * cancelling * np.maximum(steepest, 1.0))
            core_bound = core_bound + hat_size * wrong + hat.bound * (np.abs(slope) + wrong)
            # r^3 may be flushed to zero before it meets terms as large as these.
            core_bound = core_bound + arith.tiny * cancelling * reach / steepest
            terms = terms + steepest * reach * (np.abs(slope) + wrong)
            # In the form c dy + d x + e, with d = r^3 mean(dy (x - mu)), the second term may overflow.
            core_bound = arith.claimed(core_bound, steepest**2 * np.maximum(steepest, 1.0) * cancelling * reach)

    dx = inverse * core
    bound = steepest * (core_bound + arith.gamma(10) * terms) + saved.inverse_bound * np.abs(core)
    if g is not None:
        dx, bound = g * dx, np.abs(g) * bound + arith.tiny * (np.abs(core) + core_bound + terms)
    return arith.stored(dx, bound * (1 + arith.gamma(2)))


def affine_vjp(saved: Normalized, dy: Bounded, arith: Arith) -> tuple[Bounded, Bounded]:
    """The gradients dg (C) = sum of dy hat and db (C) = sum of dy, over samples and places."""
    hat = saved.hat
    m = dy.value.size // dy.shape[1]
    c = arith.gamma(m + 6) + 2 * arith.storage
    size = dy.magnitude

    dg = (dy.value * hat.value).sum((0, 2, 3))
    wrong = np.abs(dy.value) * hat.bound + dy.bound * (np.abs(hat.value) + hat.bound)
    terms = (size * saved.reach * saved.steepest).sum((0, 2, 3))
    dg_bound = wrong.sum((0, 2, 3)) + c * terms + m * arith.tiny

    db = dy.value.sum((0, 2, 3))
    db_bound = dy.bound.sum((0, 2, 3)) + c * size.sum((0, 2, 3))
    return arith.stored(dg, arith.claimed(dg_bound, terms)), arith.stored(db, db_bound)


def running(old: Bounded, new: Bounded, momentum: float, arith: Arith) -> Bounded:
    """(1 - momentum) old + momentum new (clauses 6.1, 6.2); shape (C)."""
    value = (1 - momentum) * old.value + momentum * new.value
    terms = (1 - momentum) * old.magnitude + momentum * new.magnitude
    bound = (1 - momentum) * old.bound + momentum * new.bound
    if momentum > 0.5:
        # The rounding of momentum weighs more in the little that is left of 1.
        bound = bound + arith.gamma(1) * momentum * old.magnitude
    return arith.stored(value, bound + (arith.gamma(6) + 3 * arith.storage) * terms + arith.tiny)
