"""The activation (clauses 4.11, 4.12) and its vector-Jacobian product.

    y = x where x > 0, a x elsewhere

with one slope a for each channel (`prelu`), or a = 0 (`relu`). Shapes: x and y (N, C, H, W), a (C, 1, 1).

Errors: y has the Lipschitz constant 1 or |a| on either side, and the larger of the two where the sign of x
is in doubt. A form such as a x + (1 - a) max(x, 0) rounds four times, on either side of 0.

At a kink any slope in the hull of 0, a, 1 and 1 + a is right (clause 5.6): max(x, 0) + a min(x, 0) has the
slope 1 + a there in some frameworks, and 0 in others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spec_tests.oracle.bounds import Arith, Array, Bounded

ROUNDINGS = 4


@dataclass(slots=True)
class Activated:
    """What the backward pass needs: the input, the slope a, the slope at each place, where it is in doubt."""

    x: Bounded
    slope: Array
    steep: Array
    doubtful: NDArray[np.bool_]


RELU: Array = np.zeros(())
"""The slope of a ReLU."""


def activate(x: Bounded, slope: Array, arith: Arith) -> tuple[Bounded, Activated]:
    """The output y = x where x > 0, slope x elsewhere; a `slope` of RELU multiplies nothing and so never rounds."""
    steep = np.where(x.value > 0, 1.0, slope)
    doubtful = ~(np.abs(x.value) > x.bound)  # NaN is in doubt too

    value = steep * x.value
    bound = np.where(doubtful, np.maximum(1.0, np.abs(slope)), np.abs(steep)) * x.bound

    if slope is not RELU:
        bound = bound + arith.gamma(ROUNDINGS) * (1 + np.abs(slope)) * x.magnitude
    return arith.stored(value, bound), Activated(x, slope, steep, doubtful)


def activate_vjp(saved: Activated, dy: Bounded, arith: Arith) -> Bounded:
    """The gradient dx = dy where x > 0, slope dy elsewhere."""
    slope, steep = saved.slope, saved.steep
    dx = steep * dy.value
    bound = np.abs(steep) * dy.bound

    top, low = np.maximum(1.0, 1.0 + slope), np.minimum(0.0, slope)
    doubt = np.where(saved.doubtful, np.maximum(top - steep, steep - low), 0.0)
    rounding = arith.gamma(ROUNDINGS) * (1 + np.abs(slope)) if slope is not RELU else 0.0
    bound = bound + (doubt + rounding) * dy.magnitude
    if not saved.x.bound.max(initial=0.0) < np.inf:  # the input may have been no number
        bound = np.where(saved.x.bound < np.inf, bound, np.inf)
    return arith.stored(dx, bound)


def slope_vjp(saved: Activated, dy: Bounded, arith: Arith) -> Bounded:
    """The gradient da (C) = sum over samples and places of dy min(x, 0) (clause 5.5).

    Differentiated, a x + (1 - a) max(x, 0) gives the sum of dy x less that of dy max(x, 0).
    """
    x = saved.x
    below = np.minimum(x.value, 0.0)
    below_bound = np.where(x.value < x.bound, x.bound, 0.0)
    m = below.size // below.shape[1]
    c = arith.gamma(m + 1) + 2 * arith.storage

    products = dy.value * below
    apart = np.abs(dy.value) * (np.abs(x.value) + np.maximum(x.value, 0.0))
    errors = np.abs(dy.value) * below_bound + dy.bound * (np.abs(below) + below_bound)
    return arith.stored(products.sum((0, 2, 3)), ((1 + c) * errors + c * apart).sum((0, 2, 3)) + m * arith.tiny)
