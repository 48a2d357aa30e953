"""The checks: each counts that it was reached, and raises NonConformance with the whole story.

Helpers raise and never use `assert`: outside a rewritten test module, or under `python -O`, an assert
may be a check that cannot fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from spec_tests.config import BlockConfig, render_call
from spec_tests.subjects.base import IN_PROCESS, REFUSALS, Array, Crashed, Refused

T = TypeVar("T")

# Words of failures by which others tell what kind of failure it is.
CALL, TAKEN, STATE_OF, GRADIENTS = "a call that must succeed", "no refusal", "state", "gradients"
NO_ERROR, OUTPUT = "no error", "an output of shape"

# How often each clause was checked since the counter was last cleared; the plugin reads it.
REACHED: Counter[str] = Counter()
# How often a numeric example of each clause was vacuous, and the largest error in units of its bound.
VACUOUS: Counter[str] = Counter()
RATIO: dict[str, float] = {}
# Of the examples that were judged by the strict bounds too: how many were within them, and how many there were.
STRICT = [0, 0]


# Which item of its enumeration a test is at; what is left of it after a failure.
_AT: dict[str, int] = {}
# How each kind of refusal is called where the subject has another one; the plugin writes it.
REFUSAL = dict(IN_PROCESS)
# How the code of an example loads the implementation under test; the plugin writes it.
SUBJECT = ["load_subject('SUBJECT')"]
# 1, or in the smoke profile the step by which enumerations are sampled; and the number of enumerations begun.
SAMPLE_STEP = [1]
_TURN = [0]


def start() -> None:
    """Forget all records; the plugin calls this before each test."""
    for record in (REACHED, VACUOUS, RATIO, _AT):
        record.clear()
    _TURN[0] = 0
    STRICT[:] = [0, 0]


def focused(items: Iterable[T], name: str = "") -> Iterator[T]:
    """All of an enumeration; but once a test failed at one item, only that one when it runs again.

    Hypothesis runs a failing test hundreds of times to shrink what it drew, and only that item has to fail. So that
    it draws the same each time, a test draws everything before its first enumeration; `name` tells several of them
    apart.
    """
    numbered = list(enumerate(items))
    focus = _AT.get(name)
    if focus is not None:
        numbered = numbered[focus : focus + 1]
    elif _AT:
        # Another enumeration failed.
        numbered = []
    elif SAMPLE_STEP[0] > 1:
        # Another sample each time, so that all items come up, and never an empty one.
        _TURN[0] += 1
        numbered = numbered[_TURN[0] % max(1, min(SAMPLE_STEP[0], len(numbered))) :: SAMPLE_STEP[0]]
    for index, item in numbered:
        _AT[name] = index
        yield item
    if focus is None:
        _AT.pop(name, None)


class Thin(Protocol):
    """Passes on all of an enumeration, or in the smoke profile a sample of it."""

    def __call__(self, items: Iterable[T], /) -> Iterator[T]: ...


@dataclass(frozen=True)
class Example:
    """What was run: the arguments of the block, and the call if there was one.

    `script` is code of its own, for a call whose numbers matter; it runs as it stands.
    """

    arguments: Mapping[str, Any]
    call: str = ""
    script: str = ""

    @classmethod
    def of(cls, config: BlockConfig, shape: Sequence[int] | None = None, note: str = "") -> Example:
        call = f"block(zeros({', '.join(map(str, shape))}))" if shape is not None else ""
        return cls(config.arguments(), call + (f"  # {note}" if note else ""))

    def code(self) -> str:
        """The example as code that can be pasted."""
        if self.script:
            return f"# {render_call(self.arguments)}{self.call}\n{self.script}"
        lines = [f"block = {render_call(self.arguments)}"]
        if self.call:
            lines.append(self.call)
        return "\n".join(lines)


@dataclass(frozen=True)
class Tensor:
    """A tensor that broke a clause: what was got, the value and the bound of each element, and who may have done it."""

    name: str
    got: Array
    value: Array
    bound: Array
    suspects: tuple[str, ...] = ()


class NonConformance(AssertionError):
    """The implementation under test breaks a clause.

    Attributes:
        clause: id of the broken clause.
        what: the thing that was looked at, such as "shape of conv2.2.weight".
        got, expected: as text; `expected` is what the clause allows.
        example: code of the smallest known example.
        arguments: those of the block in the example.
        tensor: the numbers, if it is one that was looked at; a report draws them.
    """

    def __init__(
        self, clause: str, what: str, got: str, expected: str, example: Example, tensor: Tensor | None = None
    ) -> None:
        self.clause, self.what, self.got, self.expected = clause, what, got, expected
        self.example, self.arguments, self.tensor = example.code(), example.arguments, tensor
        super().__init__(f"clause {clause}: {what}\n  got       {got}\n  expected  {expected}\n{self.example}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (AssertionError, (str(self),))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 400 else f"{text[:399]}…"


def holds(clause: str, what: str, condition: bool, got: Any, expected: Any, example: Example) -> None:
    """Check a condition; `got` and `expected` only tell about it."""
    __tracebackhide__ = True
    REACHED[clause] += 1
    if not condition:
        raise NonConformance(clause, what, _short(got), _short(expected), example)


def equal(clause: str, what: str, got: Any, expected: Any, example: Example) -> None:
    """Check that two plain values are equal and of the same kind (True is not 1)."""
    __tracebackhide__ = True
    same = got == expected and isinstance(got, bool) == isinstance(expected, bool)
    holds(clause, what, same, got, expected, example)


def equal_entries(
    clause: str, what: str, got: Mapping[str, Any], expected: Mapping[str, Any], example: Example
) -> None:
    """Check two mappings entry by entry; the message names the missing, surplus and differing ones only."""
    __tracebackhide__ = True
    inspect_entries(clause, what, got, expected, example)
    REACHED[clause] += 1


def inspect_entries(
    clause: str, what: str, got: Mapping[str, Any], expected: Mapping[str, Any], example: Example
) -> None:
    """As `equal_entries`; counts nothing, unless it raises."""
    __tracebackhide__ = True
    if got == expected:
        return
    REACHED[clause] += 1
    differing = {name: value for name, value in got.items() if name not in expected or expected[name] != value}
    due = {name: value for name, value in expected.items() if name not in got or got[name] != value}
    raise NonConformance(
        clause,
        what,
        _short(", ".join(f"{k} {v}" for k, v in differing.items()) or "nothing"),
        _short(", ".join(f"{k} {v}" for k, v in due.items()) or "nothing"),
        example,
    )


def shaped(clause: str, what: str, got: Array, shape: Sequence[int], example: Example) -> None:
    """Raise unless a result has this shape, before anything is computed with it; counts nothing, unless it raises."""
    __tracebackhide__ = True
    if got.shape != tuple(shape):
        REACHED[clause] += 1
        raise NonConformance(clause, what, f"shape {got.shape}", f"shape {tuple(shape)}", example)


def differing(got: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, str]:
    """The entries of two states that differ in any bit, type or shape."""
    return {
        name: "differs"
        for name in {**got, **expected}
        if name not in got
        or name not in expected
        or got[name].dtype != expected[name].dtype
        or got[name].shape != expected[name].shape
        or got[name].tobytes() != expected[name].tobytes()
    }


def unlike(got: Array, other: Array, allowed: float | Array = 0.0) -> str:
    """The element of an array that differs most from one of the same shape; empty if none does by more than allowed."""
    if np.array_equal(got, other):
        return ""
    # As float64, where differences of integers do not wrap.
    one, two = (np.asarray(array, np.float64) for array in (got, other))
    with np.errstate(all="ignore"):
        apart = np.asarray(np.abs(one - two))
    apart[(got == other) | (np.isnan(one) & np.isnan(two))] = 0.0
    apart[np.isnan(apart)] = np.inf
    # Integers of more than 53 bits may differ and look alike.
    wrong = (apart > allowed) | ((apart == 0.0) & (got != other) & ~np.isnan(one))
    if not wrong.any():
        return ""
    index = np.unravel_index(np.where(wrong, apart, -np.inf).argmax(), apart.shape)
    return f"{got[index]!s} at {[int(i) for i in index]}, not {other[index]!s}"


@contextmanager
def wanted(clause: str) -> Iterator[None]:
    """Let a call within that ends in an error break this clause, and not the first that its test cites."""
    __tracebackhide__ = True
    try:
        yield
    except Crashed as crash:
        crash.clause = crash.clause or clause
        raise


@contextmanager
def taken(clause: str, what: str, example: Example) -> Iterator[None]:
    """Check that nothing within is refused; what ends in another error breaks the clause, too."""
    __tracebackhide__ = True
    REACHED[clause] += 1
    try:
        with wanted(clause):
            yield
    except Refused as refusal:
        raise NonConformance(
            clause, what, _short(f"refused: {refusal.message}") + refusal.where, TAKEN, example
        ) from None


def refused(
    clauses: Sequence[str], what: str, kind: str, example: Example, call: Callable[..., object], *arguments: object
) -> Refused:
    """Check that `call(*arguments)` is refused as `kind`, one of `base.REFUSALS`; return the refusal."""
    __tracebackhide__ = True
    for clause in clauses:
        REACHED[clause] += 1
    try:
        result = call(*arguments)
    except Refused as refusal:
        if refusal.kind in REFUSALS[kind]:
            return refusal
        name = {"type": "TypeError: ", "value": "ValueError: "}.get(refusal.kind, "")
        got = _short(name + refusal.message) + refusal.where
    except Crashed as crash:
        got = _short(crash.error)
    else:
        shown = getattr(result, "shape", None)
        got = f"{OUTPUT} {tuple(shown)}" if shown is not None else NO_ERROR
    raise NonConformance(clauses[0], what, got, REFUSAL[kind], example) from None
