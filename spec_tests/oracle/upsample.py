"""Up-sampling (clause 4.14): bilinear, corners aligned; and its vector-Jacobian product.

On an axis from L to U, element i is (1 - l) x[m] + l x[m + 1] with t = i (L - 1) / (U - 1) (t = 0 if U = 1),
m = floor(t), l = t - m. As a matrix, y = R x C^T with R (U1, H) for the rows and C (U2, W) for the columns.

Errors: an implementation computes t in floating point, four roundings at most, so that the weights are off
by up to 4 u t and a whole t may fall to the neighbour; the weights and sums round ten times at most. Coordinates of a
coarser type than the sums leave weights of that type, so that 1 - l is rounded once more there.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from spec_tests.config import Pair
from spec_tests.oracle.bounds import Arith, Array, Bounded

COORDINATE_ROUNDINGS = 4
WEIGHT_ROUNDINGS = 10


class Axis:
    """A linear map along one axis.

    `weight` (out, in) with the error `doubt` of each, and how many outputs at most read an input (`readers`).
    """

    __slots__ = ("doubt", "readers", "size", "weight")

    def __init__(self, weight: Array, doubt: Array) -> None:
        self.weight, self.doubt = weight, doubt
        self.size: Array = np.abs(weight)
        self.readers = int(np.count_nonzero(self.size + doubt, axis=0).max())


@lru_cache(maxsize=4096)
def aligned_corners(length: int, target: int, roundoff: float, coarse: float = 0.0) -> Axis:
    """The weights of clause 4.14 along an axis from `length` to `target`, exact up to one rounding.

    `roundoff` is that of the coordinates, `coarse` the same where their type is coarser than that of the sums.
    """
    weight, doubt = np.zeros((target, length)), np.zeros((target, length))
    for i in range(target):
        m, rest = divmod(i * (length - 1), target - 1) if target > 1 else (0, 0)
        part = rest / (target - 1) if rest else 0.0
        weight[i, m] = 1 - part
        if rest:
            weight[i, m + 1] = part

        error = COORDINATE_ROUNDINGS * roundoff * (m + part) + (coarse * (1 - part) if rest else 0.0)
        if error > 0:
            doubt[i, max(m - (part <= error), 0) : m + 2 + (part + error >= 1)] = error
    return Axis(weight, doubt)


def resample(x: Bounded, rows: Axis, cols: Axis, arith: Arith) -> Bounded:
    """The output y = R x C^T: x (N, C, H, W) to (N, C, U1, U2)."""
    c = arith.gamma(WEIGHT_ROUNDINGS)
    size = x.magnitude

    value = rows.weight @ x.value @ cols.weight.T
    bound = rows.size @ ((1 + c) * x.bound + c * np.abs(x.value)) @ cols.size.T

    doubt = rows.doubt @ size @ (cols.size + cols.doubt).T + rows.size @ size @ cols.doubt.T
    return arith.stored(value, bound + (1 + c) * doubt + 4 * arith.tiny)


def resample_vjp(rows: Axis, cols: Axis, dy: Bounded, arith: Arith) -> Bounded:
    """The gradient dx = R^T dy C: the transposed weights (clause 5.7)."""
    terms = rows.readers * cols.readers
    c = arith.gamma(WEIGHT_ROUNDINGS + terms)
    size = dy.magnitude

    dx = rows.weight.T @ dy.value @ cols.weight
    bound = rows.size.T @ ((1 + c) * dy.bound + c * np.abs(dy.value)) @ cols.size

    doubt = rows.doubt.T @ size @ (cols.size + cols.doubt) + rows.size.T @ size @ cols.doubt
    return arith.stored(dx, bound + (1 + c) * doubt + terms * arith.tiny)


def axes(length: Pair, target: Pair, arith: Arith) -> tuple[Axis, Axis]:
    """The two maps from (H, W) to `target`."""
    coarse = arith.coordinate if arith.coordinate > arith.u else 0.0
    return (
        aligned_corners(length[0], target[0], arith.coordinate, coarse),
        aligned_corners(length[1], target[1], arith.coordinate, coarse),
    )
