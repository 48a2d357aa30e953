"""What is due behind every layer of a block: numbers to compare with in a debugger."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spec_tests.oracle import Bounded, Forward, Gradients

# How many numbers of a tensor are told.
TOLD = 12
_KINDS = {"conv": "convolution", "norm": "norm", "act": "activation", "up": "up-sampling"}


def behind_layers(run: Forward) -> Iterator[str]:
    """A line for x, for the output of each layer in the order of computation, and for the sum."""
    first = run.residual[0].x
    yield _line("x", first)
    for entry in (*run.residual, *run.shortcut):
        yield _line(f"{entry.step.name} {_KINDS[entry.step.kind]}", entry.y)
    yield _line("y", run.y)


def before_layers(run: Forward, gradients: Gradients) -> Iterator[str]:
    """A line for the gradient of the input of each layer, from the output on, and for dx."""
    for entry in (*reversed(run.shortcut), *reversed(run.residual)):
        yield _line(f"{entry.step.name} {_KINDS[entry.step.kind]}", gradients.inputs[entry.step.name])
    yield _line("dx", gradients.dx)


def _line(name: str, due: Bounded) -> str:
    flat, bound = due.value.ravel(), due.bound[np.isfinite(due.bound)]
    # Without the sign of a zero, which says nothing here.
    numbers = " ".join(f"{value + 0.0:.9g}" for value in flat[:TOLD])
    rest = f" … ({flat.size - TOLD:,} more)" if flat.size > TOLD else ""
    return f"{name:<20} {list(due.shape)}: {numbers}{rest}, ± at most {bound.max(initial=0.0):.3g}"
