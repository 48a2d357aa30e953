"""Which known mistake explains a subject that fails: the oracle under other `Rules` is the judge.

The subject is asked for a fixed set of examples. A rule explains them if every output, gradient and statistic
lies within the bounds of the oracle under that rule; nothing is scored beyond counting them. Where more than
one rule does, more examples are made to tell them apart. Where none does, the specification in TF32 is tried, then
pairs of rules, then each rule without the gradients, and in TF32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, islice, product
from textwrap import shorten
from time import monotonic, process_time
from typing import Any

from spec_tests import isolation, lost_nan
from spec_tests.evidence import Change, Evidence, Observation, examples, in_float64, observe, predict
from spec_tests.lost_nan import LostNaN
from spec_tests.numeric import Numeric, arithmetic
from spec_tests.oracle import SPEC, TF32, NotApplicable, Rules, alternatives, judge
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Subject
from spec_tests.words import counted

SECONDS = 10.0
# How many of the likeliest rules may be the next best, and how many ranks behind a pair others are tried.
CLOSELY, PAIRED = 12, 10
MORE_EXAMPLES = 48
FEWEST = 8
# With how many of the likeliest rules those are paired that account for nothing alone.
LEADING = 4
# Of how many wrong examples it is counted what each rule accounts for, and of how many more where pairs are looked for.
SAMPLE = 6
# How many wrong examples are asked for once more, each in a process of its own.
ASKED_AGAIN = 3
# How many examples are asked for in float64 where none in float32 is wrong.
IN_FLOAT64 = 12
# Characters of an error that are told: torch lists every entry that a state lacks.
LONGEST = 300


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
        forward: whether `explanations` account for outputs and statistics alone: a backward pass that is written by
            hand does not follow the forward one.
        double: if nothing is wrong in float32: how many tensors of how many break the specification in float64, and
            whether all of these are as close as float32 comes.
        coarse: how many examples break the specification, and of how many, if `explanations`, or the specification
            itself where those are empty, account for everything in TF32 only.
        lost: if nothing is wrong with numbers: where a NaN of the input is lost.
    """

    wrong: int
    total: int
    explanations: tuple[Explanation, ...] = ()
    runner_up: Explanation | None = None
    where: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    coarse: tuple[int, int] | None = None
    forward: bool = False
    double: tuple[int, int, bool] | None = None
    lost: LostNaN | None = None

    @property
    def healthy(self) -> bool:
        return self.wrong == 0 and not self.errors and self.double is None and self.lost is None

    @property
    def certain(self) -> bool:
        """Whether one explanation, and no other, accounts for everything, or for all but the gradients."""
        return len(self.explanations) == 1

    def lines(self) -> list[str]:
        """The diagnosis as text, one sentence a line; empty if all examples are right."""
        if self.healthy:
            return []
        total = counted(self.total, "output, gradient or statistic", "outputs, gradients and statistics")
        found = self.failed_calls()
        if not self.total:
            return [*found, "No output, gradient or statistic came."]
        if self.double:
            return [*found, *self._in_float64(total)]
        if self.lost:
            return [*found, *self.lost.lines()]
        if not self.wrong:
            one = "The only output, gradient or statistic that came is right."
            return [*found, f"All of {total} that came are right." if self.total > 1 else one]
        if self.explanations:
            return [*found, *self._explained(total), *self._coarsely(total)]
        if self.coarse:
            return [*found, *self._coarsely(total)]
        are = "is" if self.wrong == 1 else "are"
        found.append(f"No known mistake, and no pair of them, explains the {self.wrong:,} of {total} that {are} wrong.")
        nearest = self.runner_up
        # What explains little of what is wrong would send its reader elsewhere.
        if nearest is not None and nearest.inside - (self.total - self.wrong) >= self.wrong / 4:
            found.append(f"The nearest, {nearest.sentence()}, accounts for {nearest.inside:,}, right ones included.")
        return [*found, *self.where]

    def failed_calls(self) -> list[str]:
        """Which calls failed, as a sentence; none if all came."""
        if not self.errors:
            return []
        failed, such = counted(len(self.errors), "kind of call", "kinds of calls"), ", such as" * (len(self.errors) > 1)
        return [f"{failed} failed{such}: {shorten(self.errors[0], LONGEST, placeholder=' …')}"]

    def _explained(self, total: str) -> Iterator[str]:
        """What explains all `total` tensors, and the best of what does not."""
        first, it = self.explanations[0], "It"
        if self.forward:
            it = "Without them, it"
            total = counted(self.total, "output or statistic", "outputs and statistics")
            yield "Its gradients fit no rule that explains the rest, as if the backward pass had been written apart."
        if self.certain:
            rule = "this rule" if len(first.changes) == 1 else "these two rules"
            yield f"{it} behaves exactly like {first.sentence()}."
        else:
            rule = "each of them"
            yield f"{it} behaves exactly like one of these, which the examples do not tell apart:"
            yield from (f"- {explanation.sentence()}" for explanation in self.explanations)
        outside = f"{self.wrong:,} {'lies' if self.wrong == 1 else 'lie'} outside those of the specification"
        yield f"Every one of {total} lies within its bounds under {rule}; {outside}."
        if self.runner_up is not None and self.runner_up.inside > self.runner_up.total - self.wrong:
            other = self.runner_up
            yield f"The next best explanation, {other.sentence()}, accounts for {other.inside} of them."

    def _in_float64(self, total: str) -> Iterator[str]:
        """What is wrong in float64 alone."""
        if self.double is None:
            return
        wrong, among, rounded = self.double
        yield f"All of {total} in float32 are right; of {among:,} in float64, {wrong:,} lie outside their bounds."
        if rounded:
            yield (
                "All of these are as close as float32 comes: something is computed in float32, or a constant is "
                "rounded to it (ε, the momentum, a position of the up-sampling)."
            )

    def _coarsely(self, total: str) -> Iterator[str]:
        """What the arithmetic explains of all `total` tensors."""
        if self.coarse is None:
            return
        rounded = "convolutions that round their factors to 10 bits, as TF32 and float16 have"
        if self.explanations:
            yield f"These are the bounds of {rounded}; those of float32 admit no explanation."
        else:
            yield f"It behaves like {rounded}, and like no wrong rule."
            yield (
                f"Every one of {total} lies within the bounds of that arithmetic; {self.wrong:,} lie outside those of "
                f"float32, in {self.coarse[0]} of {self.coarse[1]} examples."
            )
        yield (
            "On a GPU, PyTorch rounds them to TF32 unless torch.backends.cudnn.allow_tf32 = False; PORTING.md has the "
            "switches of others."
        )


def _sentence(name: str, value: Any) -> str:
    metadata = next(item.metadata for item in fields(Rules) if item.name == name)
    habit = metadata["habits"].get(value, "")
    due = getattr(SPEC, name)
    instead = f" instead of {due!r}" if due is not None else ""
    return f"{name} = {value!r}{instead} ({metadata['meaning']}; {habit}), clause {metadata['clause']}"


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """One of each part, each time in another place of it: features of the examples have periods, too."""
    step = max(len(indices) / most, 1)
    return [indices[int(k * step) + 3 * k % int(step)] for k in range(min(len(indices), most))]


def diagnose(subject: Subject, seconds: float = SECONDS, first: int = 48) -> Diagnosis:
    """Find what explains a subject, in about `seconds`; `first` examples are looked at before any others.

    Pairs are looked for in seconds of this process, so that what else a machine does changes nothing.
    """
    deadline, spent = monotonic() + seconds / 2, process_time() + seconds
    numerics = examples(subject)
    observations = []
    for numeric in islice(numerics, first):
        observations.append(observe(subject, numeric))
        # A slow subject is asked for less, and at least for a few examples.
        if monotonic() > deadline and len(observations) >= FEWEST:
            break
    evidence = Evidence(observations, "backward" in subject.features)
    failing = evidence.failing()
    inside, total = evidence.accounted(())
    if not failing:
        double = None
        if "float64" in subject.features:
            wrong, coarse, came = in_float64(subject, [seen.numeric for seen in observations[:IN_FLOAT64]])
            double = (wrong, came, coarse == wrong) if wrong else None
        lost = None if double else lost_nan.find(subject, seconds / 4)
        return Diagnosis(0, total, errors=_errors(observations), double=double, lost=lost)
    often = len(failing), len(observations)
    ranked, found = _singles(evidence)
    rounded = None
    # What is wrong with coarse numbers is wrong nearly everywhere; who declares TF32 is judged by it already.
    if not found and 2 * len(failing) > len(observations) and subject.arithmetic == "float32":
        rounded = Evidence(observations, evidence.gradients, TF32)
        if not rounded.failing():
            return Diagnosis(total - inside, total, errors=_errors(observations), coarse=often)
    if not found:
        found = _pairs(evidence, ranked, failing, spent)
    forward = Evidence(observations, gradients=False)
    for other in (forward, rounded):
        if not found and other is not None:
            among, found = _singles(other)
            evidence, ranked = (other, among) if found else (evidence, ranked)
    found = _told_apart(subject, evidence, found, numerics, monotonic() + seconds / 4)
    explanations = sorted((_explanation(evidence, changes) for changes in found), key=lambda e: repr(e.changes))
    others = [_explanation(evidence, changes) for changes in ranked[:CLOSELY] if changes not in found]
    # What breaks the specification breaks it in float32, and shows in the examples that were made later too.
    plain = Evidence(evidence.observations, evidence.gradients) if evidence is rounded else evidence
    inside, total = plain.accounted(())
    return Diagnosis(
        total - inside,
        total,
        tuple(explanations),
        max(others, key=lambda e: e.inside, default=None),
        () if found else tuple(_where(subject, plain, plain.failing())),
        _errors(evidence.observations),
        often if found and evidence is rounded else None,
        bool(found) and evidence is forward,
    )


def _errors(observations: Sequence[Observation]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(observation.error for observation in observations if observation.error))


def _explanation(evidence: Evidence, changes: tuple[Change, ...]) -> Explanation:
    return Explanation(changes, *evidence.accounted(changes))


def _singles(evidence: Evidence) -> tuple[list[tuple[Change, ...]], list[tuple[Change, ...]]]:
    """The alternative rules, the likeliest first, and those that explain everything."""
    sample = _spread(evidence.failing(), SAMPLE)
    singles: list[tuple[Change, ...]] = [((name, value),) for name, value, _ in alternatives()]
    ranked = sorted(singles, key=lambda changes: -evidence.gain(changes, sample))
    return ranked, [changes for changes in ranked if evidence.gain(changes, sample) > 0 and evidence.explains(changes)]


def diagnose_designator(designator: str, timeouts: str, seconds: float, device: str = "cpu") -> Diagnosis:
    """Diagnose the subject that a designator names, and end it. Raises SubjectError."""
    subject = load_subject(designator, timeouts, device)
    try:
        with arithmetic(subject.arithmetic):
            return diagnose(subject, seconds)
    finally:
        subject.close()


def _asked_again(subject: Subject, evidence: Evidence, failing: Sequence[int]) -> Iterator[str]:
    """Whether wrong examples are right when nothing was asked before them."""
    numerics, fresh = [evidence.observations[i].numeric for i in _spread(failing, ASKED_AGAIN)], False
    again = Evidence([], evidence.gradients, evidence.arith)
    for numeric in numerics:
        fresh = subject.restart()
        again.observations.append(observe(subject, numeric))
    wrong = {*again.failing(), *(i for i, seen in enumerate(again.observations) if seen.error)}
    if right := len(numerics) - len(wrong):
        came = f"{right} of {counted(len(numerics), 'wrong example')} came right when asked again"
        where = "in a fresh process" if fresh else "of a new block"
        yield f"{came}, {where}: answers depend on earlier calls, or on chance."


def _where(subject: Subject, evidence: Evidence, failing: Sequence[int]) -> Iterator[str]:
    yield from _asked_again(subject, evidence, failing)
    observations = evidence.observations
    numerics = [observation.numeric for observation in observations]
    right_ones = [n for i, n in enumerate(numerics) if i not in failing]
    found = isolation.shared([numerics[i] for i in failing], right_ones, lambda other: _wrong(subject, evidence, other))
    yield from isolation.conditions(found)
    yield from _narrowed(evidence, found)
    # Of each tensor that is wrong anywhere: the examples in which it is, and what is plainly wrong with it there.
    wrong: dict[str, list[tuple[Numeric, str]]] = {}
    apart: tuple[set[tuple[Numeric, str]], set[tuple[Numeric, str]]] = set(), set()
    for i in failing:
        tensors = observations[i].tensors
        for name, bounded in predict(numerics[i], SPEC, "dx" in tensors).items():
            if name not in tensors:
                continue
            passes = judge(tensors[name], bounded).ok
            apart[passes].add((numerics[i], name))
            if not passes:
                wrong.setdefault(name, []).append((numerics[i], isolation.plainly(tensors[name], bounded)))
    right = {name for _, name in apart[True]}
    yield from isolation.kinds(set(wrong), right)
    yield from isolation.parts(*apart)
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


def _wrong(subject: Subject, evidence: Evidence, numeric: Numeric) -> bool:
    return bool(Evidence([observe(subject, numeric)], evidence.gradients, evidence.arith).failing())


def _narrowed(evidence: Evidence, found: Mapping[str, set[Any]]) -> Iterator[str]:
    """The rule that explains all examples of the kind that is wrong, such as those of one normalizer."""
    if not found:
        return
    such = [
        seen
        for seen in evidence.observations
        if all(isolation.FEATURES[name](seen.numeric) in values for name, values in found.items())
    ]
    _, rules = _singles(Evidence(such, evidence.gradients, evidence.arith))
    if len(rules) == 1:
        yield f"There, it behaves exactly like {_sentence(*rules[0][0])}."


def _pairs(
    evidence: Evidence, ranked: Sequence[tuple[Change, ...]], failing: Sequence[int], spent: float
) -> list[tuple[Change, ...]]:
    """Pairs of rules that explain everything together."""
    few = _spread(failing, SAMPLE)
    wider = [*few, *_spread([i for i in failing if i not in few], SAMPLE)]
    gains = {changes: max((evidence.gain(changes, [i]) for i in wider), default=0) for changes in ranked}
    likely = sorted(ranked, key=lambda c: -gains[c])
    useful = sum(gains[changes] > 0 for changes in ranked)
    found: list[tuple[Change, ...]] = []
    last = useful
    both = sorted(combinations(range(useful), 2), key=sum)
    # What shows nothing beside another rule is tried with the likeliest few.
    one_hidden = list(product(range(min(LEADING, useful)), range(useful, len(likely))))
    for pairs in (both, one_hidden):
        for one, two in pairs:
            # Behind the first pair, only those that looked about as likely are tried.
            if process_time() > spent or (pairs is both and one + two > 2 * last):
                break
            pair = likely[one] + likely[two]
            if pair[0][0] == pair[1][0] or not evidence.explains(pair):
                continue
            if pairs is both or _says_as_much(evidence, pair, likely[one], failing):
                found.append(pair)
                last = min(last, (one + two) // 2 + PAIRED // 2)
                if len(found) == 4:
                    break
        if found:
            break
    return found


def _says_as_much(
    evidence: Evidence, pair: tuple[Change, ...], alone: tuple[Change, ...], failing: Sequence[int]
) -> bool:
    """Whether the pair is judged wherever its first rule is: to say nothing of an example explains nothing."""
    return all(evidence.inside(i, pair)[1] or not evidence.inside(i, alone)[1] for i in failing)


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
        if _differ(numeric, found, evidence):
            evidence.observations.append(observe(subject, numeric))
            found = [changes for changes in found if evidence.explains(changes)]
    return found


def _differ(numeric: Numeric, found: Sequence[tuple[Change, ...]], evidence: Evidence) -> bool:
    predictions = []
    for changes in found:
        try:
            predictions.append(predict(numeric, replace(SPEC, **dict(changes)), evidence.gradients, evidence.arith))
        except NotApplicable:  # noqa: PERF203
            return True
    first, *others = predictions
    return any(not judge(other[name].value, first[name]).ok for other in others for name in first if name in other)
