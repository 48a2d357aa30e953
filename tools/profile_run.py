"""Where a run of the suite spends its time, by samples of the stack."""

from __future__ import annotations

import signal
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import pytest

from spec_tests import chapter_run, plugin
from spec_tests.subjects import process

PACKAGE = Path(plugin.__file__).resolve().parent
REFERENCE_PACKAGE = PACKAGE.parent / "mdnc"
INTERVAL_SECONDS = 0.002
PARTS = ("subject", "pipe", "oracle", "comparison", "examples", "Hypothesis", "pytest", "other")
# The first that fits decides; what is in none of them belongs to its caller.
_PLACES = (
    (REFERENCE_PACKAGE, "subject"),
    (PACKAGE / "subjects" / "process.py", "pipe"),
    (PACKAGE / "subjects" / "wire.py", "pipe"),
    (PACKAGE / "subjects" / "stdio.py", "pipe"),
    (PACKAGE / "subjects" / "port_block.py", "pipe"),
    (PACKAGE / "subjects", "subject"),
    (PACKAGE / "oracle", "oracle"),
    (PACKAGE / "compare.py", "comparison"),
    (PACKAGE / "verdict.py", "comparison"),
    (PACKAGE, "examples"),
    *((Path(sysconfig.get_path(key)) / "torch", "subject") for key in ("purelib", "platlib")),
    (Path(sysconfig.get_path("purelib")) / "hypothesis", "Hypothesis"),
    *((Path(sysconfig.get_path("purelib")) / name, "pytest") for name in ("_pytest", "pytest", "pluggy", "xdist")),
)
# Where the pipe waits for the port: the subject's own time.
_WAITS = frozenset({"_exchange", "_wait"})


@cache
def part_of(file: str, function: str) -> str:
    """The part of the run that a function belongs to; "" of one that belongs to its caller."""
    path = Path(file)
    for place, part in _PLACES:
        if path == place or place in path.parents:
            return "subject" if path.name == Path(process.__file__).name and function in _WAITS else part
    return ""


@contextmanager
def sampled(counts: Counter[str]) -> Iterator[None]:
    """Count, every few milliseconds, the part that runs.

    Raises:
        RuntimeError: the system has no interval timer.
    """
    if not hasattr(signal, "setitimer"):
        raise RuntimeError("this system has no interval timer, by which the run is sampled")

    def look(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if part := part_of(frame.f_code.co_filename, frame.f_code.co_name):
                counts[part] += 1
                return
            frame = frame.f_back
        counts["other"] += 1

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, INTERVAL_SECONDS, INTERVAL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Durations:
    """A pytest plugin: the seconds of each test, and the clauses that it judges."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.clauses: set[str] = set()

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        for mark in item.iter_markers("clause"):
            self.clauses.update(map(str, mark.args))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def arguments(subject: str, profile: str, clauses: Sequence[str] = ()) -> list[str]:
    """Those of pytest for a quiet run of the chapters in this process."""
    return [
        *chapter_run.arguments(),
        *("--subject", subject, "--profile", profile),
        *(word for clause in clauses for word in ("--clause", clause)),
    ]


def judged(subject: str, profile: str, clauses: Sequence[str] = ()) -> Durations:
    """Run the tests of `clauses`, all of them if there are none, on a subject that conforms.

    Raises:
        RuntimeError: it does not conform, so that its time says nothing.
    """
    durations = Durations()
    chapter_run.ignore_own_setup()
    ended = pytest.main(arguments(subject, profile, clauses), plugins=[durations])
    if ended != pytest.ExitCode.OK:
        raise RuntimeError(f"{subject} does not conform (pytest ended with {ended}), so that its time says nothing")
    return durations


def shares(subject: str, profile: str) -> dict[str, float]:
    """The share of each part in a whole run; `PARTS` in this order, without those that take nothing."""
    counts: Counter[str] = Counter()
    with sampled(counts):
        judged(subject, profile)
    total = sum(counts.values())
    if total < 100:
        raise RuntimeError(f"{total} samples of {sys.executable}: too few for shares")
    return {part: counts[part] / total for part in PARTS if counts[part]}
