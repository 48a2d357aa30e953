"""The code of a failing example, pasted: it does the same call and gives the very number of the verdict."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from spec_tests.chapters.test_ch09_histories import History
from spec_tests.compare import CALL, SUBJECT, NonConformance
from spec_tests.config import BlockConfig
from spec_tests.meta.processes import mdnc_spec_many
from spec_tests.numeric import Numeric
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Crashed

pytest.importorskip("torch")
# After a backward pass it can be copied no more.
KEEPS = "py:spec_tests.meta.odd_blocks:KeepsItsOutput"
# A wrong block, and a clause that it breaks: by an edited state, an edited input, several calls, gradients, a vector.
RUNS = [
    ("up_half_pixel", "4.14"),
    ("nan_removed", "4.22"),
    ("bfloat16_statistics", "4.1"),
    ("slope_gradient_averaged", "5.5"),
    ("statistics_updated_before_use", "6.8"),
    ("first_call_taken_whole", "6.6"),
    ("momentum_follows_the_calls", "6.6"),
    ("output_cached", "9.8"),
    ("fifth_call_differs", "9.8"),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The reports of all runs, made in one process."""
    folder = tmp_path_factory.mktemp("reports")
    runs = [
        f"run --subject py:spec_tests.faults.blocks:{name} --clause {clause} --profile smoke --report {name}".split()
        for name, clause in RUNS
    ]
    mdnc_spec_many(runs, cwd=folder)
    return {name: json.loads((folder / name / "report.json").read_text(encoding="utf-8")) for name, _ in RUNS}


def looked_at(names: dict[str, Any], what: str) -> Any:
    """What the pasted code left behind of the thing that the verdict looked at."""
    what = what.partition(", by test vector")[0]
    if what.startswith("the output"):
        return names["y"]
    if what == "the gradient of the input":
        return names["gradients"].dx
    if what.startswith("the gradient of "):
        return names["gradients"].params[what.removeprefix("the gradient of ")]
    return names.get("fresh", names["block"]).state()[what.split()[0]]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "clause"), RUNS)
def test_the_code_gives_what_was_got(reports: dict[str, Any], name: str, clause: str) -> None:
    found = [outcome["failure"] for outcome in reports[name]["outcomes"] if outcome["status"] == "failed"]
    failures = [failure for failure in found if failure["clause"] == clause]
    assert failures
    compared = 0
    for failure in failures:
        assert f"load_subject('py:spec_tests.faults.blocks:{name}')" in failure["example"]
        names: dict[str, Any] = {}
        exec(compile(failure["example"], failure["what"], "exec"), names)  # noqa: S102 -- code is what is tested
        got = re.match(r"(\S+) at (\[[0-9, ]*\])", failure["got"])
        if got:
            number = looked_at(names, failure["what"])[tuple(json.loads(got[2]))]
            np.testing.assert_equal(float(number), float(got[1]), failure["example"])
            compared += 1
    assert compared


@pytest.mark.parametrize("step", ["copy", "convert_there_and_back", "forward_in_float64"])
def test_the_code_of_a_step_that_fails_has_those_before_it(step: str) -> None:
    """Which it needs to fail: a new block can be copied."""
    machine = type("Machine", (History,), {"subject": load_subject(KEEPS), "normalizer": "batch"})()
    machine.numeric = Numeric(BlockConfig.of(1, 2, normalizer="batch"), (2, 1, 4, 5))
    machine.block = machine.numeric.built(machine.subject)
    machine.forward(0, True)
    machine.copy()
    machine.backward(0, True)
    with pytest.raises(NonConformance) as told:
        getattr(machine, step)(**({"seed": 1, "training": False} if step == "forward_in_float64" else {}))
    assert (told.value.clause, told.value.what) == ("9.8", CALL)
    code = told.value.example.replace(SUBJECT[0], f"load_subject({KEEPS!r})")
    with pytest.raises(Crashed) as crash:
        exec(compile(code, step, "exec"), {})  # noqa: S102 -- as above
    assert crash.value.error == told.value.got
    assert "the deepcopy protocol" in told.value.got
