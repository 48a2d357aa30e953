"""Failures, outcomes and verdicts that are made up: of one clause, and any at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from spec_tests.clauses import all_clauses
from spec_tests.compare import CALL, Tensor
from spec_tests.report import heat
from spec_tests.verdict import Failure, Verdict
from spec_tests.verdict import TestOutcome as Outcome

CLAUSES = list(all_clauses())


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
