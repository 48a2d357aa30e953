"""Numeric examples, and the checks that compare them with the oracle's bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st

from spec_tests import compare
from spec_tests.compare import Example, NonConformance, Tensor
from spec_tests.config import ACTIVATORS, LAYER_ORDERS, NORMALIZERS, BlockConfig, render_call
from spec_tests.generators import draw_input, draw_state, representable
from spec_tests.laws import Edit, Law, unchanged
from spec_tests.oracle import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT32_STRICT,
    FLOAT64,
    TF32,
    Arith,
    Bounded,
    Forward,
    Verdict,
    forward,
    judge,
    suspects,
)
from spec_tests.strategies import cases
from spec_tests.subjects.base import Array, Block, State, Subject

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

    @lru_cache(maxsize=64)  # noqa: B019 -- bounded; a test asks for the same numbers many times
    def _drawn(self) -> tuple[dict[str, Array], Array, Array]:
        rngs = [np.random.default_rng([self.seed, part]) for part in range(3)]
        dy = rngs[2].standard_normal(self.config.output_shape(self.shape))
        return (
            draw_state(self.config, rngs[0], self.state_kind, self.dtype),
            draw_input(self.config, self.shape, rngs[1], self.input_kind, self.dtype),
            representable(dy, self.dtype),
        )

    def state(self) -> dict[str, Array]:
        """The state; its arrays are shared between calls and must not be written."""
        return dict(self._drawn()[0])

    def x(self) -> Array:
        """A new array with the input, (N, C, H, W)."""
        return np.array(self._drawn()[1])

    def dy(self) -> Array:
        """A new array with the gradient that arrives at the output, (N, D, H', W'): standard normal numbers."""
        return np.array(self._drawn()[2])

    def code(self) -> str:
        """The expression that makes it again."""
        config = render_call(self.config.arguments(), "BlockConfig.of")
        kinds = f"{self.shape}, {self.state_kind!r}, {self.input_kind!r}, {self.seed}, {self.training}, {self.dtype!r}"
        return f"Numeric({config}, {kinds})"

    def example(
        self,
        note: str = "",
        *,
        edit: Edit = unchanged,
        x: str = "x = case.x()",
        backward: bool = False,
        call: str = "forward",
    ) -> Example:
        """Code that makes the same call: its state edited by a function of `laws`, its input made by the code `x`.

        Without `backward`, `call` is the method of the block.
        """
        state = "" if edit is unchanged else f"laws.{edit.__name__}(case.config, case.state())"
        made = "gradients = block.backward(x, case.dy()" if backward else f"y = block.{call}(x"
        return self.script([f"{x}; {made}, case.training)"], note, state)

    def script(self, lines: Sequence[str], note: str = "", state: str = "") -> Example:
        """Code that runs `lines` on the subject's block with this case's state, or the one that the code `state` makes.

        In it, `case` is this one, and `laws` is there if the code of the state uses it.
        """
        laws = "; from spec_tests import laws" if "laws." in state else ""
        code = [
            "from spec_tests.config import BlockConfig; from spec_tests.numeric import Numeric",
            f"from spec_tests.subjects import load_subject{laws}",
            f"case = {self.code()}",
            f"block = case.built({compare.SUBJECT[0]}{state and f', {state}'})",
            *lines,
        ]
        mode = " in training" if self.training else " in evaluation"
        return Example(self.config.arguments(), mode, "\n".join(code) + (f"  # {note}" if note else ""))

    def built(self, subject: Subject, state: Mapping[str, Array] | None = None) -> Block:
        """The subject's block with this example's state, or with `state`."""
        block = subject.build(self.config.arguments(), dtype=self.dtype)
        block.load(self.state() if state is None else state)
        return block

    def expected(
        self, state: Mapping[str, Array] | None = None, x: Array | None = None, arith: Arith | None = None
    ) -> Forward:
        """What the oracle says of this call, in the arithmetic of the subject or in another one."""
        if isinstance(state, State):
            state.fit(self.config.state())
        return forward(
            self.config,
            self.state() if state is None else state,
            self.x() if x is None else x,
            training=self.training,
            arith=arith or ARITHMETIC[self.dtype],
        )


# Kinds that bring variances near ε tell the most apart; constant channels are nearly always vacuous. Norms of
# few elements are too: of two elements, they always give 1 and -1.
_STATES = ["distinct", "near_eps", "near_eps", "near_eps", "ties", "initial"]
_INPUTS = ["normal", "near_eps", "integers", "ties", "offset", *["near_eps"] * 5, "integers", "ties", "normal"]
_GRADIENT_INPUTS = [*_INPUTS, "sparse", "extreme"]
_INPUTS += ["sparse", "ramp", "extreme", "impulse", "constant"]


@st.composite
def numerics(draw: st.DrawFn, /, scaler: str, gradients: bool = False, **fixed: Any) -> Numeric:
    """Kinds first, then sizes, then a seed, so that values shrink to the plainest kind and seed 0."""
    state_kind = draw(st.sampled_from(_STATES))
    input_kind = draw(st.sampled_from(_GRADIENT_INPUTS if gradients else _INPUTS))
    case = draw(cases(scaler, **{"min_elements": 6, **fixed}))
    return Numeric(case.config, case.shape, state_kind, input_kind, draw(st.integers(0, 10_000)))


def named(numeric: Numeric, training: bool = True, **names: Any) -> Numeric:
    """The same example with other arguments and mode."""
    config = BlockConfig.of(**{**numeric.config.arguments(), **names})
    return replace(
        numeric, config=config, training=training, shape=(numeric.shape[0], config.in_planes, *numeric.shape[2:])
    )


def rotation(seed: int, **fixed: str) -> Iterator[dict[str, str]]:
    """Every normalizer, each with one activator and order that change with `seed`.

    For laws that hold for all of them alike: chapters 4 and 5 go through all combinations.
    """
    pairs = list(product(ACTIVATORS, LAYER_ORDERS))
    for shift, normalizer in enumerate(NORMALIZERS):
        activator, order = pairs[(seed + shift) % len(pairs)]
        yield {"normalizer": normalizer, "activator": activator, "layer_order": order, **fixed}


def law_examples(law: Law, scaler: str, drawn: Numeric, modes: tuple[bool, ...]) -> Iterator[Numeric]:
    """Each example of a law that `drawn` leads to, with its fixed arguments, in those of `modes` of which it speaks.

    Its state is to be edited as the law says.
    """
    for arguments in law.combinations():
        for training in law.modes if arguments["scaler"] == scaler else ():
            if training not in modes:
                continue
            numeric = named(drawn, training, **arguments)
            # A law fixes sizes too; where the drawn ones no longer fit, these do.
            if not numeric.config.takes(numeric.shape):
                numeric = replace(numeric, shape=(*numeric.shape[:2], 4, 6))
            if not numeric.config.takes(numeric.shape):
                numeric = named(numeric, training, kernel_size=1, padding=0)
            yield numeric


@contextmanager
def arithmetic(name: str) -> Iterator[None]:
    """Judge float32 numbers by another arithmetic, as long as it lasts: ``"float32"`` or ``"tf32"``."""
    before = ARITHMETIC["float32"]
    ARITHMETIC["float32"] = {"float32": FLOAT32, "tf32": TF32}[name]
    try:
        yield
    finally:
        ARITHMETIC["float32"] = before


def inspect(
    clause: str, what: str, actual: Array, expected: Bounded, example: Example, run: Forward, name: str = "y"
) -> Verdict:
    """Raise unless every element lies within its bound; counts nothing."""
    __tracebackhide__ = True
    verdict = judge(actual, expected)
    if verdict.ok:
        return verdict
    compare.REACHED[clause] += 1
    if verdict.worst is None or verdict.first is None:
        raise NonConformance(clause, what, f"shape {np.shape(actual)}", f"shape {expected.shape}", example)
    worst, first = verdict.worst, verdict.first
    got = f"{worst.got!r} at {list(worst.index)}"
    allowed = f"{worst.value!r} ± {worst.bound:.3g}; the error is {worst.excess}"
    if first.index != worst.index:
        got += f", the worst; the first is {first.got!r} at {list(first.index)}"
        allowed += f", the worst; the first should be {first.value!r} ± {first.bound:.3g}"
    allowed += f"; {verdict.outside:.1%} of the elements are outside their bounds"
    layers = suspects(run, name)
    allowed += entrance(run, name)
    tensor = Tensor(name, actual, expected.value, expected.bound, layers)
    raise NonConformance(clause, what, got, allowed, example, tensor)


def entrance(run: Forward, name: str) -> str:
    """Where an error of a buffer entered, as the end of a sentence; empty of a tensor that every layer bears on."""
    return f"; the error entered at one of {', '.join(suspects(run, name))}" if name in run.stats else ""


def grade(numeric: Numeric, x: Array, y: Array) -> None:
    """Record whether the output for x is within the strict bounds too; that decides nothing."""
    verdict = judge(y, numeric.expected(x=x, arith=FLOAT32_STRICT).y)
    if not verdict.vacuous:
        compare.STRICT[0] += verdict.ok
        compare.STRICT[1] += 1


def count(clause: str, verdicts: Sequence[Verdict]) -> None:
    """Count one example: a check if any of its tensors says something, else a vacuous example."""
    informative = [verdict.ratio for verdict in verdicts if not verdict.vacuous]
    if not informative:
        if verdicts:
            compare.VACUOUS[clause] += 1
        return
    compare.REACHED[clause] += 1
    compare.RATIO[clause] = max(compare.RATIO.get(clause, 0.0), *informative)


def inspect_each(
    clause: str,
    got: Mapping[str, Array],
    expected: Mapping[str, Bounded],
    example: Example,
    run: Forward,
    note: str = "",
) -> list[Verdict]:
    """The verdicts on the gradients of all parameters; one that is missing, or of no parameter, breaks the clause."""
    __tracebackhide__ = True
    inspect_gradients(clause, got, {name: bounded.shape for name, bounded in expected.items()}, example)
    return [
        inspect(clause, f"the gradient of {name}{note}", got[name], bounded, example, run, name)
        for name, bounded in expected.items()
    ]


def inspect_gradients(
    clause: str, got: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], example: Example
) -> None:
    """Raise unless there is one gradient for each parameter, of its shape, and no other. Counts only if it raises."""
    __tracebackhide__ = True
    found = {name: value.shape for name, value in got.items()}
    compare.inspect_entries(clause, "shapes of the gradients of the parameters", found, shapes, example)


def equal_gradients(
    clause: str, got: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], example: Example
) -> None:
    """As `inspect_gradients`, and counts."""
    __tracebackhide__ = True
    inspect_gradients(clause, got, shapes, example)
    compare.REACHED[clause] += 1


def within(
    clause: str, what: str, actual: Array, expected: Bounded, example: Example, run: Forward, name: str = "y"
) -> None:
    """Check that every element lies within its bound.

    A vacuous example (its bounds exceed 1 % of its values) is judged, but does not count as a check.
    """
    __tracebackhide__ = True
    count(clause, [inspect(clause, what, actual, expected, example, run, name)])


def same_within(clause: str, what: str, one: Array, two: Array, bound: Array, example: Example) -> None:
    """Check that two results of the subject have the shape of `bound`, and differ by no more than it, elementwise."""
    __tracebackhide__ = True
    for result in (one, two):
        compare.shaped(clause, what, result, bound.shape, example)
    with np.errstate(all="ignore"):
        error = np.abs(one.astype(np.float64) - two.astype(np.float64))
    good = (error <= bound) | np.isinf(bound) | (np.isnan(one) & np.isnan(two))
    worst = np.unravel_index(int(np.argmax(np.where(good, -1.0, error))), good.shape) if good.size else ()
    compare.REACHED[clause] += 1
    if good.all():
        return
    got = f"{one[worst]!r} and {two[worst]!r} at {[int(i) for i in worst]}"
    allowed = f"a difference of at most {bound[worst]:.3g}"
    raise NonConformance(clause, what, got, allowed, example, Tensor("difference", one, two, bound))


def different_bits(one: Array, two: Array) -> int:
    """How many elements differ in any bit; all of them if the shapes do."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return max(one.size, two.size, 1)
    return int(np.count_nonzero(one.view(f"u{one.itemsize}") != two.view(f"u{two.itemsize}")))
