"""Failures that a port's author knows of: a file with a line for each, which a run must match exactly.

    # test id | clause | outcome | message prefix | reason
    chapters/test_ch04_values.py::test_law[4.11] | 4.11 | failed | the output: got -0.5 | https://example.org/issues/7

The reason, such as a link, is the author's to write. Five things fail a run: a failure that is not in the file,
a test in it that passes, another message or clause than the file says, an entry that matches nothing, and an entry
without a reason.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spec_tests.clauses import all_clauses
from spec_tests.conduct_rules import RULE, RULES
from spec_tests.verdict import BROKEN, CONFORMS, NOT_JUDGED, PARTIAL, TestOutcome, Verdict
from spec_tests.words import counted

HEADER = (
    "# test id | clause | outcome | message prefix | reason\n# Each line needs a reason at its end, such as a link.\n"
)
OUTCOMES = ("failed", "errored")
# What is wrong with how a port behaves beside its calls is the failure of no test and no clause. An entry is about one
# rule of PROTOCOL.md, `conduct:arguments`, or about how the port stops, `conduct`.
CONDUCT = "conduct"
_RULE = re.compile(r"([a-z]+): ")
WRITTEN = 80
# In a message: where in a block's code an error was raised.
_PLACE = re.compile(r" \(at [^()]+:\d+, in [^()]+\)")


@dataclass(frozen=True)
class Known:
    """An entry of the file: `message` is what the message of the failure begins with."""

    test: str
    clause: str
    outcome: str
    message: str
    reason: str
    line: int = 0

    def __str__(self) -> str:
        return " | ".join((self.test, self.clause, self.outcome, self.message, self.reason)).rstrip()


def _plain(text: str) -> str:
    """A message on one line, without the character that separates the fields."""
    return " ".join(text.replace("|", "/").split())


def read(path: Path) -> list[Known]:
    """The entries of a file. Raises ValueError, which names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    found: dict[str, Known] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = [part.strip() for part in line.split("|", 4)]
        if len(fields) != 5:
            are = "this is 1" if len(fields) == 1 else f"these are {len(fields)}"
            raise ValueError(f"{path}, line {number}: 5 fields are due with '|' between them, {are}")
        entry = Known(fields[0], fields[1], fields[2], fields[3], fields[4], number)
        if not entry.test or not entry.message:
            raise ValueError(f"{path}, line {number}: the test id or the message prefix is empty")
        if entry.outcome not in OUTCOMES:
            raise ValueError(
                f"{path}, line {number}: the outcome {entry.outcome!r} must be one of {', '.join(OUTCOMES)}"
            )
        if (problem := _no_rule(entry)) != "":
            raise ValueError(f"{path}, line {number}: {problem}")
        if entry.clause != CONDUCT and entry.clause not in all_clauses():
            raise ValueError(f"{path}, line {number}: SPEC.md has no clause {entry.clause!r}")
        if entry.test in found:
            raise ValueError(f"{path}, line {number}: {entry.test} stands in line {found[entry.test].line} already")
        found[entry.test] = entry
    return list(found.values())


def _no_rule(entry: Known) -> str:
    """What is wrong with the test of an entry about the conduct; empty if nothing is."""
    allowed = (CONDUCT, *(f"{CONDUCT}:{rule}" for rule in RULES))
    if entry.clause != CONDUCT or entry.test in allowed:
        return ""
    return f"the test {entry.test!r} is none of the conduct; allowed are {', '.join(allowed)}"


def conduct_test(complaint: str) -> str:
    """What stands for a test in an entry about the conduct."""
    rule = _RULE.match(complaint)
    return f"{CONDUCT}:{rule[1]}" if rule else CONDUCT


def failures(verdict: Verdict) -> list[Known]:
    """What a file would have to say of a run: each broken MUST clause, each error, and the conduct."""
    found = []
    for outcome in (*verdict.failures(), *verdict.errors()):
        failure = outcome.failure
        if failure is None:
            continue
        clause = failure.clause or outcome.clauses[0]
        found.append(Known(outcome.test, clause, outcome.status, _plain(f"{failure.what}: {failure.got}"), ""))
    by_rule: dict[str, list[str]] = {}
    for complaint in verdict.conduct:
        by_rule.setdefault(conduct_test(complaint), []).append(complaint)
    found += [Known(test, CONDUCT, "failed", _plain("; ".join(told)), "") for test, told in by_rule.items()]
    return found


def _conduct_judged(entry: Known, verdict: Verdict) -> bool:
    """Whether the run judged what an entry says of the conduct."""
    return entry.test == CONDUCT or entry.test.removeprefix(f"{CONDUCT}:") in verdict.conduct_judged


def _advice(entry: Known) -> bool:
    return entry.outcome == "failed" and entry.clause in all_clauses() and all_clauses()[entry.clause].level != "MUST"


@dataclass
class Compared:
    """A run beside its file: `expected` are the failures that the file knows, by test; the rest are differences.

    `left` are entries of which a shard says nothing, since another one may have their test.
    """

    expected: dict[str, Known] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    left: list[Known] = field(default_factory=list)

    def status(self, verdict: Verdict) -> int:
        """The exit status: that of the verdict, for which an expected failure is none."""
        if verdict.interrupted:
            return verdict.exit_status()
        if self.differences:
            return BROKEN
        # A run that stopped at a failure, known or not, did not judge the rest.
        if not self.expected or verdict.stopped:
            return verdict.exit_status()
        if verdict.troubles or "unreached" in verdict.clause_status().values():
            return NOT_JUDGED
        return PARTIAL if verdict.unsupported() or "vacuous" in verdict.clause_status().values() else CONFORMS

    def summary(self, verdict: Verdict) -> str:
        """The last line of the report, where the file changed anything; else empty."""
        if verdict.interrupted:
            return ""
        if self.differences:
            return f"does not conform: {counted(len(self.differences), 'difference')} from the known failures"
        if not self.expected or verdict.stopped or self.status(verdict) == NOT_JUDGED:
            return ""
        holding = sum(status == "passed" for status in verdict.clause_status().values())
        clauses = ", ".join(dict.fromkeys(entry.clause for entry in self.expected.values()))
        vacuous = [clause for clause, status in verdict.clause_status().items() if status == "vacuous"]
        partial = f"; partial: not offered: {', '.join(verdict.unsupported())}" if verdict.unsupported() else ""
        partial += f"; partial: no example says anything of {', '.join(vacuous)}" if vacuous else ""
        known, hold = counted(len(self.expected), "known failure"), counted(holding, "clause holds", "clauses hold")
        return f"conforms except {known} ({clauses}): {hold}{partial}"


def compare(entries: Iterable[Known], verdict: Verdict) -> Compared:
    """Hold a run against the file, by the five rules."""
    found = Compared()
    known = {entry.test: entry for entry in entries}
    got = {failure.test: failure for failure in failures(verdict)}
    for test, failure in got.items():
        entry = known.get(test)
        if entry is None:
            if not _advice(failure):
                found.differences.append(f"unexpected failure: {test} ({failure.clause}): {failure.message:.200}")
        elif (failure.clause, failure.outcome) != (entry.clause, entry.outcome):
            now, then = f"{failure.outcome} {failure.clause}", f"{entry.outcome} {entry.clause}"
            found.differences.append(f"changed, line {entry.line}: {test} is {now}, not {then}: {failure.message:.200}")
        elif not failure.message.startswith(_plain(entry.message)):
            now = f"its message is now {failure.message!r:.200}"
            found.differences.append(f"changed, line {entry.line}: {test}: {now}; the file says {entry.message!r}")
        elif not entry.reason:
            found.differences.append(
                f"no reason, line {entry.line}: write one, such as a link, behind the last '|' of {test}"
            )
        else:
            found.expected[test] = entry
    ran = {outcome.test: outcome for outcome in verdict.outcomes}
    for entry in known.values():
        if entry.test in got:
            continue
        if verdict.shard and entry.test not in ran:
            found.left.append(entry)
        elif complaint := _absent(entry, ran.get(entry.test), verdict):
            found.differences.append(complaint)
    return found


def of_tests(verdict: Verdict, tests: Iterable[str], differences: Iterable[str] = ()) -> Compared:
    """What runs made of their file, in a report that only says which tests it knew, and what differed."""
    known = set(tests)
    reason = "known to the run of the report"
    expected = {failure.test: replace(failure, reason=reason) for failure in failures(verdict) if failure.test in known}
    return Compared(expected, list(dict.fromkeys(differences)))


def left_by_all(shards: Iterable[Iterable[Known]], verdict: Verdict) -> list[str]:
    """What is to be said of entries that every shard of a whole left to the others."""
    first, *others = map(list, shards)
    return [
        text for entry in first if all(entry in left for left in others) and (text := _absent(entry, None, verdict))
    ]


def _absent(entry: Known, outcome: TestOutcome | None, verdict: Verdict) -> str:
    """What is to be said of an entry whose test did not fail; nothing where the run left it out."""
    where = f"line {entry.line}: {entry.test}"
    if entry.clause == CONDUCT and (verdict.interrupted or verdict.stopped or not _conduct_judged(entry, verdict)):
        return ""
    if entry.clause == CONDUCT:
        return f"unexpected pass, {where}: the port behaved as it must; remove the line"
    if outcome is not None and outcome.status == "passed":
        return f"unexpected pass, {where} passes; remove the line"
    if outcome is not None:
        missing = f", for the feature {outcome.missing!r}" if outcome.missing else ""
        return f"matches nothing, {where} is {outcome.status}{missing}; remove the line"
    if verdict.interrupted or verdict.stopped or entry.clause not in verdict.selected:
        return ""
    return f"matches nothing, {where}: the suite has no such test for clause {entry.clause}; remove the line"


def argument(text: str) -> list[Known]:
    """The entries of a file that the command line names."""
    try:
        return read(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def target(text: str) -> Path:
    """A file to write: what is there already must be such a file too."""
    path = Path(text).absolute()
    if path.exists():
        argument(text)
    elif not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    return path


def update(path: Path, verdict: Verdict) -> str:
    """Write the file of a run; return what is to be told."""
    if verdict.interrupted or verdict.stopped:
        return f"{path} was not written: the run did not end"
    try:
        bare = write(path, verdict, read(path) if path.exists() else ())
    except (OSError, ValueError) as error:
        return f"{path} could not be written: {error}"
    return f"{path} is written" + (f"; {counted(bare, 'line')} without a reason at the end" if bare else "")


def write(path: Path, verdict: Verdict, before: Sequence[Known] = ()) -> int:
    """Write a file that this run matches but for its reasons; return how many entries lack one.

    Reasons of `before` are kept, and entries of it that this run left out.
    """
    known = {entry.test: entry for entry in before}
    entries = {}
    for failure in failures(verdict):
        entry = known.get(failure.test)
        same = entry is not None and (entry.clause, entry.outcome) == (failure.clause, failure.outcome)
        if entry is not None and same and failure.message.startswith(_plain(entry.message)):
            entries[failure.test] = entry
        elif not _advice(failure):
            reason = entry.reason if entry is not None else ""
            # A line of the block's own code moves when the code above it changes.
            short = _PLACE.split(failure.message)[0][:WRITTEN].rstrip()
            # All messages that showed it, and with the full stop behind them no others.
            if RULE in failure.message:
                short = f"{failure.message.split(RULE)[0]}."
            entries[failure.test] = Known(failure.test, failure.clause, failure.outcome, short, reason)
    ran = {outcome.test for outcome in verdict.outcomes}
    for entry in known.values():
        left_out = verdict.shard or (
            not _conduct_judged(entry, verdict) if entry.clause == CONDUCT else entry.clause not in verdict.selected
        )
        if entry.test not in ran and left_out:
            entries.setdefault(entry.test, entry)
    text = HEADER + "".join(f"{entry}\n" for entry in entries.values())
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return sum(not entry.reason for entry in entries.values())
