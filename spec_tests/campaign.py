"""New examples until a time is spent: after a whole run, rounds of the tests that draw, each from another seed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from spec_tests.collector import Collector
from spec_tests.words import counted

# Behind a whole run, many short rounds end closer to the time than a few long ones.
ROUND = "default"


def run(
    arguments: Sequence[str], plugins: Sequence[object], collector: Collector, profile: str, seed: int, seconds: float
) -> tuple[int | pytest.ExitCode, str]:
    """Run the tests of pytest's `arguments`, then rounds; `seconds` include the first run, which is always whole.

    Returns how pytest ended, and what to tell of the rounds. All outcomes are added up in `collector`.
    """
    until, rounds = time.time() + seconds, 0
    ended = pytest.main([*arguments, "--profile", profile, "--seed", str(seed)], plugins=list(plugins))
    while ended == pytest.ExitCode.OK and not _over(collector) and time.time() < until:
        rounds, seed = rounds + 1, seed + 1
        more = ("--profile", ROUND, "--seed", str(seed), "--drawn", "--until", repr(until))
        ended = pytest.main([*arguments, *more], plugins=list(plugins))
        if ended == pytest.ExitCode.NO_TESTS_COLLECTED:
            return pytest.ExitCode.OK, "no test of what was selected draws examples: there are no new ones to try"
    return ended, f"{counted(rounds, 'round')} of new examples, to the seed {seed}"


def _over(collector: Collector) -> bool:
    verdict = collector.verdict
    return verdict.interrupted or verdict.stopped or bool(verdict.failures() or verdict.errors() or verdict.troubles)
