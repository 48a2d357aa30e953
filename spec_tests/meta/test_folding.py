"""The order of mending, and the cascades that are folded under their causes."""

from __future__ import annotations

import shlex
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spec_tests.clauses import all_clauses
from spec_tests.compare import CALL, GRADIENTS
from spec_tests.meta import hostile_ports
from spec_tests.meta.made_verdicts import CLAUSES, VERDICTS, failed, verdict
from spec_tests.outcomes import failure_of
from spec_tests.report.folding import MENDING, Broken, broken_clauses, causes, reason
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Crashed
from spec_tests.verdict import TestOutcome as Outcome
from spec_tests.verdict import Verdict

HOSTILE = f"cmd:{shlex.join([sys.executable, hostile_ports.__file__, '--how', 'says-internal'])}"


@settings(max_examples=150, deadline=None, database=None)
@given(found=VERDICTS, explained=st.lists(st.sampled_from(CLAUSES), max_size=2))
def test_folding_loses_no_clause(found: Verdict, explained: list[str]) -> None:
    """Each broken clause is a cause or under one, once."""
    folded = [broken.clause for cause in causes(found, explained) for broken in cause.all()]
    assert sorted(folded) == sorted({o.failure.clause for o in found.failures() if o.failure})
    tests = sum(1 + broken.more for cause in causes(found, explained) for broken in cause.all())
    assert tests == len(found.failures())
    assert [c.clause for c in causes(found, unfolded=True)] == [b.clause for b in broken_clauses(found)]


def test_the_order_of_mending() -> None:
    found = verdict(failed("9.2", "i"), failed("4.2", "h"), failed("7.3", "s"), failed("1.2", "a"), failed("3.2", "t"))
    assert [c.clause for c in causes(found)][:3] == ["1.2", "3.2", "7.3"]
    assert sorted(MENDING) == sorted({c.chapter for c in all_clauses().values()})


def under(*outcomes: Outcome, explained: tuple[str, ...] = ()) -> dict[str, list[str]]:
    return {c.clause: [b.clause for b, _ in c.folded] for c in causes(verdict(*outcomes), explained)}


def test_a_broken_structure_comes_before_what_it_spoils() -> None:
    numbers = [failed(c, "the output", numbers=True) for c in ("4.1", "5.1", "6.1")]
    found = under(*numbers, failed("2.6", "a projection"), failed("7.10", CALL, "KeyError"), failed("8.1", "rows"))
    assert found == {"2.6": ["7.10", "4.1", "6.1", "5.1", "8.1"]}
    assert under(failed("1.1", "the default of stride"), failed("7.10", CALL)) == {"1.1": [], "7.10": []}


def test_one_wrong_structure_is_one_cause() -> None:
    """Layers in another order break every list of entries."""
    order, bias = failed("2.2", "norm at conv1.0"), failed("2.5", "bias of the conv at conv1.0")
    state, type_ = failed("1.8", "state with `normalizer`"), failed("7.14", "types after the conversion")
    default = failed("1.5", "the default of stride")
    assert under(state, default, type_, bias, order) == {"1.5": [], "2.2": ["2.5", "1.8", "7.14"]}
    assert under(state, default) == {"1.5": [], "1.8": []}


def test_a_port_that_fails_is_one_cause() -> None:
    """Whatever was asked, and whatever it wrote there; another way to fail is another cause."""
    wrote = "the port failed: it wrote b{!r} and {} bytes more; a message begins with the length of its header"
    shapes = failed("3.1", CALL, wrote.format("debug: 5\n0", 8))
    values = failed("4.1", "a forward call and its backward pass", wrote.format("debug: 4\n\\xc0", 280))
    ended = failed("5.1", CALL, "the port failed: it was killed by SIGSEGV; its last words: …")
    assert under(shapes, values, ended) == {"3.1": ["4.1"], "5.1": []}
    assert shapes.failure is not None
    assert reason(shapes.failure).startswith("The port itself failed")


def test_numbers_behind_a_loaded_state_follow_other_numbers() -> None:
    loaded = failed("7.10", "conv1.1.running_mean after a call", numbers=True)
    statistics = failed("6.1", "conv1.1.running_mean", numbers=True)
    assert under(loaded, statistics) == {"6.1": ["7.10"]}
    assert under(loaded, statistics, explained=("6.1",)) == {"6.1": ["7.10"]}
    assert under(loaded, failed("9.1", "a batch", numbers=True)) == {"7.10": [], "9.1": []}
    refused = failed("3.14", "a call", "refused: no", expected="no refusal")
    assert under(failed("2.6", "a projection"), refused) == {"2.6": ["3.14"]}


def test_one_error_that_ends_many_calls_is_told_once() -> None:
    calls = [failed(c, CALL, f"RuntimeError: shape ({n}, 3)") for n, c in enumerate(("3.2", "7.10", "9.2"))]
    trained = failed("5.10", "a forward call and its backward pass", "RuntimeError: shape (7, 3)", expected=GRADIENTS)
    assert under(*calls, trained) == {"3.2": ["7.10", "5.10", "9.2"]}
    assert trained.failure is not None
    assert reason(trained.failure) == "A call that must succeed ended in an error."


@pytest.mark.parametrize(
    "call",
    [
        "called with float32 (1, 2, 4, 6)",
        "forward in eval with x of F32 [1,2,4,6]",
        "backward in eval with x of F32 [1,2,4,6]",
        "describe with the shape (1, 2, 4, 6)",
    ],
)
def test_a_call_that_ends_in_an_error_is_no_matter_of_the_arguments(call: str) -> None:
    """Chapter 1 makes calls too, and the clauses of the shapes say more of them."""
    built = "BlockBottleneck2d(2, 3)"
    first, shapes = (failed(c, CALL, "boom", example=f"{built}, {call}", test=c) for c in ("1.1", "3.1"))
    assert under(shapes, first) == {"3.1": ["1.1"]}
    assert under(first) == {"1.1": []}
    # Of a clause that both broke, the construction is told.
    construction = failed("1.1", CALL, "bang", example=built, test="1.1 once more")
    assert under(shapes, first, construction) == {"1.1": [], "3.1": []}
    refused = failed("1.1", "a call with `padding` left out", "refused: no", expected="no refusal")
    assert under(failed("3.4", "a call", "refused: no", expected="no refusal"), refused) == {"3.4": ["1.1"]}


def test_wrong_sizes_are_one_cause() -> None:
    """Whoever rounds up has wrong outputs in every chapter, and calls that fail for it; a wrong default has no such."""
    default, sized = (
        failed(clause, what, "(1, 3, 3, 4)", expected="(1, 3, 2, 3)")
        for clause, what in (("1.1", "output with `stride` left out"), ("3.2", "shape of the output"))
    )
    accepted = failed("3.11", "a call in which conv3.0 meets one element", "an output of shape (1, 3, 2, 2)")
    values = failed("4.3", "the output", "shape (3, 3, 2, 4)", expected="shape (3, 3, 2, 3)")
    trained = failed("5.1", "a forward call and its backward pass", "Mismatch in shape", expected=GRADIENTS)
    other, crash = failed("4.7", "the output", numbers=True), failed("9.2", CALL, "the port failed: SIGSEGV")
    found = under(default, sized, accepted, values, trained, other, crash)
    assert found == {"3.2": ["3.11", "1.1", "4.3", "5.1"], "4.7": [], "9.2": []}
    assert under(default, accepted, values) == {"1.1": [], "3.11": [], "4.3": []}
    taken, kept = failed("3.6", "a call with the branches", "an output of shape (1, 3)"), failed("3.13", "entries", "x")
    assert under(taken, failed("3.13", "a call", "an output of shape (2, 3)")) == {"3.6": ["3.13"]}
    assert under(taken, kept) == {"3.6": [], "3.13": []}
    # A call of chapter 3 that crashed says nothing of sizes.
    assert under(failed("3.1", CALL, "boom"), failed("5.1", CALL, "bang")) == {"3.1": [], "5.1": []}


def test_a_call_is_told_by_its_words() -> None:
    """What a subject says of a call that crashed is what the order of the causes goes by."""
    for subject in (load_subject("py:spec_tests.meta.odd_blocks:Raises"), load_subject(HOSTILE)):
        with pytest.raises(Crashed) as crash:
            subject.build({"in_planes": 2, "out_planes": 3}).output_shape((1, 2, 4, 6))
        _, failure = failure_of(crash.value, "a test", "1.1")
        told = Broken("1.1", Outcome("a test", ("1.1",), "failed", {}, failure), failure)
        assert told.called, failure.example
        subject.close()


def test_numbers_go_under_the_first_wrong_output() -> None:
    numbers = [failed(c, "the output", numbers=True) for c in ("9.8", "6.1", "5.1", "4.7", "4.5")]
    assert under(*numbers) == {"4.5": ["4.7", "6.1", "5.1", "9.8"]}
    assert under(*numbers, explained=("4.7",)) == {"4.7": ["4.5", "6.1", "5.1", "9.8"]}
    # A wrong gradient explains no wrong statistics.
    assert under(*numbers[1:3]) == {"6.1": [], "5.1": []}
    assert under(*numbers[1:3], explained=("5.5",)) == {"6.1": ["5.1"]}


def test_gradients_go_under_the_first_wrong_gradient() -> None:
    gradient = "the gradient of "
    wrong = [
        failed("5.1", f"{gradient}the input", numbers=True),
        failed("5.7", f"{gradient}conv3.1.weight", numbers=True),
        failed("5.10", "gradients that differ the second time"),
        failed("6.2", "conv1.1.running_var", numbers=True),
        failed("9.2", "the output of the permuted batch", numbers=True),
        failed("9.8", f"{gradient}the input", numbers=True),
    ]
    found = {cause.clause: [(b.clause, why) for b, why in cause.folded] for cause in causes(verdict(*wrong))}
    behind = "another wrong gradient, perhaps of the same cause"
    assert found == {"6.2": [], "5.1": [("5.7", behind), ("9.8", behind)], "5.10": [], "9.2": []}
    # Of a wrong output, they follow.
    wrong.append(failed("4.2", "the output", numbers=True))
    assert [cause.clause for cause in causes(verdict(*wrong))] == ["4.2"]


def test_advice_is_no_cascade() -> None:
    [advice] = [c for c in CLAUSES if all_clauses()[c].level == "SHOULD"][:1]
    assert under(failed("1.1", "a"), failed(advice, "b")) == {"1.1": [], advice: []}
