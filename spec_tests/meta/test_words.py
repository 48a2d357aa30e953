"""How a verdict is worded: counted nouns, texts of several lines, and the labels of the matrix."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from spec_tests import cli, diagnosis
from spec_tests.arguments import parser
from spec_tests.compare import CALL
from spec_tests.diagnosis import Diagnosis
from spec_tests.known_failures import Compared
from spec_tests.meta.made_verdicts import failed, verdict
from spec_tests.report import folding, matrix
from spec_tests.report.drawing import short
from spec_tests.report.model import Report
from spec_tests.report.page import html, markdown
from spec_tests.report.terminal import show, summary
from spec_tests.subjects.base import SubjectError
from spec_tests.verdict import TestOutcome as Outcome
from spec_tests.verdict import Verdict
from spec_tests.words import counted, listed

# ------------------------------------------------------------------ words


def shown(found: Verdict, *lines: str, known: Compared | None = None) -> str:
    out = io.StringIO()
    show(found, "py:a:B", Console(file=out, width=80), lines, known)
    return out.getvalue()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SubjectError("the port is gone"), "There is none: the port is gone"),
        (KeyboardInterrupt(), "There is none: interrupted"),
        (
            KeyError("conv1"),
            "There is none: an error of mdnc-spec itself, which says nothing of the subject: KeyError: 'conv1'",
        ),
    ],
)
def test_a_diagnosis_that_fails_leaves_the_verdict(
    error: BaseException, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Diagnosis:
        raise error

    monkeypatch.setattr(diagnosis, "diagnose_designator", fails)
    options = parser().parse_args(["run", "--subject", "py:a:B"])
    found = cli._explained(options, verdict(failed("4.1", "the output", numbers=True)))
    assert (found.lines[0], found.changes) == (told, ())


def test_counted_nouns() -> None:
    assert [counted(n, "check") for n in (0, 1, 2, 1657)] == ["0 checks", "1 check", "2 checks", "1,657 checks"]
    assert counted(1, "clause holds", "clauses hold") == "1 clause holds"
    assert [listed("clause", ids) for ids in (["4.1"], ["4.1", "4.2"])] == ["clause 4.1", "clauses 4.1, 4.2"]


def test_one_of_a_thing_is_no_plural() -> None:
    """In the terminal, on the page and in the summary of a job."""
    one = Outcome("t::a", ("4.5",), "passed", {"4.5": 1}, vacuous={"4.5": 1}, ratio={"4.5": 0.5}, strict=(1, 1))
    alone = replace(verdict(one), selected=frozenset(["4.5"]))
    text = shown(alone)
    assert re.search(r"clauses hold, 22 not selected +1 check$", text, re.MULTILINE)
    assert "1 of 2 numeric examples were vacuous" in text
    assert "(1 of 1 graded example is within the strict bounds)" in text
    assert "grade" not in shown(verdict(one, failed("5.1", numbers=True))), "of wrong numbers"
    assert "grade" in shown(verdict(one, failed("1.1")))
    assert "grade: strict (1 of 1" in text
    assert "grade: lenient (0 of 1" in shown(verdict(replace(one, strict=(0, 1))))
    assert text.rstrip().endswith("conforms: 1 clause holds, 1 check; the other clauses were not selected")
    assert summary(replace(alone, interrupted=True)) == "interrupted: 1 test had ended, 0 clauses are broken so far"
    report = Report(alone, "py:a:B", "smoke", summary=summary(alone))
    for words in (
        "<b>1</b> holds",
        "<span>1 check</span>",
        "1 of 1 example within",
        "The largest error of 1 clause in",
    ):
        assert words in html(report), words
    twice = [failed("4.5", CALL, f"size {n}", test=f"t::{n}") for n in (1, 2)]
    broken = verdict(*twice, failed("4.7", CALL, "size 3"))
    assert "also      1 more test of this clause failed" in shown(broken)
    text = markdown(Report(broken, "py:a:B", "smoke", summary="s"))
    assert "| also | 1 more test of this clause failed |" in text
    assert "<summary>1 more broken clause below it</summary>" in text
    page = html(Report(broken, "py:a:B", "smoke", summary="s"))
    assert "2 broken clauses, 1 to look at" in page
    assert "<summary>1 more broken clause below it</summary>" in page
    unreached = replace(verdict(Outcome("t::a", ("4.5",), "passed", {})), selected=frozenset(["4.5"]))
    assert "ERROR no check was reached for clause 4.5\n" in shown(unreached)
    assert "- No check was reached for clause 4.5.\n" in markdown(Report(unreached, "py:a:B", "smoke", summary="s"))


def test_what_stopped_without_a_broken_clause_names_none() -> None:
    conduct = Verdict([Outcome("t::a", ("4.5",), "errored", {})], conduct=["it wrote"], stopped=True)
    assert summary(conduct) == "does not conform: bad conduct; the rest was not judged"
    assert summary(replace(verdict(failed("4.7", CALL)), conduct=["it wrote"])) == (
        "does not conform: broken 4.7 and the conduct"
    )


def test_numbers_near_a_step_of_their_notation() -> None:
    assert [folding._times(n) for n in (999.4, 999.6, 1000, 31_234)] == ["999", "1,000", "1,000", "31,200"]
    assert [short(n) for n in (99.4, 99.96, 9_999, 99_999, 123_456)] == ["99", "100", "9999", "1e5", "1e5"]


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (Diagnosis(0, 0, errors=("boom",)), ["1 kind of call failed: boom", "No output, gradient or statistic came."]),
        (
            Diagnosis(0, 1, errors=("boom", "bang")),
            ["2 kinds of calls failed, such as: boom", "The only output, gradient or statistic that came is right."],
        ),
        (
            Diagnosis(0, 2, errors=("boom",)),
            ["1 kind of call failed: boom", "All of 2 outputs, gradients and statistics that came are right."],
        ),
        (
            Diagnosis(1, 3),
            [
                "No known mistake, and no pair of them, explains the 1 of 3 outputs, gradients and statistics that is "
                "wrong."
            ],
        ),
    ],
)
def test_a_diagnosis_counts(found: Diagnosis, lines: list[str]) -> None:
    assert found.lines() == lines


@pytest.mark.parametrize(("inside", "named"), [(91, False), (94, False), (95, True), (100, True)])
def test_the_nearest_mistake_is_named_where_it_explains_a_quarter(inside: int, named: bool) -> None:
    """Of 20 wrong tensors among 110; less sends its reader to what was right."""
    nearest = diagnosis.Explanation((("eps", 1e-6),), inside, 110)
    told = "\n".join(Diagnosis(20, 110, runner_up=nearest).lines())
    assert ("The nearest, eps = 1e-06 instead of 1e-05" in told) is named
    assert (f"accounts for {inside}, right ones included." in told) is named


def test_further_lines_belong_to_the_first() -> None:
    found = verdict(failed("1.1"))
    found.troubles, found.conduct = ["it broke\nhere"], ["it wrote\nthis"]
    text = shown(found, "It failed:\nso", known=Compared({}, ["unexpected\nfailure"]))
    for lines in (
        "ERROR it broke\n      here\n",
        "FAILED conduct (PROTOCOL.md): a port ends in time, ",
        "    got       it wrote\n              this\n",
        "    It failed:\n      so\n",
        "KNOWN FAILURES unexpected\n      failure\n",
    ):
        assert lines in text


# ------------------------------------------------------------------ the matrix


def rows_of(*reports: Report) -> list[str]:
    table = matrix.markdown(reports).splitlines()[2:]
    return [row.split(" | ")[0].removeprefix("| ") for row in table if row.startswith("|")]


def test_rows_that_look_alike_are_told_apart() -> None:
    """By what differs among them, and no more; others have a plain label."""
    one = Report(verdict(), "py:a:B", "smoke", 3, started="then", versions={"torch": "2.13.0"})
    on_gpu = replace(one, verdict=replace(verdict(), subject={"device": "cuda"}))
    old = replace(one, versions={"numpy": "2.0"})
    other = replace(one, subject="py:c:D")
    mine = "`py:a:B`"
    assert rows_of(one, other) == [mine, "`py:c:D`"]
    assert rows_of(one, other, replace(one, seed=None)) == [
        f"{mine}, seed 3",
        "`py:c:D`",
        f"{mine}, the fixed examples",
    ]
    assert rows_of(one, replace(one, profile="default", started="x")) == [
        f"{mine}, profile smoke",
        f"{mine}, profile default",
    ]
    assert rows_of(one, replace(one, clauses=("4.1",))) == [f"{mine}, all clauses", f"{mine}, clause 4.1"]
    assert rows_of(one, on_gpu, replace(one, seed=4)) == [
        f"{mine}, seed 3, on cpu",
        f"{mine}, seed 3, on cuda",
        f"{mine}, seed 4, on cpu",
    ]
    assert rows_of(one, old) == [f"{mine}, torch 2.13.0", f"{mine}, without torch"]
    assert rows_of(one, replace(one, started="later")) == [
        f"{mine}, started then",
        f"{mine}, started later",
    ]
    assert rows_of(one, one) == [f"{mine}, report 1", f"{mine}, report 2"]
    page = matrix.html([one, on_gpu])
    assert "profile smoke, seed 3, on cpu<" in page
    assert "profile smoke, seed 3, on cuda<" in page
    missing = replace(one, verdict=replace(verdict(), troubles=["shard 1 of 2 is missing"]), seed=5)
    assert "- `py:a:B`, seed 5: shard 1 of 2 is missing" in matrix.markdown([one, missing])


def test_a_cell_counts() -> None:
    found = verdict(
        Outcome("t", ("8.1", "8.2"), "passed", {"8.1": 1, "8.2": 1}), replace(failed("7.1"), clauses=("7.1", "7.2"))
    )
    page = matrix.html([Report(found, "py:a:B", "smoke")])
    assert 'title="chapter 8: 2 hold, 5 not judged"' in page
    assert 'title="chapter 7: 1 broken, 14 not judged"' in page
