"""Numeric examples, and the checks that compare them with the oracle's bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from spec_tests import compare
from spec_tests.compare import Example, NonConformance, holds
from spec_tests.config import BlockConfig, render_call
from spec_tests.generators import INPUT_KINDS, STATE_KINDS, draw_input, draw_state, representable
from spec_tests.laws import Law, unchanged
from spec_tests.oracle import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Arith, Bounded, Forward, forward, judge, suspects
from spec_tests.strategies import cases
from spec_tests.subjects.base import Array, Block, Subject

ARITHMETIC: dict[str, Arith] = {"float32": FLOAT32, "float64": FLOAT64, "bfloat16": BFLOAT16, "float16": FLOAT16}


@dataclass(frozen=True)
class Numeric:
    """A block, its state and one call, all drawn from two kinds and a seed.

    `shape` is that of the input, (N, C, H, W); `dtype` the type of the state and the input.
    """

    config: BlockConfig
    shape: tuple[int, int, int, int]
    state_kind: str = "distinct"
    input_kind: str = "normal"
    seed: int = 0
    training: bool = True
    dtype: str = "float32"

    def _rng(self, part: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, part])

    def state(self) -> dict[str, Array]:
        return draw_state(self.config, self._rng(0), self.state_kind, self.dtype)

    def x(self) -> Array:
        return draw_input(self.config, self.shape, self._rng(1), self.input_kind, self.dtype)

    def dy(self) -> Array:
        """The gradient that arrives at the output: standard normal numbers."""
        shape = self.config.output_shape(self.shape)
        return representable(self._rng(2).standard_normal(shape), self.dtype)

    def example(self, note: str = "") -> Example:
        """Code that makes the very same numbers."""
        mode = "training" if self.training else "evaluation"
        where = render_call(self.config.arguments(), "BlockConfig.of")
        given = [
            f"case = Numeric({where}, {self.shape}, {self.state_kind!r}, {self.input_kind!r}, {self.seed})",
            f"block.load(case.state()); y = block(case.x())  # {mode}, {self.dtype}" + (f", {note}" if note else ""),
        ]
        return Example(self.config.arguments(), "\n".join(given))

    def built(self, subject: Subject, state: Mapping[str, Array] | None = None) -> Block:
        """The subject's block with this example's state, or with `state`."""
        block = subject.build(self.config.arguments(), dtype=self.dtype)
        block.load(self.state() if state is None else state)
        return block

    def expected(self, state: Mapping[str, Array] | None = None, x: Array | None = None) -> Forward:
        """What the oracle says of this call."""
        return forward(
            self.config,
            self.state() if state is None else state,
            self.x() if x is None else x,
            training=self.training,
            arith=ARITHMETIC[self.dtype],
        )


@st.composite
def numerics(draw: st.DrawFn, /, scaler: str, **fixed: Any) -> Numeric:
    """Kinds first, then sizes, then a seed, so that values shrink to the plainest kind and seed 0."""
    state_kind = draw(st.sampled_from(list(STATE_KINDS)))
    input_kind = draw(st.sampled_from(list(INPUT_KINDS)))
    case = draw(cases(scaler, **fixed))
    return Numeric(case.config, case.shape, state_kind, input_kind, draw(st.integers(0, 10_000)))


def named(numeric: Numeric, training: bool = True, **names: Any) -> Numeric:
    """The same example with other arguments and mode."""
    config = BlockConfig.of(**{**numeric.config.arguments(), **names})
    return replace(
        numeric, config=config, training=training, shape=(numeric.shape[0], config.in_planes, *numeric.shape[2:])
    )


def law_examples(law: Law, scaler: str, drawn: Numeric) -> Iterator[tuple[Numeric, dict[str, Array], str]]:
    """Each example of a law that `drawn` leads to: its arguments fixed, its state edited, and a note of the edit."""
    note = "" if law.edit is unchanged else f"state edited by laws.{law.edit.__name__}"
    for arguments in law.combinations():
        for training in law.modes if arguments["scaler"] == scaler else ():
            numeric = named(drawn, training, **arguments)
            # A law fixes sizes too; where the drawn ones no longer fit, these do.
            if not numeric.config.takes(numeric.shape):
                numeric = replace(numeric, shape=(*numeric.shape[:2], 4, 6))
            if not numeric.config.takes(numeric.shape):
                numeric = named(numeric, training, kernel_size=1, padding=0)
            yield numeric, law.edit(numeric.config, numeric.state()), note


def within(
    clause: str, what: str, actual: Array, expected: Bounded, example: Example, run: Forward, name: str = "y"
) -> None:
    """Check that every element lies within its bound.

    A vacuous example (its bounds exceed 1 % of its values) is judged, but does not count as a check.
    """
    __tracebackhide__ = True
    verdict = judge(actual, expected)
    if verdict.ok:
        if verdict.vacuous:
            compare.VACUOUS[clause] += 1
        else:
            compare.REACHED[clause] += 1
            compare.RATIO[clause] = max(compare.RATIO.get(clause, 0.0), verdict.ratio)
        return
    compare.REACHED[clause] += 1
    if verdict.worst is None or verdict.first is None:
        raise NonConformance(clause, what, f"shape {np.shape(actual)}", f"shape {expected.shape}", example)
    worst, first = verdict.worst, verdict.first
    got = f"{worst.got!r} at {list(worst.index)} (the worst), {first.got!r} at {list(first.index)} (the first)"
    allowed = (
        f"{worst.value!r} ± {worst.bound:.3g} and {first.value!r} ± {first.bound:.3g}; the worst is {worst.ratio:.3g} "
        f"times its bound, {verdict.outside:.1%} of the elements are outside; "
        f"the error entered at one of {', '.join(suspects(run, name))}"
    )
    raise NonConformance(clause, what, got, allowed, example)


def same_within(clause: str, what: str, one: Array, two: Array, bound: Array, example: Example) -> None:
    """Check that two results of the subject differ by no more than `bound`, elementwise."""
    __tracebackhide__ = True
    with np.errstate(all="ignore"):
        error = np.abs(one.astype(np.float64) - two.astype(np.float64))
    good = (error <= bound) | np.isinf(bound) | (np.isnan(one) & np.isnan(two))
    worst = np.unravel_index(int(np.argmax(np.where(good, -1.0, error))), good.shape) if good.size else ()
    got = "" if good.all() else f"{one[worst]!r} and {two[worst]!r} at {[int(i) for i in worst]}"
    allowed = "" if good.all() else f"a difference of at most {bound[worst]:.3g}"
    holds(clause, what, bool(good.all()), got, allowed, example)
