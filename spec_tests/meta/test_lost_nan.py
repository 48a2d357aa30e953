"""Where a NaN is lost is named, and nothing is said of who loses none."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from spec_tests import lost_nan
from spec_tests.diagnosis import Diagnosis, diagnose
from spec_tests.lost_nan import HABITS, Lost
from spec_tests.meta.processes import REFERENCE, ROOT, mdnc_spec, run_arguments
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Subject

PORT = ROOT / "spec_tests" / "ports" / "python" / "numpy_port.py"
BLOCKS = "py:spec_tests.faults.blocks"
SECONDS = 600.0
NAMED: dict[str, Lost] = {
    "relu_of_nan_is_0": "relu",
    "prelu_of_nan_is_0": "prelu",
    "activations_of_nan_are_0": "activation",
    "nan_left_out_of_norms": "statistics",
    "weights_of_0_are_skipped": "weight",
    "nan_removed": "input",
}


def ported(*arguments: str) -> Subject:
    return load_subject(f"cmd:{shlex.join([sys.executable, *arguments])}")


def test_every_habit_is_that_of_a_fault() -> None:
    assert {*NAMED.values()} == {*HABITS}


@pytest.mark.parametrize("name", NAMED)
def test_the_layer_that_loses_it_is_named(name: str) -> None:
    pytest.importorskip("torch")
    found = lost_nan.find(load_subject(f"{BLOCKS}:{name}"), SECONDS)
    assert found is not None
    assert found.explanations == (HABITS[NAMED[name]],)
    assert 0 < found.wrong <= found.due


@pytest.mark.parametrize("name", ["relu_of_nan_is_0", "prelu_of_nan_is_0", "activations_of_nan_are_0"])
def test_of_a_port_too(name: str) -> None:
    subject = ported("-m", "spec_tests.faults.port", "--fault", name)
    try:
        found = diagnose(subject, SECONDS, first=8)
    finally:
        subject.close()
    assert not found.healthy
    first, second = found.lines()
    assert first == f"It behaves exactly like {HABITS[NAMED[name]].words}, {HABITS[NAMED[name]].clause}."
    assert second.endswith("are numbers.")


@pytest.mark.parametrize("subject", ["", REFERENCE, f"{BLOCKS}:prelu_by_parts", f"{BLOCKS}:unfold_and_matmul"])
def test_of_who_loses_none_nothing_is_said(subject: str) -> None:
    if subject:
        pytest.importorskip("torch")
    loaded = load_subject(subject) if subject else ported(str(PORT))
    try:
        assert lost_nan.find(loaded, SECONDS) is None
    finally:
        loaded.close()


def test_what_no_habit_explains_is_counted() -> None:
    mdnc = pytest.importorskip("mdnc")
    from spec_tests.subjects.in_process import TorchSubject

    class Healed(mdnc.modules.resnet.BlockBottleneck2d):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            y = super().forward(x).clone()
            y[..., 0] = y[..., 0].nan_to_num()
            return y

    found = lost_nan.find(TorchSubject("a block", Healed), SECONDS)
    assert found is not None
    assert found.explanations == ()
    (line,) = found.lines()
    assert line.startswith("No known mistake explains where a NaN is lost: of ")


def test_no_more_is_asked_than_there_is_time_for() -> None:
    asked = []

    class Slow(Subject):
        designator, features = "slow", frozenset[str]()

        def build(self, *arguments: Any, **named: Any) -> Any:  # noqa: ARG002
            asked.append(arguments)
            return self

        def forward(self, *_: Any) -> Any:
            return np.zeros((1, 1, 1, 1))

        def load(self, *_: Any) -> None: ...

    assert lost_nan.find(Slow(), 0.0) is None
    assert len(asked) == lost_nan.FEWEST


def test_what_cannot_be_told_apart_is_listed() -> None:
    found = lost_nan.LostNaN(3, 9, (HABITS["relu"], HABITS["input"]))
    lines = Diagnosis(0, 12, lost=found).lines()
    assert len(lines) == 4
    assert lines[1:3] == [f"- {habit.words}, {habit.clause}" for habit in found.explanations]
    assert "of 9 elements of the outputs that should be NaN" in lines[3]


def test_what_nan_explains_is_not_all_that_failed(tmp_path: Path) -> None:
    """Where other numbers are wrong that the diagnosis did not meet, it does not claim them."""
    pytest.importorskip("torch")
    code = """
        from spec_tests.faults.blocks import relu_of_nan_is_0

        class Both(relu_of_nan_is_0):
            def forward(self, x):
                y = super().forward(x)
                return 1.01 * y if self.in_planes == 1 else y
        """
    (tmp_path / "both.py").write_text(dedent(code), encoding="utf-8")
    ended = mdnc_spec(*run_arguments("py:both:Both", "--clause", "4"), cwd=tmp_path)
    assert ended.status == 1
    told = ended.out.partition("DIAGNOSIS\n")[2].splitlines()
    assert told[0].startswith("    No known mistake explains the other numbers: ")
    assert told[1] == "    As for NaN:"
    assert told[2].startswith(f"    It behaves exactly like {HABITS['relu'].words}"[:60])
