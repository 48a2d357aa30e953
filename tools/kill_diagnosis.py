"""How often the diagnosis names the right mistake: of every fault that is a rule, as a block, as a port, and in pairs.

A block is the catalogue's, also with products in TF32, a port the NumPy port with the fault in its text. Of a pair,
the subject computes by the oracle with both rules changed, since two faults of the catalogue need not fit into one
block.
"""

from __future__ import annotations

import multiprocessing
import random
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import nn

from spec_tests.diagnosis import SECONDS, diagnose, diagnose_designator
from spec_tests.evidence import Change, examples, predict
from spec_tests.faults import catalogue
from spec_tests.faults.arithmetic import tf32
from spec_tests.faults.blocks import block
from spec_tests.faults.engines import convolutions, instead
from spec_tests.faults.entry import Fault
from spec_tests.faults.port_patches import PATCHES
from spec_tests.meta.rule_subject import RuleSubject
from spec_tests.oracle import SPEC, NotApplicable, alternatives, judge
from spec_tests.subjects.in_process import TorchSubject

# The pairs are drawn from this seed.
SEED, PAIRS, EXAMPLES = 5, 60, 48
KINDS = {"block": "torch blocks", "coarse": "torch blocks in TF32", "port": "ports", "pair": "pairs of rules"}
DUE = {"block": 0.95, "coarse": 0.95, "port": 0.95, "pair": 0.8}


@dataclass(frozen=True)
class Case:
    """A subject whose mistakes are known: `kind` is a key of KINDS."""

    kind: str
    name: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Found:
    """What was said of a case: the changes of each explanation, whether it was certain, and the seconds it took."""

    explanations: tuple[tuple[Change, ...], ...]
    certain: bool
    seconds: float


def cases(entries: Mapping[str, Fault]) -> Iterator[Case]:
    rules = {name: entry.rules for name, entry in entries.items() if entry.rules is not None}
    for kind in ("block", "coarse", "port"):
        yield from (Case(kind, name, (r,)) for name, r in rules.items() if kind != "port" or name in PATCHES)
    if len(entries) < len(catalogue.everything()):
        return
    draw, changes = random.Random(SEED), [(name, value) for name, value, _ in alternatives()]
    pairs: dict[tuple[Change, ...], None] = {}
    while len(pairs) < PAIRS:
        one, two = draw.sample(changes, 2)
        if one[0] != two[0] and (two, one) not in pairs and _both_show(one, two):
            pairs[one, two] = None
    yield from (Case("pair", " and ".join(f"{name} = {value!r}" for name, value in pair), pair) for pair in pairs)


def _both_show(one: Change, two: Change) -> bool:
    """Whether the examples tell the pair from each of its rules alone; of others, one may stand for both."""
    for alone in (one, two):
        differs = False
        for numeric in islice(examples(RuleSubject(SPEC)), EXAMPLES):
            try:
                together = predict(numeric, replace(SPEC, **dict((one, two))), gradients=True)
                single = predict(numeric, replace(SPEC, **dict((alone,))), gradients=True)
            except NotApplicable:
                continue
            differs = any(not judge(together[name].value, single[name]).ok for name in single)
            if differs:
                break
        if not differs:
            return False
    return True


def examine(case: Case) -> Found:
    """Diagnose a case, as the end of a failing run would."""
    begin = time.perf_counter()
    if case.kind == "pair":
        diagnosis = diagnose(RuleSubject(replace(SPEC, **dict(case.changes))), SECONDS)
    elif case.kind == "coarse":
        diagnosis = diagnose(TorchSubject(case.name, partial(_coarse, case.name)), SECONDS)
    else:
        port = shlex.join([sys.executable, "-m", "spec_tests.faults.port", "--fault", case.name])
        designator = f"cmd:{port}" if case.kind == "port" else f"py:spec_tests.faults.blocks:{case.name}"
        diagnosis = diagnose_designator(designator, "", SECONDS)
    named = tuple(explanation.changes for explanation in diagnosis.explanations)
    return Found(named, diagnosis.certain and not diagnosis.forward, time.perf_counter() - begin)


def _coarse(name: str, *arguments: Any, **named: Any) -> nn.Module:
    """A block of the catalogue; the convolutions that compute as torch does round their factors to TF32."""
    found = block(name)(*arguments, **named)
    instead((layer for layer in convolutions(found) if "forward" not in vars(layer)), tf32)
    return found


def measure(entries: Mapping[str, Fault], jobs: int, console: Console) -> list[str]:
    """Diagnose all cases, print the shares, and return what is not as it must be."""
    todo = list(cases(entries))
    results: dict[Case, Found] = {}
    context: Any = multiprocessing.get_context("fork")
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
    ):
        bar = progress.add_task("diagnoses", total=len(todo))
        for future in as_completed(waiting := {pool.submit(examine, case): case for case in todo}):
            results[waiting[future]] = future.result()
            progress.update(bar, advance=1, description=waiting[future].name[:40])
            if not console.is_terminal and len(results) % max(len(todo) // 10, 1) == 0:
                console.print(f"{len(results)} of {len(todo)} diagnoses")
    problems: list[str] = []
    for kind in KINDS:
        problems += _judge(kind, {case: results[case] for case in todo if case.kind == kind}, console)
    return problems


def _judge(kind: str, results: Mapping[Case, Found], console: Console) -> list[str]:
    if not results:
        return []
    missed = [case for case, found in results.items() if not _first(case, found.explanations)]
    wrong = [c for c, found in results.items() if found.certain and not _first(c, found.explanations)]
    certain = sum(found.certain for found in results.values())
    seconds = [found.seconds for found in results.values()]
    console.print(
        f"{KINDS[kind]}: {len(results) - len(missed)} of {len(results)} named first, {certain} of them with certainty, "
        f"{len(wrong)} wrong with certainty; seconds median {median(seconds):.1f}, worst {max(seconds):.1f}"
    )
    for case in missed:
        said = results[case].explanations
        told = "; or ".join(" and ".join(f"{n} = {v!r}" for n, v in changes) for changes in said) or "nothing"
        console.print(f"    not named: {case.name}; said was {told}", markup=False)
    problems = [f"WRONG {kind} {case.name}: another mistake is stated as certain" for case in wrong]
    if len(missed) > (1 - DUE[kind]) * len(results):
        problems.append(f"TOO FEW {KINDS[kind]}: at least {DUE[kind]:.0%} must be named first")
    return problems


def _first(case: Case, explanations: Sequence[tuple[Change, ...]]) -> bool:
    return bool(explanations) and set(explanations[0]) == set(case.changes)
