"""Every check counts that it was reached, and raises when it should."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spec_tests import compare, numeric, outcomes, strategies
from spec_tests.compare import Example, NonConformance, equal, equal_entries, holds, refused, unlike
from spec_tests.config import BlockConfig
from spec_tests.subjects.base import Crashed, Refused

EXAMPLE = Example({"in_planes": 2, "out_planes": 3, "stride": (2, 2)}, "block(zeros(1, 2, 4, 4))")


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    compare.REACHED.clear()
    yield
    compare.REACHED.clear()


def broken(check: Any, *arguments: Any) -> NonConformance:
    with pytest.raises(NonConformance) as caught:
        check(*arguments)
    return caught.value


def test_a_test_begins_with_no_records() -> None:
    compare.REACHED["3.6"] = compare.VACUOUS["3.6"] = 1
    compare.RATIO["3.6"] = 0.5
    compare.STRICT[:] = [3, 4]
    compare.start()
    assert not [*compare.REACHED, *compare.VACUOUS, *compare.RATIO]
    assert compare.STRICT == [0, 0]


def test_holds() -> None:
    holds("3.6", "a thing", True, "got", "expected", EXAMPLE)
    assert compare.REACHED == {"3.6": 1}
    error = broken(holds, "3.6", "a thing", False, [1], (2,), EXAMPLE)
    assert compare.REACHED == {"3.6": 2}, "a check that fails was reached too"
    assert (error.clause, error.what, error.got, error.expected) == ("3.6", "a thing", "[1]", "(2,)")
    assert error.example == "block = BlockBottleneck2d(2, 3, stride=2)\nblock(zeros(1, 2, 4, 4))"
    for part in ("3.6", "a thing", "[1]", "(2,)", error.example):
        assert part in str(error)


@pytest.mark.parametrize(
    ("got", "expected"),
    [(1, 1), ("a", "a"), ((1, 2), (1, 2)), ([], []), (None, None), (True, True), (2, 2.0), ({"a": 1}, {"a": 1})],
)
def test_equal(got: object, expected: object) -> None:
    equal("1.1", "a thing", got, expected, EXAMPLE)
    assert compare.REACHED == {"1.1": 1}


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        *[(1, 2), ("a", "A"), ((1, 2), (2, 1)), ((1, 2), (1, 2, 3)), ((1, 2), [1, 2]), (None, 0), ("", None)],
        *[(True, 1), (1, True), (False, 0), (0, False), (float("nan"), float("nan"))],
    ],
)
def test_unequal(got: object, expected: object) -> None:
    error = broken(equal, "1.1", "a thing", got, expected, EXAMPLE)
    assert compare.REACHED == {"1.1": 1}
    assert error.got == (got if isinstance(got, str) else repr(got))


def test_equal_entries() -> None:
    equal_entries("2.20", "entries", {}, {}, EXAMPLE)
    equal_entries("2.20", "entries", {"a": (1,), "b": (2,)}, {"b": (2,), "a": (1,)}, EXAMPLE)
    assert compare.REACHED == {"2.20": 2}


@pytest.mark.parametrize(
    ("got", "told", "due"),
    [
        ({"a": 1}, "nothing", "b 2"),
        ({}, "nothing", "a 1, b 2"),
        ({"a": 1, "b": 2, "c": 3}, "c 3", "nothing"),
        ({"a": 1, "b": 3}, "b 3", "b 2"),
        ({"a": 1, "B": 2}, "B 2", "b 2"),
        ({"a": 2, "b": 1}, "a 2, b 1", "a 1, b 2"),
    ],
)
def test_unequal_entries(got: dict[str, int], told: str, due: str) -> None:
    """The message names the missing, surplus and differing entries and no other."""
    error = broken(equal_entries, "2.20", "entries", got, {"a": 1, "b": 2}, EXAMPLE)
    assert (error.got, error.expected) == (told, due)
    assert compare.REACHED == {"2.20": 1}


def refuse(kind: str) -> Any:
    def call() -> object:
        raise Refused(kind, "no")

    return call


KINDS = {
    "type": ("type", "", "invalid_input"),
    "value": ("value", "", "invalid_input"),
    "": ("type", "value", "", "invalid_input"),
    "state": ("value", "", "bad_request"),
}


@pytest.mark.parametrize(("wanted", "kind"), [(wanted, kind) for wanted, kinds in KINDS.items() for kind in kinds])
def test_refused(wanted: str, kind: str) -> None:
    refusal = refused(["1.2", "1.16"], "building", wanted, EXAMPLE, refuse(kind))
    assert refusal.message == "no"
    assert compare.REACHED == {"1.2": 1, "1.16": 1}


@pytest.mark.parametrize(
    ("wanted", "kind", "got", "expected"),
    [
        ("type", "value", "ValueError: no", "a TypeError"),
        ("value", "type", "TypeError: no", "a ValueError"),
        ("value", "bad_request", "no", "a ValueError"),
        ("", "bad_request", "no", "a TypeError or ValueError"),
        ("state", "invalid_input", "no", "an error that refuses it"),
    ],
)
def test_refused_in_another_way(wanted: str, kind: str, got: str, expected: str) -> None:
    error = broken(refused, ["1.2", "1.16"], "building", wanted, EXAMPLE, refuse(kind))
    assert (error.clause, error.got, error.expected) == ("1.2", got, expected)
    assert compare.REACHED == {"1.2": 1, "1.16": 1}


def test_where_it_was_refused_is_told() -> None:
    """At the end, and not among the words that are cut or judged."""

    def refuse_there() -> object:
        raise Refused("type", "no" * 500, "a call", " (at blocks.py:7, in forward)")

    error = broken(refused, ["1.2"], "building", "value", EXAMPLE, refuse_there)
    assert error.got.endswith("o… (at blocks.py:7, in forward)")
    with pytest.raises(NonConformance) as raised, compare.taken("1.1", "building", EXAMPLE):
        refuse_there()
    assert raised.value.got.endswith("o… (at blocks.py:7, in forward)")


def test_not_refused() -> None:
    error = broken(refused, ["1.2"], "building", "value", EXAMPLE, lambda: None)
    assert (error.got, error.expected) == ("no error", "a ValueError")
    error = broken(refused, ["3.6"], "a call", "", EXAMPLE, np.zeros, (1, 2))
    assert error.got == "an output of shape (1, 2)"
    assert compare.REACHED == {"1.2": 1, "3.6": 1}


@pytest.mark.parametrize(
    ("kind", "due"), [("value", "a ValueError"), ("type", "a TypeError"), ("", "a TypeError or ValueError")]
)
def test_a_crash_is_no_refusal(kind: str, due: str) -> None:
    """An error of another kind breaks the clause that demands the refusal, and no other."""

    def crash() -> object:
        raise Crashed("RuntimeError: sizes do not match", "a call")

    for times in (1, 2):
        error = broken(refused, ["3.6", "3.5"], "a call", kind, EXAMPLE, crash)
        assert (error.clause, error.got, error.expected) == ("3.6", "RuntimeError: sizes do not match", due)
        assert {"3.6": times, "3.5": times} == compare.REACHED


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (
            lambda clause, good: compare.shaped(clause, "a thing", np.zeros((2, 3)), [2, 3 if good else 4], EXAMPLE),
            ("a thing", "shape (2, 3)", "shape (2, 4)"),
        ),
        (
            lambda clause, good: compare.inspect_entries(clause, "sizes", {"a": 1}, {"a": 1 if good else 2}, EXAMPLE),
            ("sizes", "a 1", "a 2"),
        ),
    ],
    ids=["shaped", "inspect_entries"],
)
def test_what_counts_only_where_it_fails(check: Callable[[str, bool], None], told: tuple[str, ...]) -> None:
    compare.start()
    check("3.1", True)
    assert compare.REACHED["3.1"] == 0
    for times in (1, 2):
        with pytest.raises(NonConformance) as caught:
            check("3.1", False)
        error = caught.value
        assert error.clause == "3.1"
        assert "BlockBottleneck2d(2, 3, stride=2)" in error.example
        assert (error.what, error.got, error.expected) == told
        assert compare.REACHED["3.1"] == times


def test_a_crash_breaks_the_clause_that_wanted_a_result() -> None:
    """The innermost, where there are several; without any, the first that the test cites."""
    crash = Crashed("boom", "a call")
    assert outcomes.failure_of(crash, "a test", "3.2")[1].clause == "3.2"
    with pytest.raises(Crashed), compare.wanted("3.1"), compare.taken("3.3", "a call", EXAMPLE):
        raise crash
    assert outcomes.failure_of(crash, "a test", "3.2")[1].clause == "3.3"


def test_helpers_hide_from_tracebacks() -> None:
    """The traceback of a failure ends where the check is asked for, not within the helper."""

    def refusing() -> None:
        with compare.taken("1.1", "building", EXAMPLE):
            raise Refused("value", "no")

    checks: list[tuple[str, Any]] = [
        ("holds", lambda: holds("3.6", "a thing", False, 1, 2, EXAMPLE)),
        ("equal", lambda: equal("1.1", "a thing", 1, 2, EXAMPLE)),
        ("equal_entries", lambda: equal_entries("2.20", "entries", {}, {"a": 1}, EXAMPLE)),
        ("inspect_entries", lambda: compare.inspect_entries("7.3", "entries", {}, {"a": 1}, EXAMPLE)),
        ("shaped", lambda: compare.shaped("3.1", "a thing", np.zeros(2), (3,), EXAMPLE)),
        ("refused", lambda: refused(["1.2"], "building", "value", EXAMPLE, lambda: None)),
        ("taken", refusing),
    ]
    for name, check in checks:
        with pytest.raises(NonConformance) as caught:
            check()
        frames = [entry.frame for entry in caught.traceback if Path(str(entry.path)).name == "compare.py"]
        helper = [frame for frame in frames if name in frame.code.name]
        assert helper
        assert all(frame.f_locals.get("__tracebackhide__") is True for frame in helper)


def test_long_values_are_cut() -> None:
    error = broken(equal, "1.1", "a thing", "x" * 5000, list(range(5000)), EXAMPLE)
    assert len(error.got) == len(error.expected) == 400
    assert error.got.endswith("…")
    error = broken(equal, "1.1", "a thing", "x" * 400, "y" * 401, EXAMPLE)
    assert (error.got, error.expected) == ("x" * 400, "y" * 399 + "…")


def test_an_example_can_be_pasted() -> None:
    config = BlockConfig.of(2, 3, stride=(1, 2), normalizer="batch")
    example = Example.of(config, (1, 2, 4, 5), "training")
    assert example.code() == (
        "block = BlockBottleneck2d(2, 3, stride=(1, 2), normalizer='batch')\nblock(zeros(1, 2, 4, 5))  # training"
    )
    assert Example.of(config).code() == "block = BlockBottleneck2d(2, 3, stride=(1, 2), normalizer='batch')"
    assert Example.of(config, ()).code().endswith("\nblock(zeros())")
    scripted = Example(config.arguments(), " in training", "y = 1\nz = 2")
    title = "# BlockBottleneck2d(2, 3, stride=(1, 2), normalizer='batch') in training"
    assert scripted.code() == f"{title}\ny = 1\nz = 2"


def test_a_failure_survives_the_way_from_a_worker() -> None:
    error = broken(holds, "3.6", "a thing", False, 1, 2, EXAMPLE)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert isinstance(twin, AssertionError)
        assert str(twin) == str(error)


# ------------------------------------------------------------------ enumerations


def test_all_of_an_enumeration() -> None:
    compare.start()
    assert list(compare.focused("abc")) == ["a", "b", "c"]
    assert list(compare.focused("abc")) == ["a", "b", "c"], "what ended well is not remembered"


def test_the_item_that_failed_comes_alone() -> None:
    """So it does in every run after the first, and the other enumerations of the test are left out."""
    compare.start()
    for item in compare.focused("abc", "letters"):
        if item == "b":
            break
    for _ in range(2):
        assert list(compare.focused("abc", "letters")) == ["b"]
        assert list(compare.focused([1, 2], "numbers")) == []
    compare.start()
    assert list(compare.focused("abc", "letters")) == ["a", "b", "c"]


def test_the_first_item_may_fail_too() -> None:
    compare.start()
    next(compare.focused("abc"))
    assert list(compare.focused("abc")) == ["a"]


def test_a_sample_begins_at_another_item_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "SAMPLE_STEP", [3])
    compare.start()
    found = [list(compare.focused(range(7))) for _ in range(4)]
    assert found == [[1, 4], [2, 5], [0, 3, 6], [1, 4]]
    assert list(compare.focused("ab")) == ["b"], "a sample is never empty"
    assert [list(compare.focused("a")) for _ in range(2)] == [["a"], ["a"]]
    monkeypatch.setattr(compare, "SAMPLE_STEP", [2])
    compare.start()
    assert list(compare.focused(range(4))) == [1, 3]


def test_a_sample_of_nothing_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "SAMPLE_STEP", [7])
    assert list(compare.focused([])) == []


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        (lambda: numeric.arithmetic("tf32"), lambda: numeric.ARITHMETIC["float32"]),
        (lambda: strategies.sizes(strategies.FEW_SHAPES), lambda: strategies._SIZES[0]),
    ],
)
def test_a_setting_ends_with_an_error(
    setting: Callable[[], contextlib.AbstractContextManager[None]], seen: Callable[[], object]
) -> None:
    before = seen()

    def ends() -> None:
        with setting():
            assert seen() != before
            raise KeyError

    with pytest.raises(KeyError):
        ends()
    assert seen() == before


def test_an_example_without_a_tensor_is_none() -> None:
    """It is neither a check nor a vacuous one, of which a clause could be full."""
    compare.start()
    numeric.count("5.2", [])
    assert (dict(compare.REACHED), dict(compare.VACUOUS)) == ({}, {})


def test_states_that_differ() -> None:
    one = {"a": np.array([1.0, 2.0], np.float32), "b": np.array([0.0], np.float32)}
    assert compare.differing(one, dict(one)) == {}
    assert compare.differing(one, {"a": one["a"]}) == {"b": "differs"}
    assert compare.differing({"a": one["a"]}, one) == {"b": "differs"}
    others = {
        "bits": np.array([-0.0], np.float32),
        "type": np.array([0], np.int32),
        "shape": np.array([[0.0]], np.float32),
        "length": np.array([0.0, 0.0], np.float32),
    }
    for other in others.values():
        assert compare.differing(one, {**one, "b": other}) == {"b": "differs"}
    nan = {"a": np.array([np.nan], np.float32)}
    assert compare.differing(nan, {"a": nan["a"].copy()}) == {}, "the same bits"


@pytest.mark.parametrize(
    ("got", "other", "allowed", "told"),
    [
        (np.array(3), np.array(3), 0.0, ""),
        (np.array(3), np.array(4), 0.0, "3 at [], not 4"),
        (np.array(2**60), np.array(2**60 + 1), 0.0, f"{2**60} at [], not {2**60 + 1}"),
        (np.array([np.inf]), np.array([np.inf]), 0.0, ""),
        (np.array([np.inf]), np.array([-np.inf]), 1.0, "inf at [0], not -inf"),
        (np.array([[1.0, 2.0]]), np.array([[1.25, 2.5]]), 0.25, "2.0 at [0, 1], not 2.5"),
        (np.array([1.0, 2.0]), np.array([1.25, 2.5]), np.array([0.125, 1.0]), "1.0 at [0], not 1.25"),
        (np.array([True]), np.array([False]), 0.0, "True at [0], not False"),
        (np.zeros((0, 2)), np.zeros((0, 2)), 0.0, ""),
        (np.array([1.0, 2.0]), np.array([1.25, 2.0]), 0.25, ""),
        (np.array([np.nan, np.inf, 1.0]), np.array([np.nan, np.inf, 1.5]), 0.5, ""),
        (np.array([np.nan, np.inf, 1.0]), np.array([np.nan, np.inf, 1.5]), 0.25, "1.0 at [2], not 1.5"),
        (np.array([0.0, np.nan]), np.array([9.0, 1.0]), 5.0, "nan at [1], not 1.0"),
    ],
)
def test_the_element_that_differs_most(
    got: np.ndarray, other: np.ndarray, allowed: float | np.ndarray, told: str
) -> None:
    assert unlike(got, other, allowed) == told


def test_without_an_allowance_any_difference_is_told() -> None:
    assert unlike(np.array([0.5, 1.0]), np.array([0.5, 1.25])) == "1.0 at [1], not 1.25"
