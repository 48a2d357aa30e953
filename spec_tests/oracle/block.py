"""The block: forward, vector-Jacobian product, running statistics.

    y = conv3(conv2(conv1(x))) + shortcut(x)

Each branch is a sequence of layers (`plan`), each layer a pair of functions with a value line and an error
line (`conv`, `norm`, `activation`, `upsample`). Read those for the algorithm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from spec_tests.config import BlockConfig
from spec_tests.oracle import nonfinite
from spec_tests.oracle.bounds import FLOAT32, Arith, Array, Bounded, NotApplicable
from spec_tests.oracle.norm import SingleElement
from spec_tests.oracle.plan import Plan, plan
from spec_tests.oracle.rules import SPEC, Rules
from spec_tests.oracle.steps import Run, Step

FAN_OUT = 8
"""Roundoffs granted to the sum of gradients at the input, which may be taken in any order; chosen."""


@dataclass(slots=True)
class Entry:
    """One step that ran: the step, its input and output, and what its vjp needs."""

    step: Step
    x: Bounded
    y: Bounded
    saved: Any


@dataclass(slots=True)
class Forward:
    """The result of a forward call.

    Attributes:
        y: the output (N, D, H', W').
        stats: every buffer after the call by name, exact where the call does not change it.
        residual, shortcut, after: the layers that ran, in order; `shortcut` is empty for the identity.
    """

    config: BlockConfig
    rules: Rules
    run: Run
    plan: Plan
    y: Bounded
    stats: dict[str, Bounded]
    residual: list[Entry]
    shortcut: list[Entry]
    after: list[Entry]


@dataclass(slots=True)
class Gradients:
    """dx (N, C, H, W), and by name the gradient of every parameter, and of the input of every layer."""

    dx: Bounded
    params: dict[str, Bounded]
    inputs: dict[str, Bounded]


def forward(
    config: BlockConfig,
    state: Mapping[str, ArrayLike],
    x: ArrayLike,
    *,
    training: bool,
    arith: Arith = FLOAT32,
    rules: Rules = SPEC,
) -> Forward:
    """The output and the new buffers for x (N, C, H, W).

    `state` and x are the very numbers that the implementation gets (rounded to its format by the caller);
    numbers of x that are not normal may be flushed to zero, parameters must be normal or 0.

    Raises:
        ValueError: the block refuses x (clauses 3.6, 3.8, 3.11, 3.12), or an entry of the state is missing.
        NotApplicable: `rules` cannot be run for this configuration and size.
    """
    steps = plan(config, rules)
    specified = rules == SPEC
    array = np.asarray(x, np.float64)
    shape = config.output_shape(array.shape)
    run = Run({name: np.asarray(entry, np.float64) for name, entry in state.items()}, training, arith, {}, {})
    size = np.abs(array)
    start = Bounded(array, np.where(size < arith.storage_tiny, size, 0.0))

    with np.errstate(all="ignore"):
        try:
            residual = _through(steps.residual, start, run)
            origin = residual[steps.shared].x
            shortcut = _through(steps.shortcut, origin, run)
            left = residual[-1].y
            right = shortcut[-1].y if shortcut else origin
            if left.shape != shape or right.shape != shape:
                raise NotApplicable(f"the rules give the sizes {left.shape} and {right.shape}, not {shape}")
            y = _sum(left, right, rules.residual_weight, rules.shortcut_weight, arith)
        except KeyError as error:
            raise ValueError(f"the state has no entry {error}") from None
        except SingleElement as error:
            if specified:
                raise
            raise NotApplicable(str(error)) from None
        after = _through(steps.after, y, run)
        if after:
            y = after[-1].y
        if specified and not np.isfinite(array).all():
            mask = nonfinite.certain(steps.residual, array, training, run.state, arith)
            mask = mask | nonfinite.certain(steps.shortcut, array, training, run.state, arith)
            y = Bounded(np.where(mask, np.nan, y.value), np.where(mask, 0.0, y.bound))
    for name, entry in run.state.items():
        if name not in run.statistics and name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            run.statistics[name] = Bounded.exact(entry)
    return Forward(config, rules, run, steps, y, run.statistics, residual, shortcut, after)


def vjp(result: Forward, dy: ArrayLike) -> Gradients:
    """The gradients for the loss sum(dy * y), dy (N, D, H', W')."""
    run, rules, arith = result.run, result.rules, result.run.arith
    start = Bounded.exact(dy)
    if start.shape != result.y.shape:
        raise ValueError(f"`dy` has the shape {start.shape}, the output {result.y.shape}")
    run.gradients = {}
    inputs: dict[str, Bounded] = {}
    run.reduction = 1.0 if rules.parameter_gradient == "sum" else 1 / len(start.value)

    with np.errstate(all="ignore"):
        start = _back(result.after, start, run, inputs)
        right = _back(result.shortcut, _times(start, rules.shortcut_weight), run, inputs)
        if rules.shortcut_gradient == "missing":
            right = Bounded.exact(np.zeros_like(right.value))
        shared = result.plan.shared
        left = _back(result.residual[shared:], _times(start, rules.residual_weight), run, inputs)
        dx = _back(result.residual[:shared], _fan_out(left, right, arith), run, inputs)
        if rules.residual_gradient == "missing":
            dx = right
    if rules is not SPEC:
        for name, shape in result.config.parameters().items():
            run.gradients.setdefault(name, Bounded.exact(np.zeros(shape)))
    return Gradients(dx, run.gradients, inputs)


def _through(steps: Sequence[Step], x: Bounded, run: Run) -> list[Entry]:
    tape = []
    for step in steps:
        y, saved = step.forward(x, run)
        tape.append(Entry(step, x, y, saved))
        x = y
    return tape


def _back(tape: Iterable[Entry], dy: Bounded, run: Run, inputs: dict[str, Bounded]) -> Bounded:
    for entry in reversed(list(tape)):
        inputs[entry.step.name] = dy = entry.step.vjp(entry.saved, dy, run)
    return dy


def _times(x: Bounded, weight: float) -> Bounded:
    return x if weight == 1 else Bounded(weight * x.value, abs(weight) * x.bound)


def _sum(a: Bounded, b: Bounded, weight_a: float, weight_b: float, arith: Arith) -> Bounded:
    """The sum a + b (clause 4.21), rounded once."""
    a, b = _times(a, weight_a), _times(b, weight_b)
    value = a.value + b.value
    bound = a.bound + b.bound
    return arith.stored(value, bound + arith.u * (np.abs(value) + bound))


def _fan_out(a: Bounded, b: Bounded, arith: Arith) -> Bounded:
    """The sum of the gradients of both branches (clause 5.8), whose terms may be added in any order."""
    value = a.value + b.value
    bound = a.bound + b.bound
    terms: Array = a.magnitude + b.magnitude
    return arith.stored(value, bound + (arith.gamma(FAN_OUT) + 4 * arith.storage) * terms)
