"""The verdict in a terminal: live progress, a line a chapter, then the failures in the order of mending."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from spec_tests.clauses import NUMERIC, all_chapters, all_clauses
from spec_tests.conduct_rules import parts
from spec_tests.known_failures import Compared, conduct_test
from spec_tests.report.folding import NO_REASON, Broken, Cause, brief, broken_clauses, causes, reason
from spec_tests.verdict import BROKEN, CONFORMS, INTERRUPTED, NOT_JUDGED, PARTIAL, Failure, Verdict
from spec_tests.words import counted, hanging, listed

# Of one cause: how many rows a screen of 80 columns has for it, and how many lines of its example are told.
ROWS, COLUMNS, EXAMPLE = 40, 80, 12

# What is said of clauses that do not hold; tools/ports.py reads it.
TROUBLE = {
    "failed": "broken",
    "errored": "not judged",
    "unreached": "not judged",
    "unsure": "cut short by a failure",
    "unsupported": "unsupported",
    "vacuous": "about which no example says anything",
    "inapplicable": "not applicable",
    "interrupted": "not reached",
    "open": "without a test yet",
    "deselected": "not selected",
}


class Live:
    """Shows what is being checked while the tests run; silent where the output is no terminal.

    It writes to a descriptor of its own: pytest keeps back what is written to the usual one while a test runs.
    """

    def __init__(self, console: Console) -> None:
        self.file: TextIO | None = None
        if console.is_terminal:
            with suppress(OSError, ValueError):
                self.file = os.fdopen(os.dup(console.file.fileno()), "w", encoding=console.encoding)
                console = Console(file=self.file, force_terminal=True, width=console.width)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("collecting", total=None)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The progress is shown, and gone behind it."""
        try:
            with self.progress:
                yield
        finally:
            if self.file is not None:
                with suppress(OSError):
                    self.file.close()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self.progress.reset(self.task, total=len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.progress.reset(self.task, total=len(ids))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        file, _, test = nodeid.rpartition("::")
        chapter = file.rpartition("test_ch")[2][:2].lstrip("0")
        name = test.partition("[")[0].removeprefix("test_").replace("_", " ")
        self.progress.update(self.task, description=f"chapter {chapter}: {name}"[:60].ljust(60))

    def pytest_runtest_logfinish(self) -> None:
        self.progress.advance(self.task)


def _chapter_text(counts: Counter[str]) -> str:
    total, passed = counts.total(), counts["passed"]
    if counts["open"] == total:
        return f"{counted(total, 'clause')} without a test yet"
    rest = [f"{counts[status]} {words}" for status, words in TROUBLE.items() if counts[status]]
    return ", ".join([f"{passed} of {total} clauses hold", *rest])


def chapter_lines(verdict: Verdict) -> list[str]:
    """One line a chapter: how many clauses hold, and what became of the others."""
    checks: Counter[int] = Counter()
    for clause, number in verdict.checks().items():
        checks[all_clauses()[clause].chapter] += number
    titles = all_chapters()
    told = {chapter: f"{counted(number, 'check'):>16}" for chapter, number in checks.items() if number}
    return [
        f"{chapter:>2} {titles[chapter]:<26}{_chapter_text(counts):<40}{told.get(chapter, '')}".rstrip()
        for chapter, counts in verdict.chapter_counts().items()
        if counts["deselected"] + (counts["interrupted"] if verdict.stopped else 0) != counts.total()
    ]


def _block(label: str, text: str) -> Text:
    first, *others = text.splitlines() or [""]
    lines = [f"    {label:<10}{first}", *(" " * 14 + line for line in others)]
    return Text("\n".join(lines))


def _rows(text: Text) -> int:
    return sum(-(-len(line) // COLUMNS) or 1 for line in text.plain.split("\n"))


def _story(failure: Failure, replay: str, alone: str = "") -> Iterator[Text]:
    """What is told of a failure, a label each."""
    example, why = failure.example.splitlines(), reason(failure) if failure.clause else ""
    if len(example) > EXAMPLE:
        example[EXAMPLE - 1 :] = [f"# … and {len(example) - EXAMPLE + 1} more lines; --report DIR has all"]
    for label, text in (
        ("what", failure.what),
        ("reason", "" if why.startswith(NO_REASON) else why),
        ("alone", alone),
        ("example", "\n".join(example)),
        ("got", failure.got),
        ("expected", failure.expected),
        ("replay", replay),
    ):
        if text:
            yield _block(label, text)


def _also(cause: Cause, rows: int) -> Iterator[Text]:
    """What is folded under a cause: a line each as long as there are rows for it, then the ids alone."""
    if cause.broken.more:
        yield _block("also", f"{counted(cause.broken.more, 'more test')} of this clause failed")
    reasons: dict[str, list[Broken]] = {}
    for broken, why in cause.folded:
        reasons.setdefault(why, []).append(broken)
    # Rows for the heads and, in the worst case, for the ids of all are kept.
    rows -= 3 * len(reasons) + len(cause.folded) // 10
    for why, found in reasons.items():
        number = len(found) if len(found) <= rows else max(rows, 0)
        rows -= number
        width = COLUMNS - 14
        lines = [textwrap.shorten(f"{b.clause:<5} {brief(b.failure)}", width, placeholder=" …") for b in found[:number]]
        rest = ", ".join(b.clause for b in found[number:])
        more = textwrap.wrap(f"{len(found) - number} more: {rest}", width) if rest else []
        yield _block("also", "\n".join([f"{why}:", *lines, *more]))


def _show_cause(console: Console, cause: Cause, subject: str, diagnosis: Sequence[Text]) -> None:
    broken = cause.broken
    word, style = ("FAILED", "bold red") if broken.level == "MUST" else ("ADVICE", "bold yellow")
    title = Text.assemble((f"{word} {cause.clause}", style), f" {broken.level}: {all_clauses()[cause.clause].text}")
    replay = "\n".join(broken.outcome.replay(subject, cause.clause))
    told = list(_story(broken.failure, replay, broken.outcome.alone))
    told += _also(cause, ROWS - 2 - sum(map(_rows, (title, *told, *diagnosis))))
    console.print()
    console.print(title)
    for text in (*told, *diagnosis):
        console.print(text, soft_wrap=True)


def _show_error(console: Console, failure: Failure, alone: str) -> None:
    console.print()
    console.print(Text("ERROR", "bold magenta"))
    for text in _story(failure, "", alone):
        console.print(text, soft_wrap=True)


def summary(verdict: Verdict) -> str:
    status = verdict.exit_status()
    clauses = verdict.clause_status()
    holding = counted(sum(s == "passed" for s in clauses.values()), "clause holds", "clauses hold")
    if status == INTERRUPTED:
        broken = counted(len(verdict.broken()), "clause is", "clauses are")
        return f"interrupted: {counted(len(verdict.outcomes), 'test')} had ended, {broken} broken so far"
    if status == BROKEN and verdict.stopped and verdict.broken():
        first = next(one.clause for one in broken_clauses(verdict) if one.clause in verdict.broken())
        return f"does not conform; the first broken clause is {first}, the rest was not judged"
    if status == BROKEN:
        named = f"broken {', '.join(verdict.broken())}"
        if verdict.conduct:
            named = f"{named} and the conduct" if verdict.broken() else "bad conduct"
        return f"does not conform: {named}" + "; the rest was not judged" * verdict.stopped
    if status == NOT_JUDGED:
        empty = verdict.shard and not verdict.outcomes and not verdict.troubles
        return "could not be judged" + (": no test of what was selected is in this shard" if empty else "")
    if status == PARTIAL:
        lacks = ", ".join(verdict.unsupported()) or "an arithmetic fine enough"
        return f"partial: {holding}, {len(verdict.lost())} could not be judged; not offered: {lacks}"
    conduct = f", {counted(len(verdict.conduct_judged), 'rule')} of conduct" if verdict.conduct_judged else ""
    part = "; the other clauses were not selected" * ("deselected" in clauses.values() and not verdict.shard)
    return f"conforms: {holding}, {counted(verdict.checks().total(), 'check')}{conduct}{part}"


def show(
    verdict: Verdict,
    subject: str,
    console: Console,
    diagnosis: Sequence[str] = (),
    known: Compared | None = None,
    explained: Sequence[str] = (),
    unfolded: bool = False,
) -> None:
    """Print the verdict, the lines of a diagnosis if there is one, and what a file of known failures makes of it.

    `explained` are the clauses that a certain diagnosis names; `unfolded` tells every broken clause in full.
    """
    expected = known.expected if known is not None else {}
    for line in chapter_lines(verdict):
        console.print(Text(line), soft_wrap=True)
    _show_inapplicable(console, verdict)
    _show_figures(console, verdict)
    _show_causes(console, subject, causes(verdict, explained, expected, unfolded), diagnosis)
    _show_troubles(console, verdict, expected)
    _show_unsupported(console, verdict)
    for entry in expected.values():
        text = f"KNOWN {entry.clause} {entry.test}: {entry.message} ({entry.reason})"
        console.print(Text(hanging(text), "yellow"), soft_wrap=True)
    for difference in known.differences if known is not None else ():
        console.print(Text(f"KNOWN FAILURES {hanging(difference)}", "bold red"), soft_wrap=True)
    console.print()
    status = known.status(verdict) if known is not None else verdict.exit_status()
    style = {CONFORMS: "bold green", BROKEN: "bold red"}.get(status, "bold yellow")
    last = (known.summary(verdict) if known is not None else "") or summary(verdict)
    console.print(Text(f"{subject} {last}", style), soft_wrap=True)


def _show_inapplicable(console: Console, verdict: Verdict) -> None:
    """The clauses that say nothing of this kind of subject; of a chapter without any other, its line says so."""
    whole = {
        chapter for chapter, counts in verdict.chapter_counts().items() if counts["inapplicable"] == counts.total()
    }
    clauses = [c for c, s in verdict.clause_status().items() if s == "inapplicable"]
    named = [clause for clause in clauses if all_clauses()[clause].chapter not in whole]
    if named:
        told = f"not applicable to this kind of subject: {', '.join(named)}"
        console.print(Text("\n    ".join(textwrap.wrap(told, COLUMNS - 4))), soft_wrap=True)


def _show_figures(console: Console, verdict: Verdict) -> None:
    """How much the numeric examples say, how close they come to their bounds, and the grade."""
    vacuous, numeric = verdict.vacuous()
    if numeric:
        clause, ratio = verdict.closest()
        of = counted(numeric, "numeric example was", "numeric examples were")
        share = f"{vacuous:,} of {of} vacuous ({vacuous / numeric:.1%})"
        closest = f"; closest to its bound: clause {clause}, {ratio:.2f} of it" if clause else ""
        console.print(Text(share + closest), soft_wrap=True)
    held, graded = verdict.strict()
    if graded:
        grade = "strict" if held == graded else "lenient"
        of = counted(graded, "graded example is", "graded examples are")
        console.print(Text(f"grade: {grade} ({held:,} of {of} within the strict bounds)"), soft_wrap=True)


def _show_causes(console: Console, subject: str, found: Iterable[Cause], diagnosis: Sequence[str]) -> None:
    """The failures in the order in which to mend them; the diagnosis is that of the numbers, by the first with any."""
    waiting = (
        [Text("DIAGNOSIS", "bold cyan"), *(Text(f"    {hanging(line)}") for line in diagnosis)] if diagnosis else []
    )
    for cause in found:
        here = waiting if any(broken.chapter in NUMERIC for broken in cause.all()) else []
        waiting = [] if here else waiting
        _show_cause(console, cause, subject, here)
    if waiting:
        console.print()
    for line in waiting:
        console.print(line, soft_wrap=True)


def _show_troubles(console: Console, verdict: Verdict, expected: Collection[str]) -> None:
    """What kept the run from judging, and what was wrong beside the calls; failures of `expected` tests are known."""
    told: set[Failure] = set()
    for outcome in verdict.errors():
        if outcome.failure and outcome.failure not in told and outcome.test not in expected:
            told.add(outcome.failure)
            _show_error(console, outcome.failure, outcome.alone)
    for trouble in verdict.troubles:
        console.print(Text(f"ERROR {hanging(trouble)}", "magenta"), soft_wrap=True)
    unreached = [c for c, s in verdict.clause_status().items() if s == "unreached"]
    if unreached:
        console.print(Text(f"ERROR no check was reached for {listed('clause', unreached)}", "magenta"), soft_wrap=True)
    for complaint in verdict.conduct:
        if conduct_test(complaint) not in expected:
            told_of = parts(complaint)
            console.print()
            console.print(Text.assemble(("FAILED conduct", "bold red"), f" (PROTOCOL.md): {told_of.rule}"))
            for label, text in told_of.rows:
                console.print(_block(label, text), soft_wrap=True)


def _show_unsupported(console: Console, verdict: Verdict) -> None:
    """What the subject does not offer, and the clauses that could not be judged for it."""
    lost = verdict.lost()
    for feature, clauses in verdict.unsupported().items():
        parts = {
            "lost clauses": [c for c in clauses if c in lost],
            "judged without it": [c for c in clauses if c not in lost],
        }
        told = "; ".join(f"{words}: {', '.join(found)}" for words, found in parts.items() if found)
        console.print(Text(f"UNSUPPORTED {feature!r}, {told}", "yellow"), soft_wrap=True)
