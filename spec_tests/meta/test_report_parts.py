"""What a report is made of: the folding of cascades, the terminal, heat maps, diagrams, JUnit."""

from __future__ import annotations

import io
import re
import shlex
import sys
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
from spec_tests.meta import hostile_ports
from spec_tests.outcomes import failure_of
from spec_tests.report import drawing, heat
from spec_tests.report.diagram import diagram
from spec_tests.report.files import badge
from spec_tests.report.folding import MENDING, Broken, brief, broken_clauses, causes, reason
from spec_tests.report.junit import junit
from spec_tests.report.model import Diagnosed, Report
from spec_tests.report.page import html, markdown
from spec_tests.report.terminal import ROWS, show
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Crashed
from spec_tests.verdict import Failure, Verdict
from spec_tests.verdict import TestOutcome as Outcome

CLAUSES = list(all_clauses())
HOSTILE = f"cmd:{shlex.join([sys.executable, hostile_ports.__file__, '--how', 'says-internal'])}"
MUST = [c for c in CLAUSES if all_clauses()[c].level == "MUST"]


def picture(ratio: float = 12.0) -> dict[str, Any]:
    tensor = Tensor("y", np.array([[[[1.0, 2.0]]]]), np.array([[[[1.0, 1.0]]]]), np.full((1, 1, 1, 2), 1 / ratio))
    return heat.picture(tensor)


def failed(clause: str, what: str = "a thing", got: str = "1", numbers: bool = False, **more: Any) -> Outcome:
    expected = more.pop("expected", "2")
    example = more.pop("example", "block = BlockBottleneck2d(1, 1)")
    failure = Failure(clause, what, got, expected, example, picture=picture() if numbers else None)
    test = more.pop("test", f"chapters/test_ch{int(clause.split('.', maxsplit=1)[0]):02}_x.py::test_{clause}")
    return Outcome(test, (clause,), "failed", {clause: 1}, failure, **more)


def verdict(*outcomes: Outcome) -> Verdict:
    return Verdict(list(outcomes), frozenset(CLAUSES), frozenset(CLAUSES))


WORDS = ["a thing", "another thing", CALL, "x " * 150, "names of\nthings"]
OUTCOMES = st.builds(
    failed,
    st.sampled_from(CLAUSES),
    st.sampled_from(WORDS),
    st.sampled_from(["1", "2", "no error", "<b>&\x00]]>", "y" * 390, "RuntimeError: size 3"]),
    st.booleans(),
    test=st.integers(0, 10_000).map(lambda n: f"chapters/test_ch01_x.py::test_{n}"),
)
VERDICTS = st.lists(OUTCOMES, max_size=60).map(lambda outcomes: verdict(*outcomes))


# ------------------------------------------------------------------ folding


@settings(max_examples=150, deadline=None, database=None)
@given(found=VERDICTS, explained=st.lists(st.sampled_from(CLAUSES), max_size=2))
def test_folding_loses_no_clause(found: Verdict, explained: list[str]) -> None:
    """Each broken clause is a cause or under one, once."""
    folded = [broken.clause for cause in causes(found, explained) for broken in cause.all()]
    assert sorted(folded) == sorted({o.failure.clause for o in found.failures() if o.failure})
    tests = sum(1 + broken.more for cause in causes(found, explained) for broken in cause.all())
    assert tests == len(found.failures())
    assert [c.clause for c in causes(found, unfolded=True)] == [b.clause for b in broken_clauses(found)]


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
    found = under(*[failed(c, CALL, f"RuntimeError: shape ({n}, 3)") for n, c in enumerate(("3.2", "7.10", "9.2"))])
    assert found == {"3.2": ["7.10", "9.2"]}


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
    trained = failed("5.1", "a forward call and its backward pass", "Mismatch in shape", expected="gradients")
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
