"""What a report is made of: the terminal, heat maps, diagrams, JUnit."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from spec_tests.clauses import all_clauses
from spec_tests.compare import CALL, Tensor
from spec_tests.config import BlockConfig
from spec_tests.meta.made_verdicts import CLAUSES, VERDICTS, failed, picture, verdict
from spec_tests.report import drawing, heat
from spec_tests.report.diagram import diagram
from spec_tests.report.files import badge
from spec_tests.report.folding import brief, causes, reason
from spec_tests.report.junit import junit
from spec_tests.report.model import Diagnosed, Report
from spec_tests.report.page import html, markdown
from spec_tests.report.terminal import ROWS, show
from spec_tests.verdict import Failure, Verdict
from spec_tests.verdict import TestOutcome as Outcome

# ------------------------------------------------------------------ the terminal


@settings(max_examples=60, deadline=None, database=None)
@given(found=VERDICTS, certain=st.booleans(), lines=st.integers(0, 6))
def test_the_terminal_tells_every_clause_and_no_cause_fills_a_screen(found: Verdict, certain: bool, lines: int) -> None:
    out = io.StringIO()
    explained = ("4.5",) if certain else ()
    show(found, "py:a:B", Console(file=out, width=80), ["A line."] * lines, explained=explained)
    text = out.getvalue()
    broken = {o.failure.clause for o in found.failures() if o.failure}
    blocks = re.split(r"^(?=FAILED |ADVICE )", text, flags=re.MULTILINE)
    assert len(blocks) - 1 == len(causes(found, explained))
    told = re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", "".join(blocks[1:]))
    assert broken <= set(told)
    for block in blocks[1:]:
        rows = sum(-(-len(line) // 80) or 1 for line in re.split(r"\n\n|\nERROR ", block)[0].splitlines())
        assert rows <= ROWS, block


def test_the_terminal_names_what_does_not_apply() -> None:
    """Not where a whole chapter does not: its line says so."""
    chapter = [c for c in all_clauses() if c.startswith("8.")]
    absent = [
        Outcome(f"t::{clause}", (clause,), "inapplicable", missing="module", inapplicable=(clause,))
        for clause in ("1.13", "9.5", *chapter)
    ]
    out = io.StringIO()
    show(verdict(*absent), "cmd:p", Console(file=out, width=80))
    text = out.getvalue()
    assert "\nnot applicable to this kind of subject: 1.13, 9.5\n" in text
    assert f"\n 8 Summary                   0 of {len(chapter)} clauses hold, {len(chapter)} not applicable\n" in text


@pytest.mark.parametrize(
    ("got", "value", "words"),
    [
        (np.nan, 1.0, "not finite (NaN or infinite)"),
        (-np.inf, 1.0, "not finite (NaN or infinite)"),
        (1.0, np.nan, "finite and must not be"),
    ],
)
def test_what_is_no_number_is_no_multiple_of_a_bound(got: float, value: float, words: str) -> None:
    tensor = Tensor("y", np.full((1, 1, 2, 2), got), np.full((1, 1, 2, 2), value), np.zeros((1, 1, 2, 2)))
    outcome = failed("4.5", "the output")
    object.__setattr__(outcome.failure, "picture", heat.picture(tensor))
    assert outcome.failure
    assert reason(outcome.failure) == f"The worst element is {words}; every element is outside the bounds."
    assert brief(outcome.failure) == f"the output: {words}"
    page = html(Report(verdict(outcome), "py:a:B", "smoke", summary="s"))
    assert "<span>not finite, or far outside the bound</span>" in page
    assert "<title>4.5: not finite, or far outside the bound, broken</title>" in page
    assert "height × width; ∞ is not finite, or far outside</figcaption>" in page
    assert "1e+12" not in page


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (failed("4.5", "the output", numbers=True), "The worst error is 12 times what rounding explains; 50.0% of"),
        (failed("4.5", CALL), "A call that must succeed ended in an error."),
        (failed("3.14", "a call", "refused: no", expected="no refusal"), "It is refused and must be taken."),
        (failed("1.15", "True for a stride", "no error"), "It is accepted and must be refused."),
        (failed("2.5", "bias of conv1"), "Bias of conv1: got 1, must be 2."),
        (failed("2.5", "names", "x" * 200), "Not as it must be: names."),
    ],
)
def test_reasons(failure: Outcome, words: str) -> None:
    assert failure.failure
    sentence = reason(failure.failure)
    assert sentence.startswith(words)
    assert sentence.endswith(".")


# ------------------------------------------------------------------ any verdict makes whole files


@settings(max_examples=15, deadline=None, database=None)
@given(found=VERDICTS)
def test_any_verdict_is_written(found: Verdict) -> None:
    report = Report(found, "py:<script>:B|`", "smoke", diagnosis=Diagnosed(("<b>", "`x`")), summary="s")
    root = ET.fromstring(junit(report))
    assert int(root.get("tests", "")) == len(root.findall(".//testcase"))
    assert len(root.findall(".//testcase[@classname='chapters.test_ch01_x']")) == len(found.outcomes)
    page = html(report)
    assert "<script>:" not in page
    assert len(page.encode()) < 1_000_000
    for clause in {o.failure.clause for o in found.failures() if o.failure}:
        assert f">{clause}<" in page
        assert clause in markdown(report)
    assert '"schemaVersion": 1' in badge(report)


def test_no_junit_of_a_run_that_did_not_hold_is_green() -> None:
    """What makes the status is there, though every test passed."""
    passed = Outcome("chapters/test_ch01_x.py::test_1", ("1.1",), "passed", {"1.1": 1})
    held = Verdict([passed], frozenset(["1.1", "1.2"]), frozenset(["1.1"]))
    unreached = replace(held, selected=frozenset(["1.1", "1.2"]))
    differs = replace(Report(held, "py:a:B", "smoke"), differences=("no longer fails, line 3: test_1",), status=1)
    for report, counts in (
        (Report(held, "py:a:B", "smoke"), ("0", "0")),
        (differs, ("1", "0")),
        (Report(unreached, "py:a:B", "smoke"), ("0", "1")),
        (Report(replace(held, interrupted=True), "py:a:B", "smoke"), ("0", "1")),
        (Report(replace(held, troubles=["shard 2 of 2 is missing"]), "py:a:B", "smoke"), ("0", "1")),
        (Report(replace(held, conduct=["it had to be killed"]), "py:a:B", "smoke"), ("1", "0")),
    ):
        root = ET.fromstring(junit(report))
        assert (root.get("failures"), root.get("errors")) == counts, report
        assert (counts == ("0", "0")) == (report.exit_status == 0)


def test_a_page_of_every_clause_broken_is_small() -> None:
    rng = np.random.default_rng(0)
    value = np.zeros((8, 16, 200, 200))
    large = heat.picture(Tensor("y", 10.0 ** rng.integers(-3, 9, value.shape), value, value + 1))
    outcomes = [failed(c, f"thing {c}", f"got {c}" * 40) for c in CLAUSES]
    for outcome in outcomes:
        object.__setattr__(outcome.failure, "picture", large)
        object.__setattr__(outcome.failure, "arguments", BlockConfig(4, 8, (3, 3), (2, 2)).arguments())
    page = html(Report(verdict(*outcomes), "py:a:B", "smoke", diagnosis=Diagnosed(("x",))))
    assert len(page.encode()) < 1_000_000
    assert page.count('<figure class="heat">') > 3


# ------------------------------------------------------------------ heat maps


def test_a_large_tensor_is_pooled() -> None:
    got = np.zeros((3, 5, 70, 40))
    got[2, 3, 69, 39] = 7.0
    got[1, 1, 0, 0] = np.nan
    bound = np.ones_like(got)
    bound[0] = np.inf
    found = heat.picture(Tensor("y", got, np.zeros_like(got), bound))
    top, first, second = found["maps"]
    assert top["shape"] == [3, 5]
    assert top["rows"][0] == [None] * 5
    assert top["rows"][2][3] == 7.0
    assert first["index"] == [1, 1]
    assert first["rows"][0][0] == heat.MOST
    assert second["index"] == [2, 3]
    assert second["pooled"] == [3, 2]
    assert (len(second["rows"]), len(second["rows"][0])) == (24, 20)
    assert second["rows"][-1][-1] == 7.0
    assert found["worst"] == {"index": [1, 1, 0, 0], "ratio": heat.MOST, "got": None, "value": 0.0, "bound": 1.0}
    assert found["outside"] == pytest.approx(2 / got.size)
    maps = [drawing.heat_map(data, found["axes"]) for data in found["maps"]]
    assert [m.caption for m in maps] == [
        "sample × channel, the largest of each",
        "sample 1, channel 1: height × width",
        "sample 2, channel 3: height × width",
    ]


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 3), (2, 3, 1, 1), (4, 0, 2, 2)])
def test_tensors_of_any_shape(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        return
    got = np.full(shape, 3.0, np.float32)
    found = heat.picture(Tensor("conv1.0.weight", got, np.zeros(shape), np.ones(shape)))
    assert found["worst"]["ratio"] == 3.0
    assert found["outside"] == 1.0
    assert [drawing.heat_map(data, found["axes"]).rows for data in found["maps"]]


def test_the_plot_ends_at_the_bound_where_all_is_within() -> None:
    facts: dict[str, dict[str, Any]] = {
        "4.1": {"ratio": 0.5, "status": "passed"},
        "4.2": {"ratio": None, "status": "passed"},
    }
    found = drawing.plot(facts)
    assert [(dot.clause, dot.x) for dot in found.dots] == [("4.1", 50.0)]
    assert found.edge == 100.0
    found = drawing.plot({**facts, "4.10": {"ratio": 1e12, "status": "failed"}})
    assert [dot.clause for dot in found.dots] == ["4.1", "4.10"]
    assert found.dots[1].x == 100.0
    assert found.edge < 100.0


# ------------------------------------------------------------------ diagrams


def marked(failure: Failure, lines: tuple[str, ...] = (), **changes: Any) -> dict[str, str]:
    found = diagram(failure, lines, tuple(changes.items()))
    assert found
    boxes = {box.name: box.mark for _, boxes in found.branches for box in boxes if box.mark}
    return boxes | ({"+": found.addition} if found.addition else {})


def numeric(suspects: tuple[str, ...] = (), **arguments: Any) -> Failure:
    told = heat.plain_arguments({"in_planes": 2, "out_planes": 3, **arguments})
    return Failure("4.1", "the output", "1", "2", "", told, suspects, picture())


def test_the_layers_that_a_diagnosis_changes_are_guilty() -> None:
    assert marked(numeric(), eps_conv2=1e-3) == {"conv2.0": "guilty"}
    assert marked(numeric(layer_order="old"), eps=1e-3) == dict.fromkeys(
        ("conv1.1", "conv2.1", "conv3.1", "in_node.1"), "guilty"
    )
    assert marked(numeric(stride=2), dilation=2) == {"conv2.2": "guilty"}
    assert marked(numeric(), shortcut_weight=0.5) == {"+": "guilty"}
    assert set(marked(numeric(stride=2, scaler="up"), shortcut_weight=0.5, interpolation="half_pixel")) == {
        "+",
        "conv2.2",
        "in_node.0",
    }
    assert marked(numeric(normalizer="null"), eps=1e-3) == {}
    assert set(marked(numeric(), new_order="act norm conv").values()) == {"guilty"}
    assert set(marked(numeric(), shortcut_norm=False)) == {"in_node.1"}


def test_the_layers_that_words_name_are_guilty() -> None:
    first = "The first layer of the residual branch at which it leaves the bound: conv2.1 (act)."
    assert marked(numeric(), (first,)) == {"conv2.1": "guilty"}
    # The same name is another layer here.
    assert marked(numeric(layer_order="old"), (first,)) == {}
    between = "The error enters between conv1.0, whose running statistics are right, and conv2.0, whose are wrong."
    assert set(marked(numeric(), (between,))) == {"conv1.1", "conv1.2", "conv2.0"}
    structure = Failure("2.21", "shape of the weight of conv3.2", "1", "2", "", numeric().arguments)
    assert marked(structure) == {"conv3.2": "guilty"}
    assert marked(numeric(("conv1.0", "conv1.1"))) == {"conv1.0": "suspect", "conv1.1": "suspect"}


def test_no_diagram_of_what_is_no_block() -> None:
    assert diagram(Failure("1.2", "a", "b", "c", "")) is None
    assert heat.plain_arguments({"in_planes": 0, "out_planes": 1}) is None
    assert heat.plain_arguments({}) is None
