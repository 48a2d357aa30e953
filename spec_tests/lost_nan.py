"""Where a NaN of the input is lost: the outputs of a subject, against where each known mistake would keep it back.

Asked of a subject whose other numbers are right; clause 4.22 says where a NaN is due. Only elements at which it is due
are compared: others may be NaN through a fast convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spec_tests import laws
from spec_tests.config import BlockConfig
from spec_tests.enumeration import named_values
from spec_tests.numeric import ARITHMETIC, Numeric
from spec_tests.oracle import SPEC
from spec_tests.oracle.conv import columns
from spec_tests.oracle.nonfinite import Mask, behind
from spec_tests.oracle.plan import plan
from spec_tests.oracle.steps import ActStep, ConvStep, NormStep, Step, UpStep
from spec_tests.subjects.base import Array, Crashed, Refused, Subject
from spec_tests.words import counted

# A place that no shortcut of stride 2 reads: there the residual branch alone passes the NaN on.
SHAPE, PLACE = (2, 2, 4, 5), (1, 0, 1, 3)
FEWEST = 24


Lost = Literal["input", "relu", "prelu", "activation", "statistics", "weight"]
"""Where a mistake keeps a NaN back: at the input, in activations, from a norm's statistics, at a weight of 0."""


class Habit(NamedTuple):
    """A mistake in words, and whose words it breaks: those of 4.22 or of the layer's own clauses."""

    words: str
    clause: str


HABITS: dict[Lost, Habit] = {
    "relu": Habit("a ReLU that makes 0 of NaN (x > 0 ? x : 0, fmax, a maximum that prefers numbers)", "clause 4.12"),
    "prelu": Habit("a PReLU that makes a number of NaN (fmax(x, 0) + a fmin(x, 0))", "clause 4.11"),
    "activation": Habit("activations that make a number of NaN (x > 0 ? x : 0, fmax, fmin)", "clauses 4.11 and 4.12"),
    "input": Habit("an input whose NaN is replaced by a number (nan_to_num, a clamp)", "clause 4.22"),
    "statistics": Habit("norms whose mean and variance leave NaN out (nanmean, nanvar)", "clause 4.22"),
    "weight": Habit("convolutions that skip weights of 0", "clause 4.22"),
}


@dataclass(frozen=True)
class LostNaN:
    """How many elements are no NaN of how many that should be one, and the mistakes that account for exactly these."""

    wrong: int
    due: int
    explanations: tuple[Habit, ...]

    def lines(self) -> Iterator[str]:
        """The finding as text, one sentence a line."""
        numbers = "is a number" if self.wrong == 1 else "are numbers"
        due = counted(self.due, "element of the outputs", "elements of the outputs")
        where = f"of {due} that should be NaN, as one element of each input is, {self.wrong:,} {numbers}"
        if len(self.explanations) == 1:
            (only,) = self.explanations
            yield f"It behaves exactly like {only.words}, {only.clause}."
            yield f"This accounts for every element that shows it: {where}."
        elif self.explanations:
            yield "It behaves exactly like one of these, which the examples do not tell apart:"
            yield from (f"- {habit.words}, {habit.clause}" for habit in self.explanations)
            yield f"Each accounts for every element that shows it: {where}."
        else:
            yield f"No known mistake explains where a NaN is lost: {where}."


def due(numeric: Numeric, state: Mapping[str, Array], x: Array, lost: Lost, taps: bool = False) -> Mask:
    """The elements of the output (N, D, H', W') that are NaN for certain, if a NaN is kept back at `lost`.

    With `taps`, those besides that up-sampling reads with the weight 0 (4.22 leaves these open).
    """
    steps, numbers = plan(numeric.config, SPEC), {n: np.asarray(v, np.float64) for n, v in state.items()}
    residual: Mask = np.isnan(x) & (lost != "input")
    shortcut = residual
    for step in steps.residual:
        residual = _behind(step, residual, numeric, numbers, lost, taps)
    for step in steps.shortcut:
        shortcut = _behind(step, shortcut, numeric, numbers, lost, taps)
    return residual | shortcut


def _behind(step: Step, mask: Mask, numeric: Numeric, state: dict[str, Array], lost: Lost, taps: bool) -> Mask:
    """As `nonfinite.behind`, with the mistake `lost`."""
    if isinstance(step, ActStep) and lost in ("activation", "prelu" if step.prelu else "relu"):
        return np.zeros_like(mask)
    if isinstance(step, NormStep) and lost == "statistics":
        return mask
    if isinstance(step, ConvStep) and lost == "weight":
        w = state[f"{step.name}.weight"]
        met, size = columns(mask.astype(np.float64), (w.shape[2], w.shape[3]), step.stride, step.padding)
        read: Mask = (w.reshape(len(w), -1) != 0).astype(np.float64) @ met > 0
        return read.reshape(len(mask), len(w), *size)
    if isinstance(step, UpStep) and taps:
        # A place that is read with the weight 0 lies beside one that is read.
        planes, _ = columns(mask.reshape(-1, 1, *mask.shape[2:]).astype(np.float64), (3, 3), (1, 1), (1, 1))
        mask = planes.any(1).reshape(mask.shape)
    return behind(step, mask, numeric.training, state, ARITHMETIC[numeric.dtype])


def examples(subject: Subject) -> Iterator[tuple[Numeric, dict[str, Array]]]:
    """One of every combination of names, the modes in turn; every fourth with weights of 0 besides."""
    names = list(named_values())
    for number in range(len(names)):
        config = BlockConfig.of(2, 3, stride=2, **names[(number * 5) % len(names)])
        training = subject.modes[(number // 2) % len(subject.modes)]
        numeric = Numeric(config, SHAPE, seed=number, training=training)
        yield numeric, numeric.state()
        if number % 4 == 0:
            yield numeric, laws.zero_weights(config, numeric.state())


def find(subject: Subject, seconds: float) -> LostNaN | None:
    """Where a NaN is lost; None if it is nowhere. Asks for about `seconds`, and at least for a few examples."""
    deadline, asked = monotonic() + seconds, 0
    wrong = total = 0
    left: list[Lost] = list(HABITS)
    for numeric, state in examples(subject):
        if asked >= FEWEST and monotonic() > deadline:
            break
        x = numeric.x()
        x[PLACE] = np.nan
        try:
            y = numeric.built(subject, state).forward(x, numeric.training)
        except (Refused, Crashed):
            continue
        asked += 1
        expected = numeric.expected(state, x).y
        specified = np.isnan(expected.value) & (expected.bound == 0)
        if y.shape != specified.shape:
            continue
        missing: NDArray[np.bool_] = specified & ~np.isnan(y)
        wrong, total = wrong + int(missing.sum()), total + int(specified.sum())
        kept = {lost: (due(numeric, state, x, lost), due(numeric, state, x, lost, taps=True)) for lost in left}
        left = [
            lost
            for lost, (certainly, possibly) in kept.items()
            if not (missing & certainly).any() and not (specified & ~possibly & ~missing).any()
        ]
    return LostNaN(wrong, total, tuple(HABITS[lost] for lost in left)) if wrong else None
