"""The oracle's values and bounds are those of golden/bounds: no error term changes unnoticed."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from spec_tests import golden_data
from spec_tests.meta.bound_cases import ARITHMETICS, COLUMNS, agree, named, parsed, settle, text
from spec_tests.meta.processes import environment, python
from spec_tests.oracle import alternatives

RECORDED: dict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
for (_case, _what), _row in parsed(golden_data.bounds_file()).items():
    RECORDED[_case][_what] = _row


@pytest.mark.parametrize("case", RECORDED)
def test_bounds_are_as_recorded(case: str) -> None:
    """After a change that is meant, `python tools/regenerate_golden.py --update` writes golden/bounds again."""
    rows = named(case).rows()
    assert rows.keys() == RECORDED[case].keys()
    for what, row in rows.items():
        recorded = RECORDED[case][what]
        told = [
            f"{c}: {a:.13g}, recorded {b:.13g}" for c, a, b in zip(COLUMNS[2:], row, recorded, strict=True) if a != b
        ]
        assert agree(case, row, recorded), f"{what} of the call {case!r}: {'; '.join(told)}"


@pytest.mark.parametrize("kernel", ["Prescott", "Haswell"])
def test_other_processors_find_the_same(kernel: str, tmp_path: Path) -> None:
    """With the order of summation of other processors, as OpenBLAS has it; where NumPy has another library, as here."""
    names = [name for name in RECORDED if name.startswith("float64 ")]
    code = f"from spec_tests.meta.bound_cases import named\nprint({{name: named(name).rows() for name in {names!r}}})"
    done = python("-W", "ignore", "-c", code, cwd=tmp_path, env=environment(OPENBLAS_CORETYPE=kernel))
    assert done.status == 0, done.err
    for name, rows in ast.literal_eval(done.out).items():
        for what, row in rows.items():
            assert agree(name, row, RECORDED[name][what]), f"{what} of {name}: {row}, recorded {RECORDED[name][what]}"


def test_every_arithmetic_and_rule_is_recorded() -> None:
    due = set(ARITHMETICS) | {f"{rule}={value}" for rule, value, _ in alternatives()}
    assert {name.rpartition(" ")[0] for name in RECORDED} == due


def test_a_bound_that_moves_is_told() -> None:
    rows = {(case, what): row for case, found in list(RECORDED.items())[:3] for what, row in found.items()}
    old = {"bounds.csv": text(rows)}
    near = {key: (*row[:2], *(n * (1 + 1e-12) for n in row[2:])) for key, row in rows.items()}
    assert settle(old, {"bounds.csv": text(near)}) == (old, [])
    key = next(key for key, row in rows.items() if row[3])
    new = {"bounds.csv": text(rows | {key: (*rows[key][:3], rows[key][3] * 1.0001, rows[key][4])})}
    assert settle(old, new) == (new, [f"1 of {len(rows)} rows of bounds.csv moved"])
