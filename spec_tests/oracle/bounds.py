"""Numbers with error bounds, and the rounding models they are derived from.

A `Bounded` tensor says what every correct implementation may have at each place. An `Arith` says how the
implementation under test rounds. The error analysis is that of Higham, Accuracy and Stability of Numerical
Algorithms, 2nd edition, SIAM 2002, chapters 2 and 3; `u` below is its unit roundoff.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class NotApplicable(Exception):
    """The rule cannot be run for this configuration: it would change a shape, or has nothing to act on."""


@dataclass(slots=True, eq=False)
class Bounded:
    """A tensor of exact values and of bounds: every correct number lies in [value - bound, value + bound].

    Both are float64 arrays of the same shape. A bound of infinity makes no claim. A value of NaN with a
    bound of 0 claims NaN itself (clauses 4.22, 4.23).
    """

    value: Array
    bound: Array

    @classmethod
    def exact(cls, value: ArrayLike) -> Bounded:
        """A tensor of which every implementation has the very same numbers."""
        array = np.asarray(value, np.float64)
        return cls(array, np.zeros_like(array))

    @property
    def magnitude(self) -> Array:
        """The largest absolute value that a correct implementation may have."""
        return np.abs(self.value) + self.bound

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


@dataclass(frozen=True)
class Arith:
    """The arithmetic that an implementation declares.

    Attributes:
        name: what a report calls it.
        u: unit roundoff of a product and of a sum, in the accumulator.
        tiny: the smallest normal number of the accumulator; a smaller result may be flushed to zero.
        largest: the largest finite number of the accumulator; a larger result may become infinite.
        product: rounding of the two factors of a product in a convolution, together (TF32).
        storage: unit roundoff of writing a tensor to memory, on top of `u`; 0 where that does not round.
        storage_tiny, storage_largest: as `tiny` and `largest`, of a tensor in memory.
        coordinate: unit roundoff of the source coordinates of up-sampling.
        one_pass: admits the variance E[x^2] - E[x]^2, clipped at 0.
        fast_convolution: admits Winograd and FFT, whose errors spread over a whole channel.
        folded_norm: admits a norm with given statistics in the weights and the bias of the convolution before it.
    """

    name: str
    u: float
    tiny: float
    largest: float
    product: float = 0.0
    storage: float = 0.0
    storage_tiny: float = 0.0
    storage_largest: float = np.inf
    coordinate: float = 2.0**-24
    one_pass: bool = True
    fast_convolution: bool = True
    folded_norm: bool = True

    def gamma(self, n: float) -> float:
        """The relative error of n roundings in any order: n u / (1 - n u) (Higham 2002, section 3.1)."""
        return n * self.u / (1 - n * self.u) if n * self.u < 1 else np.inf

    def gamma_products(self, n: float) -> float:
        """As `gamma`, of a sum of products whose factors are rounded first."""
        return (1 + self.gamma(n)) * (1 + self.product) - 1

    def stored(self, value: Array, bound: Array) -> Bounded:
        """Write a result to memory: one rounding to the storage format.

        Where it may overflow there, and where value or bound is no number, no claim is made.
        """
        magnitude = np.abs(value) + bound
        bound = bound + (self.storage_tiny if self.storage == 0 else self.storage * magnitude + self.storage_tiny)
        if not magnitude.max(initial=0.0) <= self.storage_largest:
            bound = np.where(magnitude <= self.storage_largest, bound, np.inf)
        return Bounded(value, bound)

    def claimed(self, bound: Array, magnitude: Array) -> Array:
        """`bound`, and infinity where an intermediate result of this magnitude may overflow."""
        if magnitude.max(initial=0.0) <= self.largest:
            return bound
        return np.where(magnitude <= self.largest, bound, np.inf)


def _single(name: str, **changes: float) -> Arith:
    """A format that accumulates in float32."""
    u, tiny, largest = 2.0**-24, 2.0**-126, (2 - 2.0**-23) * 2.0**127
    return replace(Arith(name, u, tiny, largest, storage_tiny=tiny, storage_largest=largest), **changes)  # type: ignore[arg-type]


FLOAT32 = _single("float32")
"""float32, every admitted algorithm: the bound that decides a verdict."""

FLOAT32_STRICT = _single("float32 strict", one_pass=False, fast_convolution=False, folded_norm=False)
"""float32 without one-pass variance, fast convolution and folded norms: a grade that is reported."""

TF32 = _single("tf32", product=2 * 2.0**-11 + 2.0**-22)
"""float32 whose convolutions round their factors to a mantissa of 10 bits."""

BFLOAT16 = _single("bfloat16", storage=2.0**-8, storage_largest=(2 - 2.0**-7) * 2.0**127)
"""Tensors in bfloat16, sums in float32."""

FLOAT16 = _single("float16", storage=2.0**-11, storage_tiny=2.0**-14, storage_largest=65504.0)
"""Tensors in float16, sums in float32."""

FLOAT64 = Arith(
    "float64",
    u=2 * 2.0**-53,  # twice: the oracle itself rounds as the implementation does
    tiny=2.0**-1022,
    largest=(2 - 2.0**-52) * 2.0**1023,
    storage_tiny=2.0**-1022,
    storage_largest=(2 - 2.0**-52) * 2.0**1023,
    coordinate=2.0**-24,
)
"""float64, with coordinates of the up-sampling in at least float32."""
