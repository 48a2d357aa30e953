"""Calls of the oracle, and their values and bounds in a few numbers each: golden/bounds records them.

Every error term of the oracle is derived where it stands. These records notice when one of them changes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from spec_tests.generators import INPUT_KINDS, STATE_KINDS, draw_case, draw_input, draw_state, representable
from spec_tests.oracle import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT32_STRICT,
    FLOAT64,
    SPEC,
    TF32,
    Arith,
    Bounded,
    NotApplicable,
    Rules,
    alternatives,
    forward,
    vjp,
)

FILE = "bounds.csv"
COLUMNS = ("case", "what", "elements", "unclaimed", "values", "bounds", "largest")
# What bounds may differ by from one machine to another: sums of some thousand doubles above 0, in any order.
RELATIVE = 1e-11
ARITHMETICS = {a.name: a for a in (FLOAT32, FLOAT32_STRICT, FLOAT64, BFLOAT16, FLOAT16, TF32)}
FORMS = {BFLOAT16.name: "bfloat16", FLOAT16.name: "float16", FLOAT64.name: "float64"}
CALLS = 40
# Seeds among which a call is looked for that an alternative rule changes, and the calls that are recorded.
TRIED, RECORDED = 300, 3


@dataclass(frozen=True)
class Case:
    """A call drawn from a seed, in an arithmetic and under rules."""

    name: str
    seed: int
    arith: Arith = FLOAT32
    rules: Rules = SPEC

    def rows(self) -> dict[str, tuple[float, ...]]:
        """Of the output, its gradients and the statistics: elements, unclaimed, and sums (see COLUMNS).

        Raises:
            NotApplicable: the rules do not apply to the call.
        """
        return {what: summed(tensors) for what, tensors in self.results().items()}

    def results(self) -> dict[str, Mapping[str, Bounded]]:
        """The tensors that `rows` sums up. Raises NotApplicable."""
        rng = np.random.default_rng([self.seed, 26])
        config, shape = draw_case(rng)
        form = FORMS.get(self.arith.name, "float32")
        kinds = [list(found)[self.seed % len(found)] for found in (STATE_KINDS, INPUT_KINDS)]
        state, x = draw_state(config, rng, kinds[0], form), draw_input(config, shape, rng, kinds[1], form)
        if self.seed % 8 == 7:
            x.flat[self.seed % x.size] = (np.nan, np.inf, -np.inf)[self.seed % 3]
        if self.seed % 8 == 4:
            x = representable(x * (2.0**4 if form == "float16" else 2.0**56), form)
        run = forward(config, state, x, training=self.seed % 3 != 0, arith=self.arith, rules=self.rules)
        # Small and large gradients show what may be flushed to zero, and what may overflow.
        low, high = (-20, 12) if form == "float16" else (-130, 116 + 2 * (self.seed // 8 % 4))
        scale = {5: 2.0**low, 6: 2.0**high}.get(self.seed % 8, 1.0)
        back = vjp(run, representable(rng.standard_normal(run.y.shape) * scale, form))
        return {"y": {"y": run.y}, "dx": {"dx": back.dx}, "parameters": back.params, "statistics": run.stats}


def summed(tensors: Mapping[str, Bounded]) -> tuple[float, ...]:
    """Elements, those without a claim, and of the others: sum of |value|, sum of the bounds, the largest bound."""
    values = np.concatenate([np.ravel(t.value) for t in tensors.values()] or [np.zeros(0)])
    bounds = np.concatenate([np.ravel(t.bound) for t in tensors.values()] or [np.zeros(0)])
    claimed = np.isfinite(bounds) & np.isfinite(values)
    size, bound = np.abs(values[claimed]), bounds[claimed]
    return len(values), len(values) - int(claimed.sum()), math.fsum(size), math.fsum(bound), float(bound.max(initial=0))


def applies(case: Case) -> bool:
    """Whether the rules of the case apply to its call, and change something in it."""
    try:
        changed, plain = case.results(), Case("", case.seed).results()
    except NotApplicable:
        return False
    if {what: summed(tensors) for what, tensors in changed.items()} != {w: summed(t) for w, t in plain.items()}:
        return True
    # A sign does not show in the sums.
    pairs = [(t.value, plain[what][name].value) for what, some in changed.items() for name, t in some.items()]
    return not all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)


def named(name: str) -> Case:
    """The case of this name. Raises KeyError."""
    what, _, seed = name.rpartition(" ")
    if what in ARITHMETICS:
        return Case(name, int(seed), ARITHMETICS[what])
    return Case(name, int(seed), FLOAT32, {f"{rule}={value}": rules for rule, value, rules in alternatives()}[what])


def cases() -> Iterator[Case]:
    """Every arithmetic on the same calls, and every alternative rule on calls that it changes."""
    for name, arith in ARITHMETICS.items():
        for seed in range(CALLS):
            yield Case(f"{name} {seed:02}", seed, arith)
    for name, value, rules in alternatives():
        found = (seed for seed in range(TRIED) if applies(Case("", seed, FLOAT32, rules)))
        for seed, _ in zip(found, range(RECORDED), strict=False):
            yield Case(f"{name}={value} {seed:02}", seed, FLOAT32, rules)


def text(rows: Mapping[tuple[str, str], tuple[float, ...]]) -> bytes:
    """The rows as a CSV file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (case, what), numbers in rows.items():
        writer.writerow([case, what, *(f"{number:.13g}" for number in numbers)])
    return file.getvalue().encode()


def parsed(content: bytes) -> dict[tuple[str, str], tuple[float, ...]]:
    """The rows of such a file. Raises ValueError and KeyError on another one."""
    rows = csv.DictReader(io.StringIO(content.decode()))
    return {(r["case"], r["what"]): tuple(float(r[column]) for column in COLUMNS[2:]) for r in rows}


def generate(wanted: str) -> dict[str, bytes]:
    """The file, if `wanted` is in its name."""
    if wanted not in FILE:
        return {}
    return {FILE: text({(case.name, what): row for case in cases() for what, row in case.rows().items()})}


def settle(old: Mapping[str, bytes], new: dict[str, bytes]) -> tuple[dict[str, bytes], list[str]]:
    """The file on disk in place of the generated one if they agree, and what to tell."""
    if FILE not in old or FILE not in new:
        return new, []
    before, after = parsed(old[FILE]), parsed(new[FILE])
    moved = [key for key in before.keys() & after.keys() if not agree(key[0], before[key], after[key])]
    if before.keys() == after.keys() and not moved:
        return {FILE: old[FILE]}, []
    return new, [f"{len(moved)} of {len(after)} rows of {FILE} moved"]


def agree(name: str, one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    """Whether two rows of a case are the same but for the roundings of the machine that computed them.

    The oracle computes in float64, so that a value of its own is off by at most its bound times the ratio of the
    unit roundoffs; two machines may differ by twice that.
    """
    noise = 2 * 2.0**-53 / ARITHMETICS.get(name.rpartition(" ")[0], FLOAT32).u
    (*counts, values, bounds, largest), (*other_counts, other_values, other_bounds, other_largest) = one, two
    return (
        counts == other_counts
        and math.isclose(values, other_values, rel_tol=RELATIVE, abs_tol=noise * bounds)
        and math.isclose(bounds, other_bounds, rel_tol=RELATIVE)
        and math.isclose(largest, other_largest, rel_tol=RELATIVE)
    )
