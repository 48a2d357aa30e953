"""From outcomes to a verdict and an exit status; what was not judged is never a pass."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from spec_tests.clauses import all_clauses
from spec_tests.verdict import BROKEN, CONFORMS, INTERRUPTED, NOT_JUDGED, PARTIAL, Failure, Verdict
from spec_tests.verdict import TestOutcome as Outcome

ADVICE = next(clause.id for clause in all_clauses().values() if clause.level == "SHOULD")


def passed(*clauses: str, test: str = "t::passed", reached: int = 1) -> Outcome:
    return Outcome(test, clauses, "passed", dict.fromkeys(clauses, reached))


def failed(*clauses: str, test: str = "t::failed") -> Outcome:
    failure = Failure(clauses[0], "a thing", "1", "2", "block = BlockBottleneck2d(1, 1)")
    return Outcome(test, clauses, "failed", {clauses[0]: 1}, failure)


def errored(*clauses: str) -> Outcome:
    return Outcome("t::errored", clauses, "errored", {}, Failure("", "t", "NameError", "no error", ""))


def lost(*clauses: str, missing: str = "copy") -> Outcome:
    return Outcome("t::lost", clauses, "unsupported", missing=missing)


def verdict(*outcomes: Outcome, more: tuple[str, ...] = (), **facts: object) -> Verdict:
    tested = frozenset(c for o in outcomes for c in o.clauses) | set(more)
    found = Verdict(list(outcomes), tested, tested)
    for name, value in facts.items():
        setattr(found, name, value)
    return found


def test_the_numbers() -> None:
    assert (CONFORMS, BROKEN, PARTIAL, NOT_JUDGED, INTERRUPTED) == (0, 1, 2, 3, 130)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (verdict(passed("1.1")), 0),
        (verdict(passed("1.1", "1.2"), passed("1.2")), 0),
        (verdict(passed("1.1"), failed("1.2")), 1),
        (verdict(failed("1.2")), 1),
        (verdict(passed("1.1"), failed(ADVICE)), 0),
        (verdict(failed(ADVICE), failed("1.1")), 1),
        (verdict(passed("1.1"), lost("7.12")), 2),
        (verdict(failed("1.1"), lost("7.12")), 1),
        (verdict(passed("1.1"), lost("1.1")), 2),
        (verdict(lost("7.12")), 3),
        (verdict(), 3),
        (verdict(more=("1.1", "1.2")), 3),
        (verdict(passed("1.1"), more=("1.2",)), 3),
        (verdict(passed("1.1", reached=0)), 3),
        (verdict(passed("1.1"), errored("1.2")), 3),
        (verdict(passed("1.1"), errored("1.1")), 3),
        (verdict(errored("1.1"), failed("1.2")), 1),
        (verdict(errored("7.1"), lost("7.12"), passed("1.1")), 3),
        (verdict(passed("1.1"), troubles=["a worker died"]), 3),
        (verdict(failed("1.1"), troubles=["a worker died"]), 1),
        (verdict(passed("1.1"), interrupted=True), 130),
        (verdict(failed("1.1"), interrupted=True), 130),
        (verdict(interrupted=True), 130),
    ],
)
def test_exit_status(found: Verdict, status: int) -> None:
    assert found.exit_status() == status


def test_only_what_was_selected_is_demanded() -> None:
    found = verdict(passed("1.1"), more=("1.2", "7.1"))
    found.selected = frozenset({"1.1"})
    assert found.exit_status() == CONFORMS
    assert found.clause_status()["7.1"] == "deselected"
    found.selected = frozenset({"1.1", "7.1"})
    assert found.exit_status() == NOT_JUDGED
    assert found.clause_status()["7.1"] == "unreached"


def test_a_clause_without_a_test_cannot_conform() -> None:
    found = Verdict([], frozenset({"1.1"}), frozenset({"4.1"}))
    assert found.clause_status()["4.1"] == "open"
    assert found.exit_status() == NOT_JUDGED


def test_status_of_every_clause() -> None:
    found = verdict(
        *[passed("1.1"), passed("1.2", "1.3"), failed("1.3", "1.4"), errored("1.5", "1.1"), lost("7.12", "7.13")],
        more=("3.1",),
    )
    statuses = found.clause_status()
    assert list(statuses) == list(all_clauses())
    expected = {
        "1.1": "errored",
        "1.2": "passed",
        "1.3": "failed",
        "1.4": "unsure",
        "1.5": "errored",
        "3.1": "unreached",
        "7.12": "unsupported",
        "7.13": "unsupported",
    }
    assert {c: s for c, s in statuses.items() if s != "open"} == expected
    found.interrupted = True
    assert found.clause_status()["3.1"] == "interrupted"


def test_interrupted_before_its_scope_was_known() -> None:
    """Nothing is said to lack a test, and what was found is told."""
    found = Verdict([failed("1.2", "1.3")], interrupted=True)
    statuses = found.clause_status()
    assert (statuses["1.2"], statuses["1.3"]) == ("failed", "interrupted")
    assert set(statuses.values()) == {"failed", "interrupted"}
    assert found.broken() == ["1.2"]


def test_a_clause_that_was_cut_short_is_not_said_to_be_none_of_the_subject() -> None:
    """One of its tests says nothing of this kind of subject, another one stopped before it."""
    absent = Outcome("t::absent", ("1.3",), "inapplicable", missing="copy", inapplicable=("1.3",))
    found = verdict(failed("1.2", "1.3", "7.12"), absent, lost("7.12"))
    statuses = found.clause_status()
    assert (statuses["1.3"], statuses["7.12"]) == ("unsure", "unsure")
    found.selected = frozenset({"1.2"})
    assert found.clause_status()["7.12"] == "deselected"


def test_a_failure_hides_what_stands_behind_it() -> None:
    """A clause that one test passed is not called passed while another test of it was cut short."""
    found = verdict(passed("1.1"), passed("1.2"), failed("1.2", "1.1"))
    assert found.clause_status()["1.1"] == "unsure"


def test_counts() -> None:
    found = verdict(passed("1.1", reached=3), passed("1.1", "2.1", reached=2), failed("2.2"), lost("2.3"))
    assert found.checks() == {"1.1": 5, "2.1": 2, "2.2": 1}
    counts = found.chapter_counts()
    assert list(counts) == list(range(1, 10))
    assert sum(counter.total() for counter in counts.values()) == len(all_clauses())
    chapter = Counter(clause.chapter for clause in all_clauses().values())
    assert counts[2] == {"passed": 1, "failed": 1, "unsupported": 1, "open": chapter[2] - 3}
    assert found.unsupported() == {"copy": ["2.3"]}


def test_order_of_the_failures() -> None:
    found = verdict(failed("2.10"), failed("10.1", test="b"), failed("2.9"), failed("10.1", test="a"))
    found.outcomes.append(errored("1.1"))
    assert [(o.failure.clause, o.test[0]) for o in found.failures() if o.failure] == [
        ("2.9", "t"),
        ("2.10", "t"),
        ("10.1", "a"),
        ("10.1", "b"),
    ]
    assert [o.test for o in found.errors()] == ["t::errored"]


def test_broken() -> None:
    found = verdict(failed("2.10"), failed("2.9"), failed(ADVICE), passed("1.1"))
    assert found.broken() == ["2.9", "2.10"]
    assert found.broken("SHOULD") == [ADVICE]


@pytest.mark.parametrize("outcome", [passed("1.1", "1.2"), failed("1.1"), errored("1.1"), lost("7.12")])
def test_outcomes_survive_the_way_from_a_worker(outcome: Outcome) -> None:
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
