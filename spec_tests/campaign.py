"""New examples until a time is spent: after a whole run, rounds of the tests that draw, each from another seed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from spec_tests.collector import Collector

# Behind a whole run, many short rounds end closer to the time than a few long ones.
ROUND = "default"


def run(
    arguments: Sequence[str], plugins: Sequence[object], collector: Collector, profile: str, seed: int, seconds: float
) -> tuple[int | pytest.ExitCode, int, int]:
    """Run the tests of pytest's `arguments`, then rounds; `seconds` include the first run, which is always whole.

    Returns how pytest ended, the number of rounds, and the seed of the last one, which is the one that failed if one
    did. All outcomes are added up in `collector`.
    """
    until, rounds = time.time() + seconds, 0
    ended = pytest.main([*arguments, "--profile", profile, "--seed", str(seed)], plugins=list(plugins))
    while ended == pytest.ExitCode.OK and not _over(collector) and time.time() < until:
        rounds, seed = rounds + 1, seed + 1
        more = ("--profile", ROUND, "--seed", str(seed), "--drawn", "--until", repr(until))
        ended = pytest.main([*arguments, *more], plugins=list(plugins))
        # Of the last round, no test may be left that had time.
        if ended == pytest.ExitCode.NO_TESTS_COLLECTED:
            ended = pytest.ExitCode.OK
    return ended, rounds, seed


def _over(collector: Collector) -> bool:
    verdict = collector.verdict
    return verdict.interrupted or verdict.stopped or bool(verdict.failures() or verdict.errors() or verdict.troubles)
