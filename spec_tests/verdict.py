"""What a run found: the outcome of every test, added up by clause and chapter."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from spec_tests.clauses import NUMERIC, all_clauses, sort_key

CONFORMS, BROKEN, PARTIAL, NOT_JUDGED, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True)
class Failure:
    """Why a test failed or errored: `clause` may be empty for an error of the suite.

    `arguments` are those of the block, where they are legal; `suspects` the layers at which the error of a tensor
    could have entered; `picture` shows |error| / bound of the tensor (see `report.heat`). All are plain data.
    """

    clause: str
    what: str
    got: str
    expected: str
    example: str
    arguments: dict[str, Any] | None = field(default=None, compare=False)
    suspects: tuple[str, ...] = field(default=(), compare=False)
    picture: dict[str, Any] | None = field(default=None, compare=False)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Failure:
        return cls(**{**data, "suspects": tuple(data.get("suspects", ()))})


@dataclass(frozen=True)
class TestOutcome:
    """One test: `status` is ``"passed"``, ``"failed"``, ``"errored"``, ``"unsupported"`` or ``"inapplicable"``.

    `reached` counts the checks of each clause; `missing` is the feature that the subject lacks; `vacuous`
    counts the numeric examples of each clause that said nothing, and `ratio` is the largest error of each
    clause in units of its bound. `inapplicable` are clauses that say nothing of this kind of subject, `strict`
    how many examples were within the strict bounds, and of how many. `request` is the file that replays the last call,
    `alone` tells that a fresh process answers that otherwise (empty if it does not, or was not asked), `again` the
    options of `mdnc-spec run` that draw the examples of a failure again, `seconds` how long the test took.
    """

    test: str
    clauses: tuple[str, ...]
    status: str
    reached: dict[str, int] = field(default_factory=dict)
    failure: Failure | None = None
    missing: str = ""
    vacuous: dict[str, int] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    inapplicable: tuple[str, ...] = ()
    strict: tuple[int, int] = (0, 0)
    request: str = ""
    alone: str = ""
    again: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    def replay(self, subject: str, clause: str) -> list[str]:
        """The commands that judge a clause again, and make the same call again; or why there is none for the latter."""
        found = [shlex.join(["mdnc-spec", "run", "--subject", subject, "--clause", clause, *self.again])]
        if self.request.startswith("("):
            found.append(self.request)
        elif self.request:
            found.append(shlex.join(["mdnc-spec", "replay", self.request, "--subject", subject]))
        return found

    @property
    def advice(self) -> bool:
        """Whether it failed, and by a SHOULD clause."""
        clause = self.failure.clause if self.failure is not None else ""
        return bool(clause) and all_clauses()[clause].level == "SHOULD"

    def and_again(self, later: TestOutcome) -> TestOutcome:
        """Add another run of this test: what was counted adds up, and of two failures the first is told."""
        rank = {"errored": 2, "failed": 1}
        worst = later if rank.get(later.status, 0) > rank.get(self.status, 0) else self
        ratio = {c: max(self.ratio.get(c, 0.0), later.ratio.get(c, 0.0)) for c in (*self.ratio, *later.ratio)}
        return replace(
            worst,
            reached=dict(Counter(self.reached) + Counter(later.reached)),
            vacuous=dict(Counter(self.vacuous) + Counter(later.vacuous)),
            ratio=ratio,
            strict=(self.strict[0] + later.strict[0], self.strict[1] + later.strict[1]),
            seconds=self.seconds + later.seconds,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TestOutcome:
        failure = Failure.from_json(data["failure"]) if data["failure"] else None
        tuples = {name: tuple(data[name]) for name in ("clauses", "inapplicable", "strict", "again")}
        return cls(**{**data, **tuples, "failure": failure})


@dataclass
class Verdict:
    """All outcomes of a run.

    `tested` are the ids of the clauses for which a test exists, selected or not; `selected` those that the
    run was to judge.
    """

    outcomes: list[TestOutcome] = field(default_factory=list)
    tested: frozenset[str] = frozenset()
    selected: frozenset[str] = frozenset()
    interrupted: bool = False
    troubles: list[str] = field(default_factory=list)
    # What was wrong with how the subject behaved beside its calls: no clause says it, PROTOCOL.md does.
    conduct: list[str] = field(default_factory=list)
    # The rules of it on which everything was asked.
    conduct_judged: frozenset[str] = frozenset()
    # The run is a part of another: what it did not reach is for the other parts.
    shard: bool = False
    # The run ended at the first broken clause, as it was told.
    stopped: bool = False
    # What the subject says of itself: its arithmetic, modes and features.
    subject: dict[str, Any] = field(default_factory=dict)

    def add(self, outcome: TestOutcome) -> None:
        """Take the outcome of one more test, or of one that ran before, with other examples."""
        for place, known in enumerate(self.outcomes):
            if known.test == outcome.test:
                self.outcomes[place] = known.and_again(outcome)
                return
        self.outcomes.append(outcome)

    def failures(self) -> list[TestOutcome]:
        """Failed tests, in the order of their broken clauses."""
        failed = [o for o in self.outcomes if o.status == "failed" and o.failure]
        return sorted(failed, key=lambda o: (sort_key(o.failure.clause) if o.failure else (0, 0), o.test))

    def errors(self) -> list[TestOutcome]:
        return [o for o in self.outcomes if o.status == "errored"]

    def unsupported(self) -> dict[str, list[str]]:
        """The features that the subject lacks, each with the clauses that could not be judged for it."""
        found: dict[str, set[str]] = {}
        for outcome in self.outcomes:
            if outcome.status == "unsupported":
                found.setdefault(outcome.missing, set()).update(outcome.clauses)
        return {feature: sorted(clauses, key=sort_key) for feature, clauses in sorted(found.items())}

    def lost(self) -> list[str]:
        """The clauses that could not be judged at all for what is unsupported."""
        return [clause for clause, status in self.clause_status().items() if status == "unsupported"]

    def strict(self) -> tuple[int, int]:
        """How many examples of the strict grade were within its bounds, and how many there were.

        Wrong numbers have no grade: (0, 0).
        """
        if any(all_clauses()[clause].chapter in NUMERIC for clause in self.broken()):
            return 0, 0
        return sum(o.strict[0] for o in self.outcomes), sum(o.strict[1] for o in self.outcomes)

    def clauses_named(self) -> set[str]:
        """Every clause that it speaks of."""
        named = {*self.tested, *self.selected}
        for outcome in self.outcomes:
            named.update(outcome.clauses, outcome.reached)
            if outcome.failure and outcome.failure.clause:
                named.add(outcome.failure.clause)
        return named

    def checks(self) -> Counter[str]:
        """How many checks of each clause were reached."""
        total: Counter[str] = Counter()
        for outcome in self.outcomes:
            total.update(outcome.reached)
        return total

    def vacuous(self) -> tuple[int, int]:
        """How many numeric examples were vacuous, and how many there were, of the clauses that have any."""
        vacuous: Counter[str] = Counter()
        for outcome in self.outcomes:
            vacuous.update(outcome.vacuous)
        numeric = {clause for outcome in self.outcomes for clause in (*outcome.ratio, *outcome.vacuous)}
        checks = self.checks()
        return vacuous.total(), vacuous.total() + sum(checks[clause] for clause in numeric)

    def closest(self) -> tuple[str, float]:
        """The clause whose largest error came closest to its bound, and that ratio; empty without any."""
        found = [(ratio, clause) for outcome in self.outcomes for clause, ratio in outcome.ratio.items()]
        ratio, clause = max(found, default=(0.0, ""))
        return clause, ratio

    def clause_status(self) -> dict[str, str]:
        """Status of every clause of the specification.

        ``"open"`` means that no test exists yet; ``"deselected"`` that the run left it out;
        ``"unreached"`` that its tests passed without checking it, which is an error of the suite;
        ``"unsupported"`` that all of its tests need what the subject does not offer; ``"vacuous"`` that the
        bounds of its arithmetic are so wide that no example said anything.
        """
        broken = {o.failure.clause for o in self.failures() if o.failure}
        vacuous = {c for o in self.outcomes for c, number in o.vacuous.items() if number}
        # Its test may cite clauses that were not asked for.
        unsure = {c for o in self.errors() for c in o.clauses if c in self.selected or not self.selected}
        unsupported = {c for clauses in self.unsupported().values() for c in clauses}
        inapplicable = {c for o in self.outcomes for c in o.inapplicable}
        reached = self.checks()
        # A test that stopped early says nothing about the clauses behind its failure.
        cut_short = {c for o in self.outcomes if o.status in ("failed", "errored") for c in o.clauses}
        status = {}
        for clause in all_clauses():
            if clause in broken:
                status[clause] = "failed"
            elif clause in unsure:
                status[clause] = "errored"
            elif not self.tested and self.interrupted:
                status[clause] = "interrupted"
            elif clause not in self.tested:
                status[clause] = "open"
            elif clause not in self.selected:
                status[clause] = "deselected"
            elif clause in cut_short:
                status[clause] = "unsure"
            elif clause in unsupported and not reached[clause]:
                status[clause] = "unsupported"
            elif clause in inapplicable and not reached[clause]:
                status[clause] = "inapplicable"
            elif reached[clause]:
                status[clause] = "passed"
            elif clause in vacuous:
                status[clause] = "vacuous"
            elif self.shard:
                status[clause] = "deselected"
            else:
                status[clause] = "interrupted" if self.interrupted or self.stopped else "unreached"
        return status

    def chapter_counts(self) -> dict[int, Counter[str]]:
        """For every chapter, how many clauses have which status."""
        counts: dict[int, Counter[str]] = {}
        for clause, status in self.clause_status().items():
            counts.setdefault(all_clauses()[clause].chapter, Counter())[status] += 1
        return counts

    def broken(self, level: str = "MUST") -> list[str]:
        """The ids of the broken clauses of a level."""
        return [c for c, s in self.clause_status().items() if s == "failed" and all_clauses()[c].level == level]

    def exit_status(self) -> int:
        """0 conforms, 1 does not conform, 2 partial, 3 could not be judged, 130 interrupted."""
        statuses = set(self.clause_status().values())
        if self.interrupted:
            return INTERRUPTED
        if self.broken() or self.conduct:
            return BROKEN
        judged = any(o.status in ("passed", "failed") for o in self.outcomes)
        if self.troubles or statuses & {"errored", "unreached"} or not judged:
            return NOT_JUDGED
        return PARTIAL if self.unsupported() or "vacuous" in statuses else CONFORMS
