"""Budgets, databases and shards: runs that use a time that was given, and share what they find."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from spec_tests import campaign
from spec_tests.collector import Collector
from spec_tests.meta.processes import REFERENCE, ROOT, environment, mdnc_spec, mdnc_spec_many, python, run_arguments
from spec_tests.verdict import Failure, Verdict
from spec_tests.verdict import TestOutcome as Outcome
from spec_tests.words import counted

RARE = "py:spec_tests.meta.wrong_blocks:RarelyWrong"
NARROW = ("--clause", "4.1", "--profile", "smoke")
# The first draws the one size at which the rare block is wrong, the second does not.
FINDS, MISSES = "8", "4"


def checks(output: str) -> int:
    """How many the last line of an output tells of; of a shard, which does not say what was not selected, too."""
    return int(re.findall(r" ([\d,]+) checks?(?:$|;)", output, re.MULTILINE)[-1].replace(",", ""))


@pytest.mark.slow
def test_a_budget_is_spent_on_new_examples(tmp_path: Path) -> None:
    """Behind a whole run come rounds, whose seeds follow the printed one, and whose checks are added."""
    # A clause that is soon judged: the time is to be spent on the rounds.
    run = ("run", "--subject", REFERENCE, "--clause", "9.11", "--profile", "smoke", "--seed", "5")
    plain, more = (mdnc_spec(*run, *budget, cwd=tmp_path) for budget in ((), ("--budget", "12s")))
    assert plain.status == more.status == 0, more.out + more.err
    rounds = re.search(r"^(\d+) rounds? of new examples, to the seed (\d+)$", more.out, re.MULTILINE)
    assert rounds, more.out
    assert int(rounds[1]) >= 1
    assert int(rounds[2]) == 5 + int(rounds[1])
    assert checks(more.out) > checks(plain.out)


@pytest.mark.slow
def test_what_failed_is_kept_and_tried_first(tmp_path: Path) -> None:
    """An example that a seed finds is met at once by another seed, which alone does not find it."""
    folder = ("--database", str(tmp_path / "a database"))
    runs = [
        ["run", "--subject", RARE, *NARROW, "--no-diagnosis", "--seed", seed, *more]
        for seed, more in ((FINDS, folder), (MISSES, ()), (MISSES, folder))
    ]
    found, missed, again = mdnc_spec_many(runs, cwd=tmp_path)
    assert (found.status, missed.status, again.status) == (1, 0, 1), found.out + missed.out
    assert set(again.failures()) == {"4.1"}


def outcome(status: str, clause: str = "4.1", test: str = "t::a", **counted: Any) -> Outcome:
    failure = Failure(clause, "the output", "0", "1", "") if status in ("failed", "errored") else None
    return Outcome(test, ("4.1",), status, failure=failure, **counted)


@pytest.mark.parametrize(
    ("outcomes", "goes_on"),
    [
        ([outcome("passed")], True),
        ([outcome("failed")], False),
        ([outcome("failed", test="t::known")], True),
        ([outcome("errored", test="t::known"), outcome("errored")], False),
        ([outcome("failed", "1.18")], True),
        ([outcome("failed", "1.18"), outcome("failed", test="t::b")], False),
    ],
)
def test_advice_and_what_is_known_end_no_campaign(
    outcomes: list[Outcome], goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds follow until something else fails, here until the time is over."""
    collector, rounds = Collector(), []

    def main(arguments: list[str], **_: object) -> pytest.ExitCode:
        for found in outcomes:
            collector.verdict.add(found)
        rounds.append(arguments)
        monkeypatch.setattr(time, "time", lambda: 9e9 if len(rounds) == 3 else 0.0)
        return pytest.ExitCode.TESTS_FAILED if collector.verdict.failures() else pytest.ExitCode.OK

    monkeypatch.setattr(pytest, "main", main)
    ended, told = campaign.run(["-q"], [], collector, "smoke", 5, 60.0, {"t::known"})
    assert len(rounds) == (3 if goes_on else 1)
    assert told == f"{counted(len(rounds) - 1, 'round')} of new examples, to the seed {4 + len(rounds)}"
    assert (ended == pytest.ExitCode.OK) == (not collector.verdict.failures())


def test_rounds_of_a_test_make_one_outcome() -> None:
    """What was counted adds up, the worst status stays, and of two failures the first."""
    verdict = Verdict()
    for found in (
        outcome("passed", reached={"4.1": 2}, ratio={"4.1": 0.2}, strict=(1, 1), seconds=1.0),
        outcome("passed", test="t::b"),
        outcome("failed", "4.2", reached={"4.2": 1}, vacuous={"4.1": 3}, ratio={"4.1": 0.1, "4.2": 7.0}, seconds=2.0),
        outcome("failed", "4.3", strict=(0, 1)),
        outcome("passed", reached={"4.1": 1}),
    ):
        verdict.add(found)
    assert [o.test for o in verdict.outcomes] == ["t::a", "t::b"]
    whole = verdict.outcomes[0]
    assert whole.failure is not None
    assert (whole.status, whole.failure.clause) == ("failed", "4.2")
    assert (whole.reached, whole.vacuous) == ({"4.1": 3, "4.2": 1}, {"4.1": 3})
    assert (whole.ratio, whole.strict, whole.seconds) == ({"4.1": 0.2, "4.2": 7.0}, (1, 2), 3.0)


def test_what_one_round_judged_stays_judged() -> None:
    """Rounds of new examples add to the scope, and what all processes complain of is told once."""
    collector = Collector()
    collector.scope(["1.1", "4.1", "7.1"], ["4.1", "7.1"])
    collector.scope(["1.1", "4.1", "7.1"], ["4.1"])
    assert collector.verdict.selected == {"4.1", "7.1"}
    assert collector.verdict.tested == {"1.1", "4.1", "7.1"}
    collector.complain(["it had to be killed"])
    collector.complain(["it had to be killed", "it wrote to standard output"], ["end"])
    collector.complain([], ["order"])
    assert collector.verdict.conduct_judged == {"end", "order"}
    assert collector.verdict.conduct == ["it had to be killed", "it wrote to standard output"]


def test_shards_make_one_verdict(tmp_path: Path) -> None:
    """Every test is in one shard, no shard fails for what is in another, and all merge into the whole verdict."""
    base = ["run", "--subject", REFERENCE, "--clause", "1", "--clause", "8", "--profile", "smoke"]
    folders = [str(tmp_path / f"part {k}") for k in (1, 2, 3)]
    runs = [[*base, "--shard", f"{k}/3", "--report", folders[k - 1]] for k in (1, 2, 3)]
    *parts, whole, merged, lacking = mdnc_spec_many(
        [*runs, base, ["merge", *folders], ["merge", *folders[:2]]], cwd=tmp_path
    )
    assert [part.status for part in parts] == [0, 0, 0], parts[0].out
    assert whole.status == merged.status == 0, merged.out
    assert checks(whole.out) == checks(merged.out) == sum(checks(part.out) for part in parts)
    assert lacking.status == 3
    assert "shard 3 of 3 is missing" in lacking.out


def test_an_empty_shard_says_so(tmp_path: Path) -> None:
    """It alone is no pass, and it spoils no whole."""
    base = ["run", "--subject", REFERENCE, "--clause", "2.23", "--profile", "smoke"]
    folders = [str(tmp_path / f"part {k}") for k in range(1, 4)]
    runs = [[*base, "--shard", f"{k}/3", "--report", folder] for k, folder in enumerate(folders, 1)]
    *parts, merged = mdnc_spec_many([*runs, ["merge", *folders]], cwd=tmp_path)
    empty = [part for part in parts if part.status]
    assert empty
    assert len(empty) < len(parts)
    for part in empty:
        assert (part.status, part.err) == (3, "")
        assert "could not be judged: no test of what was selected is in this shard\n" in part.out
    assert merged.status == 0, merged.out


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--shard", "4/3", "'4/3' must be K/N"),
        ("--shard", "0/3", "'0/3' must be K/N"),
        ("--budget", "soon", "'soon' must be a time above 0, such as 90s, 30m or 2h"),
        ("--budget", "0s", "'0s' must be a time above 0"),
        ("--database", "", "it must be a folder"),
        ("--database", "redit://h:1/0", "'redit://h:1/0' must be a folder, or an address that begins with redis:// or"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, option: str, value: str, words: str) -> None:
    ended = mdnc_spec("run", "--subject", REFERENCE, option, value, cwd=tmp_path)
    assert ended.status == 3
    assert words in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    runs = [run_arguments(REFERENCE, "--database", where) for where in ("/proc/nowhere/db", str(tmp_path / "file"))]
    for ended, words in zip(mdnc_spec_many(runs, cwd=tmp_path), ("[Errno 2]", "[Errno 17] File exists"), strict=True):
        assert ended.status == 3
        assert "--database" in ended.err
        assert f"cannot be used: {words}" in ended.err
        assert not ended.out


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    ended = mdnc_spec(*run_arguments(REFERENCE, "--database", "redis://127.0.0.1:9/0"), cwd=tmp_path)
    assert ended.status == 3
    assert "--database redis://127.0.0.1:9/0 cannot be used" in ended.err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_two_workers_share_a_server(tmp_path: Path) -> None:
    """What a worker finds is on the server, and a run with another seed fails by it at once."""
    program = str(ROOT / "tools" / "campaign.py")
    arguments = ("--budget", "5s", "--seed", FINDS)
    ended = python(program, *arguments, cwd=tmp_path, env=environment(OMP_NUM_THREADS="1"))
    assert ended.status == 1, ended.out + ended.err
    assert re.search(r"^worker 1: .*broken 4\.1$", ended.out, re.MULTILINE), ended.out
    assert re.search(r"^kept: [1-9]\d* examples?$", ended.out, re.MULTILINE), ended.out
    assert re.search(r"^afterwards: seed 2008, 0 rounds: broken 4\.1$", ended.out, re.MULTILINE), ended.out
    assert not list(tmp_path.iterdir())
