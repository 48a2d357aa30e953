"""What a subject made of a fixed set of examples, and how much of it the oracle makes under other `Rules`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from spec_tests.config import BlockConfig
from spec_tests.enumeration import named_values
from spec_tests.numeric import ARITHMETIC, Numeric
from spec_tests.oracle import SPEC, Arith, Bounded, NotApplicable, Rules, forward, vjp
from spec_tests.oracle.plan import changes_nothing
from spec_tests.subjects.base import Array, Crashed, Refused, Subject

Change = tuple[str, Any]


@dataclass(frozen=True)
class Observation:
    """What the subject made of one example: tensors by name, or an error."""

    numeric: Numeric
    tensors: dict[str, Array]
    error: str = ""


# Arguments and an input's size for each scaler. An even kernel fits with a stride only, which "up" gives to no layer.
_SHAPES: dict[str, tuple[tuple[dict[str, Any], tuple[int, int]], ...]] = {
    "down": (
        ({"in_planes": 3, "out_planes": 3, "kernel_size": 3, "padding": 1}, (4, 6)),
        ({"in_planes": 2, "out_planes": 3, "kernel_size": 3, "padding": 1, "stride": 2}, (5, 4)),
        ({"in_planes": 3, "out_planes": 3, "kernel_size": (1, 3), "padding": (0, 1), "stride": (2, 3)}, (5, 6)),
        ({"in_planes": 2, "out_planes": 2, "kernel_size": 1, "padding": 0}, (3, 3)),
        ({"in_planes": 3, "out_planes": 2, "kernel_size": (4, 2), "padding": 1, "stride": 2}, (4, 5)),
    ),
    "up": (
        ({"in_planes": 3, "out_planes": 3, "kernel_size": 3, "padding": 1}, (4, 6)),
        ({"in_planes": 2, "out_planes": 3, "kernel_size": 3, "padding": 1}, (5, 4)),
        ({"in_planes": 3, "out_planes": 3, "kernel_size": (1, 3), "padding": (0, 1), "stride": (2, 3)}, (2, 3)),
        # A projection that keeps channels and size.
        ({"in_planes": 3, "out_planes": 3, "kernel_size": 3, "padding": 1, "output_size": (4, 6)}, (4, 6)),
        ({"in_planes": 3, "out_planes": 2, "kernel_size": (3, 1), "padding": (1, 0), "output_size": (5, 4)}, (3, 3)),
    ),
}
_BATCHES = (3, 2, 3, 1, 2)
_KINDS = (("near_eps", "near_eps"), ("distinct", "normal"))


def examples(subject: Subject) -> Iterator[Numeric]:
    """Examples without end, of every combination of names, shapes and modes."""
    combinations_of_names = list(named_values())
    for number in count():
        # Steps such that any features meet, each of their values with each (meta/test_evidence.py).
        names = combinations_of_names[(number * 7) % len(combinations_of_names)]
        turn = number // len(combinations_of_names)
        shapes = _SHAPES[names["scaler"]]
        arguments, size = shapes[(number + number // 7 + turn) % len(shapes)]
        config = BlockConfig.of(**arguments, **names)
        state_kind, input_kind = _KINDS[(number // 4 + turn) % len(_KINDS)]
        training = subject.modes[(number // 2 + number // 4 + turn) % len(subject.modes)]
        batch = _BATCHES[number % len(_BATCHES)]
        numeric = Numeric(config, (batch, config.in_planes, *size), state_kind, input_kind, number, training)
        if config.takes(numeric.shape, training):
            yield numeric


def observe(subject: Subject, numeric: Numeric) -> Observation:
    """Run one example: a forward call, and a backward pass if the subject has one."""
    found: dict[str, Array] = {}
    try:
        block = numeric.built(subject)
        found["y"] = block.forward(numeric.x(), numeric.training)
        found.update({name: value for name, value in block.state().items() if name in numeric.config.buffers()})
        if "backward" in subject.features:
            gradients = numeric.built(subject).backward(numeric.x(), numeric.dy(), numeric.training)
            found["dx"] = gradients.dx
            found.update({f"grad {name}": value for name, value in gradients.params.items()})
    except (Refused, Crashed) as error:
        return Observation(numeric, found, str(error))
    return Observation(numeric, found)


def predict(numeric: Numeric, rules: Rules, gradients: bool, arith: Arith | None = None) -> dict[str, Bounded]:
    """What a block of these rules makes of an example, in the arithmetic due or another. Raises NotApplicable."""
    return dict(_predicted(numeric, rules, gradients, arith))


def _predicted(
    numeric: Numeric, rules: Rules, gradients: bool, arith: Arith | None = None
) -> Iterator[tuple[str, Bounded]]:
    """As `predict`, tensor by tensor: gradients are computed when they are asked for. Raises NotApplicable at once."""
    run = forward(
        numeric.config,
        numeric.state(),
        numeric.x(),
        training=numeric.training,
        arith=arith or ARITHMETIC[numeric.dtype],
        rules=rules,
    )
    yield "y", run.y
    yield from run.stats.items()
    if gradients:
        back = vjp(run, numeric.dy())
        yield "dx", back.dx
        yield from ((f"grad {name}", value) for name, value in back.params.items())


def in_float64(subject: Subject, numerics: Iterable[Numeric]) -> tuple[int, int, int]:
    """Of examples in float64: how many tensors break the specification, how many of these float32 would, how many came.

    The second are as close to the values due as an implementation that computes the same in float32 comes.
    """
    wrong = coarse = total = 0
    for numeric in numerics:
        wide = replace(numeric, dtype="float64")
        tensors = observe(subject, wide).tensors
        gradients = "dx" in tensors
        narrow = predict(replace(numeric, dtype="float32"), SPEC, gradients)
        for name, due in predict(wide, SPEC, gradients).items():
            if name not in tensors:
                continue
            total += 1
            if within(tensors[name], due):
                continue
            wrong += 1
            apart = np.abs(narrow[name].value - due.value)
            coarse += within(tensors[name], Bounded(due.value, narrow[name].bound + due.bound + apart))
    return wrong, coarse, total


class Evidence:
    """Observations, and how many of their tensors each rule accounts for; what was computed is kept."""

    def __init__(self, observations: Iterable[Observation], gradients: bool, arith: Arith | None = None) -> None:
        self.gradients, self.arith = gradients, arith
        self.observations = list(observations)
        self._known: dict[tuple[int, tuple[Change, ...]], tuple[int, int]] = {}
        self._fitting: set[tuple[int, tuple[Change, ...]]] = set()

    def inside(self, index: int, changes: tuple[Change, ...]) -> tuple[int, int]:
        """How many tensors of one observation lie within the bounds of the changed rules, and how many there are."""
        key = (index, changes)
        if key not in self._known:
            rules, config = replace(SPEC, **dict(changes)), self.observations[index].numeric.config
            same = changes and _changes_nothing(config, rules)
            self._known[key] = self.inside(index, ()) if same else self._judge(self.observations[index], rules)
        return self._known[key]

    def _judge(self, observation: Observation, rules: Rules) -> tuple[int, int]:
        gradients = self.gradients and "dx" in observation.tensors
        try:
            expected = predict(observation.numeric, rules, gradients, self.arith)
        except NotApplicable:
            # Such rules say nothing of this example; it speaks neither for nor against them.
            return 0, 0
        judged = [(observation.tensors[name], b) for name, b in expected.items() if name in observation.tensors]
        return sum(within(got, bounded) for got, bounded in judged), len(judged)

    def accounted(self, changes: tuple[Change, ...]) -> tuple[int, int]:
        """As `inside`, of all observations together."""
        pairs = [self.inside(index, changes) for index in range(len(self.observations))]
        return sum(good for good, _ in pairs), sum(total for _, total in pairs)

    def gain(self, changes: tuple[Change, ...], among: Sequence[int]) -> int:
        """How many more tensors the changed rules account for than the specification."""
        return sum(self.inside(i, changes)[0] - self.inside(i, ())[0] for i in among if self.inside(i, changes)[1])

    def failing(self) -> list[int]:
        """The observations that break the specification."""
        return [i for i in range(len(self.observations)) if self.inside(i, ())[0] < self.inside(i, ())[1]]

    def explains(self, changes: tuple[Change, ...]) -> bool:
        """Whether the rules account for everything, and for something that the specification does not."""
        failing = self.failing()
        # Most explanations fail at the first wrong example, and most of these at its output.
        if not failing or not all(self._fits(i, changes) for i in failing):
            return False
        return any(self.inside(i, changes)[1] for i in failing) and all(
            self._fits(i, changes) for i in range(len(self.observations))
        )

    def _fits(self, index: int, changes: tuple[Change, ...]) -> bool:
        """Whether the rules account for all of an observation, or say nothing of it, with as little as shows it."""
        if (index, changes) in self._fitting:
            return True
        if (index, changes) in self._known:
            good, total = self._known[index, changes]
            return good == total
        observation, rules = self.observations[index], replace(SPEC, **dict(changes))
        tensors = observation.tensors
        try:
            for name, bounded in _predicted(observation.numeric, rules, self.gradients and "dx" in tensors, self.arith):
                if name in tensors and not within(tensors[name], bounded):
                    return False
        except NotApplicable:
            pass
        self._fitting.add((index, changes))
        return True


def _changes_nothing(config: BlockConfig, rules: Rules) -> bool:
    try:
        return changes_nothing(config, rules)
    except NotApplicable:
        return False


def within(got: Array, expected: Bounded) -> bool:
    """Whether `judge` lets a tensor pass, without its story: a hundred rules are asked."""
    if got.shape != expected.shape:
        return False
    value, bound = expected.value, expected.bound
    with np.errstate(all="ignore"):
        passes = (np.abs(got - value) <= bound) | (bound == np.inf) | (np.isnan(value) & np.isnan(got))
    return bool(passes.all())
