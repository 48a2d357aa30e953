"""The verdict on one tensor, and the layers at which its error could have entered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from spec_tests.oracle.block import Forward
from spec_tests.oracle.bounds import Bounded

VACUOUS = 0.01
"""A tensor says nothing if its median bound exceeds this share of its largest value."""


@dataclass(frozen=True)
class Place:
    """One element: what was got there, the exact value, the bound, and |got - value| / bound."""

    index: tuple[int, ...]
    got: float
    value: float
    bound: float
    ratio: float

    @property
    def excess(self) -> str:
        """The error in words: in units of the bound, where it has any."""
        error = abs(self.got - self.value)
        if np.isnan(error):
            return "not a number"
        if np.isinf(error):
            return "infinite"
        return f"{self.ratio:.3g} times that" if self.bound else f"{error:.3g} where none is allowed"

    def __str__(self) -> str:
        where = "[" + ", ".join(map(str, self.index)) + "]"
        error = f"ratio {self.ratio:.3g}" if np.isfinite(self.ratio) else f"the error is {self.excess}"
        return f"{where}: got {self.got!r}, should be {self.value!r} ± {self.bound:.3g} ({error})"


@dataclass(frozen=True)
class Verdict:
    """Whether a tensor lies within its bounds.

    Attributes:
        ok: every element does. With a wrong shape it is false, and there is no place.
        first, worst: the first element that does not, and the one with the largest ratio; None if `ok`.
        ratio: the largest |got - value| / bound, of all elements with a claim.
        outside: the share of elements outside.
        unclaimed: the share of elements of which nothing is claimed.
        vacuous: the median bound exceeds 1 % of the largest |value|: the example is no evidence.
        problem: in words, empty if `ok`.
    """

    ok: bool
    first: Place | None
    worst: Place | None
    ratio: float
    outside: float
    unclaimed: float
    vacuous: bool
    problem: str

    def __bool__(self) -> bool:
        return self.ok

    def describe(self) -> str:
        """One line for a report."""
        if self.ok:
            return f"within its bound (largest ratio {self.ratio:.3g})"
        if self.worst is None:
            return self.problem
        first = "" if self.first == self.worst else f"; first {self.first}"
        return f"{self.outside:.1%} outside, worst {self.worst}{first}"


def judge(actual: ArrayLike, expected: Bounded) -> Verdict:
    """Compare `actual` with values and bounds.

    An element passes if |actual - value| <= bound; so NaN never passes, except where the value is NaN with
    the bound 0, which demands it. A bound of infinity makes no claim.
    """
    got = np.asarray(actual, np.float64)
    value, bound = expected.value, expected.bound
    if got.shape != value.shape:
        problem = f"the shape is {got.shape}, should be {value.shape}"
        return Verdict(False, None, None, np.inf, 1.0, 0.0, False, problem)
    if got.size == 0:
        return Verdict(True, None, None, 0.0, 0.0, 0.0, False, "")

    with np.errstate(all="ignore"):
        error = np.abs(got - value)
        free = bound == np.inf
        due = np.isnan(value) & ~free
        passes = (error <= bound) | free | (due & np.isnan(got))
        ratio = np.where(passes & (free | due | (error == 0)), 0.0, error / bound)
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
    claimed = ~free & ~due
    scale = np.abs(value[claimed]).max(initial=0.0)
    # Without any claim the tensor says nothing; an all-zero one says much if its bounds are only underflow.
    median = float(np.median(bound[~free])) if not free.all() else np.inf
    vacuous = bool(median > VACUOUS * scale and median > np.finfo(np.float32).tiny * got.size)

    top = float(ratio.max())
    share = float(free.mean())
    if passes.all():
        return Verdict(True, None, None, top, 0.0, share, vacuous, "")

    def place(flat: int) -> Place:
        index = tuple(int(i) for i in np.unravel_index(flat, got.shape))
        return Place(index, float(got[index]), float(value[index]), float(bound[index]), float(ratio[index]))

    wrong = ~passes.ravel()
    first = place(int(wrong.argmax()))
    worst = place(int(np.where(wrong, ratio.ravel(), -1.0).argmax()))
    outside = float(wrong.mean())
    problem = f"{outside:.1%} of the elements are outside their bounds"
    return Verdict(False, first, worst, top, outside, share, vacuous, problem)


def suspects(result: Forward, name: str = "y") -> tuple[str, ...]:
    """The layers at which an error of a tensor could have entered, in the order in which they run.

    `name` is "y", "dx", or that of a buffer or a parameter (its gradient). A buffer depends on the layers
    of its branch up to its own; a parameter's gradient on those forwards, and on all behind them backwards
    (whose inputs the forward pass made). Without the implementation's intermediate tensors nothing narrower
    can be said of one tensor; of several that are judged, the earliest buffer outside its bound does.
    """
    residual = [entry.step.name for entry in result.residual]
    shortcut = [entry.step.name for entry in result.shortcut]
    after = [entry.step.name for entry in result.after]
    if name in ("y", "dx"):
        return (*residual, *shortcut, "addition", *after)
    layer = name.rpartition(".")[0]
    for steps in (residual, shortcut):
        if layer in steps:
            if name in result.stats:
                return tuple(steps[: steps.index(layer) + 1])
            return (*steps, *after)
    raise ValueError(f"`name` (={name!r}) must be 'y', 'dx' or an entry of the state: {', '.join(result.run.state)}")
