"""Which known mistake explains a subject that fails: the oracle under other `Rules` is the judge.

The subject is asked for a fixed set of examples. A rule explains them if every output, gradient and statistic
lies within the bounds of the oracle under that rule; nothing is scored beyond counting them. Where more than
one rule does, more examples are made to tell them apart; where none does, pairs of rules are tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, count, islice
from time import monotonic
from typing import Any

import numpy as np

from spec_tests import isolation
from spec_tests.config import BlockConfig
from spec_tests.enumeration import named_values
from spec_tests.numeric import ARITHMETIC, Numeric, arithmetic
from spec_tests.oracle import SPEC, Bounded, NotApplicable, Rules, alternatives, forward, judge, vjp
from spec_tests.oracle.plan import changes_nothing
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Array, Crashed, Refused, Subject
from spec_tests.words import counted

SECONDS = 10.0
# How many of the likeliest rules may be the next best, and how many ranks behind a pair others are tried.
CLOSELY, PAIRED = 12, 10
MORE_EXAMPLES = 48
FEWEST = 8

Change = tuple[str, Any]


@dataclass(frozen=True)
class Observation:
    """What the subject made of one example: tensors by name, or an error."""

    numeric: Numeric
    tensors: dict[str, Array]
    error: str = ""


@dataclass(frozen=True)
class Explanation:
    """Changed rules, and how many tensors of how many lie within their bounds."""

    changes: tuple[Change, ...]
    inside: int
    total: int

    @property
    def complete(self) -> bool:
        return self.inside == self.total

    @property
    def rules(self) -> Rules:
        return replace(SPEC, **dict(self.changes))

    def sentence(self) -> str:
        """The changes in words, each with its clause and the habit behind it."""
        return "; and ".join(_sentence(name, value) for name, value in self.changes)


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a failing subject.

    Attributes:
        wrong: how many of the tensors break the specification, of `total`.
        explanations: what explains all of them and cannot be told apart; empty if nothing does.
        runner_up: the best of what does not.
        where: if nothing does, what the wrong examples have in common and the first layer at which one goes wrong.
        errors: calls that failed, of which no rule says anything.
    """

    wrong: int
    total: int
    explanations: tuple[Explanation, ...] = ()
    runner_up: Explanation | None = None
    where: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        return self.wrong == 0 and not self.errors

    @property
    def certain(self) -> bool:
        return len(self.explanations) == 1

    def lines(self) -> list[str]:
        """The diagnosis as text, one sentence a line; empty if all examples are right."""
        if self.healthy:
            return []
        total = counted(self.total, "output, gradient or statistic", "outputs, gradients and statistics")
        failed, such = counted(len(self.errors), "kind of call", "kinds of calls"), ", such as" * (len(self.errors) > 1)
        found = [f"{failed} failed{such}: {self.errors[0]}"] if self.errors else []
        if not self.total:
            return [*found, "No output, gradient or statistic came."]
        if not self.wrong:
            one = "The only output, gradient or statistic that came is right."
            return [*found, f"All of {total} that came are right." if self.total > 1 else one]
        if self.explanations:
            return [*found, *self._explained(total)]
        are = "is" if self.wrong == 1 else "are"
        found.append(f"No known mistake, and no pair of them, explains the {self.wrong:,} of {total} that {are} wrong.")
        if self.runner_up is not None and self.runner_up.inside > self.total - self.wrong:
            found.append(f"The nearest, {self.runner_up.sentence()}, accounts for {self.runner_up.inside}.")
        return [*found, *self.where]

    def _explained(self, total: str) -> Iterator[str]:
        """What explains all `total` tensors, and the best of what does not."""
        first = self.explanations[0]
        if self.certain:
            rule = "this rule" if len(first.changes) == 1 else "these two rules"
            yield f"It behaves exactly like {first.sentence()}."
        else:
            rule = "each of them"
            yield "It behaves exactly like one of these, which the examples do not tell apart:"
            yield from (f"- {explanation.sentence()}" for explanation in self.explanations)
        outside = f"{self.wrong:,} {'lies' if self.wrong == 1 else 'lie'} outside those of the specification"
        yield f"Every one of {total} lies within its bounds under {rule}; {outside}."
        if self.runner_up is not None:
            other = self.runner_up
            yield f"The next best explanation, {other.sentence()}, accounts for {other.inside} of them."


def _sentence(name: str, value: Any) -> str:
    metadata = next(item.metadata for item in fields(Rules) if item.name == name)
    habit = metadata["habits"].get(value, "")
    due = getattr(SPEC, name)
    instead = f" instead of {due!r}" if due is not None else ""
    return f"{name} = {value!r}{instead} ({metadata['meaning']}; {habit}), clause {metadata['clause']}"


# ---------------------------------------------------------------- examples

_SHAPES: tuple[dict[str, Any], ...] = (
    {"in_planes": 3, "out_planes": 3, "kernel_size": 3, "padding": 1},
    {"in_planes": 2, "out_planes": 3, "kernel_size": 3, "padding": 1, "stride": 2},
    {"in_planes": 3, "out_planes": 3, "kernel_size": (1, 3), "padding": (0, 1), "stride": (2, 3)},
    # With the fourth of the sizes, a projection that keeps channels and size.
    {"in_planes": 3, "out_planes": 3, "kernel_size": 3, "padding": 1, "output_size": (4, 6)},
    {"in_planes": 3, "out_planes": 2, "kernel_size": (3, 1), "padding": (1, 0), "output_size": (5, 4)},
)
_SIZES = ((3, 4, 6), (2, 5, 4), (3, 5, 6), (1, 4, 6), (2, 3, 3))
_KINDS = (("near_eps", "near_eps"), ("distinct", "normal"))


def examples(subject: Subject) -> Iterator[Numeric]:
    """Examples without end, of every combination of names, shapes and modes; the first ones are the plainest."""
    for number in count():
        combinations_of_names = list(named_values())
        names = combinations_of_names[(number * 5) % len(combinations_of_names)]
        turn = number // len(combinations_of_names)
        config = BlockConfig.of(**_SHAPES[(number + turn) % len(_SHAPES)], **names)
        state_kind, input_kind = _KINDS[(number + turn) % 2]
        training = subject.modes[(number // 2 + turn) % len(subject.modes)]
        size = _SIZES[number % len(_SIZES)]
        numeric = Numeric(config, (size[0], config.in_planes, *size[1:]), state_kind, input_kind, number, training)
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


def predict(numeric: Numeric, rules: Rules, gradients: bool) -> dict[str, Bounded]:
    """What a block of these rules makes of an example. Raises NotApplicable."""
    run = forward(
        numeric.config,
        numeric.state(),
        numeric.x(),
        training=numeric.training,
        arith=ARITHMETIC[numeric.dtype],
        rules=rules,
    )
    found = {"y": run.y, **run.stats}
    if gradients:
        back = vjp(run, numeric.dy())
        found["dx"] = back.dx
        found.update({f"grad {name}": value for name, value in back.params.items()})
    return found


# ---------------------------------------------------------------- explanations


class Evidence:
    """Observations, and how many of their tensors each rule accounts for; what was computed is kept."""

    def __init__(self, observations: Iterable[Observation], gradients: bool) -> None:
        self.gradients = gradients
        self.observations = list(observations)
        self._known: dict[tuple[int, tuple[Change, ...]], tuple[int, int]] = {}

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
            expected = predict(observation.numeric, rules, gradients)
        except NotApplicable:
            # Such rules say nothing of this example; it speaks neither for nor against them.
            return 0, 0
        judged = [(observation.tensors[name], b) for name, b in expected.items() if name in observation.tensors]
        return sum(_within(got, bounded) for got, bounded in judged), len(judged)

    def explanation(self, changes: tuple[Change, ...]) -> Explanation:
        pairs = [self.inside(index, changes) for index in range(len(self.observations))]
        return Explanation(changes, sum(good for good, _ in pairs), sum(total for _, total in pairs))

    def failing(self) -> list[int]:
        """The observations that break the specification."""
        return [i for i in range(len(self.observations)) if self.inside(i, ())[0] < self.inside(i, ())[1]]

    def explains(self, changes: tuple[Change, ...]) -> bool:
        """Whether the rules account for everything, and for something that the specification does not."""
        failing = self.failing()
        spoken = [self.inside(i, changes)[1] for i in failing]
        return bool(failing) and any(spoken) and self._all_inside(changes, [*failing, *range(len(self.observations))])

    def _all_inside(self, changes: tuple[Change, ...], indices: Iterable[int]) -> bool:
        return all(good == total for good, total in (self.inside(i, changes) for i in indices))


def _changes_nothing(config: BlockConfig, rules: Rules) -> bool:
    try:
        return changes_nothing(config, rules)
    except NotApplicable:
        return False


def _within(got: Array, expected: Bounded) -> bool:
    """`judge` without its story: a hundred rules are asked."""
    if got.shape != expected.shape:
        return False
    with np.errstate(all="ignore"):
        return bool((~(np.abs(got - expected.value) > expected.bound) & ~np.isnan(got)).all())


def _spread(indices: Sequence[int], most: int) -> list[int]:
    step = max(len(indices) / most, 1)
    return [indices[int(k * step)] for k in range(min(len(indices), most))]


def diagnose(subject: Subject, seconds: float = SECONDS, first: int = 48) -> Diagnosis:
    """Find what explains a subject, in about `seconds`; `first` examples are looked at before any others."""
    deadline = monotonic() + seconds
    numerics = examples(subject)
    observations = []
    for numeric in islice(numerics, first):
        observations.append(observe(subject, numeric))
        # A slow subject is asked for less, and at least for a few examples.
        if monotonic() > deadline - seconds / 2 and len(observations) >= FEWEST:
            break
    evidence = Evidence(observations, "backward" in subject.features)
    failing = evidence.failing()
    wrong = sum(total - good for good, total in (evidence.inside(i, ()) for i in failing))
    errors = tuple(dict.fromkeys(observation.error for observation in observations if observation.error))
    if not failing:
        return Diagnosis(0, sum(evidence.inside(i, ())[1] for i in range(len(observations))), errors=errors)
    singles: list[tuple[Change, ...]] = [((name, value),) for name, value, _ in alternatives()]
    sample = _spread(failing, 6)
    ranked = sorted(singles, key=lambda changes: -_gain(evidence, changes, sample))
    found = [changes for changes in ranked if _gain(evidence, changes, sample) > 0 and evidence.explains(changes)]
    if not found:
        found = _pairs(evidence, ranked, failing, deadline)
    found = _told_apart(subject, evidence, found, numerics, deadline)
    explanations = sorted((evidence.explanation(changes) for changes in found), key=lambda e: e.changes)
    others = [evidence.explanation(changes) for changes in ranked[:CLOSELY] if changes not in found]
    runner_up = max(others, key=lambda e: e.inside, default=None)
    failing = evidence.failing()
    totals = [evidence.inside(i, ()) for i in range(len(evidence.observations))]
    wrong = sum(total - good for good, total in totals)
    where = [] if found else _where(subject, evidence, failing)
    return Diagnosis(wrong, sum(total for _, total in totals), tuple(explanations), runner_up, tuple(where), errors)


def diagnose_designator(designator: str, timeouts: str, seconds: float, device: str = "cpu") -> Diagnosis:
    """Diagnose the subject that a designator names, and end it. Raises SubjectError."""
    subject = load_subject(designator, timeouts, device)
    try:
        with arithmetic(subject.arithmetic):
            return diagnose(subject, seconds)
    finally:
        subject.close()


def _where(subject: Subject, evidence: Evidence, failing: Sequence[int]) -> Iterator[str]:
    observations = evidence.observations
    numerics = [observation.numeric for observation in observations]
    yield from isolation.shared([numerics[i] for i in failing], [n for i, n in enumerate(numerics) if i not in failing])
    # Of each tensor that is wrong anywhere: the examples in which it is, and what is plainly wrong with it there.
    wrong: dict[str, list[tuple[Numeric, str]]] = {}
    right: set[str] = set()
    for i in failing:
        tensors = observations[i].tensors
        for name, bounded in predict(numerics[i], SPEC, "dx" in tensors).items():
            if name not in tensors:
                continue
            if judge(tensors[name], bounded).ok:
                right.add(name)
            else:
                wrong.setdefault(name, []).append((numerics[i], isolation.plainly(tensors[name], bounded)))
    yield from isolation.kinds(set(wrong), right)
    for name in ("y", "dx"):
        yield from isolation.seen(name, wrong.get(name, ()))
    with_buffers = [i for i in failing if numerics[i].config.buffers() and numerics[i].training]
    norms = numerics[with_buffers[0]] if with_buffers else None
    between = list(isolation.first_statistics(norms, set(wrong), right - set(wrong))) if norms is not None else []
    yield from between
    # Layers are told from numbers only.
    outputs = [numeric for numeric, words in wrong.get("y", ()) if not words]
    if outputs and not between:
        yield from isolation.first_layer(subject, outputs[0])


def _gain(evidence: Evidence, changes: tuple[Change, ...], among: Sequence[int]) -> int:
    """How many more tensors the changed rules account for than the specification."""
    return sum(
        evidence.inside(i, changes)[0] - evidence.inside(i, ())[0] for i in among if evidence.inside(i, changes)[1]
    )


def _pairs(
    evidence: Evidence, ranked: Sequence[tuple[Change, ...]], failing: Sequence[int], deadline: float
) -> list[tuple[Change, ...]]:
    """Pairs of rules that explain everything together."""
    wider = _spread(failing, 16)
    gains = {changes: max((_gain(evidence, changes, [i]) for i in wider), default=0) for changes in ranked}
    useful = [changes for changes in sorted(ranked, key=lambda c: -gains[c]) if gains[changes] > 0]
    found: list[tuple[Change, ...]] = []
    last = len(useful)
    for one, two in sorted(combinations(range(len(useful)), 2), key=sum):
        # Behind the first pair, only those that looked about as likely are tried.
        if monotonic() > deadline or one + two > 2 * last:
            break
        pair = useful[one] + useful[two]
        if pair[0][0] != pair[1][0] and evidence.explains(pair):
            found.append(pair)
            last = min(last, (one + two) // 2 + PAIRED // 2)
            if len(found) == 4:
                break
    return found


def _told_apart(
    subject: Subject,
    evidence: Evidence,
    found: list[tuple[Change, ...]],
    numerics: Iterator[Numeric],
    deadline: float,
) -> list[tuple[Change, ...]]:
    """Make examples on which the remaining explanations differ, and keep those that the subject bears out."""
    for numeric in islice(numerics, MORE_EXAMPLES):
        if len(found) < 2 or monotonic() > deadline:
            break
        if _differ(numeric, found, evidence.gradients):
            evidence.observations.append(observe(subject, numeric))
            found = [changes for changes in found if evidence.explains(changes)]
    return found


def _differ(numeric: Numeric, found: Sequence[tuple[Change, ...]], gradients: bool) -> bool:
    predictions = []
    for changes in found:
        try:
            predictions.append(predict(numeric, replace(SPEC, **dict(changes)), gradients))
        except NotApplicable:  # noqa: PERF203
            return True
    first, *others = predictions
    return any(not judge(other[name].value, first[name]).ok for other in others for name in first if name in other)
