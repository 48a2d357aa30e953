"""The command `mdnc-spec`."""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from spec_tests import chapter_run, known_failures
from spec_tests.arguments import parser
from spec_tests.clauses import NUMERIC, all_chapters, all_clauses, select
from spec_tests.signals import interrupt_once
from spec_tests.streams import UNTOLD, drop_output, open_streams, printing, say
from spec_tests.verdict import BROKEN, CONFORMS, INTERRUPTED, NOT_JUDGED, Verdict
from spec_tests.words import counted, hanging

if TYPE_CHECKING:
    from rich.console import Console

    from spec_tests.diagnosis import Diagnosis
    from spec_tests.report.model import Diagnosed, Report


def _list(wanted: str | None) -> int:
    clauses = all_clauses()
    chosen = [clauses[c] for c in select(wanted)] if wanted else list(clauses.values())
    chapter = 0
    for clause in chosen:
        if clause.chapter != chapter:
            chapter = clause.chapter
            say(f"{chapter} {all_chapters()[chapter]}")
        say(f"  {clause.id:<5} {clause.level:<7} {clause.text}")
    missing = [name for name in ("torch", "torchsummary") if importlib.util.find_spec(name) is None]
    if missing:
        say(f"\nnot installed: {', '.join(missing)}; py: subjects need them: pip install 'mdnc-spec[torch]'")
    return 0


def _run(options: argparse.Namespace) -> int:
    # Before pytest and Hypothesis are imported. Nothing is written into the user's directory.
    chapter_run.one_thread()
    chapter_run.ignore_own_setup()
    with tempfile.TemporaryDirectory(prefix="mdnc-spec-") as scratch:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = scratch
        return _judge(options)


def _requests(folder: str | None) -> str:
    """A folder that is made when something is saved in it."""
    name = f"mdnc-spec-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    return str(Path(folder).absolute()) if folder else str(Path(tempfile.gettempdir()) / name)


def _judge(options: argparse.Namespace) -> int:
    import gc

    from rich.console import Console

    from spec_tests import plugin
    from spec_tests.report.model import Diagnosed, Report, now
    from spec_tests.report.terminal import show

    started, clock = now(), monotonic()
    if not _usable(options):
        return NOT_JUDGED
    sys.path.insert(0, str(Path.cwd()))
    seed = plugin.resolve_seed(options.profile, options.seed, options.budget is not None)
    console = Console(highlight=False)
    if seed is not None:
        with printing():
            print(f"seed {seed}", flush=True)
    interrupt_once()
    # Frameworks leave millions of objects behind, which a run never frees: look at them less often.
    gc.set_threshold(50_000, 50, 100)
    verdict = _tested(options, seed, console)
    entries = options.known_failures
    compared = known_failures.compare(entries, verdict) if entries is not None else None
    all_known = compared is not None and not compared.differences
    diagnosis = Diagnosed() if options.no_diagnosis or all_known else _explained(options, verdict)
    with printing():
        show(verdict, options.subject, console, diagnosis.lines, compared, diagnosis.explained, options.unfolded)
    _note_known_failures(options, verdict, console)
    compared = compared or known_failures.Compared()
    if options.report is None:
        return compared.status(verdict)
    report = Report(
        verdict,
        options.subject,
        options.profile,
        seed,
        tuple(options.clause),
        options.shard,
        diagnosis=diagnosis,
        started=started.isoformat(timespec="seconds"),
        seconds=monotonic() - clock,
        command=shlex.join(["mdnc-spec", *options.given]),
    )
    return _write(report.beside(compared), options.report, console)


def _usable(options: argparse.Namespace) -> bool:
    """Whether the database can be used; what cannot be written to is told, before the time of a run is spent."""
    from spec_tests import seeding
    from spec_tests.report.files import check_writable

    try:
        if options.database and not options.database.startswith(chapter_run.REDIS):
            check_writable(Path(options.database))
        seeding.database(options.database or "")
    except Exception as error:  # whatever the client of a database raises
        print(f"mdnc-spec run: --database {options.database} cannot be used: {error}", file=sys.stderr)
        return False
    try:
        if options.report is not None:
            check_writable(options.report)
    except OSError as error:
        # The verdict is told all the same.
        print(f"mdnc-spec run: --report {options.report} cannot be written to: {error}", file=sys.stderr)
    return True


def _pytest_arguments(options: argparse.Namespace) -> list[str]:
    """What pytest is told, but for the profile and the seed."""
    arguments = [
        *(*chapter_run.arguments(), "-p", "no:logging"),
        *("--timeout", options.timeout, "--device", options.device, "--requests", _requests(options.requests)),
        *("--subject", options.subject, "--database", options.database or ""),
        *(word for clause in options.clause for word in ("--clause", clause)),
    ]
    if options.shard is not None:
        arguments += ["--shard", "{}/{}".format(*options.shard)]
    if options.until_first_failure:
        # In the order of the specification, so in one process.
        arguments.append("--until-first-failure")
    elif options.workers > 1:
        arguments += ["-p", "xdist.plugin", "-n", str(options.workers), "--dist", "worksteal"]
    return arguments


def _tested(options: argparse.Namespace, seed: int | None, console: Console) -> Verdict:
    """Run the tests, with rounds of new examples behind them where there is a budget."""
    import pytest

    from spec_tests import campaign
    from spec_tests.collector import Collector
    from spec_tests.report.terminal import Live

    arguments, collector, live = _pytest_arguments(options), Collector(), Live(console)
    collector.verdict.shard = options.shard is not None
    rounds = ""
    with live.shown():
        if options.budget is not None and seed is not None:
            plugins = (live, collector)
            known = {entry.test for entry in options.known_failures or ()}
            ended, rounds = campaign.run(arguments, plugins, collector, options.profile, seed, options.budget, known)
        else:
            chosen = ["--profile", options.profile, *(["--seed", str(seed)] if seed is not None else [])]
            ended = pytest.main([*arguments, *chosen], plugins=[live, collector])
    if rounds:
        with printing():
            console.print(rounds)
    verdict = collector.verdict
    usual = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    if ended not in usual and not (verdict.interrupted or verdict.stopped or verdict.troubles):
        verdict.troubles.append(f"pytest ended with {ended!r}")
    return verdict


def _write(report: Report, folder: Path, console: Console) -> int:
    """Write the files of a report; return the status of the verdict, or 3 if it is 0 and they could not be written."""
    from spec_tests.report.files import write_report

    try:
        page = write_report(report, folder)
    except OSError as error:
        sys.stdout.flush()
        print(f"mdnc-spec: the report could not be written to {folder}: {error}", file=sys.stderr)
        return report.exit_status or NOT_JUDGED
    with printing():
        console.print(f"report: {page}", markup=False, soft_wrap=True)
    return report.exit_status


def _note_known_failures(options: argparse.Namespace, verdict: Verdict, console: Console) -> None:
    if options.write_known_failures:
        told = known_failures.update(options.write_known_failures, verdict)
        with printing():
            console.print(told, markup=False, soft_wrap=True)


def _explained(options: argparse.Namespace, verdict: Verdict) -> Diagnosed:
    """The diagnosis of a subject whose numbers break a clause."""
    from dataclasses import fields

    from spec_tests.report.model import Diagnosed

    numeric = {c for c in verdict.broken() if all_clauses()[c].chapter in NUMERIC}
    if not numeric or verdict.interrupted:
        return Diagnosed()
    from spec_tests.diagnosis import SECONDS, diagnose_designator
    from spec_tests.oracle import Rules
    from spec_tests.subjects.base import SubjectError

    try:
        found = diagnose_designator(options.subject, options.timeout, SECONDS, options.device)
    except (SubjectError, KeyboardInterrupt) as error:
        return Diagnosed((f"There is none: {str(error) or 'interrupted'}",))
    except Exception as error:  # the verdict is worth more than its explanation
        own = "There is none: an error of mdnc-spec itself, which says nothing of the subject"
        return Diagnosed((f"{own}: {type(error).__name__}: {error}", "`mdnc-spec diagnose` shows where it comes from."))
    if found.healthy:
        return Diagnosed((f"No known mistake explains it: {_held(found)}, and do not show it.",))
    if found.lost is not None and not numeric <= {"4.22", "4.23"}:
        others = f"No known mistake explains the other numbers: {_held(found)}, and do not show it."
        return Diagnosed((*found.failed_calls(), others, "As for NaN:", *found.lost.lines()))
    changes = found.explanations[0].changes if found.certain else ()
    clause_of = {item.name: item.metadata["clause"] for item in fields(Rules)}
    clauses = tuple(clause_of[name] for name, _ in changes)
    whole = found.certain and not found.errors and not found.forward
    return Diagnosed(tuple(found.lines()), whole, changes, clauses)


def _held(found: Diagnosis) -> str:
    total = counted(found.total, "output, gradient or statistic", "outputs, gradients and statistics")
    return f"{total} of the diagnosis' own examples lie within their bounds"


def _diagnose(options: argparse.Namespace) -> int:
    from spec_tests.diagnosis import diagnose_designator
    from spec_tests.subjects.base import SubjectError

    chapter_run.one_thread()
    sys.path.insert(0, str(Path.cwd()))
    try:
        diagnosis = diagnose_designator(options.subject, options.timeout, options.seconds, options.device)
    except SubjectError as error:
        print(error, file=sys.stderr)
        return NOT_JUDGED
    held = f"{_held(diagnosis)}; that is no verdict: mdnc-spec run judges every clause"
    say("\n".join(map(hanging, diagnosis.lines())) or held)
    return CONFORMS if diagnosis.healthy else BROKEN


def _replay(options: argparse.Namespace) -> int:
    from spec_tests.replay import replay

    return replay(options.file, options.subject, options.timeout, options.layers)


def _matrix(options: argparse.Namespace) -> int:
    from spec_tests.report import matrix
    from spec_tests.report.files import write_all
    from spec_tests.report.model import merged, read

    try:
        reports = merged([read(path) for path in options.reports])
    except ValueError as error:
        print(f"mdnc-spec matrix: {error}", file=sys.stderr)
        return NOT_JUDGED
    say(matrix.markdown(reports))
    status = matrix.status(reports)
    if options.report is not None:
        try:
            write_all(options.report, {"matrix.md": matrix.markdown(reports), "matrix.html": matrix.html(reports)})
        except OSError as error:
            print(f"mdnc-spec matrix: {options.report} could not be written: {error}", file=sys.stderr)
            return status or NOT_JUDGED
    return status


def _merge(options: argparse.Namespace) -> int:
    from rich.console import Console

    from spec_tests.report.files import overwritten
    from spec_tests.report.model import differing, merged, read
    from spec_tests.report.terminal import show

    try:
        if options.report is not None and overwritten(options.report, options.reports):
            raise ValueError(f"argument --report: '{options.report}' is a report to merge; allowed is another folder")
        parts = [read(path) for path in options.reports]
        reports = merged(parts)
        if len(reports) != 1:
            whole = sum(part.shard is None for part in parts)
            apart = f"they differ in {differing(parts)}"
            due = f"{whole} of them had no --shard, and {'is' if whole == 1 else 'are'} whole" if whole else apart
            raise ValueError(
                f"these are {len(reports)} runs and must be the shards of one: {due}; matrix shows several"
            )
    except ValueError as error:
        print(f"mdnc-spec merge: {error}", file=sys.stderr)
        return NOT_JUDGED
    [report] = reports
    if options.known_failures is None:
        compared = known_failures.of_tests(report.verdict, report.known, report.differences)
    else:
        compared = known_failures.compare(options.known_failures, report.verdict)
    report = report.beside(compared)
    told, console = report.diagnosis, Console(highlight=False)
    with printing():
        show(report.verdict, report.subject, console, told.lines, compared, told.explained, options.unfolded)
    _note_known_failures(options, report.verdict, console)
    return report.exit_status if options.report is None else _write(report, options.report, console)


def _new_port(options: argparse.Namespace) -> int:
    from spec_tests.new_port import new_port

    try:
        say(new_port(options.language, options.folder))
    except OSError as error:
        print(f"mdnc-spec new-port: {error}", file=sys.stderr)
        return NOT_JUDGED
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "list": lambda options: _list(options.clause),
    "diagnose": _diagnose,
    "replay": _replay,
    "matrix": _matrix,
    "merge": _merge,
    "new-port": _new_port,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    open_streams()
    options = parser().parse_args(arguments)
    options.given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows ASCII only ends no run
            stream.reconfigure(errors="backslashreplace")
    try:
        status = COMMANDS[options.command](options)
        with printing():
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        drop_output()
        if not isinstance(error, BrokenPipeError):
            print(f"mdnc-spec {options.command}: {error}", file=sys.stderr)
        return NOT_JUDGED
    return status or (NOT_JUDGED if UNTOLD else CONFORMS)
