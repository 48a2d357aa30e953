"""New examples until a time is spent: after a whole run, rounds of the tests that draw, each from another seed."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import pytest

from spec_tests.collector import Collector
from spec_tests.verdict import Verdict
from spec_tests.words import counted

# Behind a whole run, many short rounds end closer to the time than a few long ones.
ROUND = "default"


def run(
    arguments: Sequence[str],
    plugins: Sequence[object],
    collector: Collector,
    profile: str,
    seed: int,
    seconds: float,
    known: Collection[str] = (),
) -> tuple[int | pytest.ExitCode, str]:
    """Run the tests of pytest's `arguments`, then rounds; `seconds` include the first run, which is always whole.

    Advice ends no campaign, nor does the failure of a test that is `known`. Returns how pytest ended, and what to tell
    of the rounds. All outcomes are added up in `collector`.
    """
    until, rounds = time.time() + seconds, 0
    ended = pytest.main([*arguments, "--profile", profile, "--seed", str(seed)], plugins=list(plugins))
    going_on = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    while ended in going_on and not _over(collector.verdict, known) and time.time() < until:
        rounds, seed = rounds + 1, seed + 1
        more = ("--profile", ROUND, "--seed", str(seed), "--drawn", "--until", repr(until))
        ended = pytest.main([*arguments, *more], plugins=list(plugins))
        if ended == pytest.ExitCode.NO_TESTS_COLLECTED:
            return pytest.ExitCode.OK, "no test of what was selected draws examples: there are no new ones to try"
    return ended, f"{counted(rounds, 'round')} of new examples, to the seed {seed}"


def _over(verdict: Verdict, known: Collection[str]) -> bool:
    if verdict.interrupted or verdict.stopped or verdict.troubles:
        return True
    failed = [outcome for outcome in verdict.failures() if not outcome.advice]
    return any(outcome.test not in known for outcome in (*failed, *verdict.errors()))
