"""The order in which failures are to be mended, and the cascades folded under their causes.

Chapters come in the order in which one spoils the next: arguments, structure, shapes, state, values, statistics,
gradients, invariances, the summary. What chapter 1 finds in the state of a block stands behind the structure, a call
that ends in an error there behind the shapes, and so do its wrong sizes if chapter 3 finds some; numbers of chapter 7
stand with the invariances. A clause goes under an earlier one by the first of these rules that holds:

0. Earlier requests: of a port, a fresh process answers the request otherwise. All such failures go under one, which is
   the clause on that (5.10, 9.8) if it is among them, and under nothing else but by rule 1.
1. Same words: the same thing was looked at and the same was got, numbers in it aside (one error ends many calls);
   of a port that failed, only how it did counts, and what is taken against another clause cannot leave a trace (3.13).
2. Structure: chapter 2 is broken, and the failure is another one of it, a call that had to succeed, one of the
   summary, of the state (of chapter 1 too), or of a clause that counts or lists what the structure holds.
3. Sizes: outputs of chapter 3 have wrong sizes or are refused for them, and the failure is an output of a wrong size
   too, another clause on sizes, or a call that had to succeed.
4. One diagnosis: it alone explains every number, so all numeric failures go under the first of them, which is the
   clause that the diagnosis names if that one is broken.
5. Numbers: without such a diagnosis they go under the broken structure, if there is any, and else under the first
   wrong output of chapter 4; those of chapter 7 under whatever number is wrong. Where outputs are right, gradients go
   under the first wrong one. What goes under may have a cause of its own too; it comes up when the first is mended.

Advice (SHOULD) comes last, and goes under nothing but rule 1. Nothing is dropped: each broken clause is a cause or
under one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spec_tests.clauses import NUMERIC, all_clauses, sort_key
from spec_tests.compare import CALL, GRADIENTS, NO_ERROR, OUTPUT, STATE_OF, TAKEN
from spec_tests.subjects.base import PORT_FAILED
from spec_tests.verdict import Failure, TestOutcome, Verdict

MENDING = (1, 2, 3, 7, 4, 6, 5, 9, 8)
ARGUMENTS, STRUCTURE, SHAPES, STATE, VALUES, SUMMARY, INVARIANCES = 1, 2, 3, 7, 4, 8, 9
LISTING = ("2.20", "2.21", "2.22", "2.23", "7.1")
# What sizes outputs have, and what is refused for its size.
SIZES, REFUSED_SIZES = ("3.1", "3.2", "3.3", "3.4", "3.5", "3.14"), ("3.6", "3.11", "3.12")
# How a reason begins that says no more than what was looked at.
NO_REASON = "Not as it must be: "
# What says that nothing depends on earlier calls.
INDEPENDENT = ("5.10", "9.8")
# What 3.13 says nothing of where it is taken.
REFUSING = ("3.6", "3.8", "3.9", "3.10")
# How what was looked at begins, if it is a gradient.
GRADIENT = "the gradient of "
APART, SAME, BUILT, UNLIKE, HELD, SIZED, EXPLAINED, SPOILED, FOLLOWS, SHARED, BEHIND = (
    "a fresh process answers this otherwise, too",
    "the same happens here",
    "follows from the structure",
    "another difference in the structure, perhaps of the same cause",
    "its entries need the right structure",
    "another output of a wrong size, or a call that needs the right one",
    "explained by the same diagnosis",
    "its numbers need the right structure",
    "probably follows from it",
    "another wrong output, perhaps of the same cause",
    "another wrong gradient, perhaps of the same cause",
)

_SHAPE = re.compile(r"(shape )?[(\[]-?\d+(, -?\d+)*,?[)\]]")
# Behind the code of a block in the example of a call that ended in an error: of torch, of a port.
_OF_A_CALL = re.compile(r"\), (called with|(forward|backward) in|describe with the shape) ")


@dataclass(frozen=True)
class Broken:
    """A broken clause: the first failure of it, and how many more of its tests failed."""

    clause: str
    outcome: TestOutcome
    failure: Failure
    more: int = 0

    @property
    def chapter(self) -> int:
        return all_clauses()[self.clause].chapter

    @property
    def level(self) -> str:
        return all_clauses()[self.clause].level

    @property
    def numeric(self) -> bool:
        """Whether numbers are wrong, and not that there are none."""
        return (self.chapter in NUMERIC or self.failure.picture is not None) and not _ended(self.failure)

    @property
    def gradient(self) -> bool:
        """Whether it is a gradient of which numbers are wrong."""
        return self.numeric and self.failure.what.startswith(GRADIENT)

    @property
    def listed(self) -> bool:
        """Whether it is what chapter 1 finds in the state of a block."""
        return self.chapter == ARGUMENTS and self.failure.what.startswith(STATE_OF)

    @property
    def called(self) -> bool:
        """Whether it is a call that chapter 1 makes of a block which it could build."""
        return self.chapter == ARGUMENTS and _called(self.failure)

    @property
    def sized(self) -> bool:
        """Whether a shape was to be another one."""
        return all(_SHAPE.fullmatch(told) for told in (self.failure.got, self.failure.expected))

    def place(self, sizes: bool) -> tuple[bool, int, bool, tuple[int, ...]]:
        """Sorts by the order of mending, `sizes` being wrong in chapter 3 or not; advice comes last."""
        late = INVARIANCES if self.chapter == STATE and self.numeric else self.chapter
        shaped = self.called or (sizes and self.chapter == ARGUMENTS and self.sized)
        chapter = STRUCTURE if self.listed else SHAPES if shaped else late
        return self.level != "MUST", MENDING.index(chapter), self.listed or shaped, sort_key(self.clause)


@dataclass
class Cause:
    """A failure to mend, and what is folded under it: each with the reason."""

    broken: Broken
    folded: list[tuple[Broken, str]] = field(default_factory=list)

    @property
    def clause(self) -> str:
        return self.broken.clause

    def all(self) -> list[Broken]:
        return [self.broken, *(broken for broken, _ in self.folded)]


def broken_clauses(verdict: Verdict, without: Collection[str] = ()) -> list[Broken]:
    """The broken clauses in the order of mending, without those of the tests in `without`."""
    found: dict[str, list[TestOutcome]] = {}
    for outcome in verdict.failures():
        if outcome.failure and outcome.test not in without:
            found.setdefault(outcome.failure.clause, []).append(outcome)
    broken = []
    for clause, outcomes in found.items():
        # What has nothing to do with earlier requests comes up first, and of the arguments what shows without a call.
        all_of_it = [Broken(clause, o, o.failure, len(outcomes) - 1) for o in outcomes if o.failure is not None]
        broken.append(min(all_of_it, key=lambda one: (bool(one.outcome.alone), one.called)))
    sizes = any(map(_misshapen, broken))
    return sorted(broken, key=lambda one: one.place(sizes))


def causes(
    verdict: Verdict, explained: Collection[str] = (), without: Collection[str] = (), unfolded: bool = False
) -> list[Cause]:
    """The causes in the order of mending.

    `explained` are the clauses that a diagnosis which explains everything names; `without` are tests left out.
    """
    broken = broken_clauses(verdict, without)
    if unfolded:
        return [Cause(b) for b in broken]
    if explained:
        # What the diagnosis names leads the numbers.
        first = next((b for b in broken if b.clause in explained and b.numeric), None)
        if first is not None:
            _lead(broken, first, next(b for b in broken if b.numeric))
    apart = [b for b in broken if b.outcome.alone and b.level == "MUST"]
    if apart:
        _lead(broken, next((b for b in apart if b.clause in INDEPENDENT), apart[0]), apart[0])
    found: list[Cause] = []
    for one in broken:
        under, why = _under(one, found, bool(explained))
        if under is None:
            found.append(Cause(one))
        else:
            under.folded.append((one, why))
    return found


def _lead(broken: list[Broken], one: Broken, others: Broken) -> None:
    """Move one to the place of the first of those that it leads."""
    at = broken.index(others)
    broken.remove(one)
    broken.insert(at, one)


def _under(one: Broken, found: Iterable[Cause], explained: bool) -> tuple[Cause | None, str]:
    earlier = list(found)
    for cause in earlier:
        if one.outcome.alone and cause.broken.outcome.alone:
            return cause, APART
    for cause in earlier:
        taken = one.clause == "3.13" and one.failure.got.startswith(OUTPUT) and cause.clause in REFUSING
        if taken or _words(cause.broken.failure) == _words(one.failure):
            return cause, SAME
    if one.level != "MUST" or one.outcome.alone:
        return None, ""
    earlier = [cause for cause in earlier if cause.broken.level == "MUST"]
    structure = next((c for c in earlier if c.broken.chapter == STRUCTURE), None)
    if structure is not None:
        if one.chapter == STRUCTURE and one.clause not in LISTING:
            return structure, UNLIKE
        if _ended(one.failure) or one.chapter == SUMMARY or one.listed or one.clause in LISTING:
            return structure, BUILT
        if one.chapter == STATE and not one.numeric:
            return structure, HELD
    sizes = next((c for c in earlier if _misshapen(c.broken)), None)
    misled = _ended(one.failure) or one.sized or one.clause in (*SIZES, *REFUSED_SIZES)
    if sizes is not None and misled and not one.failure.got.startswith(PORT_FAILED):
        return sizes, SIZED
    if not one.numeric:
        return None, ""
    number = next((c for c in earlier if c.broken.numeric), None)
    if explained:
        return (number, EXPLAINED) if number is not None else (None, "")
    if structure is not None:
        return structure, SPOILED
    if number is not None and (number.broken.chapter == VALUES or one.chapter == STATE):
        return number, SHARED if one.chapter == VALUES else FOLLOWS
    gradient = next((c for c in earlier if c.broken.gradient), None)
    return (gradient, BEHIND) if gradient is not None and one.gradient else (None, "")


def follows(failure: Failure) -> bool:
    """Whether chapter 1 found what the structure of a block or the sizes of its outputs may explain."""
    one = Broken(failure.clause, TestOutcome("", (), "failed", {}, failure), failure)
    return one.chapter == ARGUMENTS and (one.listed or one.sized)


def _misshapen(one: Broken) -> bool:
    """Whether an output has a wrong size, or is refused for it, in the very clauses on sizes."""
    return one.clause in SIZES and one.failure.what != CALL and not one.failure.got.startswith(PORT_FAILED)


def _ended(failure: Failure) -> bool:
    """Whether a call that had to succeed did not: it crashed, or was refused."""
    return failure.what == CALL or failure.expected in (TAKEN, GRADIENTS)


def _called(failure: Failure) -> bool:
    """Whether it is a call of a block that ended so, and not its construction."""
    refused = failure.expected == TAKEN and failure.what.startswith("a call")
    return refused or (failure.what == CALL and _OF_A_CALL.search(failure.example) is not None)


def _words(failure: Failure) -> tuple[str, str]:
    if failure.picture is not None:
        # Numbers are what it is about.
        return failure.clause, ""
    if failure.got.startswith(PORT_FAILED):
        # Which call met it, and what was written there, is by the way.
        return PORT_FAILED, re.sub(r"\d+|b['\"].*", "#", failure.got.removeprefix(PORT_FAILED), flags=re.DOTALL)[:40]
    what = CALL if failure.expected == GRADIENTS else failure.what
    return tuple(re.sub(r"\d+", "#", text) for text in (what, failure.got))  # type: ignore[return-value]


def reason(failure: Failure) -> str:
    """Why a test failed, in one sentence."""
    if failure.picture is not None:
        worst, outside = failure.picture["worst"], failure.picture["outside"]
        share = "every element is" if outside == 1 else f"{outside:.1%} of the elements are"
        size = _not_finite(worst)
        size = f"element is {size}" if size else f"error is {_times(worst['ratio'])} times what rounding explains"
        return f"The worst {size}; {share} outside the bounds."
    if failure.got.startswith(PORT_FAILED):
        return "The port itself failed (PROTOCOL.md); every clause for which it is asked so is broken."
    if failure.what == CALL or failure.expected == GRADIENTS:
        return "A call that must succeed ended in an error."
    if failure.expected == TAKEN:
        return "It is refused and must be taken."
    if failure.got == NO_ERROR or failure.got.startswith(OUTPUT):
        return "It is accepted and must be refused."
    if not failure.expected:
        return f"{_capital(failure.what)} is wrong."
    sentence = f"{_capital(failure.what)}: got {failure.got}, must be {failure.expected}."
    short = len(sentence) <= 110 and "\n" not in sentence
    return sentence if short else f"{NO_REASON}{_cut(failure.what)}."


def brief(failure: Failure) -> str:
    """What is wrong, in a few words."""
    if failure.picture is not None:
        worst = failure.picture["worst"]
        size = _not_finite(worst) or f"{_times(worst['ratio'])} times its bound"
        return f"{failure.what}: {size}"
    return f"{failure.what}: {failure.got}"


def _not_finite(worst: Mapping[str, Any]) -> str:
    """What is wrong with an element whose error is no number; a picture has None for NaN and infinity."""
    if worst["got"] is None:
        return "not finite (NaN or infinite)"
    return "finite and must not be" if worst["value"] is None else ""


def _times(ratio: float) -> str:
    if ratio >= 1e6:
        return "more than a million"
    return f"{ratio:.3g}" if ratio < 999.5 else f"{float(f'{ratio:.3g}'):,.0f}"


def _capital(text: str) -> str:
    cut = _cut(text)
    # Names of tensors stay as they are.
    return cut if re.match(r"\w*[._\d]", cut) else cut[:1].upper() + cut[1:]


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"
